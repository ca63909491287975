"""Checkpoint folders that are whole or not there: a temporary name, fsync, rename, and only then ``latest`` moves.

    begin(20) ─► step-00000020.tmp ──(caller fills it)──► commit ─► step-00000020/ ─► latest

Knows nothing of what a checkpoint holds; who does may look deeper (``latest``). One writer at a time; on a cluster the folder
is on storage that all writers share.
"""

import logging
import os
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from fr3e_async.errors import StorageError
from fr3e_async.files.durable import fsync_path, fsync_tree, storage_errors, write_atomically
from fr3e_async.files.jsonl import checked_json, read_checked_json

MANIFEST = "checkpoint.json"
POINTER = "latest"
BEST = "best"  # the pointer to a checkpoint that stays, however many newer ones there are
SUMMED_BYTES = 1 << 26  # files up to this size get a checksum here; larger ones have checksums inside
_NAME = re.compile(r"step-(\d{8,})")

logger = logging.getLogger(__name__)


class FileFacts(msgspec.Struct, frozen=True):
    """A file as it was written. ``crc32`` is None for a large one."""

    size: int  # bytes
    crc32: int | None


class CheckpointManifest(msgspec.Struct, frozen=True):
    """``checkpoint.json``: which files a checkpoint has. *Example*: ``{"step":20,"files":{"control.json":{"size":812,"crc32":7}}}``"""

    step: int
    files: dict[str, FileFacts]


class CheckpointStore:
    """The checkpoints of one run, below ``root``, which is made when the first one begins."""

    def __init__(self, root: Path, *, keep: int = 2) -> None:
        """``keep``: newest checkpoints that stay; at least 1."""
        if keep < 1:
            raise ValueError(f"checkpoints: keep must be at least 1, got {keep}")
        self.root, self._keep = root, keep
        self.models = root.parent / "models"
        self.skipped: list[str] = []  # by the last ``latest``: which folders, and why
        self._pointers = threading.Lock()  # an evaluation may end, in a thread of its own, while a checkpoint is committed

    def begin(self, step: int) -> Path:
        """Make an empty temporary folder, and remove what an earlier attempt left in it. Raises ``StorageError``."""
        folder = self.root / f"{checkpoint_name(step)}.tmp"
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self.recover()
            for leftover in self.root.glob("step-*.tmp"):
                shutil.rmtree(leftover)
            folder.mkdir()
        return folder

    def commit(self, folder: Path, step: int, *, spare: Collection[int] = ()) -> Path:
        """Make the filled folder durable and the newest checkpoint, remove old ones but those of ``spare``, and the best one.

        Returns its final path. Raises ``StorageError``.
        """
        final = self.root / checkpoint_name(step)
        with storage_errors(self.root):
            files = {str(p.relative_to(folder)): _facts(p) for p in sorted(folder.rglob("*")) if p.is_file()}
            manifest = msgspec.to_builtins(CheckpointManifest(step, files))
            (folder / MANIFEST).write_text(checked_json(manifest), encoding="utf-8")
            fsync_tree(folder)
            if final.exists():  # an earlier attempt that was complete but never became ``latest``, or the same step again
                os.replace(final, self.root / f"{checkpoint_name(step)}.old.tmp")
            os.replace(folder, final)
            fsync_path(self.root)
            with self._pointers:
                write_atomically(self.root / POINTER, final.name + "\n")
                self._prune(final, {checkpoint_name(one) for one in spare})
        return final

    def keep_best(self, step: int) -> None:
        """Have ``best`` name the checkpoint of this step, which then stays; nothing if there is none. Raises ``StorageError``."""
        name = checkpoint_name(step)
        with self._pointers, storage_errors(self.root):
            if (self.root / name).is_dir() and self._named(BEST) != name:
                write_atomically(self.root / BEST, name + "\n")

    def recover(self) -> None:
        """Give the newest checkpoint its name back, if a commit of the same step was cut short between two renames.

        Only for the one writer: to anybody else a commit that is still going looks the same. Raises ``OSError``.
        """
        named = self._named()
        hidden = self.root / f"{named}.old.tmp"
        if _NAME.fullmatch(named) and not (self.root / named).exists() and hidden.is_dir():
            os.replace(hidden, self.root / named)

    def latest(self, look: Callable[[Path], str] = lambda _: "") -> Path | None:
        """The newest whole checkpoint, or None if there never was one. Others are skipped with a warning; see ``skipped``.

        ``look``: what else is wrong with a checkpoint whose files are all there, or an empty text.

        Raises ``StorageError``: there were checkpoints, but none of them is whole.
        """
        self.skipped = []
        for folder in sorted(self.root.glob("step-*.tmp")):
            if not folder.name.endswith(".old.tmp"):  # those are being removed
                self._skip(f"checkpoint {folder} was never completed and is skipped")
        candidates, named = self._complete_names(), self._named()
        if named in candidates:  # first choice; the others, newest first, if it is damaged
            candidates = [named, *(name for name in candidates if name != named)]
        for name in candidates:
            problem = _damage(self.root / name) or look(self.root / name)
            if not problem:
                return self.root / name
            self._skip(f"checkpoint {self.root / name} is skipped: {problem}")
        if candidates or named:
            lost = self.skipped[-1] if candidates else f"{named} is gone"
            raise StorageError(
                f"run.dir: none of the checkpoints in {self.root} is whole, so the run cannot continue ({lost}); "
                "put one back, or choose another run.dir to start over"
            )
        return None

    def steps(self) -> list[int]:
        """List the steps of completed checkpoints, newest first."""
        return [step_of(name) for name in self._complete_names()]

    def _named(self, pointer: str = POINTER) -> str:
        """Read the folder name in ``latest``, or in another pointer; "" if there is no such file."""
        file = self.root / pointer
        return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""

    def _skip(self, warning: str) -> None:
        logger.warning(warning)
        self.skipped.append(warning)

    def _complete_names(self) -> list[str]:
        """List the folder names of completed checkpoints, newest first."""
        folders = [path.name for path in self.root.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(folders, key=step_of, reverse=True)

    def _prune(self, newest: Path, spared: set[str]) -> None:
        # After going back to an older checkpoint, later steps of the abandoned branch must not outlive newer saves.
        abandoned = [name for name in self._complete_names() if step_of(name) > step_of(newest.name)]
        kept = [name for name in self._complete_names() if name not in abandoned][: self._keep]
        if self._named(BEST) in abandoned:  # else it would name another checkpoint, once that step is reached again
            (self.root / BEST).unlink()
        spared |= {self._named(BEST)}
        for name in self._complete_names():
            if name not in kept and (name in abandoned or name not in spared):
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


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def _facts(path: Path) -> FileFacts:
    size = path.stat().st_size
    return FileFacts(size, zlib.crc32(path.read_bytes()) if size <= SUMMED_BYTES else None)


def _damage(folder: Path) -> str:
    """Check that every file of a checkpoint is as it was written; returns what is wrong, or ""."""
    try:
        manifest = msgspec.convert(read_checked_json(folder / MANIFEST), CheckpointManifest)
        for name, facts in manifest.files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != facts.size:
                return f"{name} has {path.stat().st_size} bytes instead of {facts.size}"
            if facts.crc32 is not None and zlib.crc32(path.read_bytes()) != facts.crc32:
                return f"{name} is damaged: it does not have the checksum it was written with"
    except (StorageError, OSError) as error:
        return str(error)
    except msgspec.ValidationError as error:
        return f"{MANIFEST} is none that this version writes ({error})"
    return ""
