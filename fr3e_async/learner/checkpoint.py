"""Learner checkpoints in one folder and tag, and what must fit before one is read.

Knows nothing of temporary names, ``latest`` or what else a run saves: the caller moves folders.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fr3e_async.errors import ConfigError, StorageError

MANIFEST = "learner.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What wrote a checkpoint: DeepSpeed's own files do not say it before they fail to load."""

    version: int
    ranks: int
    zero_stage: int
    dtype: str

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises ``StorageError`` if the folder holds no learner checkpoint."""
        try:
            return cls(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StorageError(f"{folder} holds no learner checkpoint ({MANIFEST} is missing)") from error

    def require_fits(self, *, ranks: int, zero_stage: int, dtype: str) -> None:
        """Partitioned optimiser states load only into the same partition. Raises ``ConfigError`` naming the setting."""
        if self.zero_stage != zero_stage:
            raise ConfigError(f"learner.zero_stage is {zero_stage}, but the checkpoint was written with {self.zero_stage}")
        if self.dtype != dtype:
            raise ConfigError(f"learner.dtype is {dtype}, but the checkpoint was written with {self.dtype}")
        if self.ranks != ranks and zero_stage > 0:
            raise ConfigError(
                f"learner.ranks is {ranks}, but the checkpoint was written by {self.ranks} (learner.zero_stage > 0)"
            )
