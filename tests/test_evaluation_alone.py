"""An evaluation alone, on fakes: who is lent, what is kept, what a death, a stop or an earlier benchmark leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import virtual_time
from builders import prompt, small_config

from fr3e_async.config import Config
from fr3e_async.control.evaluator import Evaluator
from fr3e_async.control.workers import Workers
from fr3e_async.errors import RunFailed, StorageError
from fr3e_async.evaluation.scores import samples_of
from fr3e_async.evaluation.suite import TestSet
from fr3e_async.machine.dispatch import GENERATORS, VERIFIERS
from fr3e_async.outcomes import Outcome
from fr3e_async.run import evaluation as evaluate_job
from fr3e_async.run.evaluation import Lender
from fr3e_async.store.evaluation_dir import EvaluationDir
from fr3e_async.testing.fakes import ActorFault, FakeEngineWorker, FakePayloads, FakeVerifier, always
from fr3e_async.wiring import PolicyFiles


def bench(name: str = "amc23", problems: int = 6, samples: int = 3, **fields: Any) -> TestSet:
    return TestSet(name=name, problems=tuple(prompt(f"{name}/{i}") for i in range(problems)), samples=samples, **fields)


def make_workers(
    config: Config, *, engines: list[FakeEngineWorker], spare: Sequence[FakeEngineWorker] = (), start: Any = None
) -> Workers:
    waiting = list(spare)

    async def next_spare(role: str) -> Any:
        if not waiting:
            raise RunFailed("no room")
        return waiting.pop(0)

    workers = [*((GENERATORS, engine) for engine in engines), (VERIFIERS, FakeVerifier("verifier-0"))]
    return Workers(config=config, learner=Closed(), payloads=FakePayloads(), start=start or next_spare, workers=workers)  # type: ignore[arg-type]


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
        self.workers = make_workers(self.config, engines=self.engines, spare=self.spare)

    async def close(self) -> None:
        await self.workers.close()


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
        model = PolicyFiles(path="fake", end_token_ids=(0,))
        job = evaluate_job.EvaluationJob(
            CONFIG,
            model,
            sets,
            opened,
            {"model": "fake", "benchmarks": {}},
            clock=virtual_time.now,
            started_at=virtual_time.now(),
        )
        code = virtual_time.run(job.run())
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
    with pytest.raises(RunFailed, match=r"finished problems are kept, the same command with out=.* resumes it"):
        run_job(out, monkeypatch, engines=[engine("e0", faults={("sample", 6): ActorFault.DIE})])
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
    dying = engine("e0", faults={("sample", 2): ActorFault.DIE})
    code, results = run_job(tmp_path / "out", monkeypatch, engines=[dying], spare=[engine("e1")])
    assert code == 0
    assert results["benchmarks"]["amc23"]["samples"] == 60
    messages = capsys.readouterr().out
    assert "e0 is lost" in messages
    assert "e1 has joined" in messages


def test_engines_that_die_one_after_another_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doomed = [engine(f"e{i}", faults=always("sample", ActorFault.DIE)) for i in range(5)]
    with pytest.raises(RunFailed, match=r"died in a row|max_attempts"):
        run_job(tmp_path / "out", monkeypatch, engines=doomed[:1], spare=doomed[1:])


class Starts:
    """Starts of workers: so many fail first."""

    def __init__(self, failures: int) -> None:
        self.failures, self.tried = failures, 0

    async def __call__(self, role: str) -> FakeEngineWorker:
        self.tried += 1
        if self.tried <= self.failures:
            raise RunFailed("the memory of the dead one is not free yet")
        return engine(f"new{self.tried}")


@pytest.mark.parametrize("others", [0, 1])
def test_a_replacement_that_does_not_start_is_tried_again(others: int) -> None:
    starts, messages = Starts(1), list[str]()  # max_deaths_in_a_row is 2
    workers = make_workers(CONFIG, engines=[engine(f"e{i}") for i in range(others)], start=starts)

    async def scenario() -> None:
        async with Lender(workers, note=messages.append) as lender:
            lender.expect(GENERATORS)
            await virtual_time.until(lambda: "new2" in workers.names(GENERATORS))
            async with lender.lend(GENERATORS, 1, priority=0):
                pass

    virtual_time.run(scenario())
    assert messages == ["a new one of generators did not start: the memory of the dead one is not free yet", "new2 has joined"]


@pytest.mark.parametrize("others", [0, 1])
def test_a_replacement_that_never_starts_is_given_up_and_ends_it_where_none_is_left(others: int) -> None:
    starts, messages = Starts(99), list[str]()
    workers = make_workers(CONFIG, engines=[engine(f"e{i}") for i in range(others)], start=starts)

    async def scenario() -> None:
        async with Lender(workers, note=messages.append) as lender:
            lender.expect(GENERATORS)
            await virtual_time.until(lambda: len(messages) == CONFIG.pools.max_deaths_in_a_row)
            async with lender.lend(GENERATORS, 1, priority=0) as name:
                assert name == "e0"

    if others:
        virtual_time.run(scenario())
    else:
        with pytest.raises(RunFailed, match="no worker of generators is left, and a new one did not start: the memory"):
            virtual_time.run(scenario())
    assert starts.tried == 2


def test_a_signal_ends_it_and_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Stopping(FakeEngineWorker):
        async def sample_together(self, *args: Any, **kwargs: Any) -> Any:
            if self.calls["sample"] == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return await super().sample_together(*args, **kwargs)

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


def test_results_of_earlier_benchmarks_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    amc, aime = bench(problems=8), bench("aime24", 5, 4)
    _, first = run_job(tmp_path / "out", monkeypatch, engines=[engine("e0")], sets=[amc])
    capsys.readouterr()
    code, both = run_job(tmp_path / "out", monkeypatch, engines=[engine("e1")], sets=[aime])
    assert code == 0
    assert list(both["benchmarks"]) == ["amc23", "aime24"]
    assert both["benchmarks"]["amc23"] == first["benchmarks"]["amc23"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "[" in line] == ["amc23", "aime24"]
    again = engine("e2")
    _, same = run_job(tmp_path / "out", monkeypatch, engines=[again], sets=[amc])
    assert {name: row["k"] for name, row in same["benchmarks"].items()} == {"amc23": 3, "aime24": 4}
    assert again.made == []
    for content in ("", "[]", '{"benchmarks": []}', '{"benchmarks": {"amc23": {"accuracy": 1}}}'):
        (tmp_path / "out" / "results.json").write_text(content)
        with pytest.raises(StorageError, match=r"out: .*results\.json holds no results"):
            run_job(tmp_path / "out", monkeypatch, engines=[engine("e3")], sets=[amc])


def test_a_cut_line_is_taken_off_without_writing_the_rest_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    with EvaluationDir.open(tmp_path / "out", identity={"benchmarks": {}}, config_yaml="") as folder:
        judgement = replace(samples_of(ROW)[0], problem="a")
        folder.keep("gsm8k", "a", [judgement])
        path = tmp_path / "out" / "problems" / "gsm8k.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole + b'{"problem": "b", "outc')
        monkeypatch.setattr(Path, "write_bytes", full)
        assert list(folder.finished("gsm8k", samples=1)) == ["a"]
        assert path.read_bytes() == whole


ROW = {
    "problem": "x", "outcomes": "r", "answers": ["1"], "lengths": [5], "truncated": [], "entropy_sums": [0.5], "versions": [0, 0],
}  # fmt: skip


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    folder = EvaluationDir.open(tmp_path / "a" / "out", identity={"benchmarks": {}}, config_yaml="")
    folder.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_lender_gives_no_more_than_an_engine_takes() -> None:
    workers = make_workers(CONFIG, engines=[engine("e0"), engine("e1")])
    order: list[str] = []

    async def use(lender: Lender, name: str, weight: int, seconds: float) -> None:
        async with lender.lend(GENERATORS, weight, priority=0) as worker:
            order.append(f"{name} {worker}")
            await asyncio.sleep(seconds)

    async def scenario() -> None:
        async with Lender(workers, note=lambda text: None) as lender:
            jobs = [("a", 16, 0.02), ("b", 10, 0.05), ("c", 6, 0.05), ("wide", 99, 0.01), ("d", 1, 0.01)]
            await asyncio.gather(*(use(lender, *job) for job in jobs))

    virtual_time.run(scenario())
    assert order[:3] == ["a e0", "b e1", "c e1"]
    assert {line.split()[0] for line in order[3:]} == {"wide", "d"}, "one that is wider than an engine gets an empty one"


def test_a_margin_makes_an_answer_right() -> None:
    """From the problem to the verifier; what lies within one is test_evaluation_margins.py's."""
    workers = make_workers(small_config(), engines=[FakeEngineWorker("e", correct=0.0, gain=0.0)])  # it answers 2

    async def rights(gold: str, *margins: Fraction) -> int:
        problem = replace(prompt("t/0"), reference=gold, margins=margins)
        test_set = TestSet(name="t", problems=(problem,), samples=8)
        async with Lender(workers, note=lambda text: None) as lender:
            found = await Evaluator(workers, (), [test_set]).sample(test_set, "x", lend=lender.lend)
        return sum(one.outcome is Outcome.CORRECT for one in found)

    assert virtual_time.run(rights("1.03")) == 0
    assert virtual_time.run(rights("1.03", Fraction(97, 100))) == 8
    assert virtual_time.run(rights("1.03", Fraction(96, 100))) == 0
    assert virtual_time.run(rights("1.03 m", Fraction(97, 100))) == 8
    assert virtual_time.run(rights("1.03, 2", Fraction(97, 100))) == 0
