"""The actors that a run works with, by name, and calls to them with a lease. Decides nothing: that is the machine's."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from fr3e_async.errors import RunFailed, with_cause
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.messages import Branch, Sample
from fr3e_async.observe.events import Note, unheard
from fr3e_async.outcomes import Outcome
from fr3e_async.rollout.port import BusyMeter
from fr3e_async.types import Answer, Draw, Prompt, RolloutId, Verdict
from fr3e_async.verify.jobs import SAID_UNKNOWN
from fr3e_async.verify.responses import UNREADABLE
from fr3e_async.verify.rewards import MATH

T = TypeVar("T")
Worker = EngineWorker | VerifierWorker
ENGINES = (GENERATORS, EXPLORERS)
ROLES = (GENERATORS, EXPLORERS, VERIFIERS)
FIRST = 64  # verdicts: if all of them failed, something is wrong with the judge and not with the answers
TOLD = 8  # kinds of failures that are reported; others are only counted with the verdicts


async def nothing_drains() -> Mapping[str, float]:
    """Return no nodes: the answer for a cluster that takes none away."""
    return {}


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
        set_target: Callable[[str, int], None] = lambda role, actors: None,
        draining: Callable[[], Awaitable[Mapping[str, float]]] = nothing_drains,
        node: str = "",
        first_error: Callable[[str], str] = lambda name: "",
        note: Note = unheard,
        clock: Clock = steady,
    ) -> None:
        """``start``: a new worker of a role, once there is room for it; cancelled, it leaves nothing behind. ``workers``: (role,
        worker) of those that are up. ``set_target``: told how many workers a role is to have. ``draining``: nodes that will be taken
        away, and in how many seconds (0: nobody knows). ``node``: that this process runs on. ``first_error``: in a worker's log. ``note``: told of
        failures of a user's reward function."""
        self.config, self.learner, self.payloads, self.start = config, learner, payloads, start
        self.set_target, self.draining, self.node, self.note = set_target, draining, node, note
        self._first_error, self._clock = first_error, clock
        self.verdicts = FirstVerdicts([term.function for term in config.reward_terms])
        self.meters: defaultdict[str, BusyMeter] = defaultdict(BusyMeter)  # of the verifiers: engines keep their own
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

    def explained(self, name: str, why: str) -> str:
        """Why a worker is gone, with the first error in its log."""
        return with_cause(why, self._first_error(name))

    def role(self, name: str) -> str:
        """Return the role of a worker, or "" if it has left."""
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

    def sample(self, name: str, work: Sample, prompt: Prompt) -> AsyncIterator[tuple[Delivery, Payload]]:
        """Have the rollouts of a task drawn from its prompt; each is delivered when it has ended, all within one lease."""
        prompts, draw = [prompt] * len(work.ids), self.training_draw
        return self._leased_each(name, lambda: self._engine(name).sample(prompts, work.ids, draw, trunk=work.trunk))

    def branch(self, name: str, work: Branch, trunk: Payload) -> AsyncIterator[tuple[Delivery, Payload]]:
        """Have the branches of one trunk drawn; delivered and leased as in ``sample``."""
        draw = self.training_draw
        return self._leased_each(name, lambda: self._engine(name).branch(trunk, work.trunk, work.ids, draw))

    async def sample_together(
        self, name: str, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw
    ) -> tuple[Delivery, Payload]:
        """Sample all rollouts and return them as one payload when the last one has ended."""
        return await self.leased(name, lambda: self._engine(name).sample_together(prompts, ids, draw))

    async def judge(self, name: str, payload: Payload, rows: Sequence[int], prompts: Sequence[Prompt]) -> list[Verdict]:
        """Have a verifier score rows. Raises ``RunFailed`` when the first verdicts of the session all failed."""
        meter = self.meters[name]
        meter.enter(self._clock())
        try:
            verdicts = await self.leased(name, lambda: self._verifier(name).judge(payload, rows, prompts))
        finally:
            meter.leave(self._clock())
        for line in self.verdicts.take(name, verdicts):
            self.note(line, "reward_failed", actor=name)
        return verdicts

    async def answers(self, name: str, payload: Payload, rows: Sequence[int], kept: Sequence[int]) -> list[Answer]:
        return await self.leased(name, lambda: self._verifier(name).answers(payload, rows, kept))

    def drain_busy(self, verifier: str) -> tuple[tuple[float, float], ...]:
        """When it had something to judge, since the last call: (start, end) by this loop's clock."""
        return self.meters[verifier].take(self._clock())

    async def close(self) -> None:
        """End every actor; a port ignores an actor that is gone already."""
        for worker in self.workers():
            await worker.close()
        await self.learner.close()

    async def leased(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        with self._lost_with(name):
            # ``wait_for`` would lose a cancellation that comes together with the result.
            async with asyncio.timeout(self.config.flow.lease_s):
                return await call()

    async def _leased_each(self, name: str, call: Callable[[], AsyncIterator[T]]) -> AsyncIterator[T]:
        """The items of a call; the lease is of all of them together. Left early, the call is cancelled."""
        ends = asyncio.get_running_loop().time() + self.config.flow.lease_s
        with self._lost_with(name):
            items = call()
            try:
                while True:
                    async with asyncio.timeout_at(ends):
                        item = await anext(items, None)
                    if item is None:
                        return
                    yield item
            finally:
                await items.aclose()  # type: ignore[attr-defined]

    @contextmanager
    def _lost_with(self, name: str) -> Iterator[None]:
        try:
            yield
        except WorkerLost as error:
            raise TaskLost(f"{name} lost: {error}", dead=name, node=error.node) from error
        except TimeoutError as error:
            raise TaskLost(f"{name}: the lease of flow.lease_s ({self.config.flow.lease_s:g} s) ran out") from error

    def _engine(self, name: str) -> EngineWorker:
        if name not in self._engines:
            raise WorkerLost(f"{name} is out of service")
        return self._engines[name]

    def _verifier(self, name: str) -> VerifierWorker:
        if name not in self._verifiers:
            raise WorkerLost(f"{name} is out of service")
        return self._verifiers[name]


class FirstVerdicts:
    """Watches the verdicts of a session: reports the first failure of each kind, and ends a run whose judge only fails.

    ``take`` every verdict of a process, evaluations' included.
    """

    def __init__(self, functions: Sequence[str]) -> None:
        """``functions``: names of the reward functions whose verdicts are watched."""
        self._users = any(name != MATH for name in functions)
        self._judge = f"reward={functions[0]}" if len(functions) == 1 else "rewards"
        self._told: dict[str, str] = {}  # reason -> its line
        self._failed: Counter[str] = Counter()  # of the first ones, by reason
        self._healthy = False  # one of them was none

    def take(self, verifier: str, verdicts: Sequence[Verdict]) -> list[str]:
        """Lines for a person, about failures of a user's function. Raises ``RunFailed`` if the first 64 verdicts all failed."""
        lines = []
        for verdict in verdicts:
            failed = verdict.outcome is Outcome.UNKNOWN and not verdict.reason.endswith(SAID_UNKNOWN)
            if failed and self._users and verdict.reason not in self._told and len(self._told) < TOLD:
                said, log = verdict.reason, ""
                if verdict.complaint:
                    named = verdict.reason.split()[-1] in verdict.complaint  # the exception
                    said = verdict.complaint if named else f"{verdict.reason}: {verdict.complaint}"
                    log = f"; all of it is in logs/{verifier}.log"
                self._told[verdict.reason] = said
                lines.append(f"{self._judge}: {said}{log}; more of these are only counted")
            if not (self._users and verdict.reason == UNREADABLE):  # no function has seen it
                self._count(verdict.reason, failed=failed)
        return lines

    def _count(self, reason: str, *, failed: bool) -> None:
        self._healthy = self._healthy or not failed
        if self._healthy:
            return
        self._failed[reason] += 1
        if self._failed.total() == FIRST:
            kinds = ", ".join(f"{count} × {self._told.get(reason, reason)}" for reason, count in self._failed.most_common(3))
            raise RunFailed(f"{self._judge}: the first {FIRST} verdicts all failed: {kinds}")
