"""JSONL rows: what is read, and that every fault is named by file and line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fr3e_async.config import Config, DataConfig, EngineConfig
from fr3e_async.data.row import DataRow, final_answer
from fr3e_async.data.rows import read_rows
from fr3e_async.data.sources import read_path
from fr3e_async.errors import DataError

GSM8K = DataConfig(problem_field="question", answer_field="answer")
SHARED = Path(os.environ.get("FR3E_SHARED", Path(__file__).parents[2] / "shared")) / "data"


def read_jsonl(path: Path, config: DataConfig) -> list[DataRow]:
    return list(read_path(str(path), config))


def write(folder: Path, *lines: object, name: str = "rows.jsonl") -> Path:
    """A file with a line for each argument: text and bytes as they are, anything else as JSON."""
    path = folder / name
    raw = [line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode() for line in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2 = <<48/2=24>>24 clips.\n#### 72", "72"),
        ("#### 1,234,567", "1234567"),
        ("a\n#### -1,200.50 ", "-1200.50"),
        ("#### 1,23", "1,23"),  # not a grouped number: left as it is
        ("x #### 1 #### 2", "2"),
        ("1,234", "1,234"),  # outside GSM8K's form it may be a pair
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("####", ""),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def test_rows_are_read_in_order_with_ids_and_sources(tmp_path):
    path = write(
        tmp_path,
        {"id": "a", "problem": "2+3=?", "answer": "5", "level": 1},
        "",
        {"id": 7, "problem": "half?", "answer": 0.5},
        {"problem": "π?", "answer": ["3.14"]},
    )
    rows = read_jsonl(path, DataConfig())
    assert [(row.uid, row.problem, row.answer) for row in rows] == [
        ("a", "2+3=?", "5"), ("7", "half?", "0.5"), ("rows.jsonl:4", "π?", "3.14"),
    ]  # fmt: skip
    assert [row.source for row in rows] == [f"{path}:1", f"{path}:3", f"{path}:4"]


def test_windows_files_are_read(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"problem": "1+1", "answer": 2}\r\n{"problem": "1+2", "answer": 3}\r\n')
    assert [row.answer for row in read_jsonl(path, DataConfig())] == ["2", "3"]


def test_numbers_are_written_as_a_person_would(tmp_path):
    written = ["5.0", "0.10", "1e-7", "1e23", "3.14159265358979323846264", "1e400", "1E+99999999999999999999"]
    path = write(tmp_path, *(f'{{"problem": "n{i}", "answer": {text}}}' for i, text in enumerate(written[:-1])))
    texts = ["5", "0.1", "0.0000001", "100000000000000000000000", "3.14159265358979323846264", "1E+400"]
    assert [row.answer for row in read_jsonl(path, DataConfig())] == texts
    with pytest.raises(DataError, match=r"rows\.jsonl:1: a number that is too large to be read, 1E\+9999"):
        read_jsonl(write(tmp_path, f'{{"problem": "n", "answer": {written[-1]}}}'), DataConfig())


def test_a_number_of_thousands_of_digits_is_named_and_may_stand_as_text(tmp_path):
    path = write(tmp_path, f'{{"problem": "a", "answer": -{"9" * 5000}}}')
    with pytest.raises(DataError) as caught:
        read_jsonl(path, DataConfig())
    assert str(caught.value) == f"{path}:1: a number of 5,000 digits, more than the 4,300 that are read; put it in quotes"
    assert read_jsonl(write(tmp_path, {"problem": "a", "answer": "9" * 5000}), DataConfig())[0].answer == "9" * 5000


GOOD = {"id": "g", "problem": "1+1=?", "answer": "2"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{'problem': 1}", "not JSON"),
        ("[1, 2]", "a JSON object was expected, got list"),
        ("[" * 100_000, "not JSON"),
        (b'{"problem": "\xff"}', "not UTF-8"),
        ({"question": "1?", "answer": "1"}, r"column 'problem' \(data\.problem_field\); the row has 'answer', 'question'"),
        ({"problem": "  ", "answer": "1"}, r"data\.problem_field"),
        ({"problem": 5, "answer": "1"}, r"data\.problem_field"),
        ({"problem": "1?"}, r"no answer in column 'answer' \(data\.answer_field\); the row has 'problem'"),
        ({"problem": "1?", "answer": None}, r"data\.answer_field"),
        ({"problem": "1?", "answer": " "}, r"data\.answer_field"),
        ({"problem": "1?", "answer": True}, r"data\.answer_field"),
        ({"problem": "1?", "answer": ["1", "2"]}, r"it holds a list of 2, of which answer\.0 would be the first"),
        ({"problem": ["1?", "2?"], "answer": "1"}, r"it holds a list of 2, of which problem\.0 would be the first"),
        ({"problem": 5, "answer": "1"}, r"no text in column 'problem' \(data\.problem_field\); it holds 5 \(int\); the row has"),
        ({"problem": "1?", "answer": "so\n####"}, r"data\.answer_field"),
        (GOOD, r"id 'g' occurs a second time \(first in .*rows\.jsonl:1\)"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, bad, message):
    path = write(tmp_path, GOOD, bad)
    with pytest.raises(DataError, match=message) as raised:
        read_jsonl(path, DataConfig())
    assert str(raised.value).startswith(f"{path}:2: ")
    assert "\n" not in str(raised.value)


def test_a_missing_an_empty_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_jsonl(tmp_path / "none.jsonl", DataConfig())
    with pytest.raises(DataError, match="it holds no problems"):
        read_jsonl(write(tmp_path, ""), DataConfig())
    (folder := tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        read_jsonl(folder, DataConfig())


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("x.json", b'[{"problem": "1?", "answer": "1"}]\n', "a JSON object was expected, got list"),
        ("pretty.json", b'[\n  {"problem": "1?", "answer": "1"}\n]\n', "not JSON: Expecting value"),
        ("x.csv", b"problem,answer\n1?,1\n", "not JSON: Expecting value"),
        ("x.jsonl.gz", b"\x1f\x8b\x08\x00 and more\n", "not UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_told_which_kinds_are_read(tmp_path, name, content, fault):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=fault) as raised:
        read_jsonl(path, DataConfig())
    text = str(raised.value)
    assert text.startswith(f"{path}:1: ")
    assert text.endswith(
        "read as they are: JSONL (.jsonl, .ndjson or .json, an object on each line) and Parquet (.parquet); others (.csv, .gz, a "
        "JSON array) as a source of kind hub, with the folder as path and the file's name as files"
    )


def config(train: Path | str, heldout: Path | str) -> Config:
    return Config(data=DataConfig(train=str(train), heldout=str(heldout)), engine=EngineConfig(kv_cache_gib=0.1))


def test_both_sets_are_read_and_evaluation_can_be_left_out(tmp_path):
    train = write(tmp_path, GOOD, name="train.jsonl")
    heldout = write(tmp_path, {"problem": "1+2=?", "answer": 3}, name="heldout.jsonl")
    rows = read_rows(config(train, heldout))
    assert [row.answer for row in rows.train + rows.heldout] == ["2", "3"]
    assert read_rows(config(train, "")).heldout == ()


def test_a_problem_in_both_sets_is_refused(tmp_path):
    train = write(tmp_path, GOOD, name="train.jsonl")
    heldout = write(tmp_path, {"problem": "0?", "answer": 0}, {"problem": " 1+1=?\n", "answer": 2}, name="heldout.jsonl")
    with pytest.raises(DataError, match=r"heldout\.jsonl:2: .* also a training problem \(.*train\.jsonl:1\)"):
        read_rows(config(train, heldout))
    with pytest.raises(DataError, match="also a training problem"):
        read_rows(config(train, train))


def test_the_toy_sets_are_the_default():
    rows = read_rows(config("toy", "toy"))
    assert (len(rows.train), len(rows.heldout)) == (4096, 1024)
    assert len({row.uid for row in rows.train + rows.heldout}) == 4096 + 1024


@pytest.mark.shared
@pytest.mark.parametrize(("name", "count"), [("train", 7473), ("test", 1319)])
def test_gsm8k_as_published(name, count):
    path = SHARED / "gsm8k" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there; FR3E_SHARED names the shared folder")
    rows = read_jsonl(path, GSM8K)
    assert len(rows) == count
    assert all(row.answer.lstrip("-").replace(".", "", 1).isdigit() for row in rows)


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", ["olympiadbench/test", "college_math/test", "theoremqa/test", "deepmath/train", "imo_answerbench/test"]
)
def test_the_other_public_sets(name):
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there; FR3E_SHARED names the shared folder")
    assert len(read_jsonl(path, DataConfig())) >= 400
