"""One forward and backward pass over the same samples, in several ways; each way in a process of its own.

``padded`` is the loop that people write with transformers and torch alone; the packed ways go the learner's path: plan,
collate, inputs and layout from numpy, ``PolicyModel``, ``policy_loss``, backward; ``dense`` is the bare model at its best.
Knows nothing of rounds and tables.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from groups import load_samples
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig, Qwen2Config, Qwen2ForCausalLM

from fr3e_async.algorithm.losses import policy_loss
from fr3e_async.config import LossConfig
from fr3e_async.data.toy.tokenizer import build_tokenizer
from fr3e_async.data.toy.warm_start import build_model as build_toy
from fr3e_async.learner.layout import Inputs
from fr3e_async.learner.logprobs import HeadOptions, head_logprobs
from fr3e_async.learner.packing import Packing, collate, first_fit, plan
from fr3e_async.learner.policy import PolicyModel
from fr3e_async.learner.suitability import set_attention
from fr3e_async.types import TrainSample

CPU = torch.device("cpu")
LOSS = LossConfig()
MIB = 1 << 20

# Layout of each packed way, and whether prefixes are shared.
PACKED: dict[str, tuple[Packing, bool]] = {
    "flat": ("flat", False),
    "flat, our attention": ("tree", False),
    "tree": ("tree", True),
}
WAYS = ("padded", *PACKED, "dense")
# By every process: what takes long to load, and is found without this folder, which Python 3.11's server of forks does not know.
LOADED_ONCE = ["torch", "transformers.models.qwen2.modeling_qwen2", "fr3e_async.learner.policy", "fr3e_async.data.toy.warm_start"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model with random weights and recorded groups for it. ``sizes`` None: the toy model's architecture."""

    name: str
    groups: tuple[int, ...]
    budget: int  # slots in one micro-batch
    rounds: int
    sizes: dict[str, Any] | None = None
    stretch: int = 1
    apart: bool = False

    def samples(self) -> list[TrainSample]:
        if self.sizes is None:
            return load_samples(groups=self.groups)
        return load_samples(groups=self.groups, stretch=self.stretch, vocabulary=self.sizes["vocab_size"], apart=self.apart)

    def build(self) -> Qwen2ForCausalLM:
        torch.manual_seed(0)
        if self.sizes is None:
            return build_toy(build_tokenizer())
        return Qwen2ForCausalLM(Qwen2Config(**self.sizes, tie_word_embeddings=True, max_position_embeddings=4096))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a pass goes through: slots of the body, of the head, and pairs of a query and a key that it sees."""

    slots: int
    head_slots: int
    pairs: int


def flops(config: PreTrainedConfig, work: Work) -> float:
    """Floating-point operations of a forward and a backward pass.

    Two for each multiply-add, and three times the forward pass: every product has two in the backward pass. With h hidden, f
    inner and L layers, a = heads · head size and k = key heads · head size::

        6 · slots · L · (2ha + 2hk + 3hf)  +  6 · head slots · h · vocabulary  +  12 · pairs · L · a

    Norms, rotations, softmax and what is computed again or for nothing (padding within attention) do not count.
    """
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_size, config.num_key_value_heads * head_size
    layer = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    body = work.slots * config.num_hidden_layers * layer
    head = work.head_slots * config.hidden_size * config.vocab_size
    return 6.0 * (body + head) + 12.0 * work.pairs * config.num_hidden_layers * queries


def triangle(length: int) -> int:
    """Pairs of one row."""
    return length * (length + 1) // 2


# ---- the passes: each gives the loss and what it went through ----


def padded_pass(model: nn.Module, samples: Sequence[TrainSample], *, budget: int) -> tuple[float, Work]:
    """Rows by length, each micro-batch padded to its longest. The same loss as ours, and the entropies for the metrics."""
    loss, slots, total = 0.0, 0, sum(len(sample.versions) for sample in samples)
    for part in first_fit([len(sample.tokens) for sample in samples], padded=True, budget=budget):
        rows = padded_rows([samples[i] for i in part])
        slots += rows["tokens"].numel()
        out = model(input_ids=rows["tokens"], attention_mask=rows["real"], use_cache=False)
        log_p = torch.log_softmax(out.logits[:, :-1], dim=-1)
        own = log_p.gather(-1, rows["tokens"][:, 1:, None]).squeeze(-1)
        with torch.no_grad():
            (-(log_p.exp() * log_p).sum(-1) * rows["mask"]).sum()
        ratio = torch.exp(own - own.detach())
        weight = torch.exp(own.detach() - rows["behaviour"]).clamp(max=LOSS.importance_cap)
        advantage = rows["advantages"]
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - LOSS.clip_low, 1 + LOSS.clip_high) * advantage)
        part_loss = -(weight * gain * rows["mask"]).sum() / total
        part_loss.backward()
        loss += part_loss.item()
    return loss, Work(slots=slots, head_slots=slots, pairs=sum(triangle(len(sample.tokens)) for sample in samples))


def padded_rows(samples: Sequence[TrainSample]) -> dict[str, Tensor]:
    """[n, W] tokens and which are real; [n, W - 1] what belongs to each token but the first."""
    shape = (len(samples), max(len(sample.tokens) for sample in samples))
    tokens, real = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    behaviour, advantages, mask = (np.zeros((shape[0], shape[1] - 1), dtype=np.float32) for _ in range(3))
    for i, sample in enumerate(samples):
        size, trained = len(sample.tokens), slice(sample.context_len - 1, len(sample.tokens) - 1)
        tokens[i, :size], real[i, :size] = sample.tokens, 1
        behaviour[i, trained], advantages[i, trained], mask[i, trained] = sample.behaviour_logprobs, sample.advantages, 1
    arrays = {"tokens": tokens, "real": real, "behaviour": behaviour, "advantages": advantages, "mask": mask}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def packed_pass(
    model: PolicyModel, samples: Sequence[TrainSample], *, packing: Packing, share: bool, budget: int
) -> tuple[float, Work]:
    """As ``learner.update`` does it, with the proximal policy the one that is differentiated."""
    loss, slots, head_slots, pairs = 0.0, 0, 0, 0
    total = sum(len(sample.versions) for sample in samples)
    lengths = [len(sample.tokens) for sample in samples]
    parts = plan(samples, packing=packing, budget=budget) if share else first_fit(lengths, padded=False, budget=budget)
    for part in parts:
        batch = collate([samples[i] for i in part], packing=packing, share=share)
        pick = torch.from_numpy(batch.pick)
        logprobs, entropies = (values[pick] for values in model(Inputs.of(batch, CPU)))
        part_loss, _ = policy_loss(
            LOSS,
            logprobs_T=logprobs,
            prox_logprobs_T=logprobs.detach(),
            behaviour_logprobs_T=torch.from_numpy(batch.behaviour_logprobs),
            advantages_T=torch.from_numpy(batch.advantages),
            mask_T=torch.from_numpy(batch.mask),
            total_tokens=total,
            entropies_T=entropies,
            ages_T=torch.from_numpy(-batch.versions),
            sequences_T=torch.from_numpy(batch.sequences),
        )
        part_loss.backward()
        loss += part_loss.item()
        slots += batch.tokens.size
        head_slots += len(batch.rows)
        pairs += sum(triangle(lengths[i]) for i in part) if batch.forest is None else int((batch.forest.depth + 1).sum())
    return loss, Work(slots=slots, head_slots=head_slots, pairs=pairs)


def dense_pass(model: nn.Module, rows: Tensor, *, budget: int) -> tuple[float, Work]:
    """[n, W] rows of one length, a loss on every token: nothing is padded, masked or looked up."""
    loss = 0.0
    for part in rows.split(max(1, budget // rows.shape[1])):
        logits = model(input_ids=part, use_cache=False).logits
        part_loss = cross_entropy(logits.flatten(0, 1), part.flatten(), reduction="sum") / rows.numel()
        part_loss.backward()
        loss += part_loss.item()
    return loss, Work(slots=rows.numel(), head_slots=rows.numel(), pairs=len(rows) * triangle(rows.shape[1]))


def dense_rows(samples: Sequence[TrainSample], *, vocabulary: int, budget: int) -> Tensor:
    """Rows of the samples' mean length, about as many tokens as the tree has slots."""
    parts = plan(samples, packing="tree", budget=budget)
    slots = sum(collate([samples[i] for i in part], packing="tree").computed for part in parts)
    width = round(float(np.mean([len(sample.tokens) for sample in samples])))
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, vocabulary, (max(1, round(slots / width)), width)))


def pass_of(way: str, case: Case, model: nn.Module) -> Callable[[], tuple[float, Work]]:
    """A way over the case's samples. Gradients are added to those that the model has."""
    samples = case.samples()
    if way == "padded":
        return lambda: padded_pass(model, samples, budget=case.budget)
    if way == "dense":
        rows = dense_rows(samples, vocabulary=model.config.vocab_size, budget=case.budget)
        return lambda: dense_pass(model, rows, budget=case.budget)
    packing, share = PACKED[way]
    policy = PolicyModel(model, options=HeadOptions())
    set_attention(policy, packing)
    return lambda: packed_pass(policy, samples, packing=packing, share=share, budget=case.budget)


# ---- processes ----


def memory_mib(name: str) -> float:
    """Of this process: "VmRSS" as it is, "VmHWM" the most since ``forget_peak``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


_model: nn.Module | None = None
_pass: Callable[[], tuple[float, Work]] | None = None
_baseline_mib = 0.0


def start(case: Case, way: str, threads: int) -> None:
    """Build the model and then its gradients, which count as the pass's memory."""
    global _model, _pass, _baseline_mib
    torch.set_num_threads(threads)
    _model = case.build().eval()
    _model(input_ids=torch.zeros(1, 32, dtype=torch.int64), use_cache=False).logits.sum().backward()  # kernels are made once
    _model.zero_grad()
    _pass = pass_of(way, case, _model)
    _baseline_mib = memory_mib("VmRSS")
    forget_peak()
    clear_gradients(_model)


def clear_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def once() -> dict[str, float]:
    """One pass of this process's way."""
    assert _model is not None
    assert _pass is not None
    clear_gradients(_model)
    started, cpu = time.perf_counter(), time.process_time()
    loss, work = _pass()
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    squares = [parameter.grad.double().square().sum() for parameter in _model.parameters() if parameter.grad is not None]
    return {
        "seconds": seconds,
        "cores": cpu_s / seconds,
        "loss": loss,
        "grad_norm": math.sqrt(float(torch.stack(squares).sum())),
        "slots": work.slots,
        "gflop": flops(_model.config, work) / 1e9,
        "peak_mib": memory_mib("VmHWM") - _baseline_mib,
    }


class Worker:
    """A process of its own with one model and one way."""

    def __init__(self, initializer: Callable[..., None], *args: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LOADED_ONCE)
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=initializer, initargs=args)

    def __call__(self, task: Callable[..., Any], *args: Any) -> Any:
        return self._pool.submit(task, *args).result()

    def close(self) -> None:
        self._pool.shutdown()


# ---- the head alone ----


def head_pass(kept_mib: float | None, *, positions: int, hidden: int, vocabulary: int) -> dict[str, float]:
    """Log-probs and entropies of random states, and the gradients of the mean log-prob. ``kept_mib`` None: the naive way."""
    torch.manual_seed(0)
    weight = (0.02 * torch.randn(vocabulary, hidden)).requires_grad_()
    states = torch.randn(positions, hidden, requires_grad=True)
    targets = torch.randint(0, vocabulary, (positions,))
    baseline = memory_mib("VmRSS")
    forget_peak()
    started = time.perf_counter()
    if kept_mib is None:
        log_p = torch.log_softmax(nn.functional.linear(states, weight), dim=-1)
        own = log_p.gather(-1, targets[:, None]).squeeze(-1)
        with torch.no_grad():
            entropies = -(log_p.exp() * log_p).sum(-1)
    else:
        own, entropies = head_logprobs(states, weight, None, targets, options=HeadOptions(kept_mib=kept_mib))
    own.mean().backward()
    assert states.grad is not None
    return {
        "seconds": time.perf_counter() - started,
        "peak_mib": memory_mib("VmHWM") - baseline,
        "logprob": float(own.detach().mean()),
        "entropy": float(entropies.mean()),
        "grad_norm": float(states.grad.norm()),
    }
