"""The wheel: it builds, holds what a run needs, and works from an empty folder without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from make_support import copy_of_the_repository, make

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the repository."""
    copy = copy_of_the_repository(tmp_path_factory.mktemp("source"))
    make("wheel", folder=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


def test_it_holds_the_package_its_configs_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("main.py", "py.typed", "configs/toy.yaml", "configs/paper/qwen2.5-32b.yaml", "algorithm/strategies/fr3e.py"):
        assert f"fr3e_async/{wanted}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests/") for name in names)


def test_it_works_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import fr3e_async; print(fr3e_async.__file__);"
        "from fr3e_async.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(site), "train", "--dry-run", "config=toy"]
    done = subprocess.run(command, cwd=empty, capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert "generators" in done.stdout
    assert not list(empty.iterdir())
