"""Files that a run appends to: what a resume keeps of them, whatever texts they hold, and what a full disk says."""

from __future__ import annotations

import builtins
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.summary.writer.record_writer import RecordWriter

from fr3e_async.clock import RunClock
from fr3e_async.errors import StorageError
from fr3e_async.files import jsonl
from fr3e_async.observe.tensorboard import TensorBoardWriter

ODD = ("\u2028", "\u2029", "\u0085", "\x0b", "\x1c", "\r\n")  # str.splitlines ends a line at each of them


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """As trees are written: texts stand as they are."""
    return [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]


def test_a_tree_with_other_line_ends_in_its_text_outlives_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "trees.jsonl"
    rows = [{"group": f"g{index}", "step": 1, "prompt": f"one{odd}two"} for index, odd in enumerate(ODD)]
    lines = lines_of([*rows, {"group": "later", "step": 3, "prompt": ""}])
    path.write_bytes("".join(lines).encode())
    assert jsonl.cut_after(path, 2) == 1
    assert path.read_bytes() == "".join(lines[:-1]).encode()
    assert jsonl.keep_first(path, 2) == len(ODD) - 2
    assert path.read_bytes() == "".join(lines[:2]).encode()
    assert [found.name for found in tmp_path.iterdir()] == ["trees.jsonl"]


_rows = st.lists(
    st.fixed_dictionaries({"step": st.integers(0, 4), "text": st.text(st.characters(codec="utf-8"), max_size=5)}), max_size=8
)


@settings(max_examples=50, deadline=None)
@given(rows=_rows, step=st.integers(0, 4), count=st.integers(0, 9), torn=st.booleans())
def test_what_stays_is_byte_by_byte_what_was_there(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], step: int, count: int, torn: bool
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines, rest = lines_of(rows), ['{"step": 0'] * torn
    path.write_bytes("".join(lines + rest).encode())
    kept = [line for line, row in zip(lines, rows, strict=True) if row["step"] <= step]
    assert jsonl.cut_after(path, step) == len(lines) - len(kept) + torn
    assert path.read_bytes() == "".join(kept).encode()
    assert jsonl.keep_first(path, count) == max(0, len(kept) - count)
    assert path.read_bytes() == "".join(kept[:count]).encode()


def test_rows_are_cut_by_another_number_or_by_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "trees.jsonl"
    lines = lines_of([{"step": index, "settled": 2 * index} for index in range(5)] + [{"step": 9}])
    path.write_text("".join(lines))
    assert jsonl.cut_after(path, 5, key="settled") == 2
    assert path.read_text() == "".join([*lines[:3], lines[5]])
    assert jsonl.keep_rows(path, lambda row: row["step"] % 2 == 0) == 2
    assert path.read_text() == lines[0] + lines[2]
    assert jsonl.keep_rows(tmp_path / "absent", lambda row: False) == 0


@pytest.mark.parametrize("damaged", [b"\xff\n", b"[1]\n", b"{\n", b"[" * 100_000 + b"\n"])
def test_a_line_that_is_no_row_goes(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damaged + b'{"step": 2}\n')
    assert jsonl.cut_after(path, 5) == 1
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "trees.jsonl"
    line = json.dumps({"step": 1, "prompt": "x" * 100_000}) + "\n"
    path.write_text(line * 200 + '{"step": 9}\n')
    tracemalloc.start()
    try:
        assert jsonl.cut_after(path, 1) == 1
        assert tracemalloc.get_traced_memory()[1] < 5e6  # bytes; the file has 20 MB
    finally:
        tracemalloc.stop()
    assert path.stat().st_size == 200 * len(line)


def test_a_full_disk_under_tensorboard_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    real = builtins.open
    monkeypatch.setattr("fr3e_async.observe.tensorboard.open", lambda path, mode: real("/dev/full", mode), raising=False)
    with pytest.raises(StorageError, match=r"cannot write to .*: the disk is full \(ENOSPC\)"):
        TensorBoardWriter(tmp_path / "tensorboard", clock=RunClock())


def test_a_disk_that_fills_up_later_is_said_by_the_write_that_met_it(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    writer = TensorBoardWriter(tmp_path, clock=RunClock())
    with open("/dev/full", "wb", buffering=0) as full:
        writer.records = RecordWriter(full)
        with pytest.raises(StorageError, match="the disk is full"):
            writer.write(1, {"reward/mean": 0.5})
    writer.close()
    writer.close()


def test_two_writers_within_a_second_have_a_file_each(tmp_path: Path) -> None:
    for step in (1, 2):
        TensorBoardWriter(tmp_path, clock=RunClock(), first_step=step).close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    assert names[0].endswith(".0")
    assert names[1].endswith(".1")
