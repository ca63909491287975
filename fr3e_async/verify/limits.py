"""What a nursery is told when it starts: the job of its workers and the limits of one task.

Apart from ``worker`` because the parent must not load math-verify, and a worker must not load our configuration.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one task may use."""

    cpu_s: float
    memory_bytes: int  # address space of the process


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything that the workers of one nursery have in common."""

    job: str  # "math", "golds" or package.module:function; see ``jobs``
    limits: Limits
    sys_path: tuple[str, ...]  # where modules are looked for: the parent's, so that a user's function is found
    options: dict[str, Any] = field(default_factory=dict)  # of the job

    @property
    def built_in(self) -> bool:
        """No code of a user's runs."""
        return ":" not in self.job

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Setup:
        values = json.loads(text)
        return cls(**values | {"limits": Limits(**values["limits"]), "sys_path": tuple(values["sys_path"])})
