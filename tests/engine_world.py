"""What the tests of the real engine stand on: a tiny random model, and an engine beside the weights it should serve."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from bundles import pack_tensors

from fr3e_async.rollout import EngineSpec, SampleRequest
from fr3e_async.testing.engine import all_of
from fr3e_async.types import Completion
from fr3e_async.weights.manifest import WeightBundle

END = 2
VOCABULARY = 100
TOLERANCE = 1e-4


def build_model(folder: Path, *, tied: bool) -> Any:
    """A random Qwen2, saved to the folder. Uneven weights: its distributions are far from uniform, its biases not 0."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1 + tied)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=256, tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    """One word for each token, for those who start an engine as an actor."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{END}", pad_token="w0").save_pretrained(folder)


def core_below(pid: int) -> int:
    """Process id of the core of the engine that a process holds."""
    below = psutil.Process(pid).children(recursive=True)
    (core,) = (child for child in below if "EngineCore" in " ".join(child.cmdline()))
    return core.pid


@dataclass
class World:
    """An engine, the model it should serve, and the weights of every version that it has served."""

    runner: asyncio.Runner
    engine: Any
    model: Any
    spec: EngineSpec
    version: int = 0
    history: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    serial: int = 0

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def request(self, *context: int, **settings: Any) -> SampleRequest:
        self.serial += 1
        settings = {"max_tokens": 24} | settings
        return SampleRequest(request_id=f"r{self.serial}", context=np.array(context, dtype=np.int32), **settings)

    def sample(self, *requests: SampleRequest) -> list[Completion]:
        return self.run(all_of(self.engine, requests))

    def next_bundle(self, change: str = "") -> WeightBundle:
        """Disturb the model (all weights, or those whose name contains ``change``) and pack it as the next version."""
        self.version += 1
        generator = torch.Generator().manual_seed(self.version)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if change in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        self.remember()
        return pack_tensors(self.model.named_parameters(), version=self.version)

    def remember(self) -> None:
        self.history[self.version] = {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def logits(self, request: SampleRequest, completion: Completion, version: int) -> torch.Tensor:
        """[L, V] what transformers predicts at each token of the completion, under a version's weights."""
        ids = torch.tensor([[*request.context.tolist(), *completion.tokens.tolist()]])
        with torch.no_grad():
            out = torch.func.functional_call(self.model, self.history[version], (ids,), {"use_cache": False})
        return out.logits[0, len(request.context) - 1 : -1]

    def error(self, request: SampleRequest, completion: Completion) -> float:
        """Largest difference of log-probs and entropies from transformers, each token under the version it names.

        Of both distributions, where the raw one was measured.
        """
        worst = 0.0
        for version in np.unique(completion.versions):
            mine = completion.versions == version
            for exact, found in self.columns(request, completion, int(version)):
                worst = max(worst, np.abs(exact - found)[mine].max())
        return worst

    def columns(self, request: SampleRequest, completion: Completion, version: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """[L] pairs of what transformers says under a version's weights and what the completion says."""
        logits = self.logits(request, completion, version)
        pairs = list(
            zip(
                expected(sampling_logprobs(logits, request), completion), (completion.logprobs, completion.entropies), strict=True
            )
        )
        if completion.raw_logprobs is not None:
            found = (completion.raw_logprobs, completion.raw_entropies)
            pairs += zip(expected(logits.log_softmax(-1), completion), found, strict=True)
        return pairs


def expected(logprobs: torch.Tensor, completion: Completion) -> tuple[np.ndarray, np.ndarray]:
    """([L] log-probs of the completion's tokens, [L] entropies) of [L, V] log-probs."""
    picked = logprobs.gather(-1, torch.from_numpy(completion.tokens).long()[:, None])[:, 0]
    return picked.numpy(), torch.distributions.Categorical(logits=logprobs).entropy().numpy()


def sampling_logprobs(logits: torch.Tensor, request: SampleRequest) -> torch.Tensor:
    """[L, V] log-probs after temperature, top-k and top-p; greedy: at temperature 1."""
    logits = logits / (request.temperature or 1.0)
    if request.top_k:
        least = logits.topk(request.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if request.top_p < 1:
        ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= request.top_p  # the mass before the token already suffices
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    return logits.log_softmax(-1)


def core_of(world: World) -> int:
    """Process id of the engine's core."""
    (process,) = world.engine.llm.engine_core.resources.engine_manager.processes
    return process.pid
