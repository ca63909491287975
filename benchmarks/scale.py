"""Scale: start-up against the number of actors, broadcast to many receivers, the driver's memory, and what limits at 10,000 engines.

    python benchmarks/scale.py [--quick] [--json OUT] [--only start broadcast memory limits] [--actors N ...] [--engines N ...]

start      1 to 200 fake engines, one actor and process each, asked for at once as a run does; the floor: as many actors that do nothing
broadcast  a version of weights by buckets from the object store to 1 to 32 receivers that copy and check it, on one node and on several;
           the floor: one plain copy for each
memory     the state machine and the payload table with 100 to 10,000 prompt groups in flight, the time of a checkpoint's cut, and events a second
           at that size
limits     the same state machine in a simulated cluster of 100 to 10,000 engines, against the costs measured in the same run

``limits`` needs ``start`` and ``memory`` and runs them if they are left out. Use an idle machine, and 16 GiB of memory for 200 actors:
with less it stops where memory would run out, and says so. docs/scale.md says how to read it.
"""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module
from typing import Any

from common import finish, machine, parser, quiet

SECTIONS = ("start", "broadcast", "memory", "limits")
NEEDED = {"limits": ("start", "memory")}


def chosen(only: list[str] | None) -> list[str]:
    """In their order, with what they need."""
    wanted = set(only or SECTIONS)
    for name in list(wanted):
        wanted.update(NEEDED.get(name, ()))
    return [name for name in SECTIONS if name in wanted]


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections only")
    made.add_argument("--actors", nargs="+", type=int, help="numbers of actors that `start` tries")
    made.add_argument(
        "--engines", nargs="+", type=int, help="numbers of engines that `limits` simulates; 10,000 take half an hour"
    )
    args = made.parse_args()
    sizes = {"scale_start": ("COUNTS", args.actors), "scale_limits": ("ENGINES", args.engines)}
    facts = machine()
    print(f"{facts['cores']} cores, load average {facts['load']}")
    figures: dict[str, Any] = {}
    for name in chosen(args.only):
        part = import_module(f"scale_{name}")  # not above: processes that measure memory begin with what is imported there
        setting, given = sizes.get(part.__name__, ("", None))
        if given:
            setattr(part, setting, tuple(given))
        with quiet(), contextlib.redirect_stdout(sys.stderr):  # Ray prints warnings of its nodes
            figures[name] = part.section(figures, quick=args.quick)
        part.show(figures[name])
    finish(args, figures, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
