"""The actors that a run works with, by role, and calls to them as tasks with a lease."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fr3e_async.config import Config
from fr3e_async.control.pool import Pool
from fr3e_async.control.ports import Delivery, EngineWorker, LearnerPort, Payload, VerifierWorker
from fr3e_async.types import Anchor, Draw, Prompt, RolloutId, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Pools and the learner. ``explorers`` is empty where the strategy does not branch."""

    config: Config
    generators: Pool[EngineWorker]
    explorers: Pool[EngineWorker]
    verifiers: Pool[VerifierWorker]
    learner: LearnerPort

    @property
    def engines(self) -> tuple[Pool[EngineWorker], ...]:
        return (self.generators, self.explorers)

    @property
    def pools(self) -> tuple[Pool[Any], ...]:
        return (self.generators, self.explorers, self.verifiers)

    @property
    def training_draw(self) -> Draw:
        s = self.config.sampling
        return Draw(max_tokens=s.max_response, temperature=s.temperature, top_p=s.top_p, top_k=s.top_k)

    async def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, *, trunk: bool = False, priority: int = 0
    ) -> tuple[Delivery, Payload]:
        """Raises ``TaskLost`` like the other two."""
        return await self.generators.run(
            lambda worker: worker.sample(prompts, ids, draw, trunk=trunk),
            weight=len(ids),
            lease_s=self.config.flow.lease_s,
            priority=priority,
        )

    async def branch(
        self, payload: Payload, trunk: RolloutId, anchors: Sequence[Anchor], ids: Sequence[RolloutId]
    ) -> tuple[Delivery, Payload]:
        return await self.explorers.run(
            lambda worker: worker.branch(payload, trunk, anchors, ids, self.training_draw),
            weight=len(ids),
            lease_s=self.config.flow.lease_s,
        )

    async def judge(self, payload: Payload, rows: Sequence[int], prompts: Sequence[Prompt]) -> list[Verdict]:
        return await self.verifiers.run(
            lambda worker: worker.judge(payload, rows, prompts), weight=1, lease_s=self.config.flow.lease_s
        )

    async def close(self) -> None:
        """Ends every actor; those that are gone already are passed over by their ports."""
        for pool in self.pools:
            await pool.close()
            for worker in pool.workers:
                await worker.close()
        await self.learner.close()
