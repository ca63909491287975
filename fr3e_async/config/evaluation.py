"""Settings of evaluation: during training, and of `python -m fr3e_async.evaluate`."""

from __future__ import annotations

from dataclasses import dataclass

from fr3e_async.config.knobs import knob, require, require_at_least_0, require_positive


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    problems: int = knob(256, "held-out problems of one evaluation, the same ones each time; 0: all", "problems")
    samples: int = knob(1, "samples for each problem (avg@k)")
    every: int = knob(0, "batches between evaluations besides the first and the last; 0: none", "batches")
    temperature: float = knob(1.0, "softmax temperature; 0: greedy")
    top_p: float = knob(1.0, "nucleus mass")

    def __post_init__(self) -> None:
        require_positive("evaluation", samples=self.samples)
        require_at_least_0("evaluation", problems=self.problems, every=self.every, temperature=self.temperature)
        require(0 < self.top_p <= 1, f"evaluation.top_p must be in (0, 1], got {self.top_p}")
