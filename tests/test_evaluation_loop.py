"""A suite beside training, and an evaluation alone, on fakes: who is lent, what is kept, what a death or a stop leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import prompt, small_config
from loop_support import World, replayed

from fr3e_async import evaluate_job
from fr3e_async.config import Config
from fr3e_async.control.crew import Crew
from fr3e_async.control.dispatch import GENERATORS, VERIFIERS
from fr3e_async.control.evaluator import Evaluator
from fr3e_async.control.lender import Lender
from fr3e_async.control.ports import TaskLost
from fr3e_async.errors import RunFailed, StorageError
from fr3e_async.evaluation.suite import TestSet
from fr3e_async.observe.evaluation_dir import EvaluationDir
from fr3e_async.observe.results import write_problems
from fr3e_async.testing import FakeEngineWorker, FakePayloads, FakeVerifier, Fault, always
from fr3e_async.types import Outcome
from fr3e_async.wiring import Model


def bench(name: str = "amc23", problems: int = 6, samples: int = 3, **fields: Any) -> TestSet:
    return TestSet(name=name, problems=tuple(prompt(f"{name}/{i}") for i in range(problems)), samples=samples, **fields)


# --- beside training ---------------------------------------------------------------------------------------------------


def with_suite(folder: Path, suite: Sequence[TestSet], *, heldout: bool = True, **arguments: Any) -> World:
    world = World(folder, evaluate=heldout, **arguments)
    world.controller._measuring.evaluator = Evaluator(world.crew, world.problems[:10] if heldout else (), suite)
    return world


def labels(world: World) -> list[tuple[str, str]]:
    return sorted((row["label"], row["benchmark"]) for row in world.notes.rows)


def test_a_suite_is_evaluated_beside_the_held_out_set(tmp_path: Path) -> None:
    world = with_suite(tmp_path, [bench(), bench("aime24", 2, 4)], evaluation={"every": 3})
    assert world.run() == "finished"
    names = ("aime24", "amc23", "heldout")
    assert labels(world) == sorted((label, name) for label in ("before", "step 3", "step 6", "after") for name in names)
    row = next(row for row in world.notes.rows if (row["label"], row["benchmark"]) == ("step 6", "aime24"))
    assert (row["version"], row["problems"], row["samples"], row["k"]) == (6, 2, 8, 4)
    assert row["trained"] > 0
    assert row["took_s"] > 0
    assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    assert set(row["pass_at"]) == {"1", "2", "4"}
    before = [row for row in world.notes.rows if row["label"] == "before"]
    assert {row["newest_version"] for row in before} == {0}, "weights stay until the first figures are known"
    assert [e["label"] for e in world.controller.progress.evaluations] == ["before", "step 3", "step 6", "after"]
    by_problem = world.notes.by_problem["step 3-amc23"]
    assert [len(r["outcomes"]) for r in by_problem] == [3] * 6
    assert all(answer in ("1", "2") for r in by_problem for answer in r["answers"])
    assert replayed(tmp_path, world.config) > 0, "the machine decides the same again"


def test_a_suite_without_a_held_out_set(tmp_path: Path) -> None:
    world = with_suite(tmp_path, [bench()], heldout=False, evaluation={"before": False})
    assert world.run() == "finished"
    assert labels(world) == [("after", "amc23")]
    assert world.controller.progress.evaluations == []


def test_a_benchmark_that_is_lost_leaves_training_and_the_others_alone(tmp_path: Path) -> None:
    class Broken(Evaluator):
        async def _attempt(self, part: Any, test_set: TestSet, lend: Any) -> Any:
            if test_set.name == "amc23":
                raise TaskLost("injected")
            return await super()._attempt(part, test_set, lend)

    world = with_suite(tmp_path, [])
    world.controller._measuring.evaluator = Broken(world.crew, world.problems[:10], [bench()])
    assert world.run() == "finished"
    assert labels(world) == [("after", "heldout"), ("before", "heldout")]
    assert world.notes.kinds.count("evaluation_lost") == 2
    assert any("amc23 avg@3, is given up" in line for line in world.notes.lines)


def test_what_a_checkpoint_knows_is_not_evaluated_again(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"run": {"steps": 8, "checkpoint_every": 4}, "evaluation": {"every": 2}}
    first = with_suite(tmp_path, [bench()], **settings)
    first.run()
    longer = {**settings, "run": {"steps": 12, "checkpoint_every": 4}}
    again = with_suite(tmp_path, [bench()], resume=True, **longer)
    again.run()
    mine = [label for label, name in labels(again) if name == "amc23"]
    assert sorted(mine) == sorted(["before", "step 2", "step 4", "step 6", "step 8", "step 10", "after"])


def test_a_benchmark_takes_its_share_of_the_generators_while_the_run_trains(tmp_path: Path) -> None:
    world = with_suite(tmp_path, [], evaluation={"share": 0.5})
    evaluator = Evaluator(world.crew, (), [bench(problems=40, samples=4)])
    running, most = 0, 0

    class Counting:
        def __init__(self, role: str) -> None:
            self.role = role

        async def __aenter__(self) -> str:
            nonlocal running, most
            running += self.role == GENERATORS
            most = max(most, running)
            return world.crew.names(self.role)[0]

        async def __aexit__(self, *_: object) -> None:
            nonlocal running
            running -= self.role == GENERATORS

    def lend(role: str, weight: int, *, priority: int) -> Any:
        return Counting(role)

    for trains, expected in ((True, 4), (False, 40)):  # 2 engines of 16 rollouts, 4 rollouts a part
        most = 0
        asyncio.run(
            evaluator.measure(evaluator.sets[0], "x", lend=lend, on_progress=lambda: None, trains=trains, clock=lambda: 0.0)
        )
        assert most == expected


def test_a_margin_makes_an_answer_right() -> None:
    near = replace(prompt("t/0"), gold="1.03")  # fakes answer 1 or 2
    far = TestSet(name="t", problems=(near,), samples=8)
    allowed = replace(far, margins={"t/0": (0.05,)})
    crew = make_crew(small_config(), engines=[FakeEngineWorker("e", right=0.0, gain=0.0)])

    async def rights(test_set: TestSet) -> int:
        async with Lender(crew, note=lambda text: None) as lender:
            found = await Evaluator(crew, (), [test_set]).sample(test_set, "x", lend=lender.lend)
        return sum(one.outcome is Outcome.RIGHT for one in found)

    assert asyncio.run(rights(far)) == 0
    assert asyncio.run(rights(replace(allowed, margins={"t/0": (1.0,)}))) == 8, "2 lies within 1 of 1.03"
    assert asyncio.run(rights(allowed)) == 0


# --- alone -------------------------------------------------------------------------------------------------------------


def make_crew(config: Config, *, engines: list[FakeEngineWorker], spare: Sequence[FakeEngineWorker] = ()) -> Crew:
    waiting = list(spare)

    async def start(role: str) -> Any:
        if not waiting:
            raise RunFailed("no room")
        return waiting.pop(0)

    workers = [*((GENERATORS, engine) for engine in engines), (VERIFIERS, FakeVerifier("verifier-0"))]
    return Crew(config=config, learner=Closed(), payloads=FakePayloads(), start=start, workers=workers)  # type: ignore[arg-type]


class Closed:
    async def close(self) -> None:
        pass


class FakeDeployment:
    """As ``wiring.Deployment`` to a job."""

    engines: list[FakeEngineWorker] = []
    spare: list[FakeEngineWorker] = []

    def __init__(self, config: Config, *_: Any, **__: Any) -> None:
        self.config = config

    async def start_serving(self) -> None:
        self.crew = make_crew(self.config, engines=self.engines, spare=self.spare)

    async def close(self) -> None:
        await self.crew.close()


CONFIG = small_config(
    generators={"rollouts_in_flight": 16},
    flow={"retry_backoff_s": 0.01, "lease_s": 5.0},
    pools={"replace_backoff_s": 0.01, "max_deaths_in_a_row": 2},
)


def run_job(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    engines: list[FakeEngineWorker],
    spare: Sequence[FakeEngineWorker] = (),
    sets: Sequence[TestSet] = (bench(problems=20), bench("aime24", 5, 4)),
) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(evaluate_job, "Deployment", FakeDeployment)
    monkeypatch.setattr(FakeDeployment, "engines", engines)
    monkeypatch.setattr(FakeDeployment, "spare", list(spare))
    identity = {"format": 1, "benchmarks": {one.name: {"k": one.samples} for one in sets}}
    with EvaluationDir.open(folder, identity=identity, config_yaml="x: 1\n") as opened:
        model = Model(path="fake", end_token_ids=(0,))
        job = evaluate_job.Job(CONFIG, model, sets, opened, {"model": "fake", "benchmarks": {}}, started_at=0.0)
        code = asyncio.run(job.run())
    results = json.loads((folder / "results.json").read_text()) if (folder / "results.json").is_file() else {}
    return code, results


def engine(name: str, **faults: Any) -> FakeEngineWorker:
    return FakeEngineWorker(name, **faults)


def test_an_evaluation_alone_writes_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code, results = run_job(tmp_path / "out", monkeypatch, engines=[engine("e0"), engine("e1")])
    assert code == 0
    assert {name: (row["problems"], row["k"]) for name, row in results["benchmarks"].items()} == {
        "amc23": (20, 3),
        "aime24": (5, 4),
    }
    assert "aime24" in capsys.readouterr().out
    assert len((tmp_path / "out" / "problems" / "amc23.jsonl").read_text().splitlines()) == 20


def kept_in(out: Path) -> dict[str, str]:
    """Problem → outcomes of the rows that are whole."""
    rows: dict[str, str] = {}
    for path in (out / "problems").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            if line.endswith("}"):
                row = json.loads(line)
                rows[row["problem"]] = row["outcomes"]
    return rows


def test_finished_problems_are_not_sampled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = run_job(tmp_path / "whole", monkeypatch, engines=[engine("e0")])
    out = tmp_path / "out"
    with pytest.raises(RunFailed, match=r"finished problems are kept, the same command with out=.* goes on"):
        run_job(out, monkeypatch, engines=[engine("e0", faults={("sample", 6): Fault.DIE})])
    kept = kept_in(out)
    assert 0 < len(kept) < 25
    with (out / "problems" / "amc23.jsonl").open("a") as file:
        file.write('{"problem": "amc23/19", "outc')  # a kill cut it off
    fresh = engine("e1")
    code, results = run_job(out, monkeypatch, engines=[fresh])
    assert code == 0
    assert not set(kept) & {id.group.partition(":")[2] for id in fresh.made}
    assert len(kept_in(out)) == 25
    mine = {name: {k: v for k, v in row.items() if k != "took_s"} for name, row in results["benchmarks"].items()}
    assert mine == whole["benchmarks"], "fakes sample by id alone"
    again = engine("e2")
    assert run_job(out, monkeypatch, engines=[again])[0] == 0
    assert again.made == []


def test_an_engine_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    dying = engine("e0", faults={("sample", 2): Fault.DIE})
    code, results = run_job(tmp_path / "out", monkeypatch, engines=[dying], spare=[engine("e1")])
    assert code == 0
    assert results["benchmarks"]["amc23"]["samples"] == 60
    said = capsys.readouterr().out
    assert "e0 is lost" in said
    assert "e1 has joined" in said


def test_engines_that_die_one_after_another_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doomed = [engine(f"e{i}", faults=always("sample", Fault.DIE)) for i in range(5)]
    with pytest.raises(RunFailed, match=r"died in a row|max_attempts"):
        run_job(tmp_path / "out", monkeypatch, engines=doomed[:1], spare=doomed[1:])


def test_a_signal_ends_it_and_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Stopping(FakeEngineWorker):
        async def sample(self, *args: Any, **kwargs: Any) -> Any:
            if self.calls["sample"] == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return await super().sample(*args, **kwargs)

    code, results = run_job(tmp_path / "out", monkeypatch, engines=[Stopping("e0", delay_s=0.02)])
    assert (code, results) == (130, {})
    assert "stopped by SIGTERM" in capsys.readouterr().out
    assert run_job(tmp_path / "out", monkeypatch, engines=[engine("e1")])[0] == 0


def test_a_folder_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    one = {"temperature": 1.0, "benchmarks": {"gsm8k": {"k": 1}}}
    with EvaluationDir.open(tmp_path / "out", identity=one, config_yaml=""):
        with pytest.raises(StorageError, match="in use by another process"):
            EvaluationDir.open(tmp_path / "out", identity=one, config_yaml="")
    with pytest.raises(StorageError, match=r"holds another evaluation: temperature: 1.0 -> 0.6"):
        EvaluationDir.open(tmp_path / "out", identity={**one, "temperature": 0.6}, config_yaml="")
    with pytest.raises(StorageError, match=r"benchmarks\.gsm8k"):
        EvaluationDir.open(tmp_path / "out", identity={**one, "benchmarks": {"gsm8k": {"k": 2}}}, config_yaml="")
    more = {**one, "benchmarks": {"aime24": {"k": 16}}}
    with EvaluationDir.open(tmp_path / "out", identity=more, config_yaml=""):
        held = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(held["benchmarks"]) == {"gsm8k", "aime24"}, "benchmarks may come to it"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match="not empty and holds no evaluation"):
        EvaluationDir.open(tmp_path / "other", identity=one, config_yaml="")


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    folder = EvaluationDir.open(tmp_path / "a" / "out", identity={"benchmarks": {}}, config_yaml="")
    folder.discard()
    assert list(tmp_path.iterdir()) == []


def test_results_by_problem_stay_within_their_bound(tmp_path: Path) -> None:
    rows = [{"problem": f"p{i}", "outcomes": "r" * 1000} for i in range(400)]  # 0.4 MiB
    for step in range(6):
        write_problems(tmp_path, f"step {step}-gsm8k", rows, keep_mib=1)
        os.utime(tmp_path / "evaluations" / f"step-{step}-gsm8k.jsonl", ns=(step, step))
    assert sorted(path.name for path in (tmp_path / "evaluations").iterdir()) == ["step-4-gsm8k.jsonl", "step-5-gsm8k.jsonl"]


def test_a_lender_gives_no_more_than_an_engine_takes() -> None:
    crew = make_crew(CONFIG, engines=[engine("e0"), engine("e1")])
    order: list[str] = []

    async def use(lender: Lender, name: str, weight: int, seconds: float) -> None:
        async with lender.lend(GENERATORS, weight, priority=0) as worker:
            order.append(f"{name} {worker}")
            await asyncio.sleep(seconds)

    async def story() -> None:
        async with Lender(crew, note=lambda text: None) as lender:
            jobs = [("a", 16, 0.02), ("b", 10, 0.05), ("c", 6, 0.05), ("wide", 99, 0.01), ("d", 1, 0.01)]
            await asyncio.wait_for(asyncio.gather(*(use(lender, *job) for job in jobs)), 5)

    asyncio.run(story())
    assert order[:3] == ["a e0", "b e1", "c e1"]
    assert {line.split()[0] for line in order[3:]} == {"wide", "d"}, "one that is wider than an engine gets an empty one"
