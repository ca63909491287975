"""Settings of the embedded tasks and their model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fr3e_async.config.knobs import knob, require, require_positive


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    task: Literal["steps", "forks"] = knob(
        "steps", "steps: arithmetic with slips; forks: arithmetic that needs a rarely taken turn at a few tokens"
    )
    train_problems: int = knob(4096, "distinct training problems", "problems")
    heldout_problems: int = knob(1024, "distinct held-out problems", "problems")
    steps_min: int = knob(3, "fewest arithmetic steps of a problem")
    steps_max: int = knob(4, "most arithmetic steps of a problem")
    slip_rate: float = knob(0.26, "steps: part of the warm start's steps that go a wrong way")
    forks_min: int = knob(2, "forks: fewest forks of a problem")
    forks_max: int = knob(3, "forks: most forks of a problem")
    turn_rate: float = knob(0.25, "forks: part of the warm start's turns at forks that are the rare one")
    style_rate: float = knob(0.04, "forks: part of the warm start's lines with a space that decides nothing")
    warm_start_steps: int = knob(180, "optimiser steps of the supervised warm start", "optimiser steps")
    cache_dir: str = knob("", "where the built model is kept; empty: ~/.cache/fr3e_async", "path")

    def __post_init__(self) -> None:
        require_positive(
            "toy", train_problems=self.train_problems, heldout_problems=self.heldout_problems,
            steps_min=self.steps_min, warm_start_steps=self.warm_start_steps,
        )  # fmt: skip
        require(self.steps_max >= self.steps_min, f"toy.steps_max ({self.steps_max}) is below toy.steps_min ({self.steps_min})")
        require(
            1 <= self.forks_min <= self.forks_max <= 4,
            f"toy.forks_min ({self.forks_min}) and toy.forks_max ({self.forks_max}) must be in 1..4, in this order",
        )
        require(
            self.task == "steps" or self.forks_max <= self.steps_min,
            f"toy.forks_max ({self.forks_max}) is above toy.steps_min ({self.steps_min})",
        )
        require(0 < self.turn_rate < 1, f"toy.turn_rate must be in (0, 1), got {self.turn_rate}")
        require(0 <= self.style_rate < 1, f"toy.style_rate must be in [0, 1), got {self.style_rate}")
        require(0 < self.slip_rate < 1, f"toy.slip_rate must be in (0, 1), got {self.slip_rate}")
