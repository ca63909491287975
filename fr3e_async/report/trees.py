"""A run's kept trees (``trees.jsonl``), packed for the page: an index with a row a tree, and the trees in gzipped parts.

The page decompresses a part when one of its trees is opened, so ten thousand trees cost the reader one index. Refuses to judge
what the trees say: keys it does not know are left out, what is missing or of another type becomes empty.
"""

import base64
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fr3e_async.errors import StorageError
from fr3e_async.outcomes import Outcome
from fr3e_async.report.rows import items, number, objects, read_rows, text, today

TREES = "trees.jsonl"
PART_CHARS = 1 << 20  # of JSON in one part: some 20 ms to open
DIGITS = 4  # of numbers of states
_NAME = re.compile(r'\{"group": ?"((?:[^"\\]|\\.)*)"')
COLUMNS = (
    "run", "group", "step", "outcome", "prompt", "rollouts", *map(str, Outcome), "anchors", "tokens", "entropy", "value", "reasons",
    "part", "index",
)  # fmt: skip


def packed(data: Any) -> str:
    """Any JSON value as gzip in base64: text that stands in a page without escapes. Raises ``ValueError`` for a NaN."""
    raw = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
    return base64.b64encode(gzip.compress(raw, 5, mtime=0)).decode("ascii")


def read_trees(run: Path, *, limit: int) -> Iterator[dict[str, Any]]:
    """At most ``limit`` trees of a run, evenly over the file, cleaned; none if it is missing. Raises ``StorageError``.

    Of a group that was settled twice, before and after a resume, the last line counts.
    """
    path = run / TREES
    lines = sorted(_last_lines(path).values()) if limit > 0 else []
    wanted = set(lines if len(lines) <= limit else [lines[index * len(lines) // limit] for index in range(limit)])
    for line, row in read_rows(path) if wanted else ():
        if line in wanted:
            if not isinstance(row.get("group"), str):
                raise StorageError(f"{path}:{line} is damaged: it names no group")
            yield clean_tree(row)


def _last_lines(path: Path) -> dict[str, int]:
    """Group → the last line, from 1, that tells of it. A run writes the name first, so that lines need not be read to their end."""
    found: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if line.endswith("\n"):  # else it was cut off
                    name = _NAME.match(line)
                    found[name[1] if name else f"line {number}"] = number
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StorageError(f"{path} is not readable ({error.strerror})") from error
    return found


# ---- a tree as the page gets it ----


def clean_tree(row: dict[str, Any]) -> dict[str, Any]:
    """The known fields of a row, each of its type; log-probs and entropies become integers of 0.001 nats."""
    return {
        "group": text(row.get("group")),
        "step": number(row.get("step")),
        "outcome": today(row.get("outcome", row.get("fate"))),
        "prompt": text(row.get("prompt")),
        "gold": text(row.get("gold")),
        "states": [_state(state) for state in objects(row.get("states"))],
        "rollouts": [_rollout(rollout) for rollout in objects(row.get("rollouts"))],
    }


def _state(row: dict[str, Any]) -> dict[str, Any]:
    names = ("node", "parent", "trunk", "position", "score", "value", "low", "high", "alpha")
    counts = {"reward_sum": row.get("reward_sum", row.get("right")), "scored": row.get("scored", row.get("judged"))}
    values = {name: row.get(name) for name in names} | counts
    return {name: number(value, DIGITS) for name, value in values.items()} | {"dropped": today(row.get("dropped"))}


def _rollout(row: dict[str, Any]) -> dict[str, Any]:
    pieces = _pieces(items(row.get("pieces")))
    return {
        "node": number(row.get("node")) or 0,
        "branch": number(row.get("branch")) or 0,
        "pieces": pieces,
        "entropies": _milli(row.get("entropies"), len(pieces)),
        "logprobs": _milli(row.get("logprobs"), len(pieces)),
        "versions": _spans(row.get("versions")) or [],
        "outcome": today(row.get("outcome")),
        "reason": text(row.get("reason")),
        "reward": number(row.get("reward"), DIGITS),
        "finish": text(row.get("finish")),
        "advantage": _spans(row.get("advantage")),
    }


def _pieces(values: list[Any]) -> list[str]:
    try:
        if "".join(values).isascii():
            return values
    except TypeError:
        pass
    return [text(value) for value in values]


def _milli(values: Any, length: int) -> list[int | None] | None:
    """One entry a token; None where a value is unknown, and for the whole if there is none."""
    if not isinstance(values, list):
        return None
    try:  # nearly always they are what they should be, and there are millions of them
        known = [None if value is None else round(1000 * value) for value in values[:length]]
    except (TypeError, ValueError, OverflowError):
        known = [None if (value := number(entry)) is None else round(1000 * value) for entry in values[:length]]
    return [*known, *[None] * (length - len(known))] if any(value is not None for value in known) else None


def _spans(values: Any) -> list[list[float]] | None:
    """[[first token, value], …], each until the next one begins."""
    if not isinstance(values, list):
        return None
    pairs = [[number(entry[0]), number(entry[1], DIGITS)] for entry in values if isinstance(entry, list) and len(entry) == 2]
    return [[a, b] for a, b in pairs if a is not None and b is not None]


# ---- many of them ----


@dataclass(slots=True)
class Packer:
    """Takes trees one by one; ``parts`` come out as soon as they are full."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    _trees: list[dict[str, Any]] = field(default_factory=list)
    _chars: int = 0
    _part: int = 0

    def __len__(self) -> int:
        return len(self.columns["group"])

    def add(self, run: int, tree: dict[str, Any]) -> str | None:
        """Add a tree of the run with number ``run`` in the page. Returns a packed part when one is full, else None."""
        row = {"run": run, **summary_of(tree), "part": self._part, "index": len(self._trees)}
        for name, column in self.columns.items():
            column.append(row[name])
        self._trees.append(tree)
        self._chars += sum(40 + 12 * len(rollout["pieces"]) for rollout in tree["rollouts"]) + len(tree["prompt"])
        return self.flush() if self._chars >= PART_CHARS else None

    def flush(self) -> str | None:
        """Return the last, partly filled part, packed; None if it is empty."""
        if not self._trees:
            return None
        part, self._trees, self._chars = packed(self._trees), [], 0
        self._part += 1
        return part


def summary_of(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the fields by which the page lists, sorts and searches a tree. ``entropy``: nats a token, over the tokens where it is known."""
    outcomes = Counter(rollout["outcome"] for rollout in tree["rollouts"])
    known = [value for rollout in tree["rollouts"] for value in rollout["entropies"] or () if value is not None]
    root = next((state for state in tree["states"] if state["node"] == 0), None)
    return {
        "group": tree["group"],
        "step": tree["step"],
        "outcome": tree["outcome"],
        "prompt": tree["prompt"],
        "rollouts": len(tree["rollouts"]),
        **{str(name): outcomes[name] for name in Outcome},
        "anchors": sum(1 for state in tree["states"] if state["node"]),
        "tokens": sum(len(rollout["pieces"]) for rollout in tree["rollouts"]),
        "entropy": round(sum(known) / len(known) / 1000, 4) if known else None,
        "value": root["value"] if root else None,
        "reasons": " ".join(sorted({rollout["reason"] for rollout in tree["rollouts"]} - {""})),
    }
