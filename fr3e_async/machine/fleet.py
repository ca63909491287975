"""Which weights every engine serves, and how each comes to the next version. Pure.

                     Exported(v)                       idle               Send(v)          Acked(v)
    in_flight    serving ─────────────────────────────────────────────► receiving ─► acknowledged ─► serving
    wait_idle    serving ─► paused: no new work ─► its rollouts end ──► receiving ─► acknowledged ─► serving
    abort_retry  serving ─► paused: its rollouts are withdrawn ───────► receiving ─► acknowledged ─► serving

In flight, an engine continues to make tokens of the old version while it receives, stands still between two tokens to load
(rollout/vllm_engine.py), and its rollouts continue with the new one. Each engine goes its own way: one that hangs holds up
nobody. It has a time limit in every state; one that refuses or is late is quarantined and replaced by the caller. When
several versions are waiting only the newest is sent. With ``together`` (weights.transfer=collective) all engines receive at once.

The live version is the oldest one that an engine in service serves; it never falls. An engine that joins with older weights
serves only when it has acknowledged some that are not older than the live ones.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from fr3e_async.config import WeightsConfig
from fr3e_async.machine.events import Acked, Due, Exported, WorkerUp
from fr3e_async.machine.messages import Gone, Hold, Idle, Live, Message, Send, Serve, TakeBack, Wait
from fr3e_async.machine.slots import VERIFIERS


class MemberState(Enum):
    """Where an engine stands on its way to the next weights; the table above has the order."""

    SERVING = auto()
    PAUSED = auto()  # gets no new work; its rollouts end, or are taken back
    RECEIVING = auto()  # with work in in_flight mode, idle in the other two
    ACKNOWLEDGED = auto()  # with the newest weights, not given work yet


@dataclass(slots=True)
class Member:
    """One engine: what it serves, and whether it may receive."""

    version: int  # that it serves
    state: MemberState = MemberState.SERVING
    ready: bool = False  # it may receive: always in flight, else when it has no work
    joining: bool = False  # not in service yet: its version does not count
    paused_for: int = -1  # the target when it was paused last


class Fleet:
    """All engines with their weights. ``target``: the newest version that they are to have; ``live``: the one that all serve."""

    def __init__(self, config: WeightsConfig, *, version: int) -> None:
        self._config = config
        self._in_flight, self._abort = config.update == "in_flight", config.update == "abort_retry"
        self._together = config.transfer == "collective"
        self.target = version  # the newest version that engines are to have
        self.live = version
        self.members: dict[str, Member] = {}
        self._serving: Counter[int] = Counter()  # version -> members in service
        self._unsent = False  # no engine has been sent the target yet
        self._handlers: dict[type, Callable[[Any], list[Message]]] = {
            WorkerUp: self._joined,
            Gone: self._gone,
            Exported: self._exported,
            Idle: self._idle,
            Acked: self._acked,
            Due: self._due,
        }

    def handle(self, message: Message) -> list[Message]:
        """Apply one event, or a message of the dispatcher; returns who pauses, receives and serves, and at last what is live now."""
        before = self.live
        commands = self._handlers[type(message)](message)
        return commands if self.live == before else [*commands, Live(version=self.live)]

    # ---- events ----

    def _joined(self, event: WorkerUp) -> list[Message]:
        """A new engine. It is held back until it has the newest weights."""
        if event.role == VERIFIERS:
            return []
        if event.version >= self.target:
            self.members[event.worker] = Member(event.version, ready=self._in_flight)
            self._serve(event.version, +1)
            return []
        self.members[event.worker] = Member(event.version, MemberState.RECEIVING, joining=True)
        return [*self._pause([event.worker]), Send(version=self.target, workers=(event.worker,), alone=True)]

    def _gone(self, message: Gone) -> list[Message]:
        """Remove an engine that is out of service, in whatever state it was."""
        member = self.members.pop(message.worker, None)
        if member is None:
            return []
        if not member.joining:
            self._serve(member.version, -1)
        return self._send(())

    def _exported(self, event: Exported) -> list[Message]:
        """Note that the weights of a newer version are ready to send."""
        self.target, self._unsent = event.version, True
        paused = []
        if not self._in_flight:
            paused = [name for name, member in self.members.items() if member.state is MemberState.SERVING]
            for name in paused:
                self.members[name].state, self.members[name].paused_for = MemberState.PAUSED, event.version
        return self._pause(paused) + self._send(self.members)

    def _idle(self, message: Idle) -> list[Message]:
        """Note that a paused engine has finished its tasks, so it can receive weights."""
        member = self.members.get(message.worker)
        if member is None or member.state is not MemberState.PAUSED:
            return []
        member.ready = True
        return self._send((message.worker,))

    def _acked(self, event: Acked) -> list[Message]:
        """Note that an engine has loaded a version. If a newer one exists, the engine receives that before it serves,
        unless weights change in flight.
        """
        member, version = self.members.get(event.worker), event.version
        if member is None or member.state is not MemberState.RECEIVING:
            return []
        served = None if member.joining else member.version
        member.joining = member.joining and version < self.live  # what is live by now may be newer than what it was sent
        member.version, member.state, member.ready = version, MemberState.ACKNOWLEDGED, True
        if not member.joining:
            self._serve(version, +1)  # before the one that it served goes, or the live version would be that of the others
        if served is not None:
            self._serve(served, -1)
        serves = not member.joining and (version >= self.target or self._in_flight)
        if serves:
            member.state, member.ready = MemberState.SERVING, self._in_flight
        was_held = served is None or not self._in_flight
        return self._send((event.worker,)) + ([Serve(worker=event.worker)] if serves and was_held else [])

    def _due(self, event: Due) -> list[Message]:
        """Take back the tasks of an engine that was paused for a version and did not become idle in time."""
        kind, _, rest = event.key.partition(" ")
        version, _, worker = rest.partition(" ")
        member = self.members.get(worker) if kind == "idle" else None
        late = member is not None and member.state is MemberState.PAUSED and member.paused_for == int(version)
        return [TakeBack(worker=worker)] if late else []

    # ---- queries ----

    def receives(self, worker: str) -> bool:
        """Whether new weights are on their way to this engine."""
        member = self.members.get(worker)
        return member is not None and member.state is MemberState.RECEIVING

    def outdated(self) -> list[tuple[str, str, int]]:
        """(engine, its state, its version) of those that are on the way to newer weights: for the watchdog's diagnosis."""
        return [
            (name, member.state.name.lower(), member.version)
            for name, member in self.members.items()
            if member.joining or member.version < self.target
        ]

    # ---- inside ----

    def _pause(self, workers: Sequence[str]) -> list[Message]:
        """Give these engines no new work; take back what they have at once, or after a time, or never."""
        commands: list[Message] = [Hold(worker=worker) for worker in workers]
        if self._abort:
            commands += [TakeBack(worker=worker) for worker in workers if not self.members[worker].joining]
        elif not self._in_flight:
            limit = self._config.idle_timeout_s
            commands += [Wait(key=f"idle {self.target} {worker}", seconds=limit) for worker in workers]
        return commands

    def _send(self, candidates: Iterable[str]) -> list[Message]:
        """Send the target to those of these that need it and may receive. Together: to all that need it, or not yet.

        A common hand-over to nobody is one too: the learner waits for it.
        """
        outdated = [n for n in (self.members if self._together else candidates) if self.members[n].version < self.target]
        ready = [n for n in outdated if self.members[n].ready and self.members[n].state is not MemberState.RECEIVING]
        if self._together:
            if len(ready) < len(outdated) or not (ready or self._unsent):
                return []
        elif not ready:
            return []
        self._unsent = False
        for name in ready:
            self.members[name].state = MemberState.RECEIVING
        return [Send(version=self.target, workers=tuple(ready))]

    def _serve(self, version: int, by: int) -> None:
        """Count ``by`` more engines that serve ``version``. A version is live once no engine serves an older one."""
        self._serving[version] += by
        if not self._serving[version]:
            del self._serving[version]
        if self._serving:
            self.live = max(self.live, min(self._serving))
