"""The registry of strategies: a new one is a file beside this and a line here (docs/strategies.md)."""

import dataclasses
import difflib
from collections.abc import Callable, Iterator

from fr3e_async.algorithm.strategies.base import (
    TREE,
    Credit,
    GroupPlan,
    GroupRewards,
    Grpo,
    GrpoPlusPlus,
    Rloo,
    StateCredit,
    Strategy,
)
from fr3e_async.algorithm.strategies.fr3e import Fr3e
from fr3e_async.algorithm.strategies.tree_credit import TreeCredit
from fr3e_async.algorithm.strategies.vineppo import VinePpo
from fr3e_async.config import AlgorithmConfig, Config
from fr3e_async.errors import ConfigError

REGISTRY: dict[str, Callable[[AlgorithmConfig], Strategy]] = {
    "fr3e": Fr3e,
    "grpo": Grpo,
    "grpo_pp": GrpoPlusPlus,
    "rloo": Rloo,
    "tree_credit": TreeCredit,
    "vineppo": VinePpo,
}


def make_strategy(config: AlgorithmConfig) -> Strategy:
    """The strategy that ``algorithm.strategy`` names. Raises ``ConfigError`` for a name that is not registered."""
    if config.strategy not in REGISTRY:
        near = difflib.get_close_matches(config.strategy, REGISTRY, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"algorithm.strategy must be one of {', '.join(REGISTRY)}, got {config.strategy!r}{hint}")
    return REGISTRY[config.strategy](config)


def check_strategy(config: Config) -> None:
    """The rules between settings that need to know the strategy. Raises ``ConfigError``."""
    explorer_count(config)
    plan, tokens = make_strategy(config.algorithm).plan, config.budget.tokens_per_prompt
    least = plan.bases if plan.rule else 2
    if 0 < tokens < least:
        raise ConfigError(f"budget.tokens_per_prompt is {tokens}, but a group has at least {least} rollouts; 0: no budget")
    if tokens and plan.first:
        raise ConfigError(
            f"budget.tokens_per_prompt={tokens} with algorithm.adaptive_first={plan.first}: both would set the number of "
            "branches; set one of them to 0"
        )


def unread(config: AlgorithmConfig) -> Iterator[tuple[str, str]]:
    """(setting of ``algorithm`` that the strategy does not look at, why); none if it does not say what it ``reads``."""
    reads = getattr(REGISTRY[config.strategy], "reads", None)
    names = [field.name for field in dataclasses.fields(config)] if reads is not None else []
    for name in names:
        if name not in {"strategy", "bases", *(reads or ())}:
            yield f"algorithm.{name}", f"algorithm.strategy={config.strategy}"
        elif name in (TREE | {"include_trunk", "alpha", "alpha_shrink"}) - {"anchors"} and not config.anchors:
            yield f"algorithm.{name}", "algorithm.anchors=0"
    rule = make_strategy(config).plan.rule
    if rule is not None and rule.name not in ("entropy", "surprisal"):
        yield "algorithm.entropy_of", f"anchors by the rule {rule.name}, which looks at neither entropies nor log-probs"


def explorer_count(config: Config) -> int:
    """Explorers that are started: none where the strategy does not branch. Raises ``ConfigError``, also if there are too few."""
    plan = make_strategy(config.algorithm).plan
    if plan.rule is None:
        return 0
    if config.explorers.count == 0:
        raise ConfigError(
            f"explorers.count must be at least 1: algorithm.strategy={config.algorithm.strategy} branches "
            f"(algorithm.anchors={plan.anchors})"
        )
    return config.explorers.count


__all__ = [
    "REGISTRY",
    "Credit",
    "GroupPlan",
    "GroupRewards",
    "StateCredit",
    "Strategy",
    "check_strategy",
    "explorer_count",
    "make_strategy",
    "unread",
]
