"""Benchmarks as they are published: columns under their known names, golds as each writes them, margins; bad files in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from builders import small_config
from tables import benchmarks_table

from fr3e_async.config import EvaluationConfig
from fr3e_async.config.evaluation import BENCHMARKS as NAMES
from fr3e_async.config.evaluation import PAPER
from fr3e_async.data.rows import read_rows
from fr3e_async.data.toy.tokenizer import build_tokenizer
from fr3e_async.errors import ConfigError, DataError
from fr3e_async.evaluation import suite
from fr3e_async.evaluation.benchmarks import BENCHMARKS
from fr3e_async.evaluation.suite import (
    ReferenceAnswer,
    digest_of,
    in_held_out_part,
    left_out,
    make_sets,
    pick,
    read_benchmark,
    read_reference,
    read_suite,
    source_of,
)
from fr3e_async.settings.loader import load_config
from fr3e_async.verify.judge import judge
from fr3e_async.verify.margins import within
from fr3e_async.verify.rulings import CORRECT, WRONG

Row = Mapping[str, Any]
# One row of each published form: (benchmark, row, its problem, its gold). The texts are ours.
PUBLISHED: list[tuple[str, Row, str, str]] = [
    ("gsm8k", {"question": "Q?", "answer": "It is 2*600=<<2*600=1200>>1200.\n#### 1,200"}, "Q?", "1200"),
    (
        "math500",
        {
            "problem": "Q?",
            "solution": "so $\\boxed{x}$",
            "answer": "\\frac12",
            "subject": "Algebra",
            "level": 2,
            "unique_id": "test/1.json",
        },
        "Q?",
        "\\frac12",
    ),
    ("minerva", {"question": "Q?", "answer": "3.8e7"}, "Q?", "3.8e7"),
    ("minerva", {"problem": "Q?", "solution": "then \\boxed{1} and $\\boxed{2e3}$.", "type": "OCW", "idx": 4}, "Q?", "2e3"),
    ("gaokao2023en", {"question": "Q?", "answer": "$\\frac{3}{4}$"}, "Q?", "$\\frac{3}{4}$"),
    (
        "olympiadbench",
        {"id": 1606, "question": "Q?", "final_answer": ["$2$", "$-2$"], "unit": None, "error": None, "is_multiple_answer": True},
        "Q?",
        "$2$, $-2$",
    ),
    (
        "olympiadbench",
        {"question": "Q?", "final_answer": ["4.2"], "unit": "%", "error": "1e-1", "answer_type": "Numerical"},
        "Q?",
        "4.2 %",
    ),
    ("olympiadbench", {"id": "0", "problem": "Q?", "answer": "$166$", "unit": "$cm^2$", "multiple": False}, "Q?", "166 cm^2"),
    ("olympiadbench", {"question": "Q?", "final_answer": ["12"], "unit": "m", "error": None}, "Q?", r"12 \text{ m}"),
    (
        "collegemath",
        {"data_source": "c", "question_number": "1.1", "question": "Q?", "answer": "$10-4 n$", "license": "CC"},
        "Q?",
        "$10-4 n$",
    ),
    ("aime24", {"id": 60, "problem": "Q?", "solution": "…", "answer": "204", "url": "u", "year": "2024"}, "Q?", "204"),
    ("aime24", {"ID": "2024-I-1", "Problem": "Q?", "Solution": "…", "Answer": 204}, "Q?", "204"),
    ("aime24", {"id": 60, "problem": "Q?", "solution": "\\boxed{204}"}, "Q?", "204"),
    ("aime25", {"problem": "Q?", "answer": "070", "id": "0"}, "Q?", "070"),
    ("amc23", {"id": 0, "question": "Q?", "answer": 27.0, "url": "u"}, "Q?", "27"),
    ("theoremqa", {"Question": "Q?", "Answer": "True", "Answer_type": "bool", "Picture": None}, "Q?", "True"),
    ("theoremqa", {"Question": "Q?", "Answer": "(b)", "Answer_type": "option", "Picture": None}, "Q?", "(B)"),
    ("theoremqa", {"id": "9", "problem": "Q?", "answer": "[0, 5]", "answer_type": "list of integer"}, "Q?", "0, 5"),
    ("theoremqa", {"Question": "Q?", "Answer": [0, 5], "Answer_type": "list of integer"}, "Q?", "0, 5"),
]


def jsonl(path: Path, *rows: Row) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "row", "problem", "gold"), PUBLISHED)
def test_published_rows_are_read(name: str, row: Row, problem: str, gold: str, tmp_path: Path) -> None:
    (item,) = read_benchmark(BENCHMARKS[name], path=str(jsonl(tmp_path / "x.jsonl", row)))
    assert (item.problem, item.reference.text) == (problem, gold)
    assert item.uid.startswith(f"{name}/")
    assert judge(gold.replace("$", ""), gold.replace("$", ""))[0] == CORRECT


def test_parquet_is_read_alike(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"ID": f"2024-I-{i}", "Problem": f"Q{i}?", "Solution": "…", "Answer": 200 + i} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "aime.parquet")
    items = read_benchmark(BENCHMARKS["aime24"], path=str(tmp_path / "aime.parquet"))
    assert [(i.uid, i.problem, i.reference.text) for i in items] == [
        (f"aime24/2024-I-{n}", f"Q{n}?", str(200 + n)) for n in range(3)
    ]


def test_equal_ids_are_replaced_by_numbers(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}?", "question_number": "1.1", "answer": "2"} for i in range(2)]
    items = read_benchmark(BENCHMARKS["collegemath"], path=str(jsonl(tmp_path / "c.jsonl", *rows)))
    assert [item.uid for item in items] == ["collegemath/0", "collegemath/1"]


def test_pictures_are_left_out(tmp_path: Path) -> None:
    rows = [{"Question": "Q?", "Answer": "1", "Answer_type": "integer", "Picture": picture} for picture in (None, "images/1.jpg")]
    assert len(read_benchmark(BENCHMARKS["theoremqa"], path=str(jsonl(tmp_path / "t.jsonl", *rows)))) == 1


def test_the_held_out_part_of_deepmath_is_a_matter_of_the_text_alone(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n}?", "final_answer": str(n), "difficulty": 5.0} for n in range(4000)]
    one = read_benchmark(BENCHMARKS["deepmath"], path=str(jsonl(tmp_path / "d.jsonl", *rows)))
    other = read_benchmark(BENCHMARKS["deepmath"], path=str(jsonl(tmp_path / "e.jsonl", *reversed(rows))))
    assert {item.problem for item in one} == {item.problem for item in other}
    assert 8 <= len(one) <= 34  # 20 of 4,000 are expected; 4.5 standard deviations
    assert in_held_out_part(one[0].problem.replace(" ", "  "))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no problem of AIME 2024"),
        ('{"problem": "Q?"}\n', "no answer in any of the columns answer, Answer, solution, Solution; the row has 'problem'"),
        ('{"answer": "1"}\n', "no text of a problem in any of the columns"),
        ('{"problem": "  ", "answer": "1"}\n', "no text of a problem"),
        ("nonsense\n", "not JSON"),
    ],
)
def test_bad_files_are_named(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"a\.jsonl") as caught:
        read_benchmark(BENCHMARKS["aime24"], path=str(tmp_path / "a.jsonl"))
    assert says in str(caught.value)
    assert "evaluation.paths.aime24" in str(caught.value) or "not JSON" in says


# --- golds and margins -------------------------------------------------------------------------------------------------


def test_margins_of_floats_are_four_percent_of_each() -> None:
    gold = read_reference("theoremqa", "[0.25, -0.5]", {"answer_type": "list of float"})
    assert gold == ReferenceAnswer(text="0.25, -0.5", margins=(Fraction(1, 100), Fraction(1, 50)))
    assert read_reference("theoremqa", "12", {"answer_type": "integer"}) == ReferenceAnswer(text="12")
    both = ReferenceAnswer(text="1.5, 2", margins=(Fraction(1, 10), Fraction(1, 20)))
    assert read_reference("olympiadbench", ["1.5", "2"], {"error": "1e-1,5e-2"}) == both
    assert read_reference("plain", None, {}) is None
    assert read_reference("olympiadbench", [], {}) is None


@pytest.mark.parametrize(
    ("error", "margins"),
    [
        ("inf", ()), ("1e999", ()), ("nan", ()), ("-0.1", ()), ("0", ()), ("1e-999999999", ()), ("much", ()), (float("nan"), ()),
        (float("inf"), ()), ("0." + "1" * 5000, (Fraction("0.1111111111111111"),)), (0.1, (Fraction(1, 10),)),
        ("1e300", (Fraction(10**300),)),
    ],
)  # fmt: skip
def test_odd_errors_are_no_margins_and_no_traceback(error: Any, margins: tuple[Fraction, ...]) -> None:
    gold = read_reference("olympiadbench", ["1.5"], {"error": error})
    assert gold == ReferenceAnswer(text="1.5", margins=margins)
    assert within("1.5", "1.5", margins) is bool(margins)


@pytest.mark.parametrize("gold", ["10^{400}", "9" * 400, "9" * 5000, "1e400", r"1.5\times 10^{399}", 1e308, float("inf")])
def test_golds_beyond_a_float_are_read(gold: Any, tmp_path: Path) -> None:
    row = {"Question": "Q?", "Answer": gold, "Answer_type": "float", "Picture": None}
    items = read_benchmark(BENCHMARKS["theoremqa"], path=str(jsonl(tmp_path / "x.jsonl", row)))
    assert items[0].reference.text == str(gold)
    assert len(digest_of(items)) == 16
    assert within(items[0].reference.text, items[0].reference.text, items[0].reference.margins) is bool(
        items[0].reference.margins
    )


def test_a_missing_gold_of_a_table_is_none(tmp_path: Path) -> None:
    nan = float("nan")
    assert read_reference("plain", nan, {}) is None
    assert read_reference("theoremqa", nan, {}) is None
    assert read_reference("olympiadbench", [nan], {"unit": nan, "error": nan}) is None
    assert read_reference("olympiadbench", ["2"], {"unit": nan, "error": nan}) == ReferenceAnswer(text="2")
    path = jsonl(tmp_path / "a.jsonl", {"id": nan, "problem": "Q?", "answer": nan})
    with pytest.raises(DataError, match=r"a\.jsonl:1: no answer"):
        read_benchmark(BENCHMARKS["aime24"], path=str(path))
    row = {"Question": "Q?", "Answer": "1", "Answer_type": "integer", "Picture": nan}
    assert len(read_benchmark(BENCHMARKS["theoremqa"], path=str(jsonl(tmp_path / "t.jsonl", row)))) == 1


@pytest.mark.parametrize("row", [{"problem": "Q?", "answer": "\ud800"}, {"problem": "Q\udc00?", "answer": "1"}])
def test_half_of_a_surrogate_pair_is_named(row: Row, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1: half of a surrogate pair.*evaluation\.paths\.aime24"):
        read_benchmark(BENCHMARKS["aime24"], path=str(jsonl(tmp_path / "a.jsonl", row)))


@pytest.mark.parametrize("unit", ["m", "$m$", "s", "km", "cm^2", "%", "min"])
def test_an_answer_with_and_without_the_gold_s_unit_is_correct(unit: str) -> None:
    gold = read_reference("olympiadbench", ["12"], {"unit": unit})
    assert gold is not None
    written = {"%": r"12\%", "cm^2": r"12\text{ cm}^2"}.get(unit, rf"12\text{{ {unit.strip('$')}}}")
    for answer in ("12", written):
        assert judge(answer, gold.text)[0] == CORRECT, answer
    assert judge(r"12\text{ kg}", gold.text)[0] == WRONG


# --- settings ----------------------------------------------------------------------------------------------------------


def test_every_name_has_a_benchmark_and_the_paper_has_seven() -> None:
    assert tuple(BENCHMARKS) == NAMES
    assert EvaluationConfig(suite=["paper"]).benchmarks == tuple(name for name in BENCHMARKS if name in PAPER)
    assert len(PAPER) == 7
    assert len(EvaluationConfig(suite=["paper", "aime24", "aime25"]).benchmarks) == 8
    assert EvaluationConfig(suite=["all"]).benchmarks == NAMES
    assert BENCHMARKS["aime24"].k == 16


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"suite": ["aime2024"]}, "evaluation.suite: unknown benchmark 'aime2024' (did you mean aime24?)"),
        ({"suite": ["MATH-500"]}, "did you mean math500?"),
        ({"paths": {"zzz": "x"}}, "evaluation.paths: unknown benchmark 'zzz'; there are gsm8k"),
        ({"share": 0.0}, "evaluation.share must be in (0, 1]"),
        ({"suite_samples": -1}, "evaluation.suite_samples must be at least 0, got -1"),
    ],
)
def test_settings_are_refused_in_words(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EvaluationConfig(**settings)
    assert says in str(caught.value)


def test_settings_on_the_command_line() -> None:
    config = load_config(["config=toy", "evaluation.suite=[gsm8k, aime24]", "evaluation.paths.aime24=/data/aime.jsonl"]).config
    assert config.evaluation.benchmarks == ("gsm8k", "aime24")
    assert config.evaluation.paths == {"aime24": "/data/aime.jsonl"}
    source = source_of(BENCHMARKS["gsm8k"])
    assert (source.path, source.kind, source.config, source.split) == ("openai/gsm8k", "hub", "main", "test")
    assert source_of(BENCHMARKS["aime24"], "x.jsonl").kind == "auto"


def test_a_suite_becomes_prompts(tmp_path: Path) -> None:
    rows = [{"problem": f"{n} + 1 = ?", "answer": str(n + 1)} for n in range(20)] + [{"problem": "1" * 500, "answer": "1"}]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    config = small_config(
        data={"max_prompt": 64, "on_long_prompt": "drop"},
        evaluation={"suite": ["aime24"], "paths": {"aime24": str(path)}, "suite_samples": 3},
    )
    suite = read_suite(config)
    (made,) = make_sets(suite, build_tokenizer(), config)
    assert (made.name, len(made.problems), made.samples, made.title) == ("aime24", 20, 3, "aime24 avg@3")
    assert left_out(suite, [made]) == ["1 of 21 prompts of aime24 are longer than data.max_prompt and were dropped"]
    assert made.digest == digest_of(suite.items["aime24"]) != digest_of(suite.items["aime24"][:-1])
    assert suite.facts("aime24")["published_problems"] == 30
    assert [row.answer for row in suite.rows[:2]] == ["1", "2"]


def test_margins_travel_with_their_prompts(tmp_path: Path) -> None:
    rows = [{"Question": f"{n} + 1 = ?", "Answer": str(n), "Answer_type": "float" if n == 3 else "integer"} for n in (1, 3)]
    config = small_config(
        data={"max_prompt": 64},
        evaluation={"suite": ["theoremqa"], "paths": {"theoremqa": str(jsonl(tmp_path / "t.jsonl", *rows))}},
    )
    (made,) = make_sets(read_suite(config), build_tokenizer(), config)
    assert [prompt.margins for prompt in made.problems] == [(), (Fraction(12, 100),)]


def test_what_is_fetched_and_what_is_not_read_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[str] = []

    def read(benchmark: Any, *, path: str = "") -> list[Any]:
        announced.append(f"read {benchmark.name} {path}")
        return []

    monkeypatch.setattr(suite, "read_benchmark", read)
    path = str(jsonl(tmp_path / "a.jsonl", {"problem": "Q?", "answer": "1"}))
    config = small_config(
        evaluation={"suite": ["aime24", "gsm8k", "amc23"], "paths": {"aime24": path, "amc23": "", "minerva": "x", "math500": "y"}}
    )
    read_suite(config, announce=announced.append)
    assert announced == [
        "evaluation.paths: minerva, math500 not in evaluation.suite, and not read",
        f"read aime24 {path}",
        "evaluation.suite: reading openai/gsm8k, which is fetched from the Hugging Face hub if it is not cached",
        "read gsm8k ",
        "evaluation.suite: reading math-ai/amc23, which is fetched from the Hugging Face hub if it is not cached",
        "read amc23 ",
    ]


def test_a_part_of_a_benchmark_is_the_same_each_time() -> None:
    assert pick(range(100), 10, seed=0) == pick(range(100), 10, seed=0) == sorted(pick(range(100), 10, seed=0))
    assert pick(range(5), 10, seed=0) == pick(range(5), 0, seed=0) == list(range(5))


def test_the_table_of_benchmarks_has_them_all(repository: Path) -> None:
    table = benchmarks_table()
    assert table in (repository / "docs" / "evaluation.md").read_text(encoding="utf-8"), (
        "put the new table into docs/evaluation.md"
    )
    assert all(f"| `{name}`" in table for name in NAMES)
    assert table.count("` * |") == 7


def test_training_must_not_see_the_problems_of_the_suite(tmp_path: Path) -> None:
    bench = jsonl(tmp_path / "a.jsonl", {"problem": "What is 2 + 3 times 4?", "answer": "14"})
    train = jsonl(
        tmp_path / "t.jsonl", {"problem": "what is  2+3 times 4?", "answer": "14"}, {"problem": "Another?", "answer": "1"}
    )
    config = small_config(
        data={"train": str(train), "heldout": ""}, evaluation={"suite": ["aime24"], "paths": {"aime24": str(bench)}}
    )
    with pytest.raises(DataError, match=r"t\.jsonl:1"):
        read_rows(config, read_suite(config).rows)
    dropping = small_config(data={"train": str(train), "heldout": "", "on_contamination": "drop"})
    assert [row.problem for row in read_rows(dropping, read_suite(config).rows).train] == ["Another?"]
