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
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from fr3e_async.config import WeightsConfig


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


@dataclass(frozen=True, slots=True)
class Steps:
    """The calls that follow from an event, to be made in the order of the fields."""

    pause: tuple[str, ...] = ()  # give them no new work
    withdraw: tuple[str, ...] = ()  # take their rollouts back
    send: tuple[str, ...] | None = (
        None  # the target version to these; to nobody: the learner waits for the hand-over all the same
    )
    catch_up: tuple[str, ...] = ()  # the target version to each of these, alone
    serve: tuple[str, ...] = ()  # give them work again


NOTHING = Steps()


class Fleet:
    """All engines with their weights. Each event is a method that returns the ``Steps`` to take; ``live`` and ``target`` are versions."""

    def __init__(self, config: WeightsConfig, *, version: int) -> None:
        self._in_flight, self._abort = config.update == "in_flight", config.update == "abort_retry"
        self._together = config.transfer == "collective"
        self.target = version  # the newest version that engines are to have
        self.live = version
        self.members: dict[str, Member] = {}
        self._serving: Counter[int] = Counter()  # version -> members in service
        self._unsent = False  # no engine has been sent the target yet

    # ---- events ----

    def join(self, worker: str, version: int) -> Steps:
        """A new engine. It is held back until it has the newest weights."""
        if version >= self.target:
            self.members[worker] = Member(version, ready=self._in_flight)
            self._serve(version, +1)
            return NOTHING
        self.members[worker] = Member(version, MemberState.RECEIVING, joining=True)
        return Steps(pause=(worker,), catch_up=(worker,))

    def leave(self, worker: str) -> Steps:
        """Remove an engine that is out of service, in whatever state it was."""
        member = self.members.pop(worker, None)
        if member is None:
            return NOTHING
        if not member.joining:
            self._serve(member.version, -1)
        return Steps(send=self._send(()))

    def exported(self, version: int) -> Steps:
        """Note that the weights of a newer version are ready to send."""
        self.target, self._unsent = version, True
        pause = []
        if not self._in_flight:
            pause = [name for name, member in self.members.items() if member.state is MemberState.SERVING]
            for name in pause:
                self.members[name].state, self.members[name].paused_for = MemberState.PAUSED, version
        return Steps(pause=tuple(pause), withdraw=tuple(pause) if self._abort else (), send=self._send(self.members))

    def idle(self, worker: str) -> Steps:
        """Note that a paused engine has finished its tasks, so it can receive weights."""
        member = self.members.get(worker)
        if member is None or member.state is not MemberState.PAUSED:
            return NOTHING
        member.ready = True
        return Steps(send=self._send((worker,)))

    def acked(self, worker: str, version: int) -> Steps:
        """Note that an engine has loaded ``version``. If a newer one exists, the engine receives that before it serves,
        unless weights change in flight.
        """
        member = self.members.get(worker)
        if member is None or member.state is not MemberState.RECEIVING:
            return NOTHING
        served = None if member.joining else member.version
        member.joining = member.joining and version < self.live  # what is live by now may be newer than what it was sent
        member.version, member.state, member.ready = version, MemberState.ACKNOWLEDGED, True
        if not member.joining:
            self._serve(version, +1)  # before the one that it served goes, or the live version would be that of the others
        if served is not None:
            self._serve(served, -1)
        serve: tuple[str, ...] = ()
        if not member.joining and (version >= self.target or self._in_flight):
            member.state, member.ready = MemberState.SERVING, self._in_flight
            serve = (worker,) if served is None or not self._in_flight else ()
        return Steps(send=self._send((worker,)), serve=serve)

    def overdue(self, worker: str, version: int) -> Steps:
        """Withdraw the rollouts of an engine that was paused for ``version`` and is not idle in time."""
        member = self.members.get(worker)
        late = member is not None and member.state is MemberState.PAUSED and member.paused_for == version
        return Steps(withdraw=(worker,)) if late else NOTHING

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

    def _send(self, candidates: Iterable[str]) -> tuple[str, ...] | None:
        """To whom of these the target is sent now; None: to nobody. Together: to all that need it, or not yet."""
        outdated = [n for n in (self.members if self._together else candidates) if self.members[n].version < self.target]
        ready = [n for n in outdated if self.members[n].ready and self.members[n].state is not MemberState.RECEIVING]
        if self._together:
            if len(ready) < len(outdated) or not (ready or self._unsent):
                return None
        elif not ready:
            return None
        self._unsent = False
        for name in ready:
            self.members[name].state = MemberState.RECEIVING
        return tuple(ready)

    def _serve(self, version: int, by: int) -> None:
        self._serving[version] += by
        if not self._serving[version]:
            del self._serving[version]
        if self._serving:
            self.live = max(self.live, min(self._serving))
