"""The control plane as one pure state machine: groups, workers and weights. Events in, commands out.

    event ─► ledger     groups, staleness, batches            Sample, Branch, Score ─► dispatcher; Train, Retire
          ─► dispatcher who does which task                   Assign, Withdraw, Release; Idle, Gone ─► fleet; Vacant ─► autoscaler
          ─► fleet      which weights every engine serves     Send; Hold, Serve ─► dispatcher; Live ─► ledger
          ─► autoscaler how many workers there are to be      Hire, Dismiss; Move, Drain ─► dispatcher

All four speak one protocol, ``handle(message) -> messages``, each on its own state. The machine only routes: a command for the
world goes out, one for a sibling is handed to it before the next one is looked at.

No clock, no chance that is not seeded, no Ray: the same events give the same commands, on any machine. So a recorded run can
be replayed step by step (``replay``), and the same machine runs on a virtual clock (``simulate``). The world around it, real
(``controller``), faked or simulated, carries out commands and reports what happened; it decides nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, get_args

from fr3e_async.algorithm.strategies import Strategy, explorer_count
from fr3e_async.config import Config
from fr3e_async.machine import events, messages
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS, Dispatcher
from fr3e_async.machine.events import Event
from fr3e_async.machine.fleet import Fleet
from fr3e_async.machine.ledger import Ledger
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.machine.messages import Command, Message
from fr3e_async.machine.sizing import Autoscaler, alike, bounds_of

CALLS_OF_A_VERIFIER_WORKER = 4  # calls given to a verifier for each of its processes: none of them runs dry
SETTLE = messages.Settle()
OUTWARD = frozenset(get_args(Command))  # kinds of commands that the world carries out


class MachinePart(Protocol):
    """A part of the machine: it knows its own state, and the others only by their messages."""

    def handle(self, message: Message) -> Sequence[Message]: ...


class Machine:
    """Turns events into commands. Call ``start`` once, then ``handle`` for each event."""

    def __init__(self, config: Config, strategy: Strategy, *, state: LedgerState | None = None) -> None:
        widths = {
            GENERATORS: config.generators.rollouts_in_flight,
            EXPLORERS: config.explorers.rollouts_in_flight,
            VERIFIERS: max(CALLS_OF_A_VERIFIER_WORKER * config.verifiers.workers, 8),
        }
        bounds = bounds_of(config, explorers=explorer_count(config))
        self.ledger = Ledger(config, strategy, state=state)
        self.dispatcher = Dispatcher(widths, config.pools, retry_backoff_s=config.flow.retry_backoff_s)
        self.fleet = Fleet(config.weights, version=self.ledger.version)
        self.autoscaler = Autoscaler(bounds, config.pools, alike=alike(config))
        self._routes = routes(self.ledger, self.dispatcher, self.fleet, self.autoscaler)

    def start(self) -> list[Command]:
        """Return the commands that groups from a checkpoint still need."""
        return self.handle(messages.Start())  # type: ignore[arg-type]

    def handle(self, event: Event) -> list[Command]:
        """Apply one event and return the commands to begin now. Raises ``RunFailed`` kinds where the run must not continue."""
        out: list[Command] = []
        todo: list[Message] = [SETTLE, event]  # the last one first: what follows from a message comes before its next sibling
        while todo:
            message = todo.pop()
            kind = type(message)
            if kind in OUTWARD:
                out.append(message)  # type: ignore[arg-type]
            for part in self._routes.get(kind, ()):
                if answer := part.handle(message):
                    todo += reversed(answer)
        return out


def routes(
    ledger: MachinePart, dispatcher: MachinePart, fleet: MachinePart, autoscaler: MachinePart
) -> Mapping[type, tuple[MachinePart, ...]]:
    """Map each event and internal message to the parts that receive it, in this order."""
    return {
        events.Admitted: (ledger,),
        events.Delivered: (dispatcher, ledger),  # its worker has room again before new tasks come
        events.Scored: (dispatcher, ledger),
        events.Lost: (dispatcher, ledger),
        events.Rescored: (ledger,),
        events.Trained: (ledger,),
        events.Stopped: (ledger,),
        events.Exported: (fleet,),
        events.Acked: (dispatcher, fleet),
        events.Refused: (dispatcher,),
        events.Asked: (dispatcher,),
        events.Answered: (dispatcher,),
        events.WorkerUp: (dispatcher, autoscaler, fleet),
        events.WorkerDown: (dispatcher,),
        events.Unhired: (dispatcher,),
        events.Leaving: (dispatcher,),
        events.Begun: (dispatcher,),
        events.Utilization: (dispatcher,),
        events.Pressure: (dispatcher,),
        events.Due: (dispatcher, fleet),
        messages.Start: (ledger,),
        messages.Settle: (dispatcher,),
        messages.Sample: (dispatcher,),
        messages.Branch: (dispatcher,),
        messages.Score: (dispatcher,),
        messages.Forget: (dispatcher,),
        messages.Retire: (dispatcher,),
        messages.Live: (ledger,),
        messages.Send: (dispatcher,),
        messages.Hold: (dispatcher,),
        messages.Serve: (dispatcher,),
        messages.TakeBack: (dispatcher,),
        messages.Idle: (fleet,),
        messages.Gone: (fleet,),
        messages.Census: (autoscaler,),
        messages.Vacant: (autoscaler,),
        messages.Move: (dispatcher,),
        messages.Drain: (dispatcher,),
    }
