"""Settings of rewards: which functions judge a response, what each weighs, and the numbers that it may give. Pure."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import NonNegativeFloat, NonNegativeInt

from fr3e_async.config.knobs import knob, require, settings

MATH = "math"
GIVEN = ("exact", "length", "finish")  # passed by name to a reward function that has such a parameter
OURS = ("response", "gold", "prompt", "responses", "golds", "prompts", *GIVEN)  # names that no column of a row may have


class RewardRange(NamedTuple):
    """The numbers that a reward lies in. Strategies see its *share*: 0 for the lowest, 1 for the highest, which is correct."""

    low: float = 0.0
    high: float = 1.0

    def share(self, reward: float) -> float:
        """*Example*: ``RewardRange(-1, 1).share(0.5)`` is 0.75; the two ends are exactly 0 and 1."""
        return (reward - self.low) / (self.high - self.low)

    def reward(self, share: float) -> float:
        return self.low + share * (self.high - self.low)


@settings()
class RewardConfig:
    """One function of several. *Example*: ``RewardConfig(function="rewards:form", weight=0.2, range=[-1, 1])``."""

    function: str = knob("", "'math', or package.module:function")
    weight: float = knob(1.0, "its number is multiplied by this before all are added; negative: a penalty")
    range: list[float] = knob([0.0, 1.0], "[lowest, highest] number that it may return; a number outside is unknown")
    batch: NonNegativeInt = knob(
        0, "responses that a process judges at once, as lists or by an async function; 0: one", "responses"
    )
    cpu_limit_s: NonNegativeFloat = knob(0.0, "CPU time of one call, or of a batch; 0: verifiers.cpu_limit_s")
    wall_limit_s: NonNegativeFloat = knob(0.0, "wall time of one call, or of a batch; 0: verifiers.wall_limit_s")

    def check(self, path: str) -> None:
        """``ConfigError`` about the reward that stands at the setting ``path``. *Example*: ``rewards[0]``."""
        require(bool(self.function), f"{path}.function has no value")
        require(self.weight != 0 and math.isfinite(self.weight), f"{path}.weight must be a number but 0, got {self.weight}")
        ends = list(self.range)
        require(
            len(ends) == 2 and all(map(math.isfinite, ends)) and ends[0] < ends[1],
            f"{path}.range must be [lowest, highest], got {ends}",
        )
        require(
            self.function != MATH or (ends == [0, 1] and not self.batch),
            f"{path}: math gives 0 or 1, one response at a time; leave range and batch out",
        )


def reward_terms(reward: str, rewards: Sequence[RewardConfig]) -> tuple[RewardConfig, ...]:
    """The functions whose weighted sum is the reward: ``rewards``, or else ``reward`` alone."""
    return tuple(rewards) or (RewardConfig(function=reward),)


def range_of(terms: Sequence[RewardConfig]) -> RewardRange:
    """Return the range of the weighted sum. *Example*: math, and -0.5 times a number in [-1, 1]: [-0.5, 1.5]."""
    ends = [sorted(term.weight * end for end in term.range) for term in terms]
    return RewardRange(math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends))


def check_rewards(reward: str, rewards: Sequence[RewardConfig]) -> None:
    """``ConfigError``: both settings are given, a function occurs twice, or an entry is wrong."""
    require(not rewards or reward == MATH, f"reward={reward} and rewards are both given; name all functions in rewards")
    seen: dict[str, int] = {}
    for index, term in enumerate(rewards):
        term.check(f"rewards[{index}]")
        first = seen.setdefault(term.function, index)
        require(first == index, f"rewards[{index}] and rewards[{first}] are both {term.function}; add their weights")
