"""Small systems for tests of the simulator, with service times that can be added up by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from builders import small_config

from fr3e_async.config import Config
from fr3e_async.simulate.service import EngineTimes, LearnerTimes, Service, SystemModel, VerifierTimes, WeightTimes
from fr3e_async.simulate.workload import LogNormalWorkload, MeasuredAnswer, Workload


@dataclass(frozen=True)
class FixedWorkload:
    """Every rollout has the same length; every second one is correct."""

    length: int = 10
    prompt: int = 10
    correct: Callable[[int], bool | None] = lambda number: number % 2 == 0

    def tree(self, seed: int, number: int, *, max_response: int) -> FixedTree:
        return FixedTree(self)


class FixedTree:
    def __init__(self, workload: FixedWorkload) -> None:
        self._workload, self.prompt, self._drawn = workload, workload.prompt, 0

    def base(self, number: int) -> MeasuredAnswer:
        return MeasuredAnswer(self._workload.length, self._workload.correct(number))

    def positions(self, base: int, *, count: int, min_gap: int) -> list[int]:
        return list(range(1, self._workload.length, min_gap))[:count]

    def branch(self, base: int, anchor: int, position: int) -> MeasuredAnswer:
        self._drawn += 1
        return MeasuredAnswer(self._workload.length - position, self._workload.correct(self._drawn))


def model(
    *, step: float = 0.01, request: float = 1e-4, prefill: float = 1e-5, workload: Workload | None = None, answer: float = 0.005,
    train: float = 0.5, token: float = 1e-5, control: float = 0.0, engine: dict[str, Any] | None = None, **weights: float,
) -> SystemModel:  # fmt: skip
    return SystemModel(
        service=Service(
            engine=EngineTimes(step_s=step, request_s=request, prefill_s=prefill, **(engine or {})),
            verifier=VerifierTimes(answer_s=answer),
            learner=LearnerTimes(fixed_s=train, token_s=token, export_s=weights.pop("export", 0.0)),
            weights=WeightTimes(**weights),
            control_s=control,
        ),
        workload=workload or LogNormalWorkload(mean=40, sigma=20, prompt=30),
    )


def system(*, groups: int = 8, staleness: int = 1, flow: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Config:
    """A small config; responses have at most 200 tokens."""
    return small_config(
        **{
            "flow": {"groups_per_step": groups, "max_staleness": staleness, "lease_s": 1e6} | (flow or {}),
            "sampling": {"max_response": 200},
            "algorithm": {"min_gap": 3},
        }
        | sections
    )
