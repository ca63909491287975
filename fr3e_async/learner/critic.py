"""A critic beside the policy in each rank: it values states, forms advantages from the values, and trains on their returns.

Its model is the policy's architecture with a scalar head, in a training engine of its own (``policy.load_policy``). It shares the
policy's micro-batches, so a prefix that several completions share is computed once here, too. Values are always those of the critic's
weights at the start of an update, whatever version sampled a token. Knows nothing of DeepSpeed, strategies or checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fr3e_async.algorithm.losses import value_loss
from fr3e_async.algorithm.values import gae, length_lambdas
from fr3e_async.config import CriticConfig
from fr3e_async.learner.packing import MicroBatch
from fr3e_async.learner.update import Minibatch, UnsoundGradient, all_reduced

if TYPE_CHECKING:
    from fr3e_async.learner.engine import TrainingEngine

QUARTERS = 4  # parts of a response for which explained variance is reported


class Critic:
    """Credits and is trained on the minibatches of one update. All ranks call each method together."""

    def __init__(self, engine: TrainingEngine, config: CriticConfig, *, world: int, device: torch.device) -> None:
        self.engine, self.config = engine, config
        self._world, self._device = world, device

    def pretrains(self, version: int) -> bool:
        """Whether the update that starts from the weights ``version`` trains the critic alone."""
        return version < self.config.pretrain_batches

    @torch.no_grad()
    def credit(self, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        """Give every micro-batch its values, returns and advantages; return how well the values predict the rewards, as metrics."""
        sums = np.zeros((QUARTERS, len(_SUMS)))
        for minibatch in minibatches:
            rewards = [np.array([sample.advantages[-1] for sample in part.batch.samples]) for part in minibatch.parts]
            imitable = [np.repeat(r >= 1, _lengths(part.batch)) for r, part in zip(rewards, minibatch.parts, strict=True)]
            correct = sum(int((mine & part.batch.mask).sum()) for mine, part in zip(imitable, minibatch.parts, strict=True))
            weight = self.config.positive_coef * minibatch.tokens / max(1, self._total(correct))
            for part, reward, imitated in zip(minibatch.parts, rewards, imitable, strict=True):
                values = part.measured(self.engine.forward)[0].double().cpu().numpy()
                returns, advantages = self._credit(part.batch, reward, values)
                columns = (values, returns, advantages, imitated * weight)
                part.values, part.returns, part.advantages, imitation = map(self._loaded, columns)
                part.imitation = imitation if self.config.positive_coef else None
                sums += _sums(part.batch, reward, values)
        return _explained(all_reduced(torch.from_numpy(sums).to(self._device)).cpu().numpy())

    def _credit(
        self, batch: MicroBatch, rewards: NDArray[np.floating], values: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute [N] returns, the targets of the values, and [N] advantages of the policy: GAE, each with its own λ."""
        lengths, c = _lengths(batch), self.config
        lambdas = length_lambdas(lengths, c.length_alpha) if c.length_alpha else np.full(len(lengths), c.policy_lambda)
        returns = values + gae(rewards, values, lengths, np.full(len(lengths), c.value_lambda))
        return returns, gae(rewards, values, lengths, lambdas)

    def optimise(self, minibatch: Minibatch, where: str) -> dict[str, float]:
        """One optimiser step of the value loss; its metrics. Raises ``FloatingPointError``: the critic's weights are as before."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        for part in minibatch.parts:
            loss, stopped = value_loss(
                part.measured(self.engine.forward)[0], former_T=part.values, returns_T=part.returns, mask_T=part.mask,
                clip=self.config.value_clip, total_tokens=minibatch.tokens,
            )  # fmt: skip
            self.engine.backward(loss * self._world)
            sums += torch.stack([loss.detach().double(), stopped.sum() / minibatch.tokens])
        try:
            self.engine.step()
        except UnsoundGradient as error:
            raise FloatingPointError(f"{where}: of the critic {error}; lower critic.lr") from error
        loss_mean, stopped_fraction = all_reduced(sums).tolist()
        return {
            "critic/loss": loss_mean, "critic/clip_fraction": stopped_fraction, "critic/grad_norm": self.engine.grad_norm
        }  # fmt: skip

    def _loaded(self, column: NDArray[np.floating]) -> Tensor:
        return torch.from_numpy(column.astype(np.float32)).to(self._device)

    def _total(self, count: int) -> int:
        return int(all_reduced(torch.tensor(count, device=self._device)))


def _lengths(batch: MicroBatch) -> NDArray[np.int64]:
    return np.array([len(sample.versions) for sample in batch.samples])


_SUMS = ("tokens", "rewards", "squares", "errors", "values")  # over the tokens of a quarter: 1, r, r², (r − V)², V


def _sums(batch: MicroBatch, rewards: NDArray[np.floating], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[QUARTERS, _SUMS] of a micro-batch; zeros of a dummy."""
    lengths = _lengths(batch)
    quarters = np.concatenate([QUARTERS * np.arange(length) // length for length in lengths])
    r = np.repeat(rewards, lengths)
    columns = np.stack([np.ones(len(r)), r, r**2, (r - values) ** 2, values], axis=1)
    sums = np.zeros((QUARTERS, len(_SUMS)))
    np.add.at(sums, quarters[batch.mask], columns[batch.mask])
    return sums


def _explained(sums: NDArray[np.float64]) -> dict[str, float]:
    """1 − Σ(r − V)² / Σ(r − mean r)², of all tokens and by quarter of the response; absent where all rewards are alike."""
    parts = {"": sums.sum(axis=0), **dict(zip(("_q1", "_q2", "_q3", "_q4"), sums, strict=True))}
    metrics = {}
    for label, (tokens, rewards, squares, errors, values) in parts.items():
        spread = squares - rewards**2 / tokens if tokens else 0.0
        if spread > 1e-9 * tokens:
            metrics[f"critic/explained_variance{label}"] = float(1 - errors / spread)
        if tokens and not label:
            metrics["critic/value_mean"] = float(values / tokens)
    return metrics
