"""The limits of one answer, as they travel to a worker. Apart from ``worker`` because the parent must not load math-verify."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one answer may use."""

    cpu_s: float
    memory_bytes: int  # address space of the process

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Limits:
        return cls(**json.loads(data))
