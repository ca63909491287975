"""Small builders that tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np

from fr3e_async.config import Config, EngineConfig
from fr3e_async.types import Prompt, RolloutBatch


def small_config(**sections: dict[str, Any]) -> Config:
    """A valid CPU config; each keyword names a section and the fields to set in it."""
    base = Config(engine=EngineConfig(kv_cache_gib=0.25))
    return replace(base, **{name: replace(getattr(base, name), **fields) for name, fields in sections.items()})


def prompt(uid: str, length: int = 4) -> Prompt:
    return Prompt(uid=uid, text=f"problem {uid}", gold="1", token_ids=np.arange(1, length + 1, dtype=np.int32))


async def joined(batches: AsyncIterator[RolloutBatch]) -> RolloutBatch:
    """All rollouts of a task as one batch: by context, the longest first, and by id; one that came whole as it is."""
    parts = [batch async for batch in batches]
    if len(parts) == 1:
        return parts[0]
    rows = sorted(
        ((batch, row) for batch in parts for row in range(len(batch))),
        key=lambda place: (-len(place[0].context(place[1])), place[0].ids[place[1]]),
    )
    return RolloutBatch.build(
        ids=[batch.ids[row] for batch, row in rows],
        contexts=[batch.context(row) for batch, row in rows],
        prompt_lens=[batch.prompt_len(row) for batch, row in rows],
        context_of=range(len(rows)),
        completions=[batch.completion(row) for batch, row in rows],
        eligible=[batch.eligible[batch.span(row)] for batch, row in rows] if parts[0].eligible is not None else None,
    )
