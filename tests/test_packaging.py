"""The wheel: it builds, holds what a run needs, and works from an empty folder without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the repository."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True).stdout
    archive = subprocess.run(["tar", "--null", "-T", "-", "-c"], cwd=repository, input=files, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(copy)], input=archive.stdout, check=True)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
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
        "from fr3e_async.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(site), "--dry-run", "config=paper/qwen2.5-7b"]
    done = subprocess.run(command, cwd=empty, capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert "generators" in done.stdout
    assert not list(empty.iterdir())
