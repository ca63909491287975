"""Trees of settled groups: what a row says, which groups are kept, and that the loop neither waits nor fails for them."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import virtual_time
from loop_support import World

from fr3e_async.control.ports import TaskLost
from fr3e_async.control.trees import TreeRecorder
from fr3e_async.data.tokenizer import speller
from fr3e_async.data.toy.tokenizer import build_tokenizer


def spell(tokens) -> list[str]:
    return [f"<{token}>" for token in tokens]


class Kept:
    """Port ``Keep`` with room for so many rows."""

    def __init__(self, room: int = 10**6) -> None:
        self.rows: list[dict] = []
        self.notes: list[str] = []
        self._room = room

    def tree(self, line: str) -> bool:
        self.rows.append(json.loads(line))
        return len(self.rows) < self._room

    def thin_trees(self, stride: int) -> bool:
        self.rows = [row for row in self.rows if row["step"] % stride == 0]
        return len(self.rows) <= self._room / 2

    def note(self, text: str) -> None:
        self.notes.append(text)


def played(folder, *, per_step: int = 2, kept: Kept | None = None, store=None, **sections):
    world, kept = World(folder, **sections), kept or Kept()
    store = store or world.workers.payloads
    world.trees = TreeRecorder(per_step=per_step, store=store, spell=spell, keep=kept)
    world.run()
    return world, kept.rows


def test_a_row_is_the_whole_group(tmp_path):
    world, rows = played(tmp_path, run={"steps": 3})
    groups = {record["group"]: record for record in world.notes.groups}
    assert rows
    for row in rows:
        record = groups[row["group"]]
        assert (row["outcome"], row["states"]) == (record["outcome"], record["states"])
        assert len(row["rollouts"]) == record["rollouts"]
        assert sum(len(r["pieces"]) for r in row["rollouts"]) == record["tokens"]["generated"]
        assert sum(r["outcome"] == "correct" for r in row["rollouts"]) == record["correct"]
        for rollout in row["rollouts"]:
            assert len(rollout["pieces"]) == len(rollout["entropies"]) == len(rollout["logprobs"])
            assert rollout["versions"][0][0] == 0
        trained = [r for r in row["rollouts"] if r["advantage"] is not None]
        assert bool(trained) == (row["outcome"] == "trained")
        anchors = {state["node"] for state in row["states"]} - {0}
        assert {r["node"] for r in row["rollouts"]} - {0} <= anchors


def test_the_first_of_each_batch_are_kept_trained_and_others_apart(tmp_path):
    world, rows = played(tmp_path, per_step=1, run={"steps": 5})
    trained = [row["step"] for row in rows if row["outcome"] == "trained"]
    assert trained == [1, 2, 3, 4, 5], "a trained group stands under the batch that it was in"
    others = [row["step"] for row in rows if row["outcome"] != "trained"]
    assert len(others) == len(set(others))
    outcomes = [record["outcome"] for record in world.notes.groups]
    assert len(rows) < len(outcomes)


def test_a_full_file_is_thinned_so_that_its_trees_span_the_run(tmp_path):
    kept = Kept(room=8)
    _, rows = played(tmp_path, per_step=1, kept=kept, run={"steps": 30}, prompts=200)
    steps = [row["step"] for row in rows if row["outcome"] == "trained"]
    assert len(rows) <= 8
    assert max(steps) > 20, "the trained policy is there, too"
    assert all(step % 4 == 0 for step in steps)
    assert kept.notes == []


def test_trees_that_alone_fill_the_file_are_the_last_ones(tmp_path):
    kept = Kept(room=1)
    kept.thin_trees = lambda stride: False
    _, rows = played(tmp_path, kept=kept, run={"steps": 6})
    assert len(rows) == 1
    assert any("observe.trees_mib" in note for note in kept.notes)


def test_rows_count_settled_groups_as_the_ledger_does(tmp_path):
    world, rows = played(tmp_path, per_step=99, run={"steps": 3})
    order = [record["group"] for record in world.notes.groups]
    assert [(row["settled"], row["group"]) for row in rows] == list(enumerate(order, start=1))


class Gone:
    """A store from which every rollout is gone."""

    def get(self, payload):
        raise TaskLost("its node is gone", gone=True)


def test_a_rollout_that_cannot_be_fetched_costs_its_tree_alone(tmp_path):
    world, rows = played(tmp_path, store=Gone(), run={"steps": 4})
    assert rows == []
    assert world.ledger.version == 4


def test_the_loop_does_not_wait_for_a_slow_store(tmp_path):
    """What is still to be written when the run ends is written then."""
    world = World(tmp_path, run={"steps": 4})
    released, fetched = virtual_time.Gate(), []

    class Slow:
        def get(self, payload):
            released.wait()
            fetched.append(payload)
            return world.workers.payloads.get(payload)

    kept = Kept()
    world.trees = TreeRecorder(per_step=2, store=Slow(), spell=spell, keep=kept)

    async def scenario():
        run = asyncio.create_task(world.go())
        await world.until(lambda: world.ledger.version == 4)
        assert fetched == []
        released.set()
        return await run

    assert virtual_time.run(scenario()) == "finished"
    assert kept.rows


def test_pieces_joined_are_the_text():
    tokenizer = build_tokenizer()
    text = "1) 7+5=12\n2) é→漢 \\boxed{12}"
    tokens = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    spelled = speller(tokenizer)(tokens)
    assert len(spelled) == len(tokens)
    assert "".join(spelled) == text
    assert "漢" in spelled, "a character of several tokens stands with the last of them"


@pytest.mark.parametrize("tokens", [400, 100_000])
def test_a_budget_of_tokens_ends_a_run_as_finished_with_its_last_version_measured(tmp_path, tokens):
    world = World(tmp_path, evaluate=True, budget={"tokens": tokens}, run={"steps": 6})
    assert world.run() == "finished"
    progress, version = world.controller.progress, world.ledger.version
    if tokens == 400:
        assert version < 6
        assert progress.tokens_generated >= tokens
    else:
        assert version == 6
    last = progress.evaluations[-1]
    assert (last["label"], last["oldest_version"]) == ("after", version)
    assert last["generated"] == progress.tokens_generated
    assert world.store.latest() is not None
