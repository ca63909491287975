"""The verifier pool with its real processes: verdicts, limits, threads, and what becomes of the processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fr3e_async.config import VerifierPoolConfig
from fr3e_async.errors import RunFailed
from fr3e_async.outcomes import Outcome
from fr3e_async.types import Verdict
from fr3e_async.verify import process
from fr3e_async.verify.pool import VerifierPool
from fr3e_async.verify.process import Result

# A comparison that takes math-verify for ever. Its policies know some bombs by sight; the machinery is tested with BLUNT below.
BOMB, BOMB_GOLD = r"\boxed{x^{9^{9^9}}}", "x+1"
HALF = r"\boxed{\frac{1}{2}}"


def patient(**settings: Any) -> VerifierPoolConfig:
    """With time for a machine that has others to serve: only the limits that a test sets itself are ever reached."""
    return VerifierPoolConfig(**{"cpu_limit_s": 20.0, "wall_limit_s": 240.0, **settings})


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(patient(cpu_limit_s=1.0)) as pool:
        yield pool


def wait_until(condition: Callable[[], bool], *, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_integers_need_no_process() -> None:
    with VerifierPool(patient()) as pool:
        assert pool.judge(r"so it is \boxed{1,200}", "1200.0") == Verdict(outcome=Outcome.CORRECT, reason="integer")
        assert pool.judge(r"so it is \boxed{1,201}", "1200.0") == Verdict(outcome=Outcome.WRONG, reason="integer")
        assert pool.judge("I do not know", "1200") == Verdict(outcome=Outcome.WRONG, reason="no answer")
        assert pool.functions[0].tasks.fork_server is None


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\frac{1}{2}", "0.5"), ("0.5", r"$\frac{1}{2}$"), (r"x=5", "5"), (r"2\pi", r"$2\pi$"), (r"3,-3", r"\pm 3"),
        (r"x^2+2x+1", "(x+1)^2"), (r"\{2,1\}", r"\{1,2\}"), (r"12\text{ cm}", "12"), (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"\text{Even}", r"\text{even}"), (r"(1,2]", r"1<x\le 2"), ("0.333333", r"\frac13"), (r"\frac12", r"so \boxed{\frac{1}{2}}"),
    ],
)  # fmt: skip
def test_equal_answers_are_right(pool: VerifierPool, answer: str, gold: str) -> None:
    assert pool.judge(f"It is $\\boxed{{{answer}}}$.", gold).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\frac{1}{3}", "0.5"), (r"\pi", r"2\pi"), ("3", r"\pm 3"), (r"x^2+1", "x^2"), (r"(2,1)", "(1,2)"), ("0.5", "50"),
        (r"\text{odd}", r"\text{even}"), ("[1,2]", "(1,2]"), ("3.14", r"\pi"), (r"41\text{ or }42", "42"),
    ],
)  # fmt: skip
def test_other_answers_are_wrong(pool: VerifierPool, answer: str, gold: str) -> None:
    assert pool.judge(f"It is $\\boxed{{{answer}}}$.", gold).outcome is Outcome.WRONG


def test_a_bomb_is_unknown_by_its_cpu_limit_and_the_pool_continues(pool: VerifierPool) -> None:
    replaced = pool.replaced
    assert pool.judge(BOMB, BOMB_GOLD) == Verdict(outcome=Outcome.UNKNOWN, reason="cpu limit")
    assert pool.replaced == replaced + 1
    assert pool.judge(HALF, "0.5").outcome is Outcome.CORRECT


BLUNT = """
def equal(response, gold, prompt):
    while response == "bomb":
        9**9**9
    return response == gold
"""


@pytest.fixture
def blunt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A reward that compares texts, and never comes back from a bomb: what the pool does is then not the judge's doing."""
    (tmp_path / "blunt.py").write_text(BLUNT)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "blunt:equal"


def test_a_worker_that_a_limit_ended_is_replaced_by_the_same_fork_server(blunt: str) -> None:
    """A fork, and not a new interpreter that imports everything again."""
    with VerifierPool(patient(workers=1, cpu_limit_s=0.3), blunt) as pool:
        assert pool.judge("a", "a").outcome is Outcome.CORRECT
        fork_server = pool.functions[0].tasks.fork_server
        assert fork_server is not None
        pid = fork_server.process.pid
        for replaced in (1, 2, 3):
            assert pool.judge("bomb", "a").reason == "cpu limit"
            assert pool.replaced == replaced
            assert pool.judge("a", "a").outcome is Outcome.CORRECT
            assert pool.functions[0].tasks.fork_server is fork_server
        assert fork_server.process.pid == pid
        assert running(pid)


def test_with_retry_what_a_limit_ended_is_judged_once_more(blunt: str) -> None:
    with VerifierPool(patient(workers=1, cpu_limit_s=0.3, on_unknown="retry"), blunt) as pool:
        verdicts = asyncio.run(pool.judge_many([("a", "a"), ("bomb", "a"), ("bomb", "b"), ("b", "a"), ("a", "b")]))
        assert [verdict.outcome.value for verdict in verdicts] == ["correct", "unknown", "unknown", "wrong", "wrong"]
        assert [verdict.attempts for verdict in verdicts] == [1, 2, 2, 1, 1]
        assert pool.replaced == 4


def test_without_retry_it_is_not(blunt: str) -> None:
    with VerifierPool(patient(workers=1, cpu_limit_s=0.3, on_unknown="zero"), blunt) as pool:
        assert pool.judge("bomb", "a") == Verdict(outcome=Outcome.UNKNOWN, reason="cpu limit", attempts=1)
        assert pool.replaced == 1


def test_what_is_no_limits_doing_is_not_tried_again() -> None:
    with VerifierPool(patient(workers=1, on_unknown="retry")) as pool:
        verdict = pool.judge(r"\boxed{x^2}", "cut it along the long midline")
    assert (verdict.outcome, verdict.attempts) == (Outcome.UNKNOWN, 1)


def test_a_batch_continues_behind_an_answer_that_ends_its_worker(blunt: str) -> None:
    """One worker gets eight questions at once; those behind a bomb are put to the next one, in order."""
    bombs = (0, 10, 11, 30)
    items = [("bomb" if i in bombs else f"{i}", f"{i + i % 2}") for i in range(40)]
    with VerifierPool(patient(workers=1, cpu_limit_s=0.2), blunt) as pool:
        verdicts = asyncio.run(pool.judge_many(items))
        assert pool.replaced == len(bombs)
    expected = ["unknown" if i in bombs else "correct" if i % 2 == 0 else "wrong" for i in range(40)]
    assert [verdict.outcome.value for verdict in verdicts] == expected


def test_equal_answers_to_one_gold_are_judged_once(pool: VerifierPool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[process.Task] = []
    submit = pool.functions[0].tasks.submit

    def overheard(tasks: Sequence[process.Task]) -> Future[list[Result]]:
        asked.extend(tasks)
        return submit(tasks)

    monkeypatch.setattr(pool.functions[0].tasks, "submit", overheard)
    items = [(HALF, "0.5"), (f"so {HALF}", "$0.5$"), (HALF, "0.75"), (r"\boxed{$\frac{1}{2}$}", "0.5")]
    verdicts = asyncio.run(pool.judge_many(items))
    assert [verdict.outcome.value for verdict in verdicts] == ["correct", "correct", "wrong", "correct"]
    assert sorted(asked) == [(r"\frac{1}{2}", "0.5"), (r"\frac{1}{2}", "0.75")]


def test_an_answer_alone_is_judged_like_one_in_a_box(pool: VerifierPool) -> None:
    assert pool.judge_answer("$0.5$", r"\frac12").outcome is Outcome.CORRECT
    assert pool.judge_answer("5", "5") == Verdict(outcome=Outcome.CORRECT, reason="integer")
    assert pool.judge_answer("0.6", r"\frac12").outcome is Outcome.WRONG


def test_workers_that_cannot_live_are_reported_and_not_made_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*_: object, **__: object) -> list[process.Reply]:
        raise process.WorkerGone

    monkeypatch.setattr(process.Worker, "ask", dead)
    with VerifierPool(patient(workers=1)) as pool, pytest.raises(RunFailed, match=r"verifiers\.memory_gib"):
        pool.judge(HALF, "0.5")


def test_a_gold_that_is_a_sentence_makes_other_texts_unknown(pool: VerifierPool) -> None:
    assert pool.judge(r"\boxed{x^2}", "cut it along the long midline").outcome is Outcome.UNKNOWN
    assert pool.judge(r"\boxed{Cut it along the long midline.}", "cut it along the long midline").outcome is Outcome.CORRECT


@pytest.mark.slow
def test_memory_beyond_the_limit_is_unknown() -> None:
    with VerifierPool(patient(workers=1, memory_gib=0.25, cpu_limit_s=60, wall_limit_s=60)) as pool:
        verdict = pool.judge(r"\boxed{(w+x+y+z)^{200}}", "(w^2+x^2+y^2+z^2+2wx+2wy+2wz+2xy+2xz+2yz)^{100}")
        assert verdict == Verdict(outcome=Outcome.UNKNOWN, reason="memory limit")
        assert pool.judge(HALF, "0.5").outcome is Outcome.CORRECT


@pytest.mark.slow
def test_the_wall_limit_ends_a_process_that_uses_no_cpu_time() -> None:
    with VerifierPool(patient(workers=1, wall_limit_s=1.0)) as pool:
        assert pool.judge(HALF, "0.5").outcome is Outcome.CORRECT
        worker = pool.functions[0].tasks.free.queue[0]
        assert worker is not None
        os.kill(worker.pid, signal.SIGSTOP)
        assert pool.judge(HALF, "0.5") == Verdict(outcome=Outcome.UNKNOWN, reason="wall limit")
        assert not running(worker.pid)
        assert pool.judge(HALF, "0.5").outcome is Outcome.CORRECT


def test_a_worker_killed_while_idle_costs_no_verdict() -> None:
    with VerifierPool(patient(workers=1)) as pool:
        assert pool.judge(HALF, "0.5").outcome is Outcome.CORRECT
        worker = pool.functions[0].tasks.free.queue[0]
        assert worker is not None
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: not running(worker.pid))
        assert pool.judge(HALF, "0.5").outcome is Outcome.CORRECT
        assert pool.replaced == 1


def test_a_killed_fork_server_is_replaced() -> None:
    with VerifierPool(patient(workers=1)) as pool:
        assert pool.judge(HALF, "0.5").outcome is Outcome.CORRECT
        worker, fork_server = pool.functions[0].tasks.free.queue[0], pool.functions[0].tasks.fork_server
        assert worker is not None
        assert fork_server is not None
        fork_server.process.kill()
        wait_until(lambda: not running(worker.pid))
        assert pool.judge(HALF, "0.5").outcome is Outcome.CORRECT


def test_threads_share_the_pool(pool: VerifierPool) -> None:
    pairs = [(rf"\boxed{{\frac{{{i}}}{{7}}}}", rf"\frac{{{i + i % 2}}}{{7}}") for i in range(1, 41)]
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda pair: pool.judge(*pair), pairs))
    assert [v.outcome is Outcome.CORRECT for v in verdicts] == [i % 2 == 0 for i in range(1, 41)]


def test_judge_many_keeps_the_order_and_the_event_loop_free(pool: VerifierPool) -> None:
    async def run() -> tuple[list[Verdict], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticker = asyncio.create_task(tick())
        verdicts = await pool.judge_many([(BOMB, BOMB_GOLD), (r"\boxed{3}", "3"), (HALF, "0.5"), ("", "1"), (HALF, "0.75")])
        ticker.cancel()
        return verdicts, ticks

    verdicts, ticks = asyncio.run(run())
    assert [v.outcome.value for v in verdicts] == ["unknown", "correct", "correct", "wrong", "wrong"]
    assert ticks >= 10, "within a second of work in other processes, at least"


def test_processes_hold_none_of_the_parents_files() -> None:
    with socket.socket() as held:
        held.set_inheritable(True)
        with VerifierPool(patient(workers=1)) as pool:
            pool.judge(HALF, "0.5")
            worker, fork_server = pool.functions[0].tasks.free.queue[0], pool.functions[0].tasks.fork_server
            assert worker is not None
            assert fork_server is not None
            mine = os.readlink(f"/proc/self/fd/{held.fileno()}")
            for pid in (worker.pid, fork_server.process.pid):
                files = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
                assert mine not in files
            sockets = [os.readlink(f"/proc/{worker.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{worker.pid}/fd") if int(fd) > 2]
            assert len(sockets) == 1


def test_closing_ends_all_processes_and_later_use_is_an_error() -> None:
    pool = VerifierPool(patient(workers=1))
    pool.warm()
    pool.judge(HALF, "0.5")
    worker, fork_server = pool.functions[0].tasks.free.queue[0], pool.functions[0].tasks.fork_server
    assert worker is not None
    assert fork_server is not None
    pool.close()
    pool.close()
    assert not running(worker.pid)
    assert not running(fork_server.process.pid)
    with pytest.raises(RuntimeError):
        pool.judge(HALF, "0.5")


PARENT = """
import json, sys, threading
from fr3e_async.config import VerifierPoolConfig
from fr3e_async.verify.pool import VerifierPool
pool = VerifierPool(VerifierPoolConfig(workers=1, cpu_limit_s=600, wall_limit_s=600))
pool.judge(r"\\boxed{\\frac12}", "0.5")
print(json.dumps([pool.functions[0].tasks.fork_server.process.pid, pool.functions[0].tasks.free.queue[0].pid]), flush=True)
pool.judge(r"\\boxed{x^{9^{9^9}}}", "x+1")
"""


def test_processes_die_with_a_parent_that_is_killed_even_in_the_middle_of_a_bomb() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = json.loads(parent.stdout.readline())
        wait_until(lambda: int(Path(f"/proc/{pids[1]}/stat").read_text().rpartition(")")[2].split()[11]) > 20)  # it computes
        parent.kill()
    wait_until(lambda: not any(running(pid) for pid in pids))


def test_a_fork_server_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    with VerifierPool(patient(workers=1)) as pool, pytest.raises(RunFailed, match="do not start"):
        pool.judge(HALF, "0.5")
