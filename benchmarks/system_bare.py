"""Engines without the system: what the system asked of its own, and the same class in bare processes to ask it again."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from fr3e_async.control.ports import Delivery, EngineWorker, Payload
from fr3e_async.files.process_logs import redirect_output
from fr3e_async.rollout import EngineSpec, SampleRequest, engine_environment, start_engine
from fr3e_async.types import Draw, Prompt, RolloutBatch, RolloutId

Moment = tuple[float, int]  # seconds since the epoch, tokens that came then


def steady(moments: Sequence[Moment], *, cut: float = 0.1) -> float:
    """Tokens a second without the first and the last tenth of the tokens: start and end of a run are not its pace."""
    ordered = sorted(moments)
    total, before = sum(tokens for _, tokens in ordered), 0
    inside: list[Moment] = []
    for at, tokens in ordered:
        before += tokens
        if cut * total <= before <= (1 - cut) * total:
            inside.append((at, tokens))
    if len(inside) < 2 or inside[-1][0] <= inside[0][0]:
        raise ValueError(f"{len(inside)} of {len(ordered)} moments are not enough for a rate")
    return sum(tokens for _, tokens in inside[1:]) / (inside[-1][0] - inside[0][0])


class Listening:
    """An engine worker that keeps what it was asked for and when it had answered."""

    def __init__(self, inner: EngineWorker) -> None:
        self.inner, self.name = inner, inner.name
        self.served: list[tuple[float, Delivery, Payload, Draw]] = []

    async def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, *, trunk: bool
    ) -> AsyncIterator[tuple[Delivery, Payload]]:
        async for answer in self.inner.sample(prompts, ids, draw, trunk=trunk):
            yield self._kept(answer, draw)

    async def branch(
        self, payload: Payload, trunk: RolloutId, ids: Sequence[RolloutId], draw: Draw
    ) -> AsyncIterator[tuple[Delivery, Payload]]:
        async for answer in self.inner.branch(payload, trunk, ids, draw):
            yield self._kept(answer, draw)

    def _kept(self, answer: tuple[Delivery, Payload], draw: Draw) -> tuple[Delivery, Payload]:
        self.served.append((time.monotonic(), *answer, draw))
        return answer

    def moments(self) -> list[Moment]:
        return [(at, sum(note.length for note in delivery.notes)) for at, delivery, _, _ in self.served]

    def requests(self, get: Callable[[Payload], RolloutBatch]) -> list[SampleRequest]:
        """What the engine itself was asked for, in the order in which it had answered."""
        return [
            SampleRequest(
                request_id=f"{number}/{row}",
                context=batch.context(row).copy(),
                max_tokens=draw.max_tokens - (len(batch.context(row)) - batch.prompt_len(row)),
                temperature=draw.temperature,
                top_p=draw.top_p,
                top_k=draw.top_k,
            )
            for number, (_, _, payload, draw) in enumerate(self.served)
            for batch in [get(payload)]
            for row in range(len(batch))
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class BareEngine:
    """The same engine in a process of its own, with nothing around it."""

    def __init__(self, spec: EngineSpec, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(spec, str(log), there))
        kept = {name: os.environ.get(name) for name in engine_environment(spec)}
        os.environ.update(engine_environment(spec))  # libraries read it when they are imported
        try:
            self._process.start()
        finally:
            for name, value in kept.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)

    def wait(self) -> list[Moment]:
        """For what was asked for last: when each request had ended and its tokens. First of all: that the engine is up."""
        return self._here.recv()

    def ask(self, requests: Sequence[SampleRequest], *, at_once: int) -> None:
        self._here.send((list(requests), at_once))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._here.send(None)
        self._process.join()


def _serve(spec: EngineSpec, log: str, pipe: Any) -> None:
    redirect_output(log)
    asyncio.run(_served(spec, pipe))


async def _served(spec: EngineSpec, pipe: Any) -> None:
    engine = await start_engine(spec)
    pipe.send([])
    while (work := await asyncio.to_thread(pipe.recv)) is not None:
        requests, at_once = work
        room = asyncio.Semaphore(at_once)

        async def one(request: SampleRequest, room: asyncio.Semaphore = room) -> Moment:
            async with room:
                tokens = len(await engine.sample(request))
            return time.monotonic(), tokens

        pipe.send(await asyncio.gather(*map(one, requests)))
    await engine.close()
