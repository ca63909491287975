"""JSONL files of problems: one object a line, columns by ``DataConfig``. Each fault is named by file and line.

Knows nothing of tokenizers, and judges no mathematics: an answer is text here.
"""

from __future__ import annotations

import json
import re
import textwrap
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fr3e_async.config import DataConfig
from fr3e_async.errors import DataError

MAX_LINE_BYTES = 16 << 20  # no problem is as long; a file without line ends must not fill the memory
MAX_ID_CHARS = 512  # an id stands in every line of the books that tells of its problem
NOT_IN_AN_ID = ("Cc", "Cf", "Cs", "Zl", "Zp")  # kinds of characters that would break a line or not be seen
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

    ``DataError`` (with file and line) for a missing or empty file, a line that is not a JSON object in UTF-8 or longer than
    ``MAX_LINE_BYTES``, a missing or empty problem, a row without an answer, an id that occurs twice or is no plain text.
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
    number = 0
    try:
        with open(path, "rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield f"{path}:{number}", number, line
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); see data.train, data.heldout") from error


def _object(line: bytes, source: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 (byte {error.start + 1} of the line)") from error
    except (ValueError, RecursionError) as error:  # ValueError alone: a number of thousands of digits
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
    for column, text in ((config.problem_field, problem), (config.answer_field, answer)):
        if not _is_unicode(text):
            raise DataError(f"{source}: column {column!r} holds half of a surrogate pair, which no text has")
    if len(uid) > MAX_ID_CHARS or any(unicodedata.category(character) in NOT_IN_AN_ID for character in uid):
        raise DataError(
            f"{source}: id {textwrap.shorten(ascii(uid), 60)} is longer than {MAX_ID_CHARS} characters or has control "
            "characters in it; see data.id_field"
        )
    return Row(uid=uid, problem=problem, answer=answer, source=source)


def _text(value: Any) -> str:
    """A string or number as text; "" for anything else. A list of one (OlympiadBench) is its only entry."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return str(value).strip()


def _is_unicode(text: str) -> bool:
    """JSON can say ``"\\ud800"``, which neither a tokenizer nor a file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _columns(value: dict[str, Any]) -> str:
    return ", ".join(sorted(map(repr, value))) or "no columns"
