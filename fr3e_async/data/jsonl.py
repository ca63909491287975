"""JSONL files of problems: one object a line, columns by ``DataConfig``. Each fault is named by file and line.

Knows nothing of tokenizers, and judges no mathematics: an answer is text here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fr3e_async.config import DataConfig
from fr3e_async.errors import DataError

GROUPED_NUMBER = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")  # 1,234,567.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One problem. *Example*: ``Row(uid="test.jsonl:3", problem="2+3=?", answer="5", source="data/test.jsonl:3")``."""

    uid: str  # unique in its file
    problem: str
    answer: str
    source: str  # where it stands, for messages: "path:line"


def read_jsonl(path: Path, config: DataConfig) -> list[Row]:
    """All rows of a file, in order; blank lines are passed over.

    ``DataError`` (with file and line) for a missing or empty file, a line that is not a JSON object in UTF-8, a missing or
    empty problem, a row without an answer, an id that occurs twice.
    """
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for source, line, text in _lines(path):
        row = _row(_object(text, source), config, source=source, default_id=f"{path.name}:{line}")
        if row.uid in seen:
            raise DataError(f"{source}: id {row.uid!r} occurs a second time (first in {seen[row.uid]}); see data.id_field")
        seen[row.uid] = source
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: the file is empty, it holds no problems; see data.train, data.heldout")
    return rows


def final_answer(text: str) -> str:
    """The reference answer: what follows the last ``####`` (GSM8K), without thousands separators, else the text itself."""
    _, mark, answer = text.rpartition("####")
    answer = answer.strip()
    if mark and GROUPED_NUMBER.fullmatch(answer):
        return answer.replace(",", "")
    return answer


def _lines(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """(source, line number, bytes) of each line that is not blank; lines count from 1."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); see data.train, data.heldout") from error
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", number, line


def _object(line: bytes, source: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 (byte {error.start + 1} of the line)") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{source}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{source}: a JSON object was expected, got {type(value).__name__}")
    return value


def _row(value: dict[str, Any], config: DataConfig, *, source: str, default_id: str) -> Row:
    problem = value.get(config.problem_field)
    if not isinstance(problem, str) or not problem.strip():
        raise DataError(
            f"{source}: no text in column {config.problem_field!r} (data.problem_field); the row has {_columns(value)}"
        )
    answer = final_answer(_text(value.get(config.answer_field)))
    if not answer:
        raise DataError(
            f"{source}: no answer in column {config.answer_field!r} (data.answer_field); the row has {_columns(value)}"
        )
    uid = _text(value.get(config.id_field)) or default_id
    return Row(uid=uid, problem=problem, answer=answer, source=source)


def _text(value: Any) -> str:
    """A string or number as text; "" for anything else. A list of one (OlympiadBench) is its only entry."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return str(value).strip()


def _columns(value: dict[str, Any]) -> str:
    return ", ".join(sorted(map(repr, value))) or "no columns"
