"""The registry of strategies: a new one is a file beside this and a line here."""

from __future__ import annotations

from collections.abc import Callable

from fr3e_async.algorithm.strategies.base import Credit, GroupOutcome, Strategy
from fr3e_async.algorithm.strategies.flat import Grpo, Rloo
from fr3e_async.algorithm.strategies.fr3e import Fr3e
from fr3e_async.config import AlgorithmConfig

REGISTRY: dict[str, Callable[[AlgorithmConfig], Strategy]] = {
    "fr3e": Fr3e,
    "grpo": Grpo,
    "grpo_pp": lambda config: Grpo(config, reject=True),
    "rloo": Rloo,
}


def make_strategy(config: AlgorithmConfig) -> Strategy:
    return REGISTRY[config.strategy](config)


__all__ = ["REGISTRY", "Credit", "GroupOutcome", "Strategy", "make_strategy"]
