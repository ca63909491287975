"""Hashes of everything that requirements/*.lock pin: ``python scripts/lock.py`` writes them again, ``--check`` only looks.

A lock is comments, and for each pin ``name==version`` with the sha256 of every file that its release has, so that it holds for any
interpreter and machine. This file reads and writes locks; what a release consists of is asked of ``uv`` (scripts/lock.sh installs
it), which asks the package index. torch is the exception: cpu.lock wants its builds without CUDA, which the plain index does not
list; requirements/torch-cpu.sha256 names them, and no other is let in. (pip prefers a file whose hash the index tells and the lock
allows: with both kinds allowed it would take the CUDA build, which does not load without CUDA's libraries.) An unchanged set of pins
gives the same bytes again. Standard library only.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
TORCH_CPU, WITHOUT_CUDA = "torch-cpu.sha256", "cpu.lock"
PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)==(?P<version>[^\s;\\]+)(?:\s*;\s*(?P<marker>[^\\]*[^\s\\]))?\s*\\?")
HASH = re.compile(r"\s+--hash=sha256:(?P<digest>[0-9a-f]{64})(?:\s*\\)?")

Hashes = Mapping[str, frozenset[str]]  # sha256 of every file of a release, by "name==version"
Ask = Callable[[Sequence[str]], Hashes]  # for pins without markers


class LockError(Exception):
    """A lock cannot be read, or the index does not know a pin."""


@dataclass(frozen=True, slots=True)
class Pin:
    """*Example*: ``Pin("torch", "2.13.0", "", frozenset({"6746…"}))``. ``marker``: when it is wanted, as PEP 508 says it."""

    name: str
    version: str
    marker: str
    hashes: frozenset[str]

    @property
    def key(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class Lock:
    """A file of pins, in order of their names, below its comments."""

    comments: tuple[str, ...]
    pins: tuple[Pin, ...]

    @classmethod
    def parse(cls, text: str) -> Lock:
        """Raises ``LockError`` naming the line. Comments stand at the head."""
        comments: list[str] = []
        pins: list[Pin] = []
        for number, line in enumerate(text.splitlines(), start=1):
            if line.startswith("#"):
                comments.append(line)
            elif found := HASH.fullmatch(line):
                if not pins:
                    raise LockError(f"line {number}: a hash without a pin")
                last = pins.pop()
                pins.append(Pin(last.name, last.version, last.marker, last.hashes | {found["digest"]}))
            elif found := PIN.fullmatch(line):
                pins.append(Pin(found["name"], found["version"], found["marker"] or "", frozenset()))
            elif line.strip():
                raise LockError(f"line {number}: neither name==version nor a hash: {line.strip()[:80]!r}")
        return cls(tuple(comments), tuple(pins))

    def text(self) -> str:
        lines = list(self.comments)
        for pin in sorted(self.pins, key=lambda pin: (pin.name, pin.marker)):
            head = f"{pin.key} ; {pin.marker}" if pin.marker else pin.key
            lines.append(" \\\n".join([head, *(f"    --hash=sha256:{digest}" for digest in sorted(pin.hashes))]))
        return "\n".join(lines) + "\n"

    def hashed(self, hashes: Hashes) -> Lock:
        """The same pins with these hashes. Raises ``LockError`` for a pin without any."""
        missing = [pin.key for pin in self.pins if not hashes.get(pin.key)]
        if missing:
            raise LockError(f"no files are known of {', '.join(missing)}")
        return Lock(self.comments, tuple(Pin(p.name, p.version, p.marker, hashes[p.key]) for p in self.pins))


def torch_builds(text: str) -> dict[str, frozenset[str]]:
    """Lines of ``sha256sum``: digest and wheel. By the pin that such a wheel meets: a local version (+cpu) meets the plain one."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        digest, _, file = line.partition("  ")
        name, version, *_ = file.split("-")
        found.setdefault(f"{name}=={version.partition('+')[0]}", set()).add(digest)
    return {key: frozenset(digests) for key, digests in found.items()}


def ask_uv(pins: Sequence[str]) -> Hashes:
    """What the index says; one question for all pins of a lock. Raises ``LockError``."""
    command = [
        "uv", "pip", "compile", "--quiet", "--no-deps", "--generate-hashes", "--no-header", "--no-annotate",
        "--python-version=3.11", "--python-platform=x86_64-manylinux_2_31", "-",
    ]  # fmt: skip
    done = subprocess.run(command, input="\n".join(pins) + "\n", capture_output=True, text=True)
    if done.returncode:
        raise LockError(done.stderr.strip() or f"uv ended with {done.returncode}")
    return {pin.key: pin.hashes for pin in Lock.parse(done.stdout).pins}


def renewed(lock: Lock, ask: Ask, builds: Hashes) -> Lock:
    """The lock with the hashes of today, ``builds`` in place of what the index has. A file that was withdrawn since goes, and so
    does its hash. Raises ``LockError``."""
    known = ask(sorted({pin.key for pin in lock.pins}))
    return lock.hashed({key: builds.get(key, digests) for key, digests in known.items()})


def main(argv: Sequence[str], ask: Ask = ask_uv, folder: Path = REQUIREMENTS) -> int:
    """Exit codes: 0 the locks are as they should be; 1 ``--check`` found another; 2 a lock or the index cannot be read."""
    parser = argparse.ArgumentParser(prog="scripts/lock.sh", description="Write the hashes of requirements/*.lock again.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a lock would change")
    check = parser.parse_args(argv).check
    try:
        locks = {path: Lock.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.lock"))}
        builds = torch_builds((folder / TORCH_CPU).read_text(encoding="utf-8"))
        new = {path: renewed(lock, ask, builds if path.name == WITHOUT_CUDA else {}).text() for path, lock in locks.items()}
    except (LockError, OSError) as error:
        print(f"lock: {error}", file=sys.stderr)
        return 2
    changed = [path for path, text in new.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        print(f"{path.name} {'would change' if check else 'written'}")
        if not check:
            path.write_text(new[path], encoding="utf-8")
    print(f"{len(new)} locks, {sum(len(lock.pins) for lock in locks.values())} pins, {len(changed)} changed")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
