"""How often a learner group is restarted within a run: as often as it must while checkpoints come, and not for ever without."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import virtual_time
from builders import small_config

from fr3e_async.data.prompts import Datasets
from fr3e_async.errors import LearnerLost, RunFailed
from fr3e_async.run.session import Session
from fr3e_async.store.run_dir import RunDir


class Sessions(Session):
    """Controllers that lose their learner as ``scenario`` says: the step of the newest checkpoint by then, or None for a good end."""

    def __init__(self, scenario: list[int | None], *, max_restarts: int) -> None:
        self._config = small_config(learner={"max_restarts": max_restarts}, observe={"heartbeat_s": 0.005})
        self._resume_from = None
        self.steps: list[int] = []
        self.said: list[str] = []  # of what the start waits for
        self._run_dir: Any = SimpleNamespace(checkpoints=SimpleNamespace(steps=lambda: self.steps))
        self.scenario = iter(scenario)
        self.made: list[tuple[int, int]] = []  # (losses in a row, in all) when a session began
        self.beats = 0

    async def restart_learner(self, deployment: Any, recorder: Any, error: LearnerLost, restarts: int) -> Path | None:
        self.in_a_row = restarts
        await asyncio.sleep(0.02)
        return Path(f"step-{self.steps[-1]:08d}") if self.steps else None

    async def controller(self, deployment: Any, recorder: Any, source: Path | None, restarts: int) -> Any:
        self.made.append((getattr(self, "in_a_row", 0), restarts))

        async def run() -> str:
            newest = next(self.scenario)
            if newest is None:
                return "finished"
            self.steps = [*self.steps, newest] if newest else self.steps
            raise LearnerLost("a rank is gone")

        return SimpleNamespace(run=run)

    def beat_again(self) -> None:
        self.beats += 1

    async def missing(self) -> str:
        return "the learner 0 of 1 up"

    def starting(self, text: str) -> None:
        self.said.append(text)

    def go(self) -> str:
        stop: Any = SimpleNamespace(controller=None, reason="")
        return virtual_time.run(self.to_the_end(self, self, stop))[1]  # type: ignore[arg-type]


def test_losses_with_a_new_checkpoint_between_are_never_too_many():
    sessions = Sessions([3, 7, 9, 20, 21, None], max_restarts=1)
    assert sessions.go() == "finished"
    assert sessions.made == [(0, 0), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]
    assert sessions.beats > 5, "who watches the run sees that it is alive"


def test_losses_without_one_are_bounded():
    sessions = Sessions([3, 0, 0, 0, None], max_restarts=2)
    with pytest.raises(RunFailed, match=r"a rank is gone \(learner\.max_restarts is 2\); restart the same command"):
        sessions.go()
    assert sessions.made == [(0, 0), (1, 1), (2, 2)]


def test_none_is_allowed_with_0():
    with pytest.raises(RunFailed, match=r"learner\.max_restarts is 0"):
        Sessions([5, None], max_restarts=0).go()


def test_the_wait_before_a_new_group_doubles_up_to_a_minute(tmp_path: Path) -> None:
    """Groups that come up at once, without a checkpoint."""
    config, nothing = small_config(), SimpleNamespace(note=lambda *_, **__: None, go_back=lambda *_: None)
    run_dir = RunDir.open(tmp_path / "run", config=config, config_yaml="")
    model: Any = None
    session = Session(
        config, model, Datasets(train=(), heldout=(), dropped=0), run_dir, resume_from=None, clock=virtual_time.now, started_at=0.0,
        spell=lambda _: [],
    )  # fmt: skip

    async def restart_learner(resume_from: Path | None) -> None:
        assert resume_from is None

    async def waited(restarts: int) -> float:
        began = virtual_time.now()
        await session.restart_learner(SimpleNamespace(restart_learner=restart_learner), nothing, "lost", restarts)  # type: ignore[arg-type]
        return virtual_time.now() - began

    assert [virtual_time.run(waited(count)) for count in (1, 2, 3, 6, 7, 50)] == [1, 2, 4, 32, 60, 60]
