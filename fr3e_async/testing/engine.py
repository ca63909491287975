"""An engine that answers from a script, for tests of everything that asks one; and what tests and benchmarks do with any engine.

What the real engine promises (versions per token, refused bundles, pauses, death) is tested with the real one.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np

from fr3e_async.rollout.port import Engine, SampleRequest
from fr3e_async.types import Completion, Finish, RolloutBatch


class ScriptedEngine:
    """Gives each request what ``script`` says of its rollout's id, and remembers the requests.

    Example: ``ScriptedEngine(lambda id: completion([7, 8]))`` gives every rollout the two tokens 7 and 8.
    """

    def __init__(self, script: Callable[[str], Completion]) -> None:
        self.script, self.requests = script, list[SampleRequest]()

    async def sample(self, request: SampleRequest) -> Completion:
        self.requests.append(request)
        return self.script(request.request_id.partition("#")[0])

    async def close(self) -> None:
        pass


def completion(tokens: Sequence[int], entropies: Sequence[float] | None = None, finish: Finish = Finish.STOP) -> Completion:
    """A completion of version 0 with these tokens. ``entropies``: nats, 0.1 each unless given."""
    length = len(tokens)
    return Completion(
        tokens=np.asarray(tokens, dtype=np.int32),
        logprobs=np.full(length, -0.5, dtype=np.float32),
        entropies=np.asarray([0.1] * length if entropies is None else entropies, dtype=np.float32),
        entropy_errors=np.zeros(length, dtype=np.float32),
        versions=np.zeros(length, dtype=np.int32),
        finish=finish,
    )


async def all_of(engine: Engine, requests: Sequence[SampleRequest]) -> list[Completion]:
    """All completions of an engine, in the order of the requests; they run together, and end together if one fails."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(engine.sample(request)) for request in requests]
    return [task.result() for task in tasks]


async def joined(batches: AsyncIterator[RolloutBatch]) -> RolloutBatch:
    """All rollouts of a task as one batch: by context, the longest first, and by id; one that came whole as it is."""
    parts = [batch async for batch in batches]
    if len(parts) == 1:
        return parts[0]
    rows = sorted(
        ((batch, row) for batch in parts for row in range(len(batch))),
        key=lambda pair: (-len(pair[0].context(pair[1])), pair[0].ids[pair[1]]),
    )
    return RolloutBatch.build(
        ids=[batch.ids[row] for batch, row in rows],
        contexts=[batch.context(row) for batch, row in rows],
        prompt_lens=[batch.prompt_len(row) for batch, row in rows],
        context_of=range(len(rows)),
        completions=[batch.completion(row) for batch, row in rows],
        eligible=[batch.eligible[batch.span(row)] for batch, row in rows if batch.eligible is not None] or None,
    )
