"""Make targets as a user starts them: the Makefile's own line runs, in the environment that the tests run in."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
EXEMPT = {"clean": "it removes the environment that the tests run in", "format": "it rewrites the sources"}
LIMIT_S = 560.0  # on a busy machine; tests that start engines are marked with a limit above it
OUTER = re.compile(r"MAKE|MFLAGS|PYTEST_|FR3E_TESTS_")  # what an outer make, or the test's own pytest, would tell an inner one


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, flags=re.MULTILINE))


Done = subprocess.CompletedProcess[str]


def started(
    target: str, *words: str, folder: Path = ROOT, timeout: float = LIMIT_S, flags: Sequence[str] = (), **variables: str
) -> Done:
    """``make flags target ARGS=words``. The environment counts as set up, whatever the times of its files: nothing is installed into it.

    ``folder``: a copy of the repository instead; ``variables``: of make.
    """
    venv = variables.pop("VENV", sys.prefix)
    old = [f"--old-file={venv}/.installed-{flavour}" for flavour in ("cpu", "cuda")] if venv == sys.prefix else []
    told = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "--no-print-directory", *flags, *old, target, f"VENV={venv}", f"ARGS={shlex.join(words)}", *told]
    environment = {name: value for name, value in os.environ.items() if not OUTER.match(name)} | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


def make(target: str, *words: str, **settings: Any) -> Done:
    """``started``, and it must end well."""
    done = started(target, *words, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def figures(out: Path, *, quick: bool = True) -> dict[str, Any]:
    """What a benchmark wrote with ``--json``."""
    found = json.loads(out.read_text())
    assert found["quick"] is quick
    assert set(found["machine"]) >= {"processor", "cores", "load", "date"}
    return found


def copy_of_the_repository(folder: Path) -> Path:
    """Its files without what is built or ignored, for targets that write into it; their times stay."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    there = b"\0".join(name for name in names if name and (ROOT / os.fsdecode(name)).exists())
    packed = subprocess.run(["tar", "--null", "-T", "-", "-c"], cwd=ROOT, input=there, capture_output=True, check=True)
    folder.mkdir(exist_ok=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder
