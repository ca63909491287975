"""Settings of the embedded tasks and their model."""

from __future__ import annotations

from dataclasses import dataclass

from fr3e_async.config.knobs import knob, require, require_positive


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    train_problems: int = knob(4096, "distinct training problems", "problems")
    heldout_problems: int = knob(1024, "distinct held-out problems", "problems")
    steps_min: int = knob(3, "fewest arithmetic steps of a problem")
    steps_max: int = knob(4, "most arithmetic steps of a problem")
    slip_rate: float = knob(0.26, "part of the warm start's steps that go a wrong way")
    warm_start_steps: int = knob(180, "optimiser steps of the supervised warm start", "optimiser steps")
    cache_dir: str = knob("", "where the built model is kept; empty: ~/.cache/fr3e_async", "path")

    def __post_init__(self) -> None:
        require_positive(
            "toy", train_problems=self.train_problems, heldout_problems=self.heldout_problems,
            steps_min=self.steps_min, warm_start_steps=self.warm_start_steps,
        )  # fmt: skip
        require(self.steps_max >= self.steps_min, f"toy.steps_max ({self.steps_max}) is below toy.steps_min ({self.steps_min})")
        require(0 < self.slip_rate < 1, f"toy.slip_rate must be in (0, 1), got {self.slip_rate}")
