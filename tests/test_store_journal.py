"""Every event goes into the journal and comes back as it was; a torn end is passed over, damage and other formats are not."""

from __future__ import annotations

import json

import pytest
from loop_support import World, loop_config

from fr3e_async.errors import StorageError
from fr3e_async.machine.budget import Account
from fr3e_async.machine.events import (
    Acked,
    Admitted,
    Answered,
    Asked,
    Begun,
    Delivered,
    Due,
    Exported,
    Leaving,
    Lost,
    Pressure,
    Refused,
    Rescored,
    Scored,
    Stopped,
    Trained,
    Unhired,
    Utilization,
    WorkerDown,
    WorkerUp,
)
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.machine.messages import (
    Assign,
    Branch,
    Dismiss,
    Hire,
    Live,
    Move,
    Release,
    Sample,
    Send,
    SetPoolTarget,
    Train,
    Wait,
    Withdraw,
)
from fr3e_async.outcomes import Outcome
from fr3e_async.store.journal import Journal, brief, read_journal
from fr3e_async.testing.fakes import fake_anchors
from fr3e_async.types import Finish, RolloutId, RolloutSummary, Verdict

ID = RolloutId("q@0", 1, 2)
NOTE = RolloutSummary(
    id=ID, length=4, context=3, cached=1, entropy_sum=2.5, entropy_error_sum=0.0, finish=Finish.LENGTH, oldest_version=0, newest_version=1
)  # fmt: skip
EVENTS = [
    Admitted(group="q@0"),
    Delivered(task=1, group="q@0", payload=3, notes=(NOTE,), anchors=fake_anchors(1)),
    Delivered(task=1, group="q@0", payload=3, notes=(NOTE,), anchors=()),
    Delivered(task=1, group="q@0", payload=3, notes=(NOTE, NOTE)),
    Rescored(task=2, group="q@0", trunks=(RolloutId("q@0", 0, 0),), anchors=fake_anchors(0)),
    Lost(task=3, group="q@0", ids=(ID,), reason="the lease ran out", scoring=True, payload=7, counted=False),
    Scored(task=4, group="q@0", ids=(ID,), verdicts=(Verdict(outcome=Outcome.UNKNOWN, reason="time", attempts=2),)),
    Trained(version=1),
    Asked(task=-1, role="generators", weight=64, priority=-1),
    Answered(task=-1, proof=False),
    WorkerUp(role="explorers", worker="explorer-3", version=-1),
    WorkerDown(worker="explorer-3", why='it said: "no"\n  and more'),
    WorkerUp(role="explorers", worker="explorer-4", ticket=9),
    Unhired(ticket=9, role="explorers", why="no room"),
    Begun(),
    Leaving(worker="explorer-3", why="its node is taken away", seconds=60.0),
    Utilization(at=12.5, idle=(("generators", 0.25), ("verifiers", 1.0))),
    Pressure(worker="explorer-3", kv_used=0.97, waiting=2, preempted=1),
    Exported(version=1),
    Acked(worker="explorer-3", version=1),
    Refused(worker="explorer-3", version=1, why="damaged"),
    Due(key="task 5"),
    Stopped(reason="stopped by SIGTERM"),
]


def journal(folder, *, state=None, session=0) -> Journal:
    return Journal(folder / "journal", session=session, config=loop_config(), state=state)


def written(folder, count: int = 3):
    made = journal(folder)
    for number in range(count):
        made.write(Trained(version=number), [], float(number))
    made.close()
    return made.path


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_was(tmp_path, event):
    made = journal(tmp_path)
    made.write(event, [], 17.1234567)
    made.close()
    (entry,) = read_journal(made.path)[1]
    assert (entry.event, entry.time, entry.commands) == (event, 17.123457, ())


def test_the_header_has_the_config_and_the_state_that_the_machine_began_with(tmp_path):
    state = LedgerState(version=3, admitted=9, outcomes={"trained": 8}, budget=Account(balance=1.5), rejected_in_a_row=2)
    made = journal(tmp_path, state=state, session=12)
    made.close()
    header, entries = read_journal(made.path)
    assert made.path.name == "0012.jsonl"
    assert header.state == state
    assert header.config["flow"]["groups_per_step"] == 4
    assert list(entries) == []
    fresh, _ = read_journal(written(tmp_path))
    assert fresh.state is None


def test_decisions_are_written_in_short():
    ids = (RolloutId("q@0", 0, 0), RolloutId("q@0", 0, 1))
    work = Sample(task=7, ids=ids, trunk=True)
    branch = Branch(task=8, group="q@0", ids=ids, trunk=ids[0], trunk_payload=1)
    told = [
        (Assign(task=7, worker="generator-0", work=work), "assign 7 generator-0 Sample 2"),
        (Assign(task=8, worker="explorer-0", work=branch), "assign 8 explorer-0 Branch 2"),
        (Assign(task=-1, worker="generator-0", work=None), "assign -1 generator-0 Asked"),
        (Train(version=4, groups=("a@0", "b@1"), items=(), oldest=3), "train 4 0 a@0 b@1"),
        (Withdraw(worker="generator-0", tasks=(1, 2)), "withdraw generator-0 1 2"),
        (Withdraw(worker="generator-0", tasks=()), "withdraw generator-0"),
        (Hire(ticket=3, role="generators", delay_s=0.5), "hire 3 generators 0.5"),
        (Dismiss(ticket=3), "dismiss 3"),
        (Release(worker="generator-0", why="dead"), "release generator-0 lost"),
        (Release(worker="generator-0", why="small", lost=False), "release generator-0"),
        (Move(worker="generator-0", role="explorers"), "move generator-0 explorers"),
        (SetPoolTarget(role="generators", actors=3), "want 3 generators"),
        (Send(version=4, workers=("a", "b")), "send 4 a b"),
        (Send(version=4, workers=("a",), alone=True), "send 4 alone a"),
        (Send(version=4, workers=()), "send 4"),
        (Live(version=4), "live 4"),
        (Wait(key="idle a", seconds=300.0), "wait 300 idle a"),
    ]
    assert [brief(command) for command, _ in told] == [text for _, text in told]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_that_was_cut_off_is_passed_over(tmp_path, cut):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert [entry.event.version for entry in read_journal(path)[1]] == [0, 1]


def test_damage_in_the_middle_names_the_line(tmp_path):
    path = written(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "{not json}\n", *lines[3:]]))
    entries = read_journal(path)[1]
    assert next(entries).event == Trained(version=0)
    with pytest.raises(StorageError, match=r"0000\.jsonl, line 3: no event of a journal \(JSON is malformed"):
        next(entries)


@pytest.mark.parametrize(
    "content",
    ["", '{"format": 2, "config": {}, "state": null}\n', '{"format": 1, "config": {}, "state": null}\n', '{"format": 1, "con'],
)
def test_what_is_no_journal_of_this_version_is_refused(tmp_path, content):
    path = tmp_path / "0000.jsonl"
    path.write_text(content)
    with pytest.raises(StorageError, match="no journal that this version can read"):
        read_journal(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"is not readable \(No such file"):
        read_journal(tmp_path / "0000.jsonl")


def test_lines_are_handed_on_by_flush(tmp_path):
    made = journal(tmp_path)
    made.write(Trained(version=1), [], 0.0)
    assert list(read_journal(made.path)[1]) == []
    made.flush()
    assert [entry.event for entry in read_journal(made.path)[1]] == [Trained(version=1)]
    made.close()
    made.close()


def test_a_runs_journal_is_of_plain_short_lines(tmp_path):
    world = World(tmp_path, run={"steps": 2})
    world.run()
    lines = [json.loads(line) for line in world.journal.path.read_text().splitlines()[1:]]
    assert {frozenset(line) for line in lines} == {frozenset({"t", "e", "c"})}
    times = [line["t"] for line in lines]
    assert times == sorted(times)
    assert {"Admitted", "Delivered", "Scored", "Trained", "Exported", "Acked", "WorkerUp"} <= {
        line["e"]["type"] for line in lines
    }


def test_a_journal_is_read_by_the_names_of_its_fields(tmp_path):
    """As it lies on the disk; a field that is left out has its default, and the order of the others does not matter."""
    path = tmp_path / "0000.jsonl"
    path.write_text(
        '{"journal":"0.1.0","config":{},"state":null}\n'
        '{"t":2.5,"e":{"type":"Scored","task":4,"group":"q@0","ids":[["q@0",1,2]],"verdicts":[{"outcome":"unknown","reason":"time"}]},"c":[]}\n'
        '{"e":{"role":"explorers","worker":"explorer-4","type":"WorkerUp"},"c":["want 3 generators"],"t":3}\n'
    )
    first, second = read_journal(path)[1]
    assert first.event == Scored(task=4, group="q@0", ids=(ID,), verdicts=(Verdict(outcome=Outcome.UNKNOWN, reason="time"),))
    assert (second.time, second.event) == (3.0, WorkerUp(role="explorers", worker="explorer-4", version=0, ticket=0, node=""))
    assert second.commands == ("want 3 generators",)


def test_a_journal_of_before_the_event_was_called_scored_is_read(tmp_path):
    made = Journal(tmp_path, session=0, config=loop_config(), state=None)
    made.write(EVENTS[6], [], 1.0)
    made.close()
    path = made.path
    path.write_bytes(path.read_bytes().replace(b'"type":"Scored"', b'"type":"Judged"'))
    assert [entry.event for entry in read_journal(path)[1]] == [EVENTS[6]]
    assert isinstance(EVENTS[6], Scored)


@pytest.mark.parametrize("event", ['{"type":"Trained"}', '{"type":"Trained","version":"1"}', '{"type":"Busy"}', "[1]"])
def test_an_event_of_another_shape_is_refused(tmp_path, event):
    path = tmp_path / "0000.jsonl"
    path.write_text('{"journal":"0.1.0","config":{},"state":null}\n{"t":1.0,"e":' + event + ',"c":[]}\n')
    with pytest.raises(StorageError, match=r"line 2: no event of a journal \(.* `\$\.e"):
        list(read_journal(path)[1])


def test_a_name_that_is_no_unicode_does_not_end_the_run(tmp_path):
    made = journal(tmp_path)
    made.write(WorkerDown(worker="generator-0", why="no file a\udc80"), [], 0.0)
    made.close()
    (entry,) = read_journal(made.path)[1]
    assert entry.event.why == "no file a\udc80"
