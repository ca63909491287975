"""A run is never silent: why there is no batch, the first failures of a reward function, who is not up yet. Virtual time, exact lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import virtual_time
from loop_support import World

from fr3e_async.control.workers import FIRST, FirstVerdicts
from fr3e_async.errors import RunFailed
from fr3e_async.outcomes import Outcome
from fr3e_async.testing.fakes import FakeVerifier
from fr3e_async.types import Verdict
from fr3e_async.verify.pool import last_words
from fr3e_async.verify.responses import UNREADABLE
from fr3e_async.wiring.room import Wanted, roll_call

CORRECT = Verdict(outcome=Outcome.CORRECT)
NOTHING = Verdict(outcome=Outcome.UNKNOWN, reason="reward said unknown")


def failed(reason: str = "reward raised ValueError", complaint: str = "") -> Verdict:
    return Verdict(outcome=Outcome.UNKNOWN, reason=reason, complaint=complaint)


# ---- why there is no batch ----


def lines_of(world: World) -> list[str]:
    return [line for line, kind in zip(world.notes.lines, world.notes.kinds, strict=True) if kind == "no_batch"]


def test_a_model_that_solves_nothing_is_said_to(tmp_path: Path) -> None:
    """Bases take a second, so do branches: groups of 7 rollouts end all wrong, and none is ready."""
    world = World(
        tmp_path, correct=0.0, gain=0.0, delay_s=1.0, observe={"heartbeat_s": 2.0},
        flow={"groups_per_step": 4, "max_staleness": 1, "lease_s": 60.0, "max_rejected_in_a_row": 10_000},
    )  # fmt: skip
    with pytest.raises(TimeoutError):
        virtual_time.run(world.go(), limit_s=66.0)
    assert lines_of(world) == [
        "no batch for 32 s: 0 of 4 groups ready, 8 in the making; since the last batch 128 groups rejected (128 all wrong), "
        "0% of 896 verdicts unknown, 5,338 tokens generated; the oldest group p8@3: 3 being drawn",
        "no batch for 62 s: 0 of 4 groups ready, 8 in the making; since the last batch 248 groups rejected (248 all wrong), "
        "0% of 1,736 verdicts unknown, 10,304 tokens generated; the oldest group p25@6: 3 being drawn",
    ]
    assert world.notes.waited.startswith("no batch for 64 s: ")


def test_a_learner_at_work_is_said_to_be_and_lines_come_ever_more_seldom(tmp_path: Path) -> None:
    world = World(tmp_path, delay_s=0.001, observe={"heartbeat_s": 1.0}, watchdog={"stuck_s": 900.0, "timeout_s": 900.0})

    async def slowly(rows: Any, *, version: int) -> Any:
        await virtual_time.asyncio.sleep(700.0)

    world.learner.train = slowly  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        virtual_time.run(world.go(), limit_s=600.0)
    stalls = [line.partition("; ")[0] for line in lines_of(world)]
    assert stalls == [f"no batch for {at} s: the learner trains v1" for at in (30, 60, 120, 240, 480)]


def test_a_run_whose_batches_come_says_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, observe={"heartbeat_s": 0.05})
    assert world.run() == "finished"
    assert lines_of(world) == []
    assert world.notes.waited == ""


# ---- the first verdicts ----


def test_the_first_failure_of_each_kind_is_told_at_once() -> None:
    watch = FirstVerdicts(["mine:score"])
    trace = (
        'Traceback (most recent call last):\n  File "/home/me/mine.py", line 7, in score\n    int(text)\nValueError: no digits\n'
    )
    notes = watch.take(
        "verifier-0",
        [
            CORRECT,
            failed(complaint=last_words(trace)),
            failed(),
            failed("cpu limit"),
            failed("reward returned str", "it returned 'a'"),
            NOTHING,
        ],
    )
    assert notes == [
        "reward=mine:score: ValueError: no digits (mine.py, line 7, in score); all of it is in "
        "logs/verifier-0.log; more of these are only counted",
        "reward=mine:score: cpu limit; more of these are only counted",
        "reward=mine:score: reward returned str: it returned 'a'; all of it is in logs/verifier-0.log; more of these are only counted",
    ]
    assert watch.take("verifier-1", [failed(), failed("cpu limit")]) == []


def test_64_failures_at_the_beginning_end_the_run() -> None:
    watch = FirstVerdicts(["mine:score"])
    first = failed(complaint="ValueError: no digits (mine.py, line 7, in score)")
    watch.take("verifier-0", [first, *[failed()] * 59])
    with pytest.raises(RunFailed) as caught:
        watch.take("verifier-0", [failed("cpu limit")] * 5)
    assert str(caught.value) == (
        "reward=mine:score: the first 64 verdicts all failed: "
        "60 × ValueError: no digits (mine.py, line 7, in score), 4 × cpu limit"
    )


def test_what_no_function_has_seen_says_nothing_about_it() -> None:
    watch = FirstVerdicts(["mine:score"])
    unreadable = Verdict(outcome=Outcome.WRONG, reason=UNREADABLE)
    assert len(watch.take("verifier-0", [unreadable, failed()] * (FIRST - 1))) == 1
    with pytest.raises(RunFailed, match="the first 64 verdicts all failed"):
        watch.take("verifier-0", [unreadable, failed()])


@pytest.mark.parametrize("good", [CORRECT, Verdict(outcome=Outcome.WRONG), NOTHING])
def test_one_good_verdict_among_them_is_enough(good: Verdict) -> None:
    watch = FirstVerdicts(["math"])
    assert watch.take("verifier-0", [*[failed()] * (FIRST - 1), good, *[failed()] * 500]) == []


def test_a_run_whose_reward_only_fails_ends_with_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def judge(self: Any, payload: Any, rows: Any, prompts: Any) -> list[Verdict]:
        return [failed(complaint="ValueError: no digits (mine.py, line 7, in score)") for _ in rows]

    monkeypatch.setattr(FakeVerifier, "judge", judge)
    world = World(tmp_path, config=None)
    world.workers.verdicts = FirstVerdicts(["mine:score"])
    world.workers.note = world.notes.note
    with pytest.raises(
        RunFailed, match=r"reward=mine:score: the first 64 verdicts all failed.*ValueError: no digits \(mine\.py, line 7"
    ):
        world.run()
    assert world.notes.kinds.count("reward_failed") == 1
    assert world.ledger.version == 0


# ---- who is up ----


def test_the_roll_call_names_who_is_missing_and_for_what_room() -> None:
    up = {"generators": (1, 2), "explorers": (1, 1), "learner": (0, 4)}
    assert roll_call(up) == "generators 1 of 2 up, learner 0 of 4"
    needs = {"generator-1": Wanted(needs={"CPU": 1.75}), "the learner": Wanted(needs={"CPU": 4.0, "GPU": 4.0, "big": 1.0})}
    assert roll_call(up, needs, {"CPU": 0.0, "GPU": 2.0}) == (
        "generators 1 of 2 up, learner 0 of 4; generator-1 needs 1.75 CPUs, 0.0 free; "
        "the learner needs 4 CPUs, 4 GPUs, 1 big, 0.0, 2.0, 0.0 free"
    )
    assert roll_call(up, dict.fromkeys("abcde", Wanted(needs={"CPU": 1.0})), {}).endswith("; 3 more have no room")
    assert roll_call({"generators": (2, 2), "learner": (1, 1)}, needs) == ""


def test_an_actor_without_a_placement_group_has_room_if_it_would_fit() -> None:
    wanted = Wanted(needs={"CPU": 0.5})
    assert (wanted.has_room({"CPU": 0.5}), wanted.has_room({"CPU": 0.25}), wanted.has_room({})) == (True, False, False)
