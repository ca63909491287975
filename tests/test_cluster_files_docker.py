"""The Dockerfiles, held to what we promise of an image (tests/test_linters.py lints them)."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "cluster" / "docker"
FILES = ["Dockerfile.cpu", "Dockerfile.cuda"]
SECRET = re.compile(r"(token|passw|secret|credential|(?<!public)_?key)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    name: str  # upper case
    text: str  # the rest, continued lines joined

    @property
    def words(self) -> list[str]:
        return [word for word in shlex.split(self.text) if not word.startswith("--")]

    def flag(self, name: str) -> str:
        return next((w.partition("=")[2] for w in self.text.split() if w.startswith(f"--{name}=")), "")


def instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = (line.split(None, 1) for line in joined.splitlines())
    return [Instruction(name=name.upper(), text=rest) for name, rest in pairs]


def ignored(path: str, patterns: list[str]) -> bool:
    """Does .dockerignore keep ``path`` out of the context? The last pattern that matches it, or a folder above it, decides."""
    parents = [path, *(str(p) for p in Path(path).parents if str(p) != ".")]
    out = False
    for line in patterns:
        keep, pattern = line.startswith("!"), line.removeprefix("!")
        variants = [pattern, pattern.removeprefix("**/")]
        if any(
            fnmatchcase(p, v) and (p.count("/") == v.count("/") or v.startswith("**/")) for p in parents for v in variants
        ) or (pattern.startswith("**/") and any(fnmatchcase(part, variants[1]) for part in Path(path).parts)):
            out = not keep
    return out


def ignore_patterns() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def lint(text: str) -> list[str]:
    """What is wrong with a Dockerfile whose context is the repository's root."""
    found, stages, user = [], [], "root"
    for step in instructions(text):
        match step.name:
            case "FROM":
                user = "root"
                found += _from_faults(step, stages)
                stages.append(step.words[2] if len(step.words) == 3 else "")
            case "COPY":
                found += _copy_faults(step, stages)
            case "ADD":
                found.append(f"ADD {step.text}: COPY says what comes in, and fetches nothing")
            case "USER":
                user = step.text
            case "ENV" | "ARG":
                found += _variable_faults(step)
            case "RUN" if re.search(r"\bsudo\b|--trusted-host|curl[^|]*\|\s*(ba)?sh", step.text):
                found.append(f"RUN {step.text}: not as root of a running system, not unverified")
            case "MAINTAINER":
                found.append("MAINTAINER: a LABEL takes its place")
    if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user):
        found.append(f"the image runs as {user}: Kubernetes can tell a user that is not root by a number only")
    if len(stages) < 2:
        found.append("one stage: compilers and caches come along")
    return found


def _from_faults(step: Instruction, stages: list[str]) -> list[str]:
    image, *rest = step.words
    found = []
    if len(rest) != 2 or rest[0].upper() != "AS" or not re.fullmatch(r"[a-z][a-z0-9-]*", rest[1]) or rest[1] in stages:
        found.append(f"FROM {step.text}: a stage has a name of its own")
    tag = image.rpartition("/")[2].partition(":")[2]
    if image not in stages and (not re.search(r"\d+\.\d+\.\d+", tag) or "latest" in tag):
        found.append(f"FROM {image}: a tag with an exact version")
    return found


def _copy_faults(step: Instruction, stages: list[str]) -> list[str]:
    if origin := step.flag("from"):
        return [] if origin in stages else [f"COPY --from={origin}: no such stage"]
    found = []
    for source in step.words[:-1]:
        if not (ROOT / source).exists():
            found.append(f"COPY {source}: no such file")
        elif ignored(source.rstrip("/"), ignore_patterns()):
            found.append(f"COPY {source}: .dockerignore keeps it out")
    return found


def _variable_faults(step: Instruction) -> list[str]:
    names = [word.partition("=")[0] for word in step.words]
    return [f"{step.name} {name}: a secret would stay in the image" for name in names if SECRET.search(name)]


@pytest.mark.parametrize("name", FILES)
def test_the_linter_has_nothing_against_the_file(name: str) -> None:
    assert lint((FOLDER / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (("FROM python:3.11.14-slim-bookworm AS build", "FROM python:latest AS build"), "FROM python:latest: a tag"),
        (("FROM python:3.11.14-slim-bookworm AS build", "FROM python:3.11 AS build"), "FROM python:3.11: a tag"),
        (("FROM python:3.11.14-slim-bookworm AS build", "FROM python AS build"), "FROM python: a tag"),
        (("3.11.14-slim-bookworm AS run", "3.11.14-slim-bookworm"), "a stage has a name of its own"),
        (("3.11.14-slim-bookworm AS run", "3.11.14-slim-bookworm AS build"), "a stage has a name of its own"),
        (("USER 1000:1000", "USER root"), "the image runs as root"),
        (("USER 1000:1000", "USER fr3e"), "the image runs as fr3e"),
        (("USER 1000:1000\n", ""), "the image runs as root"),
        (("COPY configs ./configs", "ADD https://example.org/configs.tar ./configs"), "ADD https://"),
        (("COPY configs ./configs", "COPY no-such ./configs"), "COPY no-such: no such file"),
        (("COPY configs ./configs", "COPY tests ./tests"), "COPY tests: .dockerignore keeps it out"),
        (("COPY --from=build", "COPY --from=biuld"), "COPY --from=biuld: no such stage"),
        (("ARG PIP_EXTRA_INDEX_URL", "ARG HF_TOKEN"), "ARG HF_TOKEN: a secret"),
        (("PYTHONUNBUFFERED=1", "AWS_SECRET_ACCESS_KEY=x"), "ENV AWS_SECRET_ACCESS_KEY: a secret"),
        (("RUN python -m venv", "RUN curl https://example.org/x.sh | sh && python -m venv"), "RUN curl"),
    ],
)
def test_the_linter_finds_what_is_wrong(change: tuple[str, str], finding: str) -> None:
    text = (FOLDER / "Dockerfile.cpu").read_text(encoding="utf-8")
    assert change[0] in text
    found = lint(text.replace(*change, 1))
    assert any(finding in fault for fault in found), found


def test_one_stage_is_found() -> None:
    assert lint("FROM python:3.11.14-slim AS run\nUSER 1000\n") == ["one stage: compilers and caches come along"]


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("fr3e_async", False),
        ("fr3e_async/main.py", False),
        ("fr3e_async/actors/__pycache__", True),
        ("fr3e_async/__pycache__/main.cpython-311.pyc", True),
        ("configs/toy.yaml", False),
        ("configs/.env", True),
        ("requirements/cpu.lock", False),
        ("cluster/preemption_notice.py", False),
        ("cluster/aws.yaml", True),
        ("runs/a/summary.json", True),
        (".git", True),
        (".venv/bin/python", True),
        ("tests", True),
    ],
)
def test_what_goes_into_the_context(path: str, out: bool) -> None:
    assert ignored(path, ignore_patterns()) is out


# --- what the files install -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What install.sh asked pip for, with what lay in the files that it named."""

    calls: list[str]
    files: dict[str, str]


@pytest.fixture
def build(tmp_path: Path) -> Callable[[str], Build]:
    stub = f"""#!/bin/bash
printf '%s\\n' "$*" >>{tmp_path}/calls
for word; do case $word in *.lock) cp "$word" {tmp_path}/;; esac; done
"""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pip").write_text(stub)
    (tmp_path / "bin" / "pip").chmod(0o755)

    def run(lock: str) -> Build:
        (tmp_path / "requirements").mkdir()
        (tmp_path / "requirements" / "some.lock").write_text(lock)
        (tmp_path / "requirements" / "build.lock").write_text("setuptools==78.1.1\n")
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        subprocess.run(["bash", str(FOLDER / "install.sh"), "some"], cwd=tmp_path, env=environment, check=True, timeout=600)
        calls = [re.sub(r"\S*/(\w+\.lock)", r"\1", line) for line in (tmp_path / "calls").read_text().splitlines()]
        return Build(calls=calls, files={file.name: file.read_text() for file in tmp_path.glob("*.lock")})

    return run


def test_all_is_installed_by_hash_and_deepspeed_built_against_the_torch_that_is_there(build: Callable[[str], Build]) -> None:
    lock = "# exact\na==1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:ab\ndeepspeed==0.19.8 \\\n    --hash=sha256:dd\nz==2\n"
    done = build(lock)
    assert done.calls == [
        "install --no-deps --require-hashes --only-binary=:all: -r build.lock",
        "install --no-deps --require-hashes --only-binary=:all: -r rest.lock",
        "install --no-deps --require-hashes --no-build-isolation -r deepspeed.lock",
        "install --no-deps --no-build-isolation .",
    ]
    assert done.files["deepspeed.lock"] == "deepspeed==0.19.8 \\\n    --hash=sha256:dd\n"
    assert done.files["rest.lock"] == "# exact\na==1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:ab\nz==2\n"


@pytest.mark.parametrize("name", FILES)
def test_the_images_lock_is_there_and_can_be_split(name: str, build: Callable[[str], Build]) -> None:
    flavour = name.rpartition(".")[2]
    assert f"bash cluster/docker/install.sh {flavour}" in (FOLDER / name).read_text(encoding="utf-8")
    lock = (ROOT / "requirements" / f"{flavour}.lock").read_text(encoding="utf-8")
    files = build(lock).files
    assert files["deepspeed.lock"].startswith("deepspeed==")
    assert "deepspeed==" not in files["rest.lock"]
    assert sorted((files["deepspeed.lock"] + files["rest.lock"]).splitlines()) == sorted(lock.splitlines())
    assert re.search(r"^setuptools==", files["rest.lock"], flags=re.MULTILINE)  # what builds the package itself
    assert (ROOT / "requirements" / "build.lock").is_file()


@pytest.mark.parametrize("name", FILES)
def test_an_image_asks_for_a_token_unless_told_otherwise(name: str) -> None:
    steps = instructions((FOLDER / name).read_text(encoding="utf-8"))
    variables = " ".join(step.text for step in steps if step.name == "ENV")
    assert "RAY_AUTH_MODE=token" in variables
    assert steps[-1] == Instruction(name="CMD", text='["bash"]')
