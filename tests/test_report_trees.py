"""Trees for the run's page: cleaned, packed, found again; and what stands in a file may be anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_support import Blocks, page_of, tree_row, unpacked, write_rows, write_run

from fr3e_async.report.rows import number, plain, text
from fr3e_async.report.trees import Packer, clean_tree, packed, read_trees, summary_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "plain", steps=3, trees=5)


def test_a_tree_comes_back_out_of_the_page_as_it_was(run: Path) -> None:
    blocks = Blocks(page_of(run))
    index = unpacked(blocks.data["index"][0])
    row = json.loads((run / "trees.jsonl").read_text().splitlines()[3])
    at = index["group"].index(row["group"])
    found = unpacked(blocks.data["part"][index["part"][at]])[index["index"][at]]
    assert (found["prompt"], found["gold"], found["outcome"]) == (row["prompt"], row["gold"], row["outcome"])
    assert "a_key_of_a_later_version" not in found
    for mine, theirs in zip(found["rollouts"], row["rollouts"], strict=True):
        assert mine["pieces"] == theirs["pieces"]
        assert mine["entropies"] == [round(1000 * value) for value in theirs["entropies"]]
        assert (mine["outcome"], mine["reward"], mine["advantage"]) == (theirs["outcome"], theirs["reward"], theirs["advantage"])
    assert {name: len(column) for name, column in index.items()} == dict.fromkeys(index, 5)


def test_the_index_says_what_the_list_shows() -> None:
    tree = clean_tree(tree_row(0))
    found = summary_of(tree)
    assert (found["correct"], found["wrong"], found["unknown"], found["failed"]) == (8, 7, 1, 0)
    assert (found["rollouts"], found["anchors"], found["value"]) == (16, 3, 0.5)
    assert found["tokens"] == 4 * (16 + 13 + 10 + 7)


def test_entropies_that_are_not_known_stay_so() -> None:
    row = {"group": "a", "rollouts": [{"pieces": ["x", "y"], "entropies": [0.5, None]}, {"pieces": ["z"], "entropies": [None]}]}
    first, second = clean_tree(row)["rollouts"]
    assert (first["entropies"], second["entropies"]) == ([500, None], None)
    assert summary_of(clean_tree(row))["entropy"] == 0.5


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_known = ("step", "outcome", "prompt", "gold", "states", "rollouts")
_rollouts = st.dictionaries(
    st.sampled_from(("node", "branch", "pieces", "entropies", "logprobs", "versions", "outcome", "reward", "advantage")),
    _json | st.lists(_json, max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(_known), _json), st.lists(_rollouts, max_size=3))
def test_whatever_stands_in_a_row_can_be_packed_and_shown(row: dict[str, Any], rollouts: list[dict[str, Any]]) -> None:
    tree = clean_tree({**row, "group": "g", "rollouts": rollouts})
    packer = Packer()
    packer.add(0, tree)
    assert unpacked(packer.flush() or "") == [tree]
    assert unpacked(packed(packer.columns))["group"] == ["g"]
    for rollout in tree["rollouts"]:
        assert rollout["entropies"] is None or len(rollout["entropies"]) == len(rollout["pieces"])


def test_a_limit_takes_trees_evenly(tmp_path: Path) -> None:
    write_rows(tmp_path / "trees.jsonl", [{"group": f"g{index}"} for index in range(10)])
    assert [tree["group"] for tree in read_trees(tmp_path, limit=5)] == ["g0", "g2", "g4", "g6", "g8"]
    assert len(list(read_trees(tmp_path, limit=10))) == 10
    assert list(read_trees(tmp_path, limit=0)) == []
    assert list(read_trees(tmp_path / "none", limit=5)) == []


def test_of_a_group_that_was_settled_twice_the_last_line_counts(tmp_path: Path) -> None:
    write_rows(tmp_path / "trees.jsonl", [{"group": "a", "step": 1}, {"group": "b", "step": 1}, {"group": "a", "step": 2}])
    assert [(tree["group"], tree["step"]) for tree in read_trees(tmp_path, limit=9)] == [("b", 1), ("a", 2)]


def test_many_trees_go_into_several_parts() -> None:
    packer = Packer()
    trees = [clean_tree(tree_row(index) | {"prompt": "x" * 400_000}) for index in range(10)]
    parts = [part for tree in trees if (part := packer.add(0, tree))]
    parts.append(packer.flush() or "")
    assert len(parts) == 4  # three a part, and one that is left
    for index, (part, place) in enumerate(zip(packer.columns["part"], packer.columns["index"], strict=True)):
        assert unpacked(parts[part])[place]["group"] == f"task/{index}@0"


def test_numbers_and_texts_that_no_page_could_hold() -> None:
    assert (number(float("nan")), number(True), number("1"), number(0.123456, 3), number(12345, 3)) == (
        None,
        None,
        None,
        0.123,
        12345,
    )
    assert plain({"a": [float("inf"), {"b": "\ud800"}]}) == {"a": [None, {"b": "?"}]}
    assert (text(None), text(3), text("ä")) == ("", "3", "ä")
