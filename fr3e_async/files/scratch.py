"""One folder for what must not outlive a session: sockets, temporary files, compile caches, Ray's own session.

    <base>/fr3e.<user id>/<name>        TMPDIR of the session's processes; <base>: RAY_TMPDIR, TMPDIR or /tmp
    <base>/fr3e.<user id>/<name>.lock   locked while the owner lives, so that the next start tells litter from what is in use

A lock and not a process id: the kernel gives it back with the process, and no other process gets the same one later.
Names of sockets have 107 bytes at most; where <base> is too long for Ray's, the folder in /tmp is a link to one in <base>.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import IO, Self

from fr3e_async.errors import StorageError
from fr3e_async.files.durable import cause, make_folders

VARIABLE = "FR3E_SCRATCH"  # the session's folder, for its processes on this machine
SHORT = Path("/tmp")
SOCKET_BYTES = 107  # of a path, by the kernel
RAY_SOCKET = "/ray/session_2026-12-01_02-06-50_522437_4194304/sockets/plasma_store.1"  # the longest that Ray makes in it


class Scratch:
    """A temporary folder that this process owns until ``close`` removes it."""

    def __init__(self, path: Path, lock: IO[str], made: Sequence[Path]) -> None:
        """Called by ``claim``. ``made``: the parent folders that it created."""
        self.path, self._lock, self._made, self._owner = path, lock, made, os.getpid()

    @classmethod
    def claim(cls, base: Path | None = None) -> Self:
        """Remove what dead sessions left beside it, and make a new one. Raises ``StorageError``."""
        base = base or Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SHORT).absolute()
        owned = f"fr3e.{os.getuid()}"
        fits = len(f"{base}/{owned}/12345678{RAY_SOCKET}".encode()) <= SOCKET_BYTES
        root = (base if fits else SHORT) / owned
        try:
            made = make_folders(base)
            while (lock := _new_lock(root)) is None:
                pass
            sweep(root)
            path = Path(lock.name).with_suffix("")
            if fits:
                path.mkdir(mode=0o700)
            else:
                path.symlink_to(tempfile.mkdtemp(prefix=f"{owned}-", dir=base))
        except OSError as error:
            raise StorageError(f"TMPDIR: no folder for sockets and temporary files in {root}: {cause(error)}") from error
        return cls(path, lock, made)

    def close(self) -> None:
        """Remove the folder; a later start removes what is left. A second call, or one in a forked process, does nothing."""
        if os.getpid() != self._owner:
            return
        _remove(self.path)
        self._lock.close()
        for folder in (self.path.parent, *reversed(self._made)):
            with contextlib.suppress(OSError):  # another session is in it
                folder.rmdir()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """For the block, this process and those that it starts have their temporary files in a folder that goes with it."""
    folder = Scratch.claim()
    before = {name: os.environ.get(name) for name in ("TMPDIR", VARIABLE)}
    _enter(folder.path)
    try:
        yield folder.path
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})
        tempfile.tempdir = None
        folder.close()


def sweep(root: Path) -> None:
    """Remove the folders in ``root`` whose owners are gone: their locks are free, or not there at all (a lock is made first, removed last)."""
    for folder in {path.with_suffix("") for path in root.iterdir()}:
        try:
            with open(folder.with_suffix(".lock")) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # where there are no locks, nothing proves that it is dead
                if os.fstat(lock.fileno()).st_ino == os.stat(lock.name).st_ino:
                    _remove(folder)
        except (
            FileNotFoundError
        ):  # made again by a process that outlived its session for a moment, or the lock went with what is old in /tmp
            if not _listens(folder):
                _remove(folder)
        except OSError:
            continue  # in use


def _listens(folder: Path) -> bool:
    """Whether a process of this machine holds a socket that is named in ``folder``, as Ray's do."""
    try:
        return f" {folder}/" in Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return False


def actor_scratch() -> None:
    """For a Ray actor, before it loads anything: temporary files go to the driver's folder, or on another machine to one of its own.

    What its processes name in /dev/shm, and a folder of its own, are removed when all of them are gone, however they ended.
    """
    inherited = os.environ.get(VARIABLE, "")
    own: list[str] = []
    if not os.path.isdir(inherited):
        folder = Scratch.claim()
        _enter(folder.path)
        own = [str(folder.path), f"{folder.path}.lock", os.path.realpath(folder.path)]
        _kept.append(folder)
    # multiprocessing's tracker of semaphores and segments, as it is started there, but out of reach of Ray, which kills all that
    # descends from an actor: in a session of its own, and nobody's child once the shell has gone.
    read, write = os.pipe()
    track = '"$1" -c "from multiprocessing.resource_tracker import main; main($2)"'
    script = f'({track}; shift 2; rm -rf -- "$@"; rmdir "${{1%/*}}") &' if own else f"{track} &"
    nothing = subprocess.DEVNULL
    subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, str(read), *own],
        stdin=nothing, stdout=nothing, stderr=nothing, pass_fds=[read], start_new_session=True, check=False,
    )  # fmt: skip
    os.close(read)
    vars(resource_tracker._resource_tracker)["_fd"] = write  # no public way


_kept: list[Scratch] = []  # locked until this process ends


def _enter(folder: Path) -> None:
    os.environ |= {"TMPDIR": str(folder), VARIABLE: str(folder)}
    tempfile.tempdir = None  # Python remembers the one before


def _new_lock(root: Path) -> IO[str] | None:
    """An open, locked file of a name that nobody has had; None if it went meanwhile. Raises ``OSError``, also for a folder of somebody else's."""
    root.mkdir(mode=0o700, exist_ok=True)
    facts = root.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o170022 != 0o040000:  # a link in it would be followed by ``sweep``
        raise PermissionError(0, f"{root} must be a folder that only you can write to")
    root.chmod(0o700)  # a process that outlived its session may have made it again
    try:
        lock = open(root / f"{secrets.token_hex(4)}.lock", "x")  # noqa: SIM115 - held until close
    except FileNotFoundError:  # the last other session has ended and removed the root
        return None
    with contextlib.suppress(OSError):  # a file system without locks: nobody will sweep it
        fcntl.flock(lock, fcntl.LOCK_EX)
    if os.path.exists(lock.name):  # not swept between open and lock
        return lock
    lock.close()
    return None


def _remove(path: Path) -> None:
    """A folder, or a link and what it leads to; then its lock, unless something is left for the next start."""
    shutil.rmtree(os.path.realpath(path), ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()  # of a link
    if not os.path.lexists(path):
        path.with_suffix(".lock").unlink(missing_ok=True)
