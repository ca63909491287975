"""What happens to files, in order: what became durable, and what came to be under which name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


class Disk:
    """``happened``: ("durable", path) for each fsync and ("there", path) for each rename, while ``patch`` lasts."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.happened: list[tuple[str, Path]] = []
        self._fsync, self._replace = os.fsync, os.replace
        patch.setattr(os, "fsync", self.fsync)
        patch.setattr(os, "replace", self.replace)

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        self.happened.append(("durable", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def replace(self, source: Any, target: Any) -> None:
        self._replace(source, target)
        self.happened.append(("there", Path(target)))
