"""Rows: problems with reference answers, from JSONL files or the toy task, checked before any model is touched.

Knows files and columns; knows nothing of tokenizers and tokens.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fr3e_async.config import Config
from fr3e_async.data.jsonl import Row, read_jsonl
from fr3e_async.data.toy.families import ToyProblem, toy_task
from fr3e_async.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What ``data.train`` and ``data.heldout`` hold. ``heldout`` is empty when there is no evaluation."""

    train: tuple[Row, ...]
    heldout: tuple[Row, ...]


def read_rows(config: Config) -> Rows:
    """Read and check both problem sets. ``DataError`` names file and line, also of a problem that is in both."""
    toy_train, toy_heldout = toy_problems(config) if "toy" in (config.data.train, config.data.heldout) else ([], [])
    train = toy_train if config.data.train == "toy" else read_jsonl(_path(config.data.train), config.data)
    if not config.data.heldout:
        return Rows(train=tuple(train), heldout=())
    heldout = toy_heldout if config.data.heldout == "toy" else read_jsonl(_path(config.data.heldout), config.data)
    _require_disjoint(train, heldout)
    return Rows(train=tuple(train), heldout=tuple(heldout))


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def toy_problems(config: Config) -> tuple[list[Row], list[Row]]:
    """The toy task of this configuration and seed as (training, held-out) rows."""
    train, heldout = toy_task(config.toy, config.run.seed)
    return _toy_rows("toy-train", train), _toy_rows("toy-heldout", heldout)


def _toy_rows(name: str, problems: list[ToyProblem]) -> list[Row]:
    return [
        Row(uid=f"{name}/{index}", problem=problem.text, answer=str(problem.answer), source=f"{name}:{index}")
        for index, problem in enumerate(problems)
    ]


def _require_disjoint(train: list[Row], heldout: list[Row]) -> None:
    """Training on what is evaluated would make the reported accuracy meaningless. White space does not count."""
    sources = {" ".join(row.problem.split()): row.source for row in train}
    for row in heldout:
        source = sources.get(" ".join(row.problem.split()))
        if source is not None:
            raise DataError(
                f"{row.source}: this held-out problem is also a training problem ({source}); see data.train, data.heldout"
            )
