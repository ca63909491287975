"""Small builders that tests share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fr3e_async.config import Config, EngineConfig
from fr3e_async.types import Prompt


def small_config(**sections: dict[str, Any]) -> Config:
    """A valid CPU config; each keyword names a section and the fields to set in it."""
    base = Config(engine=EngineConfig(kv_cache_gib=0.25))
    return replace(base, **{name: replace(getattr(base, name), **fields) for name, fields in sections.items()})


def prompt(uid: str, length: int = 4) -> Prompt:
    return Prompt(uid=uid, text=f"problem {uid}", reference="1", token_ids=np.arange(1, length + 1, dtype=np.int32))
