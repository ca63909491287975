"""Sources: JSONL, Parquet, save_to_disk folders and load_dataset give the same rows; filters; every fault in one line that names it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fr3e_async.config import DataConfig, SourceConfig
from fr3e_async.data.row import BadRows, DataRow
from fr3e_async.data.sources import LONG_ANSWER, OTHER_LEVEL, kind_of, level_number, read_path, read_source
from fr3e_async.errors import ConfigError, DataError, UserError

RECORDS: list[dict[str, Any]] = [
    {"question": "1+1=?", "gold": ["2"], "meta": {"level": "Level 3", "key": "a"}, "notes": "x"},
    {"question": "half?", "gold": ["0.5"], "meta": {"level": "Level 5", "key": "b"}, "notes": "y"},
    {"question": "sum?", "gold": ["so it is\n#### 1,200"], "meta": {"level": "Level ?", "key": "c"}, "notes": "z"},
]
FIELDS = {"problem_field": "question", "answer_field": "gold", "id_field": "meta.key", "level_field": "meta.level"}
SETTING = "data.train_sources[0]"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What load_dataset builds is not left in the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def jsonl(folder: Path, records: list[dict[str, Any]] = RECORDS, name: str = "set.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def parquet(folder: Path, records: list[dict[str, Any]] = RECORDS, name: str = "set.parquet", rows_a_group: int = 2) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / name, row_group_size=rows_a_group)
    return folder / name


def saved(folder: Path, *splits: str) -> Path:
    import datasets

    one = datasets.Dataset.from_list(RECORDS)
    whole = datasets.DatasetDict(dict.fromkeys(splits, one)) if splits else one
    whole.save_to_disk(folder / "saved")
    return folder / "saved"


def hub_folder(folder: Path) -> Path:
    """A folder as a dataset of the hub is one: a file for each split."""
    own = folder / "set"
    own.mkdir()
    parquet(own, name="train.parquet")
    parquet(own, RECORDS[:1], name="test.parquet")
    return own


def read(path: Path | str, dropped: Counter[str] | None = None, **fields: Any) -> list[DataRow]:
    source = SourceConfig(**{"path": str(path), **FIELDS, **fields})
    return list(read_source(source, setting=SETTING, dropped=dropped))


def facts(rows: list[DataRow]) -> list[tuple[str, str, str, str]]:
    return [(row.uid, row.problem, row.answer, row.level) for row in rows]


EXPECTED = [("a", "1+1=?", "2", "Level 3"), ("b", "half?", "0.5", "Level 5"), ("c", "sum?", "1200", "Level ?")]


@pytest.mark.parametrize("make", [jsonl, parquet, saved, hub_folder])
def test_every_kind_gives_the_same_rows(tmp_path, make):
    rows = read(make(tmp_path))
    assert facts(rows) == EXPECTED
    assert {row.source_name for row in rows} == {"saved" if make is saved else "set"}


def test_rows_without_an_id_are_named_by_file_or_split_and_row(tmp_path):
    assert [row.uid for row in read(jsonl(tmp_path), id_field="id")] == ["set.jsonl:1", "set.jsonl:2", "set.jsonl:3"]
    assert [row.uid for row in read(parquet(tmp_path), id_field="id")][2] == "set.parquet:3"
    assert [row.uid for row in read(hub_folder(tmp_path), id_field="id")][2] == "set.train:3"


def test_splits_and_files_of_a_dataset(tmp_path):
    folder = hub_folder(tmp_path)
    assert facts(read(folder, split="test")) == EXPECTED[:1]
    assert facts(read(folder, files="test.parquet")) == EXPECTED[:1]  # one file alone is the split 'train'
    assert facts(read(folder, split="train[1:]")) == EXPECTED[1:]
    assert facts(read(saved(tmp_path, "train", "test"), split="test")) == EXPECTED


def test_a_pattern_is_its_files_by_name(tmp_path):
    parquet(tmp_path, RECORDS[:1], name="part-0.parquet")
    parquet(tmp_path, RECORDS[1:], name="part-1.parquet")
    rows = read(tmp_path / "part-*.parquet", name="parts")
    assert facts(rows) == EXPECTED
    assert [Path(row.source).name for row in rows] == ["part-0.parquet:1", "part-1.parquet:1", "part-1.parquet:2"]


@pytest.mark.parametrize(("make", "ending"), [(jsonl, "jsonl"), (parquet, "parquet")])
def test_files_of_a_pattern_with_equal_names_are_told_apart_by_their_folders(tmp_path, monkeypatch, make, ending):
    for folder in ("a", "b"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        make(tmp_path / "data" / folder, RECORDS[:1], name=f"train.{ending}")
    for pattern in (f"{tmp_path}/data/*/train.{ending}", f"data/[ab]/*.{ending}", f"./data/*/train.{ending}"):
        monkeypatch.chdir(tmp_path)
        assert [row.uid for row in read(pattern, name="both", id_field="")] == [f"a/train.{ending}:1", f"b/train.{ending}:1"]
    rows = read(f"*/a/train.{ending}", name="one", id_field="")
    assert [row.uid for row in rows] == [f"train.{ending}:1"]  # where names are their own, they stay as they were


def not_utf8(folder: Path, rows: int, bad: set[int]) -> Path:
    """A Parquet file of that many rows, of which some (from 1) hold a problem that is no UTF-8."""
    import pyarrow
    import pyarrow.parquet

    texts = [b"\xff\xfe" if number in bad else f"{number}?".encode() for number in range(1, rows + 1)]
    binary = pyarrow.array(texts, pyarrow.binary())
    problems = pyarrow.StringArray.from_buffers(rows, *binary.buffers()[1:])
    table = pyarrow.table({"problem": problems, "answer": pyarrow.array(["1"] * rows)})
    pyarrow.parquet.write_table(table, folder / "set.parquet")
    return folder / "set.parquet"


def test_a_parquet_row_that_is_no_text_is_named(tmp_path):
    source = SourceConfig(path=str(not_utf8(tmp_path, 300, {260, 262})))
    rows = read_source(source, setting=SETTING)
    with pytest.raises(
        DataError, match=r"set\.parquet:260: cannot be read \(.*codec can't decode.*\); see data\.train_sources\[0\]\.path$"
    ):
        list(rows)
    bad = BadRows(drop=True)
    kept = [row.uid for row in read_source(source, setting=SETTING, bad=bad)]
    assert (len(kept), kept[258], kept[259], kept[-1]) == (298, "set.parquet:259", "set.parquet:261", "set.parquet:300")
    assert (bad.count, bad.first.partition(": cannot")[0]) == (2, f"{source.path}:260")


BAD_RECORDS: list[Any] = [
    {"question": "1+1=?", "gold": "2", "meta": {"level": "3"}},
    {"question": "", "gold": "2", "meta": {"level": "3"}},
    {"question": "no gold?", "gold": "", "meta": {"level": "3"}},
    {"question": "\ud800", "gold": "1", "meta": {"level": "3"}},
    {"question": "no level?", "gold": "1", "meta": {}},
    ["no", "object"],
    {"question": "easy?", "gold": "1", "meta": {"level": "1"}},
]


def test_bad_rows_are_passed_over_and_counted_apart_from_filters(tmp_path):
    source = SourceConfig(path=str(jsonl(tmp_path, BAD_RECORDS)), **FIELDS, levels=[3, 5])
    bad, dropped = BadRows(drop=True), Counter[str]()
    rows = list(read_source(source, setting=SETTING, dropped=dropped, bad=bad))
    assert [row.problem for row in rows] == ["1+1=?"]
    assert (bad.count, dropped) == (5, {OTHER_LEVEL: 1})
    assert bad.first.startswith(f"{source.path}:2: no text in column 'question'")
    with pytest.raises(DataError, match=r"set\.jsonl:2: no text in column"):
        list(read_source(source, setting=SETTING))


def test_nothing_but_bad_rows_is_refused_with_the_first(tmp_path):
    path = jsonl(tmp_path)
    wrong = SourceConfig(path=str(path), problem_field="text")
    with pytest.raises(
        DataError, match=r"none of 3 problems is kept \(3 cannot be used, the first: .*:1: no text in column 'text'"
    ):
        list(read_source(wrong, setting=SETTING, bad=BadRows(drop=True)))
    with pytest.raises(
        DataError, match=r"none of 3 problems is kept \(3 cannot be used, the first: .*see data\.train, data\.heldout"
    ):
        list(read_path(str(path), DataConfig(), bad=BadRows(drop=True)))


def test_an_id_that_occurs_twice_is_no_bad_row(tmp_path):
    path = jsonl(tmp_path, [RECORDS[0], RECORDS[0]])
    with pytest.raises(DataError, match="occurs a second time"):
        list(read_source(SourceConfig(path=str(path), **FIELDS), setting=SETTING, bad=BadRows(drop=True)))


def test_rows_come_one_at_a_time(tmp_path):
    """A bad row at the end is not seen before the good ones are given: nothing is read ahead as a whole."""
    bad = [*RECORDS, {"question": "", "gold": ["1"], "meta": {"level": "1", "key": "d"}, "notes": ""}]
    for path in (jsonl(tmp_path, bad), parquet(tmp_path, bad)):
        rows = read_source(SourceConfig(path=str(path), **FIELDS), setting=SETTING)
        assert [next(rows).uid, next(rows).uid, next(rows).uid] == ["a", "b", "c"]
        with pytest.raises(DataError, match=r":4: no text in column 'question'"):
            next(rows)


def test_parquet_is_read_a_few_rows_at_a_time_and_only_the_needed_columns(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    asked: list[Any] = []
    plain = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda self, **how: asked.append(how) or plain(self, **how))
    read(parquet(tmp_path))
    assert asked == [{"batch_size": 256, "columns": ["question", "gold", "meta"]}]


def test_levels_are_a_closed_range_and_what_is_left_out_is_counted(tmp_path):
    dropped: Counter[str] = Counter()
    assert facts(read(jsonl(tmp_path), dropped, levels=[3, 4])) == EXPECTED[:1]
    assert dropped == {OTHER_LEVEL: 2}  # Level 5, and the one that is no number
    dropped.clear()
    assert facts(read(jsonl(tmp_path), dropped, max_answer=3)) == EXPECTED[:2]
    assert dropped == {LONG_ANSWER: 1}


@pytest.mark.parametrize(
    ("text", "number"), [("Level 5", 5.0), ("4.5", 4.5), ("-1", -1.0), ("hard", None), ("", None), ("3 of 5", 3.0)]
)
def test_level_number(text, number):
    assert level_number(text) == number


def test_a_set_without_answers(tmp_path):
    assert [row.answer for row in read(jsonl(tmp_path), answer_field="")] == ["", "", ""]


def test_numbers_and_missing_values_of_tables(tmp_path):
    records = [{"problem": "a", "answer": 3}, {"problem": "b", "answer": None}]
    rows = read_source(SourceConfig(path=str(parquet(tmp_path, records))), setting=SETTING)
    assert next(rows).answer == "3"
    with pytest.raises(
        DataError, match=r"set\.parquet:2: no answer in column 'answer' \(data\.train_sources\[0\]\.answer_field\)"
    ):
        next(rows)
    nan = jsonl(tmp_path, [{"problem": "a", "answer": float("nan")}])
    with pytest.raises(DataError, match="no answer in column"):
        list(read_path(str(nan), DataConfig()))


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (jsonl, {"problem_field": "text"}, r"set\.jsonl:1: no text in column 'text' \(data\.train_sources\[0\]\.problem_field\)"),
        (parquet, {"problem_field": "text"}, r"set\.parquet: there is no column 'text' \(data\.train_sources\[0\]\.problem_field\); it has"),
        (parquet, {"answer_field": "answer"}, r"there is no column 'answer' \(data\.train_sources\[0\]\.answer_field\)"),
        (parquet, {"answer_field": "meta.answer"}, r"set\.parquet:1: no answer in column 'meta\.answer'"),
        (jsonl, {"level_field": "level", "levels": [1, 2]}, r"set\.jsonl:1: no difficulty in column 'level' \(data\.train_sources\[0\]\.level_field\)"),
        (jsonl, {"levels": [7, 9]}, r"none of 3 problems is kept \(3 outside of levels\); see data\.train_sources\[0\]$"),
        (jsonl, {"id_field": "notes2", "name": "s"}, ""),
        (jsonl, {"id_field": "meta.level", "answer_field": "gold.0"}, ""),
        (jsonl, {"revision": "v1"}, r"data\.train_sources\[0\]\.revision: only a source of kind hub has one, and .* is of kind jsonl"),
        (saved, {"files": "a"}, r"data\.train_sources\[0\]\.files: only a source of kind hub has one"),
        (hub_folder, {"split": "nope"}, r"split nope: cannot be loaded as a Hugging Face dataset \(Unknown split .nope.*\); see data\.train_sources\[0\]\.path$"),
        (hub_folder, {"config": "nope"}, r"BuilderConfig 'nope' not found"),
        (hub_folder, {"files": "nope.parquet"}, r"Unable to find"),
        (hub_folder, {"problem_field": "text"}, r"set\[train\]: there is no column 'text'"),
    ],
)  # fmt: skip
def test_faults_are_one_line_that_names_the_setting(tmp_path, make, fields, message):
    path = make(tmp_path)
    if not message:
        assert len(read(path, **fields)) == 3
        return
    with pytest.raises(UserError, match=message) as raised:
        read(path, **fields)
    assert "\n" not in str(raised.value)


def test_a_split_that_a_saved_folder_lacks(tmp_path):
    with pytest.raises(DataError, match=r"there is no split 'dev', only 'train', 'test'; see data\.train_sources\[0\]\.path"):
        read(saved(tmp_path, "train", "test"), split="dev")


def test_a_list_of_several_answers_is_not_guessed_at(tmp_path):
    path = jsonl(tmp_path, [{"problem": "p", "answer": ["1", "2"]}])
    with pytest.raises(DataError, match=r"it holds a list of 2, of which answer\.0 would be the first"):
        list(read_source(SourceConfig(path=str(path)), setting=SETTING))


def test_the_same_id_in_two_files_of_a_pattern(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        jsonl(tmp_path, RECORDS[:1], name=name)
    with pytest.raises(
        DataError, match=r"b\.jsonl:1: id 'a' occurs a second time \(first in .*a\.jsonl:1\); see data\.train_sources"
    ):
        read(tmp_path / "*.jsonl", name="both")


def test_a_dataset_that_cannot_be_fetched_is_one_line(monkeypatch):
    """The test environment has the hub switched off, as a node without a network has it."""
    for fields in ({}, {"revision": "0123abc"}):
        with pytest.raises(DataError) as raised:
            read("nobody/such-dataset", **fields)
        text = str(raised.value)
        assert "\n" not in text
        assert text.startswith("nobody/such-dataset" + (" at 0123abc" if fields else "") + ", split train: cannot be loaded")
        assert text.endswith("; without a network name a local copy, as a file or a folder; see data.train_sources[0].path")


def test_a_wrong_revision_is_one_line(tmp_path, monkeypatch):
    import datasets

    def load(*args: Any, **how: Any) -> None:
        assert how["revision"] == "nope"
        raise datasets.exceptions.DatasetNotFoundError("Revision 'nope' doesn't exist for dataset 'a/b' on the Hub.\nmore")

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(DataError, match=r"^a/b at nope, split train: .*Revision 'nope' doesn't exist.*; see data\.train_sources"):
        read("a/b", revision="nope")


@pytest.mark.parametrize("content", [b"", b"PAR1 but no more", b'{"question": 1}\n'])
def test_a_file_that_is_no_parquet(tmp_path, content):
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as Parquet \(.*\); see data\.train_sources\[0\]\.path$"):
        read(path)


def test_a_damaged_page_is_named(tmp_path):
    path = parquet(tmp_path, RECORDS * 300, rows_a_group=300)
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)  # the footer is whole, the first page is not
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.parquet: cannot be read further \(.*see data\.train_sources\[0\]\.path$"):
        read(path, id_field="")


def test_a_folder_without_data_and_one_with_damaged_data(tmp_path, capfd):
    with pytest.raises(DataError, match=r": cannot be read \(Is a directory\); see data\.train_sources\[0\]\.path$"):
        read(tmp_path, name="x")
    (tmp_path / "train.jsonl").write_text("{]\n")
    with pytest.raises(
        DataError, match=r"An error occurred while generating the dataset: .*JSON.*; see data\.train_sources\[0\]"
    ):
        read(tmp_path, name="x")
    assert capfd.readouterr().err == ""  # a person reads the one line and nothing besides


def test_a_saved_folder_that_is_damaged(tmp_path):
    folder = saved(tmp_path)
    (folder / "state.json").write_text("{")
    with pytest.raises(
        DataError, match=r"saved: cannot be loaded from the disk \(Expecting.*; see data\.train_sources\[0\]\.path"
    ):
        read(folder)


def test_kinds_by_path(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    expected = {
        str(jsonl(tmp_path)): "jsonl",
        str(parquet(tmp_path)): "parquet",
        str(saved(tmp_path)): "saved",
        str(hub_folder(tmp_path)): "hub",
        str(model): "jsonl",  # a folder without data: reading it says so
        "owner/name": "hub",
        "data/nowhere.jsonl": "jsonl",
        "data/nowhere.parquet": "parquet",
        "nowhere": "jsonl",
        "data/*.parquet": "parquet",
    }
    assert {path: kind_of(SourceConfig(path=path)) for path in expected} == expected


def test_data_train_may_be_any_kind_by_the_columns_of_data(tmp_path):
    config = DataConfig(problem_field="question", answer_field="gold", id_field="meta.key")
    rows = list(read_path(str(parquet(tmp_path)), config))
    assert [(row.uid, row.answer, row.source_name) for row in rows] == [("a", "2", ""), ("b", "0.5", ""), ("c", "1200", "")]
    with pytest.raises(
        DataError, match=r"none\.parquet: cannot be read as Parquet \(.*No such file.*; see data\.train, data\.heldout"
    ):
        list(read_path("none.parquet", config))


# ---- values as a person would write them ----


def typed(folder: Path, **columns: Any) -> Path:
    """A Parquet file of two rows with these Arrow columns beside the problems."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"problem": ["a", "b"], **columns}), folder / "typed.parquet")
    return folder / "typed.parquet"


def answers(path: Path | str, **fields: Any) -> list[str]:
    return [row.answer for row in read_source(SourceConfig(path=str(path), **fields), setting=SETTING)]


def test_short_floats_are_the_numbers_that_were_written(tmp_path):
    import numpy as np
    import pyarrow as pa

    half = pa.array(np.array([0.1, 1e-4], np.float16))
    nested = pa.array([[{"x": 0.1}], [{"x": None}]], pa.list_(pa.struct([("x", pa.float32())])))
    path = typed(tmp_path, f32=pa.array([0.1, 2.0], pa.float32()), f16=half, deep=nested, f64=pa.array([1e-7, 5.0]))
    assert answers(path, answer_field="f32") == ["0.1", "2"]
    assert answers(path, answer_field="f16") == ["0.1", "0.0001"]
    assert answers(path, answer_field="f64") == ["0.0000001", "5"]
    rows = read_source(SourceConfig(path=str(path), answer_field="deep.0.x"), setting=SETTING)
    assert next(rows).answer == "0.1"
    with pytest.raises(DataError, match="no answer in column"):
        next(rows)


@pytest.mark.parametrize("kind", ["saved", "hub"])
def test_short_floats_of_datasets_too(tmp_path, kind):
    import datasets
    import pyarrow as pa

    if kind == "hub":
        typed(tmp_path, answer=pa.array([0.1, 2.5], pa.float32()))
    else:
        features = datasets.Features(problem=datasets.Value("string"), answer=datasets.Value("float32"))
        datasets.Dataset.from_dict({"problem": ["a", "b"], "answer": [0.1, 2.5]}, features=features).save_to_disk(tmp_path)
    assert answers(tmp_path, kind=kind) == ["0.1", "2.5"]


def test_a_map_column_is_a_structure(tmp_path):
    import pyarrow as pa

    pairs = [[("gold", 0.1), ("other", 2.0)], [("gold", 7.0)]]
    path = typed(tmp_path, m=pa.array(pairs, pa.map_(pa.string(), pa.float32())))
    assert answers(path, answer_field="m.gold") == ["0.1", "7"]
    with pytest.raises(DataError, match=r"it holds a structure \(gold, other\), of which m\.gold would be the first"):
        answers(path, answer_field="m")


def test_a_number_in_a_csv_file_stays_as_it_is_written(tmp_path):
    (tmp_path / "set.csv").write_text("id,problem,answer,level,notes\n01,a,007,03,1\n02,b,0.10,4,2\n03,c,1e3,5,3\n")
    source = SourceConfig(path=str(tmp_path), kind="hub", files="set.csv", level_field="level", levels=[1, 9])
    rows = list(read_source(source, setting=SETTING))
    assert [(row.uid, row.answer, row.level) for row in rows] == [("01", "007", "03"), ("02", "0.10", "4"), ("03", "1e3", "5")]


def test_a_word_of_a_csv_file_is_no_missing_value_and_an_empty_place_is(tmp_path):
    """pandas takes NA, null, None and nan for nothing."""
    words = ("NA", "null", "None", "nan", "N/A")
    lines = [f"{word},p {word},{word},{word}" for word in words]
    (tmp_path / "set.csv").write_text("\n".join(["id,problem,answer,other", *lines]))
    source = SourceConfig(path=str(tmp_path), kind="hub", files="set.csv")
    assert [(row.uid, row.problem, row.answer) for row in list(read_source(source, setting=SETTING))] == [
        (word, f"p {word}", word) for word in words
    ]
    (tmp_path / "set.csv").write_text("id,problem,answer,other\n1,p,,2\n")
    with pytest.raises(DataError, match="no answer in column 'answer'"):
        list(read_source(source, setting=SETTING))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([True, False], "it holds a boolean (true), which is no text; the row has"),
        ([b"xyz", b"1"], "it holds 3 bytes, which are no text; store it as a string; the row has"),
        (
            [[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]] * 2,
            "it holds messages (a list of role and content); held.1.content is the text of one; the row has",
        ),
        (
            [[{"role": "user", "content": "u"}]] * 2,
            "it holds messages (a list of role and content); held.0.content is the text of one",
        ),
    ],
)
@pytest.mark.parametrize("role", ["problem", "answer"])
def test_what_is_no_text_is_named(tmp_path, value, said, role):
    path = typed(tmp_path, held=value, answer=["1", "2"])
    with pytest.raises(DataError) as caught:
        answers(path, **{f"{role}_field": "held"})
    text = str(caught.value)
    assert text.startswith(f"{path}:1: no {'text' if role == 'problem' else role} in column 'held' ({SETTING}.{role}_field); ")
    assert said in text
    assert "\n" not in text


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("set.jsonl", {"path": "set.jsonl"}),
        ("set.parquet", {"path": "set.parquet"}),
        ("own/set.csv", {"path": "own", "kind": "hub", "files": "set.csv"}),
        ("own/train.parquet", {"path": "own"}),
        ("kept/data.arrow", {"path": "kept", "kind": "saved"}),
    ],
)
def test_a_pointer_of_git_lfs_is_named(tmp_path, monkeypatch, file, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(POINTER)
    with pytest.raises(DataError) as caught:
        answers(**source)
    text = str(caught.value)
    assert text == (f"{file}: a pointer of Git LFS, not the data; fetch it with `git lfs pull`; see data.train_sources[0].path")


# ---- columns for reward functions ----


@pytest.mark.parametrize("make", [jsonl, parquet, saved, hub_folder])
def test_further_columns_are_kept_as_they_are(tmp_path, make):
    rows = list(read_source(SourceConfig(path=str(make(tmp_path)), **FIELDS), setting=SETTING, further=["meta", "notes"]))
    assert [row.columns for row in rows] == [{"meta": record["meta"], "notes": record["notes"]} for record in RECORDS]
    assert read(jsonl(tmp_path))[0].columns == {}


def test_a_column_that_is_not_there_or_has_no_json_form_is_a_bad_row(tmp_path):
    from datetime import date

    where = [{"problem": "a", "answer": "1", "day": date(2026, 1, 2)}]
    for path, column, says in (
        (jsonl(tmp_path), "tests", "set.jsonl:1: no column 'tests' (data.columns); the row has 'gold', 'meta'"),
        (parquet(tmp_path), "tests", "set.parquet:1: no column 'tests' (data.columns); the row has 'gold', 'meta'"),
        (parquet(tmp_path, where, "days.parquet"), "day", "days.parquet:1: column 'day' (data.columns) has no form in JSON: "),
    ):
        fields = {} if column == "day" else FIELDS
        with pytest.raises(DataError) as error:
            list(read_source(SourceConfig(path=str(path), **fields), setting=SETTING, further=[column]))
        assert says in str(error.value)


def test_names_of_columns_that_rewards_cannot_be_given_are_refused():
    for name in ("gold", "length", "a.b", "class"):
        with pytest.raises(ConfigError, match=rf"data\.columns: '{name}' is no name of a keyword argument"):
            DataConfig(train="t.jsonl", heldout="", columns=["level", name])
    with pytest.raises(ConfigError, match=r"data\.columns is given, and the toy task has none"):
        DataConfig(columns=["level"])
