"""Shell scripts and Dockerfiles by their linters, which dev.lock brings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
SHELL = sorted(
    str(path.relative_to(ROOT))
    for folder in (".ci", "cluster", "scripts")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.read_bytes().startswith(b"#!") and b"bash" in path.read_bytes().split(b"\n", 1)[0]
)
UNPINNED_APT = "DL3008"  # a Debian release keeps no old versions: a pin would break the image at the next security update


def test_every_shell_script_is_found() -> None:
    assert {".ci/run", "cluster/local.sh", "cluster/slurm.sbatch", "cluster/docker/install.sh", "scripts/setup.sh"} <= set(SHELL)


@pytest.mark.parametrize("name", SHELL)
def test_shellcheck_has_nothing_against(name: str) -> None:
    done = subprocess.run([BIN / "shellcheck", ROOT / name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_hadolint_has_nothing_against(name: str) -> None:
    command = [BIN / "hadolint", "--ignore", UNPINNED_APT, ROOT / "cluster" / "docker" / name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_shellcheck_finds_a_fault(tmp_path: Path) -> None:
    (tmp_path / "bad.sh").write_text("#!/bin/bash\nrm -rf $1/*\n", encoding="utf-8")
    done = subprocess.run([BIN / "shellcheck", tmp_path / "bad.sh"], capture_output=True, text=True, timeout=60)
    assert "SC2115" in done.stdout
