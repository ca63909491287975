"""The policy: any Hugging Face causal language model, asked for the log-probs of given tokens only.

Knows nothing of DeepSpeed or losses. The vocabulary projection runs on the places that are asked for; for contexts,
which carry no loss, it is never computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from fr3e_async.errors import ModelError
from fr3e_async.learner.logprobs import token_logprobs
from fr3e_async.learner.spec import LearnerSpec


class PolicyModel(nn.Module):
    """The model as the engine trains it: ``forward(tokens, rows, targets) -> (logprobs, entropies)``."""

    def __init__(self, causal_lm: nn.Module, *, temperature: float) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.temperature = temperature
        self._rows: Tensor | None = None
        head = causal_lm.get_output_embeddings()
        if head is None:
            raise ModelError("model.path: this model has no output embeddings; a causal language model is needed")
        # A hook on the projection, and not a projection of our own, keeps what a model does to its logits afterwards
        # (soft caps, scales), and the order of modules that ZeRO-3 fetches by.
        head.register_forward_pre_hook(self._select)

    def _select(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._rows is None:
            return inputs
        hidden = inputs[0]  # [B, P, hidden]
        return (hidden.flatten(0, 1)[self._rows][None], *inputs[1:])

    def forward(self, tokens: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """[B, P], [N], [N] → log-probs and entropies of the targets, [N] each, nats, at the sampling temperature."""
        self._rows = rows
        logits = self.causal_lm(input_ids=tokens, use_cache=False).logits
        self._rows = None
        return token_logprobs(logits[0], targets, temperature=self.temperature)

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by their Hugging Face names; tied ones once, under the first name (lm_head is left out)."""
        return self.causal_lm.named_parameters()


def hub_options(spec: LearnerSpec) -> dict[str, Any]:
    return {"revision": spec.revision or None, "trust_remote_code": spec.trust_remote_code}


def load_policy(spec: LearnerSpec) -> PolicyModel:
    """Read the model from disk or hub, in training precision, with dropout off (it would bias every ratio)."""
    if not spec.verbose:
        transformers_logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(spec.path, **hub_options(spec))
    for name, value in list(config.to_dict().items()):
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)
    causal_lm = AutoModelForCausalLM.from_pretrained(
        spec.path,
        config=config,
        dtype=getattr(torch, spec.learner.dtype),
        attn_implementation=spec.learner.attention,
        use_safetensors=True,  # other formats are pickles, which can carry code
        **hub_options(spec),
    )
    if spec.learner.activation_checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return PolicyModel(causal_lm, temperature=spec.temperature)


def save_pretrained(model: PolicyModel, spec: LearnerSpec, weights: dict[str, Tensor], folder: Path) -> None:
    """Write a folder that transformers and vLLM load: these weights, the config and the tokenizer of ``spec.path``."""
    model.causal_lm.save_pretrained(folder, state_dict=weights)
    AutoTokenizer.from_pretrained(spec.path, **hub_options(spec)).save_pretrained(folder)
