"""What must not outlive a session: one folder, gone at its end, after a kill by the next start; and never another's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from fr3e_async.actors.cluster import make_token
from fr3e_async.errors import StorageError
from fr3e_async.files import scratch as module
from fr3e_async.files.scratch import RAY_SOCKET, SOCKET_BYTES, VARIABLE, Scratch, scratch, sweep

OWNER = """
import multiprocessing, tempfile
from fr3e_async.files.scratch import actor_scratch, scratch
block = scratch()
enter = block.__enter__
{function}()
{act}
print(tempfile.gettempdir(), {tell}, flush=True)
input()
"""


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short one, as /tmp is."""
    folder = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    for name in ("RAY_TMPDIR", VARIABLE):
        monkeypatch.delenv(name, raising=False)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def process(function: str, *, act: str = "pass", tell: str = "''") -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A process that calls ``function`` and waits, and the words that it prints."""
    code = OWNER.format(function=function, act=act, tell=tell)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running, running.stdout.readline().split()
        finally:
            running.kill()


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_temporary_files_of_a_block_lie_in_a_folder_that_goes_with_it(base: Path) -> None:
    before = dict(os.environ)
    with scratch() as folder:
        assert folder.parent == base / f"fr3e.{os.getuid()}"
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [0o700, 0o700]
        assert os.environ["TMPDIR"] == os.environ[VARIABLE] == tempfile.gettempdir() == str(folder)
        (folder / "torchinductor_me").mkdir()
        Path(tempfile.mkstemp()[1]).write_text("left")
        with scratch() as inner:  # a session within another's process
            assert inner.resolve().parent == folder  # reached by a link: its name is too long
        assert tempfile.gettempdir() == str(folder)
    assert below(base) == []
    assert dict(os.environ) == before
    assert tempfile.gettempdir() == str(base)


def test_the_next_start_removes_what_a_kill_left_and_nothing_of_a_live_session(base: Path) -> None:
    act = "open(tempfile.gettempdir() + '/vllm_dist_1', 'w').close()"
    with process("enter", act=act) as (_, (live,)), process("enter", act=act) as (killed, (dead,)):
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert {live, dead} == {str(path.parent) for path in base.rglob("vllm_dist_1")}
        with scratch() as mine:
            assert below(base / f"fr3e.{os.getuid()}") == sorted(
                [f"{Path(live).name}{rest}" for rest in ("", ".lock", "/vllm_dist_1")] + [mine.name, f"{mine.name}.lock"]
            )
    with scratch():
        assert not os.path.exists(live)
    assert below(base) == []


def test_a_forked_process_that_ends_takes_nothing_along(base: Path) -> None:
    folder = Scratch.claim()
    if (child := os.fork()) == 0:
        folder.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    Scratch.claim().close()  # the lock is still held, too
    assert folder.path.is_dir()
    folder.close()
    assert below(base) == []


def test_what_a_straggler_made_again_goes_with_the_next_start(base: Path) -> None:
    with scratch() as folder:
        pass
    (folder / "ray" / "logs").mkdir(parents=True)  # by a process of Ray, after the end
    with scratch():
        assert not folder.exists()
    assert below(base) == []


def test_a_sweeper_that_was_late_leaves_a_later_owner_alone(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had opened the lock of a dead session; meanwhile another one swept it, and a new session got the same name."""
    root = base / f"fr3e.{os.getuid()}"
    root.mkdir(mode=0o700)
    (root / "aaaaaaaa.lock").touch()
    flock = fcntl.flock

    def late(lock: IO[str], how: int) -> None:
        (root / "aaaaaaaa.lock").unlink()
        (root / "aaaaaaaa.lock").touch()
        (root / "aaaaaaaa").mkdir()
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", late)
    sweep(root)
    assert below(root) == ["aaaaaaaa", "aaaaaaaa.lock"]


def test_a_lock_stays_as_long_as_something_is_left(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a file came in while it was at work
    with scratch() as folder:
        pass
    assert folder.exists()
    assert folder.with_suffix(".lock").exists()
    monkeypatch.undo()
    sweep(folder.parent)
    assert below(folder.parent) == []


def test_a_base_that_is_too_long_for_sockets_is_reached_by_a_link(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = base / "s"
    short.mkdir()
    monkeypatch.setattr(module, "SHORT", short)
    long = base / ("x" * 80) / "tmp"
    monkeypatch.setenv("RAY_TMPDIR", str(long))  # it wins over TMPDIR, and need not exist
    with scratch() as folder:
        assert folder.parent.parent == short
        assert folder.resolve().parent == long
        path = f"{folder}{RAY_SOCKET}"
        assert len(path) <= SOCKET_BYTES
        os.makedirs(os.path.dirname(path))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
        assert (long / folder.resolve().name / path.removeprefix(f"{folder}/")).is_socket()
    assert below(base) == ["s"]


def test_a_base_just_short_enough_is_used_itself(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = SOCKET_BYTES - len(f"/fr3e.{os.getuid()}/12345678{RAY_SOCKET}") - len(f"{base}/")
    for length, used in ((room, True), (room + 1, False)):
        wanted = base / ("x" * length)
        monkeypatch.setenv("TMPDIR", str(wanted))
        with scratch() as folder:
            assert (folder.parent.parent == wanted) is used


def test_a_folder_that_others_can_write_to_is_refused(base: Path) -> None:
    root = base / f"fr3e.{os.getuid()}"
    root.mkdir()
    root.chmod(0o775)
    with pytest.raises(StorageError, match=r"TMPDIR: .*fr3e\.\d+ must be a folder that only you can write to$"):
        Scratch.claim()
    root.rmdir()
    root.symlink_to(base)
    with pytest.raises(StorageError, match="only you can write to"):
        Scratch.claim()


def test_a_base_that_cannot_be_made_is_one_line(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "file").touch()
    monkeypatch.setenv("TMPDIR", str(base / "file" / "x"))
    with pytest.raises(
        StorageError, match=r"^TMPDIR: no folder for sockets and temporary files in .*: a part of the path is a file"
    ):
        Scratch.claim()


def test_an_actor_uses_the_drivers_folder_and_its_semaphores_go_when_it_is_killed(base: Path) -> None:
    with scratch() as folder:
        semaphore = "lock = multiprocessing.get_context('spawn').Lock()"
        with process("actor_scratch", act=semaphore, tell="lock._semlock.name") as (actor, (used, name)):
            left = Path(f"/dev/shm/sem.{name.removeprefix('/')}")
            assert (used, left.exists()) == (str(folder), True)
            actor.send_signal(signal.SIGKILL)
            wait_until_gone(left)
        assert below(folder) == []


def test_an_actor_on_another_machine_has_a_folder_of_its_own_that_goes_when_it_is_killed(base: Path) -> None:
    with process("actor_scratch", act="tempfile.mkstemp()") as (actor, (used,)):
        assert Path(used).parent.parent == base
        actor.send_signal(signal.SIGKILL)
        wait_until_gone(Path(used))
        wait_until_gone(Path(used).parent)


def wait_until_gone(path: Path) -> None:
    """The test's own time limit ends it."""
    watched = subprocess.run(
        ["sh", "-c", 'while [ -e "$1" ]; do sleep 0.05; done', "sh", str(path)], timeout=60, check=True
    )  # fmt: skip
    assert watched.returncode == 0


@pytest.mark.parametrize("variable", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"])
def test_rays_token_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with monkeypatch.context() as other:
        other.setenv(variable, "disabled")  # a token, or a mode, that somebody chose
        make_token()
        assert below(tmp_path) == []
    make_token()
    token = tmp_path / ".ray" / "auth_token"
    text = token.read_text()
    assert (stat.S_IMODE(token.stat().st_mode), len(bytes.fromhex(text))) == (0o600, 32)
    make_token()
    assert (token.read_text(), below(tmp_path)) == (text, [".ray", ".ray/auth_token"])


def test_a_folder_that_lost_its_lock_stays_while_somebody_listens_in_it(base: Path) -> None:
    """Long runs outlive what a machine's cleaning of /tmp thinks is old."""
    root = base / "fr3e"
    (root / "1234abcd" / "ray").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(root / "1234abcd" / "ray" / "raylet"))
        sweep(root)
        assert below(root) == ["1234abcd", "1234abcd/ray", "1234abcd/ray/raylet"]
    sweep(root)
    assert below(root) == []
