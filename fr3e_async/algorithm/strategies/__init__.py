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
    Ppo,
    Rloo,
    StateCredit,
    Strategy,
    Vapo,
)
from fr3e_async.algorithm.strategies.fr3e import Fr3e
from fr3e_async.algorithm.strategies.tree_credit import TreeCredit
from fr3e_async.algorithm.strategies.vineppo import VinePpo
from fr3e_async.config import AlgorithmConfig, Config, CriticConfig
from fr3e_async.config.deepspeed import owns_lr
from fr3e_async.errors import ConfigError

REGISTRY: dict[str, Callable[[AlgorithmConfig], Strategy]] = {
    "fr3e": Fr3e,
    "grpo": Grpo,
    "grpo_pp": GrpoPlusPlus,
    "ppo": Ppo,
    "rloo": Rloo,
    "tree_credit": TreeCredit,
    "vapo": Vapo,
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
    """Check settings against the chosen strategy. Raises ``ConfigError`` if they conflict."""
    explorer_count(config)
    _check_critic(config)
    plan, tokens = make_strategy(config.algorithm).plan, config.budget.tokens_per_prompt
    least = plan.bases if plan.rule else 2
    if 0 < tokens < least:
        raise ConfigError(f"budget.tokens_per_prompt is {tokens}, but a group has at least {least} rollouts; 0: no budget")
    if tokens and plan.first:
        raise ConfigError(
            f"budget.tokens_per_prompt={tokens} with algorithm.adaptive_first={plan.first}: both would set the number of "
            "branches; set one of them to 0"
        )


def critic_settings(config: Config) -> CriticConfig | None:
    """Settings of the critic, with 0 for the terms that the strategy does not have; None: it has no critic."""
    reads, given = _read_of_critic(config.algorithm), config.critic
    if not reads:
        return None
    return dataclasses.replace(
        given,
        length_alpha=given.length_alpha if "length_alpha" in reads else 0.0,
        positive_coef=given.positive_coef if "positive_coef" in reads else 0.0,
    )


def _read_of_critic(config: AlgorithmConfig) -> frozenset[str]:
    """Settings of ``critic`` that the strategy looks at; none if it has no critic."""
    reads: frozenset[str] = getattr(REGISTRY[config.strategy], "critic", frozenset())
    return reads


def _check_critic(config: Config) -> None:
    """Raise ``ConfigError`` for settings that no strategy with a critic supports."""
    critic, loss = critic_settings(config), config.loss
    if critic is None:
        return
    name = f"algorithm.strategy={config.algorithm.strategy}"
    for setting, value, only in (("objective", loss.objective, "clip"), ("mean", loss.mean, "token")):
        if value != only:
            raise ConfigError(f"loss.{setting}={value} with {name}: a critic is used with loss.{setting}={only} only")
    if loss.reference_coef:
        raise ConfigError(f"loss.reference_coef={loss.reference_coef:g} with {name}: a critic is used without a reference only")
    if "length_alpha" in _read_of_critic(config.algorithm) and not critic.length_alpha:
        raise ConfigError(f"critic.length_alpha=0 with {name} leaves no lambda; set it above 0, or algorithm.strategy=ppo")
    if not owns_lr(config.learner.ds_config):
        raise ConfigError(f"learner.ds_config has an optimizer or scheduler of its own, which would be the critic's too ({name})")


def unread(config: AlgorithmConfig) -> Iterator[tuple[str, str]]:
    """(setting of ``algorithm`` or ``critic`` that the strategy does not look at, why); none if it does not say what it ``reads``."""
    for field in dataclasses.fields(CriticConfig):
        if field.name not in _read_of_critic(config):
            yield f"critic.{field.name}", f"algorithm.strategy={config.strategy}"
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
    "critic_settings",
    "explorer_count",
    "make_strategy",
    "unread",
]
