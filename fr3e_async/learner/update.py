"""One batch's update: minibatches, micro-batches in step over ranks, the proximal policy, what may go wrong.

Knows nothing of DeepSpeed beyond forward, backward and step, and nothing of checkpoints or Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fr3e_async.algorithm.losses import LossSums, policy_loss
from fr3e_async.config import LearnerConfig, LossConfig
from fr3e_async.learner.packing import DUMMY, MicroBatch, pack
from fr3e_async.types import TrainSample


class Engine(Protocol):
    """What the update needs of ``engine.TrainingEngine``."""

    grad_norm: float

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    def forward(self, tokens: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What the update did; every number is global over ranks."""

    sums: LossSums | None  # over all optimiser steps; None if there was nothing to train on
    grad_norms: tuple[float, ...]  # one for each optimiser step, before clipping
    lr: float  # of the last optimiser step; 0 without one
    padded_tokens: int  # places that went through the model in one epoch, over all ranks
    real_tokens: int  # of these, tokens of samples


class _Loaded:
    """A micro-batch on the device, and its proximal log-probs once they are known."""

    def __init__(self, batch: MicroBatch, device: torch.device) -> None:
        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        self.inputs = (tensor(batch.tokens), tensor(batch.rows), tensor(batch.targets))
        self.behaviour = tensor(batch.behaviour_logprobs)
        self.advantages = tensor(batch.advantages)
        self.mask = tensor(batch.mask)
        self.prox: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Minibatch:
    """One optimiser step of an epoch."""

    index: int
    tokens: int  # trainable, over all ranks
    parts: list[_Loaded]  # as many on every rank


def all_reduced(values: Tensor, op: dist.ReduceOp = dist.ReduceOp.SUM) -> Tensor:
    """``values`` reduced over the ranks; with one rank, itself."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values, op=op)
    return values


def split(samples: Sequence[TrainSample], learner: LearnerConfig) -> list[list[MicroBatch]]:
    """This rank's micro-batches of each minibatch.

    Raises:
        ValueError: a sample names a minibatch that does not exist, or is longer than a micro-batch.
    """
    parts: list[list[TrainSample]] = [[] for _ in range(learner.minibatches)]
    for sample in samples:
        if not 0 <= sample.minibatch < learner.minibatches:
            raise ValueError(f"a sample belongs to minibatch {sample.minibatch} of learner.minibatches={learner.minibatches}")
        parts[sample.minibatch].append(sample)
    return [pack(part, budget=learner.micro_batch_tokens) for part in parts]


class BatchUpdate:
    """The update of one batch on one rank. Every rank runs the same sequence of collectives whatever its share holds."""

    def __init__(self, engine: Engine, *, learner: LearnerConfig, loss: LossConfig, world: int, device: torch.device) -> None:
        self.engine, self.learner, self.loss, self.world, self.device = engine, learner, loss, world, device

    def run(self, samples: Sequence[TrainSample]) -> UpdateResult:
        """All epochs and minibatches over this rank's share.

        Raises:
            FloatingPointError: a loss or gradient norm that is not finite; names the optimiser step and the cause.
        """
        minibatches, padded, real = self._schedule(samples)
        self._set_prox(minibatches)
        sums: LossSums | None = None
        norms = []
        lr = 0.0
        for epoch in range(self.learner.epochs):
            for minibatch in minibatches:
                lr = self.engine.lr
                where = (
                    f"optimiser step {self.engine.steps + 1} (epoch {epoch + 1} of {self.learner.epochs}, "
                    f"minibatch {minibatch.index + 1} of {self.learner.minibatches}, {minibatch.tokens} tokens)"
                )
                step_sums = self._optimise(minibatch, where)
                sums = step_sums if sums is None else sums + step_sums
                norms.append(self.engine.grad_norm)
        return UpdateResult(sums=sums, grad_norms=tuple(norms), lr=lr, padded_tokens=padded, real_tokens=real)

    def _schedule(self, samples: Sequence[TrainSample]) -> tuple[list[_Minibatch], int, int]:
        """The minibatches that have tokens on any rank, and the global numbers of places and of sample tokens."""
        minibatches = split(samples, self.learner)
        trainable = [sum(batch.trainable for batch in part) for part in minibatches]
        places = sum(batch.tokens.size for part in minibatches for batch in part)
        sizes = torch.tensor([*trainable, places, sum(len(sample.tokens) for sample in samples)], device=self.device)
        *totals, padded, real = all_reduced(sizes).tolist()
        counts = torch.tensor([len(part) for part in minibatches], device=self.device)
        # Ranks with fewer micro-batches run dummies: under ZeRO-2 and 3 each backward pass is a collective.
        for part, count in zip(minibatches, all_reduced(counts, dist.ReduceOp.MAX).tolist(), strict=True):
            part += [DUMMY] * (count - len(part))
        active = [
            _Minibatch(index=index, tokens=total, parts=[_Loaded(batch, self.device) for batch in part])
            for index, (part, total) in enumerate(zip(minibatches, totals, strict=True))
            if total > 0
        ]
        return active, padded, real

    def _set_prox(self, minibatches: list[_Minibatch]) -> None:
        """Give every micro-batch its proximal log-probs, but for the first minibatch when they are recomputed.

        The policy that the first optimiser step differentiates *is* the proximal one: its own forward pass gives them.
        """
        if self.loss.prox == "behaviour":
            for minibatch in minibatches:
                for batch in minibatch.parts:
                    batch.prox = batch.behaviour
            return
        with torch.no_grad():
            for minibatch in minibatches[1:]:
                for batch in minibatch.parts:
                    batch.prox = self.engine.forward(*batch.inputs)[0]

    def _optimise(self, minibatch: _Minibatch, where: str) -> LossSums:
        """One optimiser step. Returns its sums over all ranks."""
        joined: list[LossSums] = []
        for batch in minibatch.parts:
            logprobs, entropies = self.engine.forward(*batch.inputs)
            if batch.prox is None:
                batch.prox = logprobs.detach()
            loss, part_sums = policy_loss(
                self.loss,
                logprobs_T=logprobs,
                prox_logprobs_T=batch.prox,
                behaviour_logprobs_T=batch.behaviour,
                advantages_T=batch.advantages,
                mask_T=batch.mask,
                total_tokens=minibatch.tokens,
                entropies_T=entropies,
            )
            self.engine.backward(loss * self.world)
            joined.append(part_sums)
        # Reduced before the check, so that either every rank goes on or every rank stops, none waiting for another.
        local = reduce(LossSums.__add__, joined)
        sums = LossSums.from_parts(all_reduced(local.additive()), all_reduced(local.ratio_max, dist.ReduceOp.MAX))
        require_finite(sums, where)
        try:
            self.engine.step()
        except FloatingPointError as error:
            raise FloatingPointError(f"{where}: {error}, though the loss is finite; the weights were not changed") from error
        return sums


def require_finite(sums: LossSums, where: str) -> None:
    """Raise ``FloatingPointError`` with the likeliest cause if any of the sums is not finite."""
    causes = (
        ("entropy", "the model's logits are not finite: its weights are broken or its precision overflows"),
        ("mismatch", "proximal or behaviour log-probs are not finite: the sampler's log-probs are broken"),
        ("ratio", "an importance ratio overflowed: the policy ran away from the proximal one; lower learner.lr"),
        ("kl", "a trained token became impossible: the policy ran away from the proximal one; lower learner.lr"),
        ("weight", "an importance weight overflowed; set loss.importance to truncate or mask"),
        ("loss", "the sum of token losses overflowed"),
    )
    for name, cause in causes:
        value = float(getattr(sums, name))
        if not np.isfinite(value):
            raise FloatingPointError(f"{where}: loss is {float(sums.loss)}: {cause} (sum of {name} is {value})")
