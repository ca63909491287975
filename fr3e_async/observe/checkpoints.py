"""Checkpoint folders that are whole or not there: a temporary name, fsync, rename, and only then ``latest`` moves.

    begin(20) ─► step-00000020.tmp ──(caller fills it)──► commit ─► step-00000020/ ─► latest

Knows nothing of what a checkpoint holds. One writer at a time; on a cluster the folder is on storage that all writers share.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

from fr3e_async.observe.storage import fsync_path, fsync_tree, storage_errors, write_atomically

MANIFEST = "checkpoint.json"
POINTER = "latest"
_NAME = re.compile(r"step-(\d{8,})")

logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one run, below ``root``, which is made when the first one begins."""

    def __init__(self, root: Path, *, keep: int = 2) -> None:
        """``keep``: newest checkpoints that stay; at least 1."""
        if keep < 1:
            raise ValueError(f"checkpoints: keep must be at least 1, got {keep}")
        self.root, self._keep = root, keep

    def begin(self, step: int) -> Path:
        """An empty temporary folder to fill. What an earlier attempt left half-written is removed. Raises ``StorageError``."""
        folder = self.root / f"{_name(step)}.tmp"
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            for leftover in self.root.glob("step-*.tmp"):
                shutil.rmtree(leftover)
            folder.mkdir()
        return folder

    def commit(self, folder: Path, step: int) -> Path:
        """Make the filled folder durable and the newest checkpoint, remove old ones; its final path. Raises ``StorageError``."""
        final = self.root / _name(step)
        with storage_errors(self.root):
            sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
            (folder / MANIFEST).write_text(json.dumps({"step": step, "files": sizes}, indent=1), encoding="utf-8")
            fsync_tree(folder)
            if final.exists():  # an earlier attempt that was complete but never became ``latest``, or the same step again
                os.replace(final, self.root / f"{_name(step)}.old.tmp")
            os.replace(folder, final)
            fsync_path(self.root)
            write_atomically(self.root / POINTER, final.name + "\n")
            self._prune(final)
        return final

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None. Damaged or half-written ones are skipped with a warning."""
        for folder in self.root.glob("step-*.tmp"):
            logger.warning("checkpoint %s was never completed and is skipped", folder)
        candidates = self._complete_names()
        pointer = self.root / POINTER
        named = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        if named in candidates:  # first choice; the others, newest first, if it is damaged
            candidates = [named, *(name for name in candidates if name != named)]
        for name in candidates:
            problem = _damage(self.root / name)
            if not problem:
                return self.root / name
            logger.warning("checkpoint %s is skipped: %s", self.root / name, problem)
        return None

    def _complete_names(self) -> list[str]:
        """Final names, newest first."""
        folders = [path.name for path in self.root.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(folders, key=step_of, reverse=True)

    def _prune(self, newest: Path) -> None:
        # After going back to an older checkpoint, later steps of the abandoned branch must not outlive newer saves.
        abandoned = [name for name in self._complete_names() if step_of(name) > step_of(newest.name)]
        kept = [name for name in self._complete_names() if name not in abandoned][: self._keep]
        for name in self._complete_names():
            if name not in kept:
                hidden = self.root / f"{name}.old.tmp"  # a removal that is cut short must not leave a half checkpoint
                os.replace(self.root / name, hidden)
        for leftover in self.root.glob("step-*.old.tmp"):
            shutil.rmtree(leftover)


def step_of(checkpoint: str | Path) -> int:
    """The step in a checkpoint's name. Raises ``ValueError`` if it is no such name."""
    match = _NAME.fullmatch(Path(checkpoint).name)
    if match is None:
        raise ValueError(f"{checkpoint} is no checkpoint name")
    return int(match[1])


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint, or an empty text: every file must be there with the size that was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST} is not readable ({error})"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return ""
