"""``python -m fr3e_async.replay RUN``: drive the control machine through a recorded run again, event by event, and compare.

Needs no GPU, no Ray and no engine: a laptop and the run's ``journal/`` folder. Every decision must be the one that was made;
the first that is not is shown. Exit codes: 0 the same; 1 another decision; 2 bad input.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.errors import RunFailed, StorageError, printable
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.machine import Machine
from fr3e_async.settings.loader import config_from
from fr3e_async.store.journal import Entry, Header, brief, read_journal, refusal


@dataclass(frozen=True, slots=True)
class ReplayedEvent:
    """One event, driven through the machine again. ``decided``: what it decides now, in short."""

    number: int  # from 1
    entry: Entry
    decided: tuple[str, ...]
    machine: Machine

    @property
    def same(self) -> bool:
        return self.decided == self.entry.commands


def replay(header: Header, entries: Iterator[Entry]) -> Iterator[ReplayedEvent]:
    """Yield each event of a session with what the machine decides now; at last perhaps that it refuses to continue."""
    config = config_from(header.config)
    machine = Machine(config, make_strategy(config.algorithm), state=header.state)
    machine.start()
    for number, entry in enumerate(entries, start=1):
        try:
            decided = tuple(brief(command) for command in machine.handle(entry.event))
        except RunFailed as error:
            yield ReplayedEvent(number, entry, (refusal(error),), machine)
            continue  # the run has failed; what follows is the batch that was waited for
        yield ReplayedEvent(number, entry, decided, machine)


def journals(run: Path, *, session: int | None) -> list[Path]:
    """The files to replay, oldest first. Raises ``StorageError`` if there are none."""
    folder = run / "journal"
    found = sorted(folder.glob("*.jsonl"))
    if session is not None:
        found = [path for path in found if int(path.stem) == session]
    if not found:
        wanted = "no journal" if session is None else f"no journal of session {session}"
        raise StorageError(f"{run}: {wanted}; a run writes one with observe.journal=true")
    return found


def follow(path: Path, *, show: tuple[int, int], state: bool) -> int | None:
    """Replay one session; prints what was asked for, the first difference, and a summary.

    Returns the exit code, or None if the session was killed before it had written its first line.
    """
    with open(path, "rb") as file:
        if not file.readline().endswith(b"\n"):
            return None
    kinds: Counter[str] = Counter()
    step: ReplayedEvent | None = None
    for step in replay(*read_journal(path)):
        kinds[type(step.entry.event).__name__] += 1
        if show[0] <= step.number <= show[1]:
            print(_shown(step, state=state))
        if not step.same:
            print(f"session {int(path.stem)}, event {step.number}: another decision")
            print(_shown(step, state=True))
            print(printable("  then  " + "; ".join(step.entry.commands)))
            print(printable("  now   " + "; ".join(step.decided)))
            return 1
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    print(f"session {int(path.stem)}: {kinds.total()} events, the same decisions ({counted})")
    if step is not None:
        print(_state(step.machine))
    return 0


def _shown(step: ReplayedEvent, *, state: bool) -> str:
    lines = [f"{step.number} t={step.entry.time:.3f} {step.entry.event}", *(f"    {text}" for text in step.decided)]
    return printable("\n".join([*lines, *([_state(step.machine)] if state else [])]))


def _state(machine: Machine) -> str:
    ledger, dispatcher, fleet = machine.ledger, machine.dispatcher, machine.fleet
    roles = ", ".join(
        f"{role} {dispatcher.in_flight(role)} in flight and {dispatcher.queued(role)} queued"
        for role in (GENERATORS, EXPLORERS, VERIFIERS)
    )
    return (
        f"  v{ledger.version} trained, v{fleet.live} live; {ledger.slots_held} slots held, {ledger.in_flight} groups in flight, "
        f"{ledger.ready} ready; {roles}; outcomes {dict(ledger.outcomes)}"
    )
