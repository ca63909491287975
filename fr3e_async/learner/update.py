"""One batch's update: minibatches, micro-batches in step over ranks, the proximal policy, what may go wrong.

Knows nothing of DeepSpeed beyond forward, backward and step, and nothing of checkpoints or Ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fr3e_async.algorithm.losses import LossSums, policy_loss
from fr3e_async.config import LearnerConfig, LossConfig
from fr3e_async.learner.dump import DumpedSample, FailedStep, likeliest
from fr3e_async.learner.layout import Inputs, Kernel
from fr3e_async.learner.packing import MicroBatch, dummy, pack
from fr3e_async.types import TrainSample

if TYPE_CHECKING:
    from fr3e_async.learner.critic import Critic

FEWEST_FRESH = 32  # tokens of age 0 that a mean is judged of


class UnsoundGradient(FloatingPointError):
    """The global gradient norm, ``norm``, is not finite or too large; the weights are those before the step, on every rank."""

    def __init__(self, norm: float, reason: str) -> None:
        super().__init__(reason)
        self.norm = norm


class UpdateEngine(Protocol):
    """What the update needs of ``engine.TrainingEngine``."""

    grad_norm: float

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]: ...
    def reference(self) -> AbstractContextManager[None]: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What an update did; every number is global over ranks."""

    sums: LossSums | None  # over all optimiser steps; None if there was nothing to train on
    grad_norms: tuple[float, ...]  # one for each optimiser step, before clipping
    lr: float  # of the last optimiser step; 0 without one
    padded_tokens: int  # slots that went through the model in one epoch, over all ranks
    computed_tokens: int  # of these, those that held a token
    real_tokens: int  # tokens of the samples: more than are computed where prefixes are shared
    critic: dict[str, float] = field(default_factory=dict)  # metrics of a critic


class LoadedBatch:
    """A micro-batch on the device, each column [N] as in ``MicroBatch``, and log-probs of proximal policy and reference once known."""

    values: Tensor  # of a critic at the start of the update
    returns: Tensor  # what they should be

    def __init__(self, batch: MicroBatch, *, version: int, device: torch.device, kernel: Kernel) -> None:
        """``version``: of the weights that the update starts from."""

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        self.batch = batch
        self.inputs = Inputs.of(batch, device, kernel=kernel)
        self.pick = tensor(batch.pick)
        self.behaviour = tensor(batch.behaviour_logprobs)
        self.advantages = tensor(batch.advantages)
        self.ages = tensor(version - batch.versions)
        self.sequences = tensor(batch.sequences)
        self.mask = tensor(batch.mask)
        self.prox: Tensor | None = None
        self.reference: Tensor | None = None
        self.imitation: Tensor | None = None

    def measured(self, forward: Callable[[Inputs], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Run ``forward`` on the P pairs: [N] log-probs and [N] entropies, nats, of the trained tokens under the current policy."""
        logprobs, entropies = forward(self.inputs)
        return logprobs[self.pick], entropies[self.pick]

    def loss(
        self, config: LossConfig, logprobs: Tensor, entropies: Tensor, *, total_tokens: int, total_completions: int
    ) -> tuple[Tensor, LossSums]:
        """The part of the loss that these tokens are, and its sums (``policy_loss``). The proximal log-probs must be known."""
        assert self.prox is not None
        return policy_loss(
            config,
            logprobs_T=logprobs,
            prox_logprobs_T=self.prox,
            behaviour_logprobs_T=self.behaviour,
            advantages_T=self.advantages,
            mask_T=self.mask,
            total_tokens=total_tokens,
            total_completions=total_completions,
            entropies_T=entropies,
            ages_T=self.ages,
            sequences_T=self.sequences,
            reference_logprobs_T=self.reference,
            imitation_T=self.imitation,
        )

    def share(self) -> Iterator[DumpedSample]:
        """The samples with their log-probs under proximal policy and reference (NaN where not known); none for a dummy."""
        if not self.batch.trainable:
            return
        unknown, nothing = torch.full_like(self.behaviour, torch.nan), torch.zeros_like(self.behaviour)
        ends = np.cumsum([len(sample.versions) for sample in self.batch.samples])[:-1]
        columns = [unknown if column is None else column for column in (self.prox, self.reference)]
        columns += [self.advantages, nothing if self.imitation is None else self.imitation]
        parts = [np.split(column.float().cpu().numpy(), ends) for column in columns]
        for sample, prox, reference, advantages, imitation in zip(self.batch.samples, *parts, strict=True):
            sample = replace(sample, advantages=advantages)
            yield DumpedSample(sample=sample, prox=prox, reference=reference, imitation=imitation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Minibatch:
    """One optimiser step of an epoch."""

    index: int
    tokens: int  # trainable, over all ranks
    completions: int  # over all ranks
    parts: list[LoadedBatch]  # as many on every rank


def all_reduced(values: Tensor, op: dist.ReduceOp = dist.ReduceOp.SUM) -> Tensor:
    """Reduce a tensor over the ranks, by default to its sum; with one rank it is returned itself. All ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values, op=op)
    return values


def split(samples: Sequence[TrainSample], learner: LearnerConfig) -> list[list[MicroBatch]]:
    """Pack this rank's samples: its micro-batches of each minibatch.

    Raises:
        ValueError: a sample names a minibatch that does not exist, or is longer than a micro-batch.
    """
    parts: list[list[TrainSample]] = [[] for _ in range(learner.minibatches)]
    for sample in samples:
        if not 0 <= sample.minibatch < learner.minibatches:
            raise ValueError(f"a sample belongs to minibatch {sample.minibatch} of learner.minibatches={learner.minibatches}")
        parts[sample.minibatch].append(sample)
    return [pack(part, packing=learner.packing, budget=learner.micro_batch_tokens) for part in parts]


class BatchUpdate:
    """The update of one batch on one rank. Every rank runs the same sequence of collectives whatever its share holds."""

    def __init__(
        self, engine: UpdateEngine, *, learner: LearnerConfig, loss: LossConfig, world: int, device: torch.device,
        critic: Critic | None = None,
    ) -> None:  # fmt: skip
        """``critic``: then the advantages of samples are their rewards, and the critic's are trained on."""
        self.engine, self.learner, self.loss, self.world, self.device, self.critic = engine, learner, loss, world, device, critic

    def run(self, samples: Sequence[TrainSample], *, version: int) -> UpdateResult:
        """Update on this rank's share, all epochs and minibatches, starting from the weights ``version``. All ranks.

        Raises:
            UnsoundStep: a loss, ratio or gradient that is not finite or explodes; names the optimiser step and the cause.
        """
        minibatches, slots = self._schedule(samples, version)
        critic = self.critic
        found = critic.credit(minibatches) if critic is not None else {}
        trains = critic is None or not critic.pretrains(version)
        if trains:
            self._set_reference(minibatches)
            self._set_prox(minibatches)
        sums: LossSums | None = None
        norms = []
        lr = 0.0
        for epoch in range(self.learner.epochs):
            for minibatch in minibatches:
                where = (
                    f"optimiser step {self.engine.steps + 1} (epoch {epoch + 1} of {self.learner.epochs}, "
                    f"minibatch {minibatch.index + 1} of {self.learner.minibatches}, {minibatch.tokens} tokens)"
                )
                if trains:
                    lr = self.engine.lr
                    step_sums = self._optimise(minibatch, where, version)
                    sums = step_sums if sums is None else sums + step_sums
                    norms.append(self.engine.grad_norm)
                if critic is not None:
                    found |= critic.optimise(minibatch, where)
        padded, computed, real = slots
        return UpdateResult(
            sums=sums, grad_norms=tuple(norms), lr=lr, padded_tokens=padded, computed_tokens=computed, real_tokens=real, critic=found
        )  # fmt: skip

    def _schedule(self, samples: Sequence[TrainSample], version: int) -> tuple[list[Minibatch], tuple[int, int, int]]:
        """Prepare the minibatches that have tokens on any rank; and global numbers: slots, filled ones, sample tokens."""
        minibatches = split(samples, self.learner)
        every = [batch for part in minibatches for batch in part]
        trainable = [sum(batch.trainable for batch in part) for part in minibatches]
        filled = sum(batch.computed for batch in every)
        completions = [sum(len(batch.samples) for batch in part) for part in minibatches]
        slots = sum(batch.tokens.size for batch in every)
        sizes = [*trainable, *completions, slots, filled, sum(len(sample.tokens) for sample in samples)]
        *totals, padded, computed, real = all_reduced(torch.tensor(sizes, device=self.device)).tolist()
        counts = torch.tensor([len(part) for part in minibatches], device=self.device)
        # Ranks with fewer micro-batches run dummies: under ZeRO-2 and 3 each backward pass is a collective.
        for part, count in zip(minibatches, all_reduced(counts, dist.ReduceOp.MAX).tolist(), strict=True):
            part += [dummy(self.learner.packing)] * (count - len(part))
        loading = {"version": version, "device": self.device, "kernel": self.learner.tree_attention}
        active = [
            Minibatch(
                index=index,
                tokens=totals[index],
                completions=totals[len(minibatches) + index],
                parts=[LoadedBatch(batch, **loading) for batch in part],
            )
            for index, part in enumerate(minibatches)
            if totals[index] > 0
        ]
        return active, (padded, computed, real)

    def _set_reference(self, minibatches: list[Minibatch]) -> None:
        """Give every micro-batch its log-probs under the reference, if there is one. All ranks."""
        if self.loss.reference_coef:
            with torch.no_grad(), self.engine.reference():
                for batch in (batch for minibatch in minibatches for batch in minibatch.parts):
                    batch.reference = batch.measured(self.engine.forward)[0]

    def _set_prox(self, minibatches: list[Minibatch]) -> None:
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
                    batch.prox = batch.measured(self.engine.forward)[0]

    def _optimise(self, minibatch: Minibatch, where: str, version: int) -> LossSums:
        """One optimiser step. Returns its sums over all ranks. Raises ``UnsoundStep``."""
        joined: list[LossSums] = []
        for batch in minibatch.parts:
            logprobs, entropies = batch.measured(self.engine.forward)
            if batch.prox is None:
                batch.prox = logprobs.detach()
            loss, part_sums = batch.loss(
                self.loss, logprobs, entropies, total_tokens=minibatch.tokens, total_completions=minibatch.completions
            )
            self.engine.backward(loss * self.world)
            joined.append(part_sums)
        # Reduced before the check, so that either every rank continues or every rank stops, none waiting for another.
        local = reduce(LossSums.__add__, joined)
        sums = LossSums(by_age=all_reduced(local.by_age), ratio_max=all_reduced(local.ratio_max, dist.ReduceOp.MAX))
        grad_norm, number = None, self.engine.steps + 1
        cause = unsound(sums, self.learner, prox=self.loss.prox)
        if not cause:
            try:
                self.engine.step()
            except UnsoundGradient as error:
                grad_norm, cause = error.norm, f"{error}, though the loss is finite; the weights were not changed"
        if cause:
            loss_value = sums.total("loss") / minibatch.tokens
            share = tuple(measured for batch in minibatch.parts for measured in batch.share())
            if cause == _mismatched(sums.bucket(0), self.learner, prox=self.loss.prox):
                cause += f"; the likeliest cause is {likeliest(share, version=version, bound=self.learner.stop_above_mismatch)}"
            raise UnsoundStep(
                FailedStep(
                    optimiser_step=number, where=where, cause=cause, version=version, total_tokens=minibatch.tokens, loss=loss_value,
                    grad_norm=grad_norm, share=share,
                )
            )  # fmt: skip
        return sums


class UnsoundStep(FloatingPointError):
    """An optimiser step that was not taken, on every rank alike."""

    def __init__(self, step: FailedStep) -> None:
        super().__init__(f"{step.where}: {step.cause}")
        self.step = step


def unsound_norm(norm: float, *, limit: float) -> str:
    """Say why this global gradient norm must not become an update; "" if it may. ``limit``: learner.stop_above_grad_norm."""
    if not math.isfinite(norm) or norm < 0:  # some of DeepSpeed's helpers report a norm that is not finite as -1
        return f"the gradient norm is {norm}"
    return f"the gradient norm is {norm:.6g} (learner.stop_above_grad_norm is {limit:g})" if 0 < limit < norm else ""


def unsound(sums: LossSums, learner: LearnerConfig, *, prox: str) -> str:
    """Say why these sums, over all ranks, must not become an update, by the likeliest cause; "" if they may.

    ``prox``: loss.prox. With ``behaviour`` ratios also hold how stale the samples are and how the engine's numbers differ from
    the learner's, so that a large one says nothing about this batch's steps.
    """
    causes = (
        ("entropy", "the model's logits are not finite: its weights are broken or its precision overflows"),
        ("mismatch", "proximal or behaviour log-probs are not finite: the sampler's log-probs are broken"),
        ("ratio", "an importance ratio overflowed: the policy ran away from the proximal one; lower learner.lr"),
        ("kl", "a trained token became impossible: the policy ran away from the proximal one; lower learner.lr"),
        (
            "reference_kl",
            "a trained token is impossible under the current policy or all but certain to the reference; lower learner.lr",
        ),
        ("weight", "an importance weight overflowed; set loss.importance to truncate or mask"),
        ("loss", "the sum of token losses overflowed"),
    )
    for name, cause in causes:
        value = sums.total(name)
        if not np.isfinite(value):
            return f"loss is {sums.total('loss')}: {cause} (sum of {name} is {value})"
    if cause := _mismatched(sums.bucket(0), learner, prox=prox):
        return cause
    largest = sums.largest_ratio
    if prox == "recompute" and learner.stop_above_ratio and largest > learner.stop_above_ratio:
        return (
            f"a token became {largest:.3g} times as likely as under the proximal policy: the policy ran away; lower learner.lr "
            f"(learner.stop_above_ratio is {learner.stop_above_ratio:g})"
        )
    return ""


def _mismatched(fresh: LossSums, learner: LearnerConfig, *, prox: str) -> str:
    """Tokens of age 0 were sampled by the weights that the proximal log-probs are of: only rounding may tell them apart."""
    tokens, limit = fresh.total("tokens"), learner.stop_above_mismatch
    if prox != "recompute" or not limit or tokens < FEWEST_FRESH or fresh.mean("mismatch") <= limit:
        return ""
    return (
        f"log-probs of {tokens:.0f} tokens sampled by these very weights differ by {fresh.mean('mismatch'):.3g} nats from the "
        f"learner's on average (learner.stop_above_mismatch is {limit:g} for these types)"
    )
