"""Turn file records into rows (problem + answer) by column name. Every error names file and row.

Knows columns and values; knows nothing of file formats and tokenizers, and judges no mathematics: an answer is text here.
"""

import json
import math
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from fr3e_async.errors import DataError

LONG_NUMBER = 30  # numbers beyond about this many digits are written with a power of ten
MAX_ID_CHARS = 512  # the ledger log repeats the id in every line about its problem
NOT_IN_AN_ID = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories that break a line or are invisible
GROUPED_NUMBER = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")  # 1,234,567.8


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRow:
    """One problem. *Example*: ``DataRow(uid="test.jsonl:3", problem="2+3=?", answer="5", source="data/test.jsonl:3")``."""

    uid: str  # unique in its set
    problem: str
    answer: str  # "" only in a set that has no answers (data.protected)
    source: str  # its location, for messages: "path:line"
    level: str = ""  # the difficulty as its set says it; "" if it says none
    source_name: str = ""  # of the set in a mixture; "" for data.train and data.heldout themselves
    columns: Mapping[str, Any] = field(default_factory=dict)  # of data.columns, by name; each value has a JSON form


@dataclass(slots=True, kw_only=True)
class BadRows:
    """Collects rows that cannot be used, by ``data.on_bad_row``: raises the first, or counts them all.

    *Example* after a file with two such rows: ``BadRows(drop=True, count=2, first="a.jsonl:3: no answer in column …")``.
    """

    drop: bool = False
    count: int = 0
    first: str = ""  # what was wrong with the first

    def add(self, fault: DataError) -> None:
        """Count the row that has this fault, or raise the fault unless such rows are dropped."""
        if not self.drop:
            raise fault
        self.first = self.first or str(fault)
        self.count += 1


REFUSE = BadRows()  # the default where bad rows could be skipped: raise the first one


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """One line or row of a file, before its columns are interpreted.

    *Example*: ``SourceRecord(source="a.jsonl:3", default_id="a.jsonl:3", values={"q": "2+3=?"}, columns=["q"])``.
    """

    source: str  # "path:line", for messages
    default_id: str  # "name:line"
    values: Mapping[str, Any]
    columns: Sequence[str]  # all that the file has; ``values`` may hold the wanted ones only


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The column of each part of a row. ``setting``: dotted path of the settings that name them, for messages.

    *Example*: ``Columns(problem="question", answer="answer", uid="id", level="level", setting="data.train_sources[0]")``.
    """

    problem: str
    answer: str  # empty: there are no answers
    uid: str
    level: str
    setting: str
    further: Sequence[str] = ()  # data.columns

    def needed(self) -> tuple[str, ...]:
        return tuple(name for name in (self.problem, self.answer, self.uid, self.level, *self.further) if name)


def rows_of(
    records: Iterable[SourceRecord], columns: Columns, *, source_name: str = "", bad: BadRows = REFUSE
) -> Iterator[DataRow]:
    """Make a row of each record, one at a time. What ``make_row`` refuses goes to ``bad``.

    ``DataError`` for an id that occurs a second time, whatever ``bad`` does: nobody could say which of the two is meant.
    """
    seen: dict[str, str] = {}
    for record in records:
        try:
            row = make_row(record, columns, source_name)
        except DataError as fault:
            bad.add(fault)
            continue
        if row.uid in seen:
            raise DataError(
                f"{row.source}: id {row.uid!r} occurs a second time (first in {seen[row.uid]}); see {columns.setting}.id_field"
            )
        seen[row.uid] = row.source
        yield row


def make_row(record: SourceRecord, columns: Columns, source_name: str = "") -> DataRow:
    """Make a row. ``DataError`` names file and line: a missing or empty problem, no answer, an id that is no plain text."""
    location = record.source
    value = _value(record.values, columns.problem)
    problem = _alone(value)
    if not isinstance(problem, str) or not problem.strip():
        held = _held(value, columns.problem)
        raise DataError(
            f"{location}: no text in column {columns.problem!r} ({columns.setting}.problem_field){held}; {_has(record)}"
        )
    answer = _answer(record, columns) if columns.answer else ""
    uid = text_of(_value(record.values, columns.uid)) or record.default_id
    for column, text in ((columns.problem, problem), (columns.answer, answer)):
        if not is_unicode(text):
            raise DataError(f"{location}: column {column!r} holds half of a surrogate pair, which no text has")
    if len(uid) > MAX_ID_CHARS or any(unicodedata.category(character) in NOT_IN_AN_ID for character in uid):
        raise DataError(
            f"{location}: id {textwrap.shorten(ascii(uid), 60)} is longer than {MAX_ID_CHARS} characters or has control "
            f"characters in it; see {columns.setting}.id_field"
        )
    level = text_of(_value(record.values, columns.level))
    further = {name: _further(record, name) for name in columns.further}
    return DataRow(
        uid=uid, problem=problem, answer=answer, source=location, level=level, source_name=source_name, columns=further
    )


def _further(record: SourceRecord, name: str) -> Any:
    """A column for reward functions, unchanged. ``DataError`` if it is missing or has no form in JSON."""
    if name not in record.values:
        raise DataError(f"{record.source}: no column {name!r} (data.columns); {_has(record)}")
    value = record.values[name]
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{record.source}: column {name!r} (data.columns) has no form in JSON: {error}") from error
    return value


def final_answer(text: str) -> str:
    """Extract the reference answer: what follows the last ``####`` (GSM8K), without thousands separators, else the text itself."""
    _, mark, answer = text.rpartition("####")
    answer = answer.strip()
    if mark and GROUPED_NUMBER.fullmatch(answer):
        return answer.replace(",", "")
    return answer


def _answer(record: SourceRecord, columns: Columns) -> str:
    value = _value(record.values, columns.answer)
    answer = final_answer(text_of(value))
    if not answer:
        held = _held(value, columns.answer)
        raise DataError(
            f"{record.source}: no answer in column {columns.answer!r} ({columns.setting}.answer_field){held}; {_has(record)}"
        )
    return answer


def _held(value: Any, column: str) -> str:
    """Describe the value found where a text was expected, and how to name a text inside it; "" if missing or blank."""
    if isinstance(value, list) and any(_is_message(entry) for entry in value):
        index = next((i for i, entry in enumerate(value) if _is_message(entry) and entry["role"] == "user"), 0)
        return f"; it holds messages (a list of role and content); {column}.{index}.content is the text of one"
    value = _alone(value)
    if isinstance(value, list) and len(value) > 1:
        return f"; it holds a list of {len(value)}, of which {column}.0 would be the first"
    if isinstance(value, Mapping):
        hint = f", of which {column}.{next(iter(value))} would be the first" if value else ""
        return f"; it holds a structure ({', '.join(map(str, value))}){hint}"
    if isinstance(value, bool):
        return f"; it holds a boolean ({str(value).lower()}), which is no text"
    if isinstance(value, bytes):
        return f"; it holds {len(value):,} bytes, which are no text; store it as a string"
    blank = value is None or (isinstance(value, str | list) and not str(value).strip("[] \n"))
    return "" if blank else f"; it holds {textwrap.shorten(str(value), 40)} ({type(value).__name__})"


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() >= {"role", "content"}


def _value(values: Mapping[str, Any], column: str) -> Any:
    """Return a column's value; ``a.b`` and ``a.0`` index into structures and lists. None if it is missing."""
    if column in values:
        return values[column]
    found: Any = values
    for part in column.split("."):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def _alone(value: Any) -> Any:
    """Unwrap a list of one entry, as OlympiadBench writes answers."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def text_of(value: Any) -> str:
    """A string or number as text, also as the only entry of a list; "" for anything else, and for what is no number."""
    value = _alone(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return ""
    if isinstance(value, float | Decimal):
        return "" if math.isnan(value) else _number(value)  # tables mark a missing number with NaN
    return str(value).strip()


def _number(value: float | Decimal) -> str:
    """Write a number as a person would: ``5``, ``0.1``, ``0.0000001``; powers of ten only where the digits would be very many."""
    number = Decimal(repr(value)) if isinstance(value, float) else value
    if not number.is_finite() or abs(number.adjusted()) >= LONG_NUMBER:
        return str(value)
    return str(int(number)) if isinstance(value, float) and value.is_integer() else format(number, "f")


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded: JSON may hold ``"\\ud800"``, which neither a tokenizer nor a file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has(record: SourceRecord) -> str:
    return "the row has " + (", ".join(sorted(map(repr, record.columns))) or "no columns")
