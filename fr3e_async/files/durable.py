"""Durable writes: what is on disk is either the old content or the new, and survives a power cut. And folders that one process holds.

Knows nothing of runs or checkpoints.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from fr3e_async.errors import StorageError

_CAUSES = {
    errno.ENOSPC: "the disk is full (ENOSPC)",
    errno.EDQUOT: "the disk quota is used up (EDQUOT)",
    errno.EROFS: "the file system is read-only (EROFS)",
    errno.EACCES: "no permission (EACCES)",
    errno.EPERM: "no permission (EPERM)",
    errno.ENOTDIR: "a part of the path is a file (ENOTDIR)",
}
PROBE_BYTES = 1 << 20


def cause(error: OSError) -> str:
    """Return the cause of an ``OSError`` in words that say what to repair."""
    return _CAUSES.get(error.errno or 0) or error.strerror or str(error)


@contextlib.contextmanager
def storage_errors(path: Path, setting: str = "run.dir") -> Iterator[None]:
    """Turn an OSError of the block into a one-line ``StorageError`` that names the setting and the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{setting}: cannot write to {path}: {cause(error)}") from error


@contextlib.contextmanager
def reading(path: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turn what reading a file and taking its content apart raise in the block into a one-line ``StorageError`` that names the file.

    ``kinds``: errors of a library that reads it. Wrong content shows as a missing key, say, or as a value of another type.
    """
    caught: tuple[type[Exception], ...] = (OSError, ValueError, LookupError, TypeError, AttributeError, *kinds)
    try:
        yield
    except caught as error:
        words = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise StorageError(f"{path} is not readable ({words})") from error


@contextlib.contextmanager
def writing_tensors(path: Path) -> Iterator[None]:
    """Around a write by safetensors, which raises a kind of its own for every cause and lets nobody but the owner read the file.

    Raises ``OSError``, with the number that the system gave. The file gets the permissions that the umask leaves.
    """
    try:
        yield
    except SafetensorError as error:  # a full disk too; the number stands in its text
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found[1]) if found else 0
        raise OSError(number, os.strerror(number) if number else str(error), str(path)) from error
    umask = Path("/proc/self/status").read_text(encoding="utf-8").partition("Umask:")[2].split()[0]
    path.chmod(0o666 & ~int(umask, 8))


def fsync_path(path: Path) -> None:
    """Make a file's content, or a folder's list of names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make everything below ``folder`` durable, files before the folders that name them."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            fsync_path(Path(parent) / name)
        fsync_path(Path(parent))


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content in one durable step. Raises ``OSError``; then the old content stands and no other file is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_path(path.parent)


def probe(folder: Path) -> None:
    """Prove by a write of ``PROBE_BYTES`` that the folder takes data. Raises ``OSError``; leaves nothing behind."""
    path = folder / f".probe.{os.getpid()}.tmp"
    try:
        with open(path, "wb") as file:
            file.write(b"\1" * PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def leads_outside(path: Path, folder: Path) -> bool:
    """Is ``path`` a link to something that is neither in ``folder`` nor a file of the hub's cache (``models--…/blobs``)?

    Such a link would carry a file of the reader's own into whatever the folder is copied to.
    """
    real = path.resolve()
    in_cache = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    return not real.is_relative_to(folder.resolve()) and not in_cache


def make_folders(path: Path) -> list[Path]:
    """Make a folder and its missing parents; those that were made, outermost first. Raises ``OSError`` and undoes it then."""
    missing = []
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing.append(folder)
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir()
            made.append(folder)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    except OSError:
        remove_made(made)
        raise
    return made


def remove_made(made: list[Path]) -> None:
    """Remove the folders that ``make_folders`` made, and everything in the innermost one."""
    if made:
        shutil.rmtree(made[-1], ignore_errors=True)
    for folder in reversed(made[:-1]):
        with contextlib.suppress(OSError):  # somebody else has put something there: leave it
            folder.rmdir()


class ClaimedFolder:
    """A folder that this process holds: made if it was missing, proved to take data, and locked until ``close``."""

    def __init__(
        self, path: Path, *, lock: str, files: Mapping[str, str], folders: Sequence[str], resumed: bool, setting: str = "run.dir"
    ) -> None:
        """``lock``: name of the lock file; ``files``: by name, what is written now; ``resumed``: it holds earlier work.

        Raises ``StorageError`` in one line and leaves nothing behind: another process has it, or the disk refuses.
        """
        self.path, self._resumed = path, resumed
        held: IO[str] | None = None
        with storage_errors(path, setting):
            self._made = make_folders(path)
        try:
            with storage_errors(path, setting):
                probe(path)
                self._lock = held = _locked(path / lock, setting)
                for name, text in files.items():
                    write_atomically(path / name, text)
                for name in folders:
                    (path / name).mkdir(exist_ok=True)
        except StorageError:
            if held is not None:
                held.close()
                if not resumed:
                    _remove([path / name for name in (lock, *files, *folders)])
            remove_made(self._made)
            raise

    def close(self) -> None:
        """Release the folder's lock; a second call does nothing."""
        self._lock.close()

    def discard(self) -> None:
        """Close it and remove what has come into it, for work that could not start. A resumed folder stays as it is."""
        self.close()
        _remove(list(self.path.iterdir()) if not self._resumed and self.path.is_dir() else [])
        remove_made(self._made)


def identity_in(path: Path, name: str, *, lock: str, setting: str, work: str) -> dict[str, Any]:
    """The JSON object in ``path/name``; empty if the folder is new. Raises ``StorageError``: unreadable, or it holds something else.

    ``work``: what such a folder holds, in words.
    """
    try:
        content = {item.name for item in path.iterdir()} if path.is_dir() else set()
        found: dict[str, Any] = json.loads((path / name).read_text(encoding="utf-8")) if name in content else {}
    except (OSError, ValueError) as error:
        raise StorageError(f"{setting}: cannot read {path}: {error}") from error
    if not found and any(other != lock and not other.endswith(".tmp") for other in content):  # those an attempt may have left
        raise StorageError(f"{setting}: {path} is not empty and holds no {work}; choose another folder")
    return found


def _locked(path: Path, setting: str) -> IO[str]:
    """An open file that holds a lock. Raises ``StorageError`` if another process has it."""
    lock = open(path, "a")  # noqa: SIM115 - held until close
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            lock.close()
            raise StorageError(f"{setting}: {path.parent} is in use by another process") from error
        # Some network file systems have no locks; two processes in one folder are then the user's care.
    return lock


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # a disk that refused the write may refuse this as well
                path.unlink()
