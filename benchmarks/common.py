"""What all benchmarks share: the two arguments, facts of the machine, CPU time, the JSON file. Knows nothing of what is measured."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser with ``--quick`` and ``--json OUT``. ``doc``: the benchmark's docstring; its first line describes it."""
    made = argparse.ArgumentParser(description=doc.strip().splitlines()[0])
    made.add_argument("--quick", action="store_true", help="less of everything: under a minute")
    made.add_argument("--json", metavar="OUT", type=Path, help="write the figures to this file")
    return made


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries and their processes say on stderr out of the tables; it is shown if the benchmark fails."""
    with tempfile.TemporaryFile() as noise:
        kept = os.dup(2)
        os.dup2(noise.fileno(), 2)
        try:
            yield
        except BaseException:
            noise.seek(0)
            os.write(kept, noise.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def machine() -> dict[str, Any]:
    """What figures depend on: processor, cores, load when it was called, Python."""
    names = [line.split(":", 1)[1].strip() for line in cpu_info().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def cpu_info() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def cpu_s(*, own: bool = True, ended: bool = False) -> float:
    """CPU time of this process (``own``) and of all that it has started and that still run; ``ended``: also of those that do not."""
    this = psutil.Process()
    total = 0.0
    for process in (*([this] if own else []), *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has just ended: its parent has its time
            times = process.cpu_times()
            total += times.user + times.system + (times.children_user + times.children_system if ended else 0.0)
    return total


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print as markdown."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(map(str, row)) + " |")
    sys.stdout.flush()


def finish(args: argparse.Namespace, figures: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write ``--json`` if it was asked for, whole or not at all. ``facts``: of ``machine()``, taken before the measurement."""
    if taken := figures.keys() & {"machine", "quick"}:
        raise ValueError(f"figures named {taken} would stand in the place of what they depend on")
    if args.json is not None:
        unfinished = args.json.with_name(args.json.name + ".tmp")
        unfinished.write_text(json.dumps({"machine": facts, "quick": args.quick, **figures}, indent=1) + "\n")
        unfinished.replace(args.json)
