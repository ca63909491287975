"""The locks: every pin with hashes, and how they are made again. The index is a fake one; nothing here asks a real one."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import lock  # noqa: E402
from lock import Lock, Pin, main, torch_builds  # noqa: E402

LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def digest(number: int) -> str:
    return f"{number:064x}"


INDEX = {"torch==2.13.0": {1, 2}, "numpy==2.3.5": {3}, "uv==1.0": {4, 5}}


def ask(pins: Sequence[str]) -> lock.Hashes:
    return {key: frozenset(map(digest, INDEX[key])) for key in pins if key in INDEX}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cpu.lock").write_text("# What a run needs.\n# Really.\ntorch==2.13.0\nnumpy==2.3.5 ; python_version < '3.12'\n")
    (tmp_path / "tools.lock").write_text("uv==1.0\n")
    (tmp_path / lock.TORCH_CPU).write_text(f"# builds\n{digest(9)}  torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl\n")
    return tmp_path


# ---- the locks of this repository ----


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_pin_has_hashes_and_the_file_is_as_it_would_be_written(path: Path) -> None:
    text = path.read_text()
    found = Lock.parse(text)
    assert found.text() == text
    assert [pin.key for pin in found.pins if not pin.hashes] == []
    assert len({(pin.name, pin.marker) for pin in found.pins}) == len(found.pins)
    assert "://" not in text  # whoever installs says from where


def torch_of(name: str) -> Pin:
    (torch,) = (pin for pin in Lock.parse((ROOT / "requirements" / name).read_text()).pins if pin.name == "torch")
    return torch


def test_torch_is_the_build_for_the_flavour() -> None:
    """Four wheels of PyTorch's CPU index (CPython 3.11 and 3.12, x86-64 and aarch64) or those of the plain one, and never both."""
    builds = torch_builds((ROOT / "requirements" / lock.TORCH_CPU).read_text())
    cpu, cuda = torch_of("cpu.lock"), torch_of("cuda.lock")
    assert cpu.key == cuda.key
    assert cpu.hashes == builds[cpu.key]
    assert len(cpu.hashes) == 4
    assert len(cuda.hashes) >= 4
    assert not cpu.hashes & cuda.hashes


def test_pip_takes_the_build_without_cuda_from_a_folder_too(tmp_path: Path) -> None:
    """A folder tells no hashes, an index does; both have a build that the pin lets in. Nothing is downloaded, but tried."""
    local, index = tmp_path / "folder", tmp_path / "index" / "torch"
    local.mkdir()
    index.mkdir(parents=True)
    build = local / "torch-2.13.0+cpu-py3-none-any.whl"
    build.write_bytes(b"the build without CUDA")
    page = f'<a href="../../torch-2.13.0-py3-none-any.whl#sha256={digest(1)}">torch-2.13.0-py3-none-any.whl</a>'
    (index / "index.html").write_text(page)
    wanted = hashlib.sha256(build.read_bytes()).hexdigest()
    (tmp_path / "x.lock").write_text(Lock((), (Pin("torch", "2.13.0", "", frozenset({wanted})),)).text())
    command = [
        sys.executable, "-m", "pip", "--isolated", "download", "--require-hashes", "--no-deps", f"--find-links={local}",
        f"--index-url={index.parent.as_uri()}", f"--dest={tmp_path / 'out'}", "-r", str(tmp_path / "x.lock"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "torch-2.13.0+cpu-py3-none-any.whl" in done.stdout + done.stderr
    assert "DO NOT MATCH" not in done.stderr


def test_what_is_installed_here_is_what_is_locked() -> None:
    from importlib.metadata import version

    pins = {
        pin.name: pin.version
        for path in ("cpu.lock", "dev.lock")
        for pin in Lock.parse((ROOT / "requirements" / path).read_text()).pins
    }
    found = {name: version(name).partition("+")[0] for name in ("torch", "ray", "deepspeed", "transformers", "pytest")}
    assert found == {name: pins[name] for name in found}


def test_set_up_takes_nothing_without_a_hash() -> None:
    """Each call of pip wants hashes, but for the package itself, which is this folder. Nothing is built but DeepSpeed, and for
    that nothing is fetched that a lock does not name."""
    code = (ROOT / "scripts" / "setup.sh").read_text()
    *calls, last = re.findall(r"^(?:if ! )?pip install (.*?)(?:; then)?$", code, flags=re.MULTILINE)
    assert last == "--no-deps --no-build-isolation -e ."
    build, locked = calls
    assert build == "--no-deps --require-hashes --only-binary=:all: -r requirements/build.lock"
    assert locked == '--no-deps --require-hashes --only-binary=:all: --no-binary=deepspeed --no-build-isolation "${locks[@]}"'
    named = set(re.findall(r"-r (requirements/\S+?\.lock)", code))
    assert named == {str(path.relative_to(ROOT)) for path in LOCKS} - {"requirements/tools.lock", "requirements/docs.lock"}
    assert code.count("pip install") == 3
    (site,) = re.findall(r"pip .*\binstall (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert site == "--no-deps --require-hashes --only-binary=:all: -r requirements/docs.lock"


def test_what_builds_is_what_is_installed() -> None:
    build, cpu, cuda = (
        set(Lock.parse((ROOT / "requirements" / name).read_text()).pins) for name in ("build.lock", "cpu.lock", "cuda.lock")
    )
    assert build < cpu
    assert build < cuda


def test_make_notices_a_lock_that_has_changed() -> None:
    (rule,) = re.findall(r"^\$\(STAMP\): (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"requirements/cpu.lock", "requirements/dev.lock", "scripts/setup.sh"} <= set(rule.split())


def test_pip_refuses_a_file_with_another_hash(tmp_path: Path) -> None:
    wheel = tmp_path / "index" / "lost-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"not what was locked")
    (tmp_path / "x.lock").write_text(Lock((), (Pin("lost", "1.0", "", frozenset({digest(1)})),)).text())
    command = [
        sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", "--no-index", f"--find-links={wheel.parent}",
        f"--target={tmp_path / 'site'}", "-r", str(tmp_path / "x.lock"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "site").exists()


# ---- how they are made ----


def test_locks_are_written_with_the_hashes_of_every_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], ask, folder) == 0
    assert "2 locks, 3 pins, 2 changed" in capsys.readouterr().out
    numpy, torch = (f"    --hash=sha256:{digest(number)}" for number in (3, 9))  # the build of the file, not those of the index
    assert (folder / "cpu.lock").read_text() == (
        "# What a run needs.\n# Really.\n"
        f"numpy==2.3.5 ; python_version < '3.12' \\\n{numpy}\n"
        f"torch==2.13.0 \\\n{torch}\n"
    )  # fmt: skip


def test_a_second_time_nothing_changes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"], ask, folder) == 1
    assert "--hash" not in (folder / "cpu.lock").read_text()
    main([], ask, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main([], ask, folder) == 0
    assert main(["--check"], ask, folder) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert "0 changed" in capsys.readouterr().out


def test_hashes_of_another_version_go(folder: Path) -> None:
    stray = f"uv==1.0 \\\n    --hash=sha256:{digest(4)} \\\n    --hash=sha256:{digest(77)}\n"
    (folder / "tools.lock").write_text(stray)
    main([], ask, folder)
    assert digest(77) not in (folder / "tools.lock").read_text()


def test_a_pin_that_the_index_does_not_know_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tools.lock").write_text("uv==1.0\nuw==1.0\n")
    assert main([], ask, folder) == 2
    assert capsys.readouterr().err == "lock: no files are known of uw==1.0\n"
    assert "--hash" not in (folder / "cpu.lock").read_text()


@pytest.mark.parametrize(
    "line", ["-r other.txt", "torch>=2", "torch @ file:///tmp/x.whl", "--index-url https://x", f"    --hash=sha256:{digest(1)}"]
)
def test_a_line_that_is_no_pin_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    (folder / "tools.lock").write_text(line + "\n")
    assert main([], ask, folder) == 2
    assert capsys.readouterr().err.startswith("lock: line 1: ")


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,3})?", fullmatch=True)
PINS = st.builds(
    Pin, NAMES, st.sampled_from(["1.0", "2.0.post1", "3!1.0rc1"]), st.sampled_from(["", "python_version < '3.12'", "sys_platform == 'linux' and platform_machine == 'x86_64'"]),
    st.frozensets(st.integers(0, 99).map(digest), max_size=4),
)  # fmt: skip


@given(pins=st.lists(PINS, max_size=6, unique_by=lambda pin: (pin.name, pin.marker)))
def test_what_is_written_is_read_back(pins: list[Pin]) -> None:
    text = Lock(("# a", "# b"), tuple(pins)).text()
    again = Lock.parse(text)
    assert set(again.pins) == set(pins)
    assert again.text() == text
