"""Engines at the door: what each says of a few fixed rows is held against the learner, before it serves and after its first update.

    learner  trained v ─► its distributions after the rows under v are kept here
    engine   its first weights, and the next ones that it takes ─► the questions ─► compared ─► it serves, or is replaced

An engine that is not in service yet waits for the answer; one that is continues meanwhile. Nobody waits for the learner.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Protocol, Unpack

import numpy as np
from numpy.typing import NDArray

from fr3e_async.control.ports import EngineWorker, LearnerPort, PayloadStore, TaskLost, WorkerLost
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.errors import LearnerLost, RunFailed, with_cause
from fr3e_async.observe.events import EventFields, EventKind
from fr3e_async.rollout.door import Questions, compare, told
from fr3e_async.types import Draw, RolloutBatch

CHECKS = 2  # of each engine: its first weights, and its first update
KEPT = 4  # versions whose distributions are kept: an engine is asked soon after it has taken one


class ComparisonRecord(Protocol):
    """Reports one comparison of an engine with the learner: a line for people and the figures as event fields."""

    def __call__(self, text: str, kind: EventKind, **fields: Unpack[EventFields]) -> None: ...


class Door:
    """Compares engines with the learner before they serve weights (see the module's docstring)."""

    def __init__(
        self,
        questions: Questions,
        *,
        learner: LearnerPort,
        payloads: PayloadStore,
        temperature: float,
        bound: float,
        limit_s: float,
        record: ComparisonRecord,
    ) -> None:
        """``bound``: nats, on the mean difference of log-probs and of entropies. ``limit_s``: flow.lease_s."""
        self._questions, self._learner, self._payloads = questions, learner, payloads
        self._draw = Draw(max_tokens=1, temperature=temperature)  # of the whole distribution: the learner knows no filters
        self._bound, self._limit, self._record = bound, limit_s, record
        self.distributions: dict[int, NDArray[np.float32]] = {}
        self.asked: Counter[str] = Counter()  # by engine

    def fresh(self, engine: str) -> bool:
        """Say whether this engine has not been compared yet."""
        return not self.asked[engine]

    def wants(self, engine: str) -> bool:
        """Say whether this engine still owes one of its ``CHECKS`` comparisons."""
        return self.asked[engine] < CHECKS

    async def learned(self, version: int) -> None:
        """The learner's weights are ``version`` now: keep what they say. Nobody else may have the learner meanwhile."""
        self.distributions[version] = await self._learner.distributions(self._questions.rows)
        for old in sorted(self.distributions)[:-KEPT]:
            del self.distributions[old]

    def knows(self, version: int) -> bool:
        return version in self.distributions

    async def ask(self, engine: EngineWorker, *, counts: bool = True) -> str:
        """Compare an engine with the learner. Returns why it must not serve, or "". ``counts``: it is one of its ``CHECKS``."""
        first = self.fresh(engine.name)
        self.asked[engine.name] += counts
        try:
            async with asyncio.timeout(self._limit):
                other = first and await engine.tokenizer() != self._questions.tokenizer
                batch = await self._answers(engine)
        except TimeoutError:
            return f"no answer to the questions at the door within flow.lease_s ({self._limit:g} s)"
        except LearnerLost:
            raise
        except (WorkerLost, TaskLost, RunFailed) as error:
            return f"it failed at {'its first request' if first else 'a request after its first update'}: {error}"
        return self.judge(engine.name, batch, counts=counts, other_tokenizer=other)

    async def _answers(self, engine: EngineWorker) -> RolloutBatch:
        questions = self._questions
        _, payload = await engine.sample_together(questions.prompts, questions.ids, self._draw)
        return await run_in_daemon_thread(lambda: self._payloads.get(payload))

    def judge(self, name: str, batch: RolloutBatch, *, counts: bool, other_tokenizer: bool) -> str:
        found = compare(batch, self.distributions, self._questions, bound=self._bound)
        version = int(batch.versions.max())
        if not found.draws:  # so it is asked again when it has taken the next weights
            self.asked[name] -= counts
            self._record(
                f"{name} at v{version} was not compared: the learner's numbers of that version are not kept", "note", actor=name
            )
            return ""
        text = f"{name} at v{version} differs from the learner by {told(found)}"
        self._record(text, "engine_compared", actor=name, version=version, nats=found.mean)
        if found.cause:
            return with_cause(f"{text}, beyond {self._bound:g} nats (learner.stop_above_mismatch)", found.cause)
        if other_tokenizer:
            return "its tokenizer is not the one that made the prompts: model.path holds another one where this engine runs"
        return ""

    async def ask_all(self, engines: Sequence[EngineWorker]) -> dict[str, str]:
        """By engine, why it must not serve; without those that may."""
        whys = await asyncio.gather(*(self.ask(engine) for engine in engines))
        return {engine.name: why for engine, why in zip(engines, whys, strict=True) if why}
