"""Benchmarks as problems: read from the hub or a user's file, by the benchmark's column names, and checked.

Knows files through ``data.sources`` and tokenizers through ``data.prompts``; knows nothing of engines and verdicts. ``read_reference`` reads
a row's reference answer as its benchmark writes it, and how far an answer may be off.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fr3e_async.algorithm.answer_span import last_box
from fr3e_async.config import Config, EvaluationConfig
from fr3e_async.config.data import SourceConfig
from fr3e_async.data.prompts import make_prompts
from fr3e_async.data.row import Columns, DataRow, SourceRecord, final_answer, is_unicode, text_of
from fr3e_async.data.sources import may_be_fetched, records
from fr3e_async.errors import DataError
from fr3e_async.evaluation.benchmarks import BENCHMARKS, Benchmark, ReferenceFormat
from fr3e_async.types import Prompt
from fr3e_async.verify.margins import numbers_of
from fr3e_async.verify.quantities import quantity, written_number
from fr3e_async.verify.tokens import tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

HELDOUT = "heldout"  # the name of data.heldout beside the benchmarks
HELD_OUT_PARTS = 200  # DeepMath is split into this many parts; one is for evaluation
MAX_ID_CHARS = 120
_BESIDE = ("unit", "error", "Answer_type", "answer_type", "Picture")  # columns that say how an answer is meant


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One problem of a benchmark. *Example*: ``Item(uid="aime24/60", problem="…", reference=ReferenceAnswer(text="204"), source="…:1")``."""

    uid: str
    problem: str
    reference: ReferenceAnswer
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSet:
    """Problems that are evaluated together under one name. Example: ``TestSet(name="aime24", problems=(…,), samples=16, digest="…")``."""

    __test__ = False  # pytest must not collect it

    name: str
    problems: tuple[Prompt, ...]
    samples: int  # of each problem
    digest: str = ""  # of problems and reference answers

    @property
    def title(self) -> str:
        """The name that people read, such as ``aime24 avg@16``."""
        return "held-out accuracy" if self.name == HELDOUT else f"{self.name} avg@{self.samples}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _AnyColumns(Columns):
    """All names that a benchmark's columns may have; none of them must be there."""

    names: tuple[str, ...]

    def needed(self) -> tuple[str, ...]:
        return self.names


def _columns(benchmark: Benchmark, setting: str) -> _AnyColumns:
    names = (*benchmark.problem, *benchmark.answer, *benchmark.uid, *_BESIDE)
    return _AnyColumns(problem="", answer="", uid="", level="", setting=setting, names=names)


def in_held_out_part(problem: str) -> bool:
    """Whether a DeepMath problem is kept for evaluation: one in 200, by the text alone, so that training sets can leave it out."""
    digest = hashlib.sha256(" ".join(problem.split()).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_PARTS == 0


def source_of(benchmark: Benchmark, path: str = "") -> SourceConfig:
    """Where the benchmark is read from: the user's file ``path``, or the Hugging Face hub."""
    if path:
        return SourceConfig(path=path, name=benchmark.name, split=benchmark.split)
    return SourceConfig(
        path=benchmark.hub,
        name=benchmark.name,
        kind="hub",
        config=benchmark.config,
        split=benchmark.split,
        revision=benchmark.revision,
    )


def read_benchmark(benchmark: Benchmark, *, path: str = "") -> list[Item]:
    """All its problems, in order. ``DataError`` with the row's location: no text, no reference answer, or no problem at all."""
    setting = f"evaluation.paths.{benchmark.name}"
    kept: list[tuple[SourceRecord, str, ReferenceAnswer]] = []
    for record in records(source_of(benchmark, path), _columns(benchmark, setting), setting=setting):
        problem = _first(record, benchmark.problem, "text of a problem", _text_of, setting)
        if not _is_chosen(benchmark, problem, record.values):
            continue
        reference = _first(
            record, benchmark.answer, "answer", partial(read_reference, benchmark.reference, row=record.values), setting
        )
        if not is_unicode(problem + reference.text):
            raise DataError(f"{record.source}: half of a surrogate pair, which no text has; see {setting}")
        kept.append((record, problem, reference))
    if not kept:
        raise DataError(f"{path or benchmark.hub}: no problem of {benchmark.title} in it; see {setting}")
    names = _names([record for record, _, _ in kept], benchmark)
    return [
        Item(uid=f"{benchmark.name}/{name}", problem=problem, reference=reference, source=record.source)
        for name, (record, problem, reference) in zip(names, kept, strict=True)
    ]


def _first(record: SourceRecord, columns: Sequence[str], what: str, read: Callable[[Any], T | None], setting: str) -> T:
    """What ``read`` makes of the first of the columns that it can read. Raises ``DataError`` with the row's source if it can read none."""
    for column in columns:
        if column in record.values and (found := read(record.values[column])) is not None:
            return found
    has = ", ".join(sorted(map(repr, record.columns))) or "no columns"
    raise DataError(f"{record.source}: no {what} in any of the columns {', '.join(columns)}; the row has {has}; see {setting}")


def _text_of(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _is_chosen(benchmark: Benchmark, problem: str, values: Mapping[str, Any]) -> bool:
    match benchmark.chosen:
        case "without_picture":
            picture = values.get("Picture")
            return not picture or isinstance(picture, float)  # NaN: how tables say that there is none
        case "held_out_part":
            return in_held_out_part(problem)
    return True


def _names(found: Sequence[SourceRecord], benchmark: Benchmark) -> list[str]:
    """The ids that the rows have if all have one and no two the same; else their numbers, from 0."""
    ids = [next(filter(None, (text_of(record.values.get(column)) for column in benchmark.uid)), "") for record in found]
    usable = all(one and one.isprintable() and len(one) <= MAX_ID_CHARS for one in ids) and len(set(ids)) == len(ids)
    return ids if usable else [str(number) for number in range(len(found))]


def digest_of(items: Sequence[Item]) -> str:
    """16 hex digits of problems and reference answers, in order: equal digests mean equal questions."""
    return _digest(
        [item.problem, item.reference.text, [f"{m.numerator:x}/{m.denominator:x}" for m in item.reference.margins]]
        for item in items
    )


def _digest(texts: Iterable[list[Any]]) -> str:
    sha = hashlib.sha256()
    for part in texts:
        sha.update(json.dumps(part).encode())
    return sha.hexdigest()[:16]


def heldout_set(problems: Sequence[Prompt], *, samples: int) -> TestSet:
    """The test set of data.heldout, or of what was picked of it. ``samples``: of each problem."""
    digest = _digest([p.text, p.reference, *filter(None, [p.columns])] for p in problems)
    return TestSet(name=HELDOUT, problems=tuple(problems), samples=samples, digest=digest)


# --- for a run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The benchmarks of ``evaluation.suite``, read. Empty where there are none."""

    items: dict[str, list[Item]]  # by benchmark, those that are evaluated

    @property
    def rows(self) -> list[DataRow]:
        return [_row(item) for items in self.items.values() for item in items]

    def facts(self, name: str) -> dict[str, Any]:
        """Return the entries of results.json for a benchmark besides its scores."""
        benchmark, items = BENCHMARKS[name], self.items[name]
        return {
            "title": benchmark.title,
            "digest": digest_of(items),
            "published_problems": benchmark.problems or None,
            "citation": benchmark.citation,
            "licence": benchmark.licence,
        }


def read_suite(config: Config, announce: Callable[[str], None] = lambda _: None) -> Suite:
    """The problems of all benchmarks of ``evaluation.suite``. ``DataError`` names the setting and what could not be read.

    ``announce`` hears of what is fetched over the network, which may take minutes, and of paths that nobody reads.
    """
    evaluation, items = config.evaluation, {}
    if unread := [name for name in evaluation.paths if name not in evaluation.benchmarks]:
        announce(f"evaluation.paths: {', '.join(unread)} not in evaluation.suite, and not read")
    for name in evaluation.benchmarks:
        path = evaluation.paths.get(name, "")
        if may_be_fetched(source := source_of(BENCHMARKS[name], path)):
            announce(f"evaluation.suite: reading {source.path}, which is fetched from the Hugging Face hub if it is not cached")
        found = read_benchmark(BENCHMARKS[name], path=path)
        items[name] = pick(found, evaluation.suite_problems, seed=0)
    return Suite(items=items)


def pick(items: Sequence[T], count: int, *, seed: int) -> list[T]:
    """Pick ``count`` items at random, in their order and the same ones each time; all with 0."""
    if not count or count >= len(items):
        return list(items)
    chosen = np.random.default_rng([seed, 7]).permutation(len(items))[:count]
    return [items[i] for i in sorted(chosen)]


def make_sets(suite: Suite, tokenizer: PreTrainedTokenizerBase, config: Config) -> list[TestSet]:
    """Prompts by the template and limits of ``data``; a prompt that is too long is a ``DataError`` or left out, as that says."""
    sets = []
    for name, items in suite.items.items():
        margins = {item.uid: item.reference.margins for item in items}
        prompts = make_prompts([_row(item) for item in items], tokenizer, config.data)
        none = dict.fromkeys(config.data.columns)  # a benchmark has no such columns
        problems = tuple(replace(prompt, margins=margins[prompt.uid], columns=none) for prompt in prompts)
        sets.append(TestSet(name=name, problems=problems, samples=samples_of(config.evaluation, name), digest=digest_of(items)))
    return sets


def left_out(suite: Suite, sets: Sequence[TestSet]) -> list[str]:
    """Return a warning for each benchmark whose long prompts were left out: its figures are of a part only."""
    counts = {one.name: len(suite.items[one.name]) - len(one.problems) for one in sets if one.name in suite.items}
    return [
        f"{count} of {len(suite.items[name])} prompts of {name} are longer than data.max_prompt and were dropped"
        for name, count in counts.items()
        if count
    ]


def samples_of(config: EvaluationConfig, name: str) -> int:
    """k, the samples of each problem: evaluation.suite_samples, or the benchmark's own."""
    return config.suite_samples or BENCHMARKS[name].k


def _row(item: Item) -> DataRow:
    return DataRow(
        uid=item.uid, problem=item.problem, answer=item.reference.text, source=item.source, source_name=item.uid.partition("/")[0]
    )


THEOREMQA_TOLERANCE = Fraction(4, 100)  # of the reference answer; that of its authors' own evaluation, for floats
_OPTION = re.compile(r"\(?\s*([a-jA-J])\s*\)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceAnswer:
    """*Example*: ``ReferenceAnswer(text="0.25, 0.5", margins=(Fraction(1, 100), Fraction(1, 50)))``; without margins the judge alone decides."""

    text: str
    margins: tuple[Fraction, ...] = ()  # how far each number may be off; one for all of them, or one each


def read_reference(kind: ReferenceFormat, value: Any, row: Mapping[str, Any]) -> ReferenceAnswer | None:
    """The reference answer in the value of the answer's column; None if there is none. ``row``: units, types and errors beside it."""
    match kind:
        case "olympiadbench":
            return _olympiadbench(value, row)
        case "theoremqa":
            return _theoremqa(value, row)
    text = final_answer(text_of(value)) if kind == "gsm8k" else _unboxed(text_of(value))
    return ReferenceAnswer(text=text) if text else None


def _unboxed(text: str) -> str:
    """The content of the last box of a solution; a text without one is the answer itself."""
    box = last_box(text, len(text)) if "\\boxed" in text or "\\fbox" in text else None
    return box.content.strip() if box is not None else text


def _olympiadbench(value: Any, row: Mapping[str, Any]) -> ReferenceAnswer | None:
    """``final_answer`` is a list; several entries are one answer of several parts. ``error`` is an absolute margin, or one for each."""
    parts = [text_of(part) for part in (value if _is_list(value) else [value])]
    text = ", ".join(part for part in parts if part)
    unit = text_of(row.get("unit")).strip("$ ")
    if not text:
        return None
    margins = tuple(margin for part in re.split(r"[,\s]+", text_of(row.get("error"))) if (margin := _margin(part)))
    said = quantity(tokenise(text))
    if unit and len(parts) == 1 and not said.unit and written_number(said.core) is not None:
        unit = rf"\text{{ {unit}}}" if len(unit) == 1 and unit.isalpha() else unit  # 12 m might be 12 times m
        text = f"{text.strip('$ ')} {unit}"  # so that an answer in another unit is wrong
    return ReferenceAnswer(text=text, margins=margins)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _margin(text: str) -> Fraction | None:
    """The text as a positive number, or None."""
    try:
        number = float(text)  # which is short, whatever was written
    except ValueError:
        return None
    return Fraction(str(number)) if 0 < number < math.inf else None


def _theoremqa(value: Any, row: Mapping[str, Any]) -> ReferenceAnswer | None:
    """Answers are True or False, (a) to (j), numbers, or lists of numbers in any order; floats within 4 %."""
    text = str(value) if isinstance(value, bool) else text_of(value)
    if _is_list(value) and len(value) != 1:
        text = ", ".join(map(text_of, value))
    kind = next((text_of(row[name]) for name in ("Answer_type", "answer_type") if name in row), "")
    if not text:
        return None
    if kind == "option" and (option := _OPTION.fullmatch(text)) is not None:
        return ReferenceAnswer(text=f"({option[1].upper()})")
    if kind.startswith("list"):
        text = text.strip("[]() ")
    if "float" not in kind:
        return ReferenceAnswer(text=text)
    numbers = numbers_of(text) or []
    return ReferenceAnswer(text=text, margins=tuple(abs(number) * THEOREMQA_TOLERANCE for number in numbers))
