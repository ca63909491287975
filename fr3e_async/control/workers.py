"""The actors that a run works with, by name, and calls to them with a lease. Decides nothing: that is the machine's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

from fr3e_async.clock import Clock, steady
from fr3e_async.config import Config
from fr3e_async.control.ports import (
    Delivery,
    EngineWorker,
    LearnerPort,
    Payload,
    PayloadStore,
    TaskLost,
    VerifierWorker,
    WorkerLost,
)
from fr3e_async.control.verdicts import FirstVerdicts
from fr3e_async.errors import with_cause
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.messages import Branch
from fr3e_async.observe.events import Note, unheard
from fr3e_async.rollout.busy import BusyMeter
from fr3e_async.types import Answer, Draw, Prompt, RolloutId, Verdict

T = TypeVar("T")
Worker = EngineWorker | VerifierWorker
ENGINES = (GENERATORS, EXPLORERS)
ROLES = (GENERATORS, EXPLORERS, VERIFIERS)


class Workers:
    """Workers by name and role, and the learner. There are no explorers where the strategy does not branch."""

    def __init__(
        self,
        *,
        config: Config,
        learner: LearnerPort,
        payloads: PayloadStore,
        start: Callable[[str], Awaitable[Worker]],
        workers: Iterable[tuple[str, Worker]] = (),
        want: Callable[[str, int], None] | None = None,
        draining: Callable[[], Awaitable[Mapping[str, float]]] | None = None,
        node: str = "",
        first_error: Callable[[str], str] = lambda name: "",
        note: Note = unheard,
        clock: Clock = steady,
    ) -> None:
        """``start``: a new worker of a role, once there is room for it; cancelled, it leaves nothing behind. ``workers``: (role,
        worker) of those that are up. ``want``: told how many workers a role is to have. ``draining``: nodes that will be taken
        away, and in how many seconds (0: nobody knows). ``node``: that this process runs on. ``first_error``: in a worker's log. ``note``: told of
        failures of a user's reward function."""
        self.config, self.learner, self.payloads, self.start = config, learner, payloads, start
        self._want, self._draining, self.node = want, draining, node
        self._first_error, self._clock, self._note = first_error, clock, note
        self._verdicts = FirstVerdicts([term.function for term in config.reward_terms])
        self._meters: dict[str, BusyMeter] = {}  # of the verifiers: engines keep their own
        self._engines: dict[str, EngineWorker] = {}
        self._verifiers: dict[str, VerifierWorker] = {}
        self._roles: dict[str, str] = {}
        for role, worker in workers:
            self.add(role, worker)

    # ---- who is there ----

    def add(self, role: str, worker: Worker) -> None:
        self._roles[worker.name] = role
        if role == VERIFIERS:
            self._verifiers[worker.name] = cast(VerifierWorker, worker)
        else:
            self._engines[worker.name] = cast(EngineWorker, worker)

    def remove(self, name: str) -> Worker | None:
        self._roles.pop(name, None)
        return self._engines.pop(name, None) or self._verifiers.pop(name, None)

    def move(self, name: str, role: str) -> None:
        if name in self._roles:
            self._roles[name] = role

    def want(self, role: str, actors: int) -> None:
        if self._want is not None:
            self._want(role, actors)

    async def draining(self) -> Mapping[str, float]:
        """Nodes that will be taken away -> seconds until then; 0: nobody knows."""
        return {} if self._draining is None else await self._draining()

    def explained(self, name: str, why: str) -> str:
        """Why a worker is gone, with the first error in its log."""
        return with_cause(why, self._first_error(name))

    def role(self, name: str) -> str:
        """Empty for a worker that is not there any more."""
        return self._roles.get(name, "")

    def names(self, role: str) -> list[str]:
        return [name for name, its in self._roles.items() if its == role]

    def workers(self) -> list[Worker]:
        return [*self._engines.values(), *self._verifiers.values()]

    def worker(self, name: str) -> Worker | None:
        return self._engines.get(name) or self._verifiers.get(name)

    def engine(self, name: str) -> EngineWorker | None:
        return self._engines.get(name)

    # ---- calls; each raises TaskLost ----

    @property
    def training_draw(self) -> Draw:
        s = self.config.sampling
        return Draw(max_tokens=s.max_response, temperature=s.temperature, top_p=s.top_p, top_k=s.top_k)

    async def sample(
        self, name: str, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, *, trunk: bool = False
    ) -> tuple[Delivery, Payload]:
        return await self._leased(name, lambda: self._engine(name).sample(prompts, ids, draw, trunk=trunk))

    async def branch(self, name: str, work: Branch, trunk: Payload) -> tuple[Delivery, Payload]:
        draw = self.training_draw
        return await self._leased(name, lambda: self._engine(name).branch(trunk, work.trunk, work.anchors, work.ids, draw))

    async def judge(self, name: str, payload: Payload, rows: Sequence[int], prompts: Sequence[Prompt]) -> list[Verdict]:
        """Raises ``RunFailed`` when the first verdicts of the session all failed."""
        meter = self._meters.setdefault(name, BusyMeter())
        meter.enter(self._clock())
        try:
            verdicts = await self._leased(name, lambda: self._verifier(name).judge(payload, rows, prompts))
        finally:
            meter.leave(self._clock())
        for line in self._verdicts.take(name, verdicts):
            self._note(line, "reward_failed", actor=name)
        return verdicts

    async def answers(self, name: str, payload: Payload, rows: Sequence[int], kept: Sequence[int]) -> list[Answer]:
        return await self._leased(name, lambda: self._verifier(name).answers(payload, rows, kept))

    def drain_busy(self, verifier: str) -> tuple[tuple[float, float], ...]:
        """When it had something to judge, since the last call: (start, end) by this loop's clock."""
        return self._meters[verifier].take(self._clock()) if verifier in self._meters else ()

    async def close(self) -> None:
        """Ends every actor; those that are gone already are passed over by their ports."""
        for worker in self.workers():
            await worker.close()
        await self.learner.close()

    async def _leased(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        limit = self.config.flow.lease_s
        try:
            async with asyncio.timeout(limit):  # ``wait_for`` would lose a cancellation that comes together with the result
                return await call()
        except WorkerLost as error:
            raise TaskLost(f"{name} lost: {error}", dead=name, node=error.node) from error
        except TimeoutError as error:
            raise TaskLost(f"{name}: the lease of flow.lease_s ({limit:g} s) ran out") from error

    def _engine(self, name: str) -> EngineWorker:
        if name not in self._engines:
            raise WorkerLost(f"{name} is out of service")
        return self._engines[name]

    def _verifier(self, name: str) -> VerifierWorker:
        if name not in self._verifiers:
            raise WorkerLost(f"{name} is out of service")
        return self._verifiers[name]
