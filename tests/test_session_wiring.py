"""What ``Session`` puts together for the loop, from a checkpoint and from nothing: real parts but for the actors."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import prompt
from checkpoint_support import save_whole, small_base
from loop_support import World, loop_config

from fr3e_async.clock import RunClock, steady
from fr3e_async.control.controller import Controller
from fr3e_async.control.progress import Progress
from fr3e_async.control.publisher import Publisher
from fr3e_async.data.prompts import Datasets
from fr3e_async.data.stream import PromptStream, group_id, mix
from fr3e_async.errors import RunFailed
from fr3e_async.observe.console import ConsoleView
from fr3e_async.run.session import Session
from fr3e_async.run.stop import summary_of
from fr3e_async.store.ledger_log import LedgerLog
from fr3e_async.store.run_dir import RunDir
from fr3e_async.types import StepReport

SOURCES = {name: [prompt(f"{name}{number}") for number in range(6)] for name in ("a", "b")}
TRAIN, PARTS = mix(SOURCES, {"a": 0.5, "b": 1.0}, setting="data.train_sources")
CONFIG = loop_config(run={"steps": 8, "checkpoint_every": 0, "seed": 3})


def take(stream: PromptStream, count: int) -> list[str]:
    return [group_id(one.uid, epoch) for one, epoch in (stream.take() for _ in range(count))]


@pytest.fixture
def run_dir(tmp_path: Path) -> Any:
    opened = RunDir.open(tmp_path / "run", config=CONFIG, config_yaml="")
    yield opened
    opened.close()


def controller(run_dir: RunDir, source: Path | None, restarts: int = 0) -> Controller:
    config = CONFIG
    world = World(run_dir.path.parent / "world", config=config)

    async def weights(version: int) -> Any:
        return await world.learner.export(version)

    deployment: Any = SimpleNamespace(
        workers=world.workers,
        publisher=lambda: Publisher(ack_timeout_s=config.weights.ack_timeout_s, clock=steady),
        weights=weights,
    )
    recorder: Any = SimpleNamespace(note=world.notes.note, ledger_log=LedgerLog(run_dir.path / "ledger.jsonl"))
    model: Any = None
    session = Session(
        config, model, Datasets(train=TRAIN, heldout=(), dropped=0, parts=PARTS), run_dir, resume_from=source, clock=RunClock(), started_at=100.0,
        spell=lambda tokens: [],
    )  # fmt: skip
    return asyncio.run(session.controller(deployment, recorder, source, restarts))


def test_a_new_run_draws_its_mixture(run_dir: RunDir) -> None:
    made = controller(run_dir, None)
    assert made.context.stream.state() == PromptStream(TRAIN, 3, parts=PARTS).state()
    assert take(made.context.stream, 30) == take(PromptStream(TRAIN, 3, parts=PARTS), 30)
    assert (made.machine.ledger.version, made.progress.began_at, made.progress.wall_before_s) == (0, 100.0, 0.0)


def test_a_resumed_run_continues_with_its_data_where_the_checkpoint_was(run_dir: RunDir, tmp_path: Path) -> None:
    before = PromptStream(TRAIN, 3, parts=PARTS)
    groups = take(before, 12)
    for group in groups[:11]:
        before.mark_consumed(group)
    progress = Progress(tokens_generated=70, wall_before_s=20.0, began_at=1.0, policy_share=0.3)
    source = save_whole(run_dir.checkpoints, 5, base=small_base(tmp_path / "base"), stream=before.state(), progress=progress)
    made = controller(run_dir, source)
    assert made.context.stream.state() == before.state()
    rest = take(made.context.stream, 12)
    assert rest[0] == groups[11]
    assert not set(groups[:11]) & set(rest)
    assert made.machine.ledger.version == 5
    assert (made.progress.resumed_from, made.progress.tokens_generated) == (5, 70)
    assert made.teller.policies.usual == 0.3  # the watch resumes from what is usual
    assert (made.progress.began_at, made.progress.wall_before_s) == (100.0, 20.0)


def test_the_largest_age_of_a_trained_token_is_kept_over_steps_and_sessions() -> None:
    progress = Progress()
    for version, age in enumerate((1, 3, 2), start=1):
        report = StepReport(
            version=version,
            tokens=4,
            optimiser_steps=1,
            metrics={"lag/versions_max": float(age), "lag/versions_mean": age / 2},
            time_s=0.1,
        )
        progress.trained(report, first_at=1.0)
    resumed = Progress.from_dict(progress.to_dict(now=2.0), resumed_from=3)
    ledger = SimpleNamespace(version=3, settled=0, outcomes={}, in_flight=0, retries=0, duplicates=0, failed=0)
    loop: Any = SimpleNamespace(progress=resumed, machine=SimpleNamespace(ledger=ledger), watch=SimpleNamespace(replaced=dict))
    assert progress.staleness_max == resumed.staleness_max == 3
    assert progress.staleness_mean == resumed.staleness_mean == 1  # (1/2 + 3/2 + 2/2) / 3, batches of equal size
    assert summary_of(loop, name="run", reason="finished", now=3.0).staleness_max == 3


def test_engines_have_no_weights_known_after_a_new_learner_group(run_dir: RunDir) -> None:
    """Version -1: their weights may be of a step that was lost."""
    versions = [controller(run_dir, None, restarts).start.engine_version for restarts in (0, 1)]
    assert versions == [0, -1]


class Stopped(Session):
    """A session whose training is stopped by a signal at once, with ``version`` batches trained and a checkpoint of step 3 there."""

    def __init__(self, run_dir: RunDir, *, version: int | None, resume_from: Path | None = None) -> None:
        model: Any = None
        super().__init__(
            CONFIG,
            model,
            Datasets(train=TRAIN, heldout=(), dropped=0),
            run_dir,
            resume_from=resume_from,
            clock=RunClock(),
            started_at=0.0,
            spell=lambda _: [],
        )
        self.version = version

    async def train(self, deployment: Any, recorder: Any, stop: Any) -> None:
        if self.version is not None:
            stop.controller = SimpleNamespace(machine=SimpleNamespace(ledger=SimpleNamespace(version=self.version)))
        stop.reason, stop.hurry = "SIGTERM", "run.stop_grace_s (25 s) is over"
        raise asyncio.CancelledError


def test_the_panel_of_a_resumed_run_starts_at_its_step(run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class View(ConsoleView):
        def __init__(self, **settings: Any) -> None:
            made.append(settings)
            super().__init__(**settings)

    monkeypatch.setattr("fr3e_async.run.session.ConsoleView", View)
    source = save_whole(run_dir.checkpoints, 3, base=small_base(tmp_path / "base"))
    for resumed, done in ((None, 0), (source, 3)):
        assert Stopped(run_dir, version=None, resume_from=resumed).run() == 0
        assert made.pop()["done"] == done


@pytest.mark.parametrize("version", [None, 2, 3])
def test_a_stop_with_nothing_new_to_save_is_a_good_end(
    run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], version: int | None
) -> None:
    save_whole(run_dir.checkpoints, 3, base=small_base(tmp_path / "base"))
    assert Stopped(run_dir, version=version).run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4] == "- SIGTERM; nothing new to save"
    assert lines[-1] == f"resume  the same command with run.dir={run_dir.path} resume=auto"


def test_a_stop_that_loses_a_batch_is_a_failure(run_dir: RunDir, tmp_path: Path) -> None:
    save_whole(run_dir.checkpoints, 3, base=small_base(tmp_path / "base"))
    with pytest.raises(
        RunFailed,
        match=r"^SIGTERM: the last checkpoint was not waited for, since run\.stop_grace_s \(25 s\) is over; that of step 3 stands$",
    ):
        Stopped(run_dir, version=4).run()
