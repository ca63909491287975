"""The policy: any Hugging Face causal language model, asked for the log-probs of given tokens only.

Knows nothing of DeepSpeed or losses. The vocabulary projection runs on the slots that are asked for, a slice at a time;
for contexts, which carry no loss, it is never computed. ``entropies`` are for
engines that cannot give them, ``distributions`` for the comparison of engines with the learner: every rank runs the same number of forward
passes, since under ZeRO-3 each is a collective.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from fr3e_async.config import LearnerConfig
from fr3e_async.errors import ModelError
from fr3e_async.learner.layout import Inputs
from fr3e_async.learner.logprobs import HeadOptions, head_logprobs, model_logits
from fr3e_async.learner.packing import collate, dummy, plan, unscored
from fr3e_async.learner.spec import LearnerSpec
from fr3e_async.learner.update import UpdateEngine, all_reduced
from fr3e_async.types import TrainSample


class PolicyModel(nn.Module):
    """The model as the engine trains it: ``forward(inputs) -> (logprobs, entropies)``."""

    def __init__(self, causal_lm: nn.Module, *, options: HeadOptions) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.options = replace(options, **after_projection(causal_lm.config.get_text_config()))
        self._wanted: tuple[Tensor, Tensor] | None = None
        self._whole = False
        head = causal_lm.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ModelError("model.path: this model has no linear output embeddings; a causal language model is needed")
        # The projection's own module is called, once a pass, so that ZeRO-3 fetches its weight and lets go of it again.
        self._head, head.forward = [head], self._project  # in a list: a module's attribute would be a second parent

    def _project(self, hidden: Tensor) -> Tensor:
        """[B, W, h] → [2, P] log-probs and entropies of what is wanted, or of a critic its values twice, or the plain projection."""
        head = self._head[0]
        if self._wanted is None:
            return linear(hidden, head.weight, head.bias)
        rows, targets = self._wanted
        chosen = hidden.flatten(0, 1).index_select(0, rows)
        if head.out_features == 1:
            return linear(chosen, head.weight, head.bias).float().view(-1).expand(2, -1)
        if self._whole:
            logits = model_logits(linear(chosen, head.weight, head.bias).float(), self.options)
            return torch.log_softmax(logits / self.options.temperature, dim=-1).expand(2, -1, -1)
        return torch.stack(head_logprobs(chosen, head.weight, head.bias, targets, options=self.options))

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the P pairs, [P] each, nats, at the sampling temperature."""
        mask = {} if inputs.layout is None else {"forest_mask": inputs.layout.mask(self.causal_lm.dtype)}
        self._wanted = (inputs.rows, inputs.targets)
        found: list[Tensor] = []
        # Taken before the model changes them as if they were logits; and as the last hook, after those of ZeRO-3.
        hook = self._head[0].register_forward_hook(lambda _module, _inputs, out: found.append(out))
        try:
            self.causal_lm(input_ids=inputs.tokens, position_ids=inputs.positions, use_cache=False, **mask)
        finally:
            self._wanted = None
            hook.remove()
        (out,) = found
        return out[0], out[1]

    @contextmanager
    def whole_distributions(self) -> Iterator[None]:
        """Within the block ``forward`` returns the [P, V] float32 log-probs of every token of the vocabulary, twice, not its two columns."""
        self._whole = True
        try:
            yield
        finally:
            self._whole = False

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by their Hugging Face names; tied ones once, under the first name (lm_head is left out)."""
        return self.causal_lm.named_parameters()


def after_projection(config: Any) -> dict[str, float]:
    """Read the ``scale`` and ``cap`` of ``HeadOptions`` from a model's config. ``suitability`` checks that the model does no more."""
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere's
    return {
        "scale": scale / (getattr(config, "logits_scaling", None) or 1.0),  # Granite's
        "cap": getattr(config, "final_logit_softcapping", None) or 0.0,  # Gemma's
    }


def hub_options(spec: LearnerSpec) -> dict[str, Any]:
    return {"revision": spec.revision or None, "trust_remote_code": spec.trust_remote_code}


def set_value_head(causal_lm: nn.Module) -> None:
    """Put a scalar head in place of the output embeddings. It begins with values of 0, whatever the seed."""
    old = causal_lm.get_output_embeddings()
    if not isinstance(old, nn.Linear):
        raise ModelError("model.path: this model has no linear output embeddings; a causal language model is needed")
    head = nn.Linear(old.in_features, 1, device=old.weight.device, dtype=old.weight.dtype)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    causal_lm.config.tie_word_embeddings = False
    causal_lm.set_output_embeddings(head)


def load_policy(spec: LearnerSpec, *, critic: bool = False) -> PolicyModel:
    """Read the model from disk or hub, in training precision, with dropout off (it would bias every ratio).

    ``suitability`` then tells whether it can be trained in a layout. ``critic``: with a scalar head, for values.

    Raises:
        ModelError: it is no causal language model.
    """
    if not spec.verbose:
        transformers_logging.disable_progress_bar()
    learner = spec.learner
    config = AutoConfig.from_pretrained(spec.path, **hub_options(spec))
    for name, value in spec.overrides.items():
        setattr(config, name, value)
    for name, value in list(config.to_dict().items()):
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)
    causal_lm = AutoModelForCausalLM.from_pretrained(
        spec.path,
        config=config,
        dtype=getattr(torch, learner.dtype),
        attn_implementation=learner.attention,
        use_safetensors=True,  # other formats are pickles, which can carry code
        **hub_options(spec),
    )
    if critic:
        set_value_head(causal_lm)
    model = PolicyModel(causal_lm, options=HeadOptions(temperature=spec.temperature, kept_mib=learner.logits_mib))
    if learner.activation_checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        causal_lm.train()  # transformers recomputes in training mode only; dropout is off all the same
    return model


@torch.no_grad()
def entropies(
    engine: UpdateEngine, samples: Sequence[TrainSample], *, learner: LearnerConfig, device: torch.device
) -> list[NDArray[np.float32]]:
    """Compute the exact entropies [L], nats, at the sampling temperature, of each sample of this rank. All ranks.

    A rank with fewer micro-batches runs dummies beside the others.
    """
    packing = learner.packing
    parts = plan(samples, packing=packing, budget=learner.micro_batch_tokens) if samples else []
    rounds = int(all_reduced(torch.tensor(len(parts), device=device), dist.ReduceOp.MAX))
    found: dict[int, NDArray[np.float32]] = {}
    for part in [*parts, *[[]] * (rounds - len(parts))]:
        batch = collate([samples[i] for i in part], packing=packing) if part else dummy(packing)
        flat = engine.forward(Inputs.of(batch, device, kernel=learner.tree_attention))[1].float().cpu().numpy()[batch.pick]
        ends = np.cumsum([len(samples[i].versions) for i in part])
        found |= dict(zip(part, np.split(flat, ends[:-1]), strict=True)) if part else {}
    return [found[i] for i in range(len(samples))]


@torch.no_grad()
def distributions(
    engine: UpdateEngine, model: PolicyModel, rows: Sequence[NDArray[np.int32]], *, learner: LearnerConfig, device: torch.device
) -> NDArray[np.float32]:
    """Compute [rows, V] float32 log-probs, nats, of the token after each row, at the sampling temperature, in the layout that trains.

    One forward pass, the same on every rank.
    """
    anything = np.zeros(1, dtype=np.int32)
    batch = collate([unscored(row, anything) for row in rows], packing=learner.packing)
    with model.whole_distributions():
        found = engine.forward(Inputs.of(batch, device, kernel=learner.tree_attention))[0]
    return found[torch.from_numpy(batch.pick).to(device)].cpu().numpy()
