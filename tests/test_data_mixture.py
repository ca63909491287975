"""Weights of a mixture: quotas by hand, and the laws of its stream over epochs, kills and resumes."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fr3e_async.config import Config, DataConfig, EngineConfig, SourceConfig
from fr3e_async.data.prompts import load_datasets
from fr3e_async.data.row import DataRow
from fr3e_async.data.rows import Rows, read_heldout, read_rows
from fr3e_async.data.stream import Part, PromptStream, draws, group_id, mix, mixture_note
from fr3e_async.data.toy.tokenizer import build_tokenizer
from fr3e_async.errors import DataError
from fr3e_async.types import Prompt


def prompts(name: str, count: int) -> list[Prompt]:
    ids = np.array([1], dtype=np.int32)
    return [Prompt(uid=f"{name}/{index}", text="?", reference="1", token_ids=ids) for index in range(count)]


def mixed(sizes: dict[str, int], weights: dict[str, float]) -> tuple[tuple[Prompt, ...], tuple[Part, ...]]:
    return mix({name: prompts(name, size) for name, size in sizes.items()}, weights, setting="data.train_sources")


def take(stream: PromptStream, count: int) -> list[str]:
    return [group_id(prompt.uid, epoch) for prompt, epoch in (stream.take() for _ in range(count))]


def base(uid: str) -> str:
    """The problem whose copy this is."""
    return uid.partition("~")[0]


@pytest.mark.parametrize(
    ("weight", "size", "expected"), [(1, 7, 7), (0.5, 7, 4), (2, 3, 6), (0.1, 4, 0), (1.5, 3, 5), (0.3, 10, 3)]
)
def test_draws_of_an_epoch(weight, size, expected):
    assert draws(weight, size) == expected


def test_parts_are_copies_and_a_rest():
    made, parts = mixed({"a": 4, "b": 2, "c": 3}, {"a": 0.5, "b": 2.5, "c": 1})
    assert [(part.name, part.size, part.quota) for part in parts] == [
        ("a", 4, 2), ("b", 2, 2), ("b~2", 2, 2), ("b~3", 2, 1), ("c", 3, 3),
    ]  # fmt: skip
    assert [prompt.uid for prompt in made[4:10]] == ["b/0", "b/1", "b/0~2", "b/1~2", "b/0~3", "b/1~3"]
    assert made[6].token_ids is made[4].token_ids  # copies share their tokens


def test_a_source_that_no_epoch_draws_is_refused():
    with pytest.raises(DataError, match=r"^data\.train_sources: with weight 0\.1 no epoch draws any of the 4 problems of a$"):
        mixed({"a": 4}, {"a": 0.1})
    with pytest.raises(ValueError, match="quota"):
        Part(name="a", size=3, quota=0)


def test_the_note_gives_the_shares():
    note = mixture_note({"a": prompts("a", 4), "b": prompts("b", 2)}, {"a": 0.5, "b": 1})
    assert note == "an epoch draws 4 prompts: a 2 of 4 (50%), b 2 of 2 (50%)"


def test_equal_weights_are_a_plain_stream():
    made, parts = mixed({"a": 5, "b": 3}, {"a": 1, "b": 1})
    assert take(PromptStream(made, 0, parts=parts), 20) == take(PromptStream(made, 0), 20)


def test_a_part_of_a_source_goes_round():
    """Weight 0.4 of 5: two draws an epoch, so five epochs are two rounds: each problem twice, and never one ahead by two."""
    made, parts = mixed({"a": 5}, {"a": 0.4})
    groups = take(PromptStream(made, 3, parts=parts), 10)
    assert [group.partition("@")[2] for group in groups] == [str(epoch) for epoch in range(5) for _ in range(2)]
    uids = [group.partition("@")[0] for group in groups]
    assert Counter(uids) == dict.fromkeys((prompt.uid for prompt in made), 2)
    # The round of seed 3 is 3 1 0 2 4; two at a time from where the epoch before it ended, and each pair in an order of its epoch's own.
    assert [uid.removeprefix("a/") for uid in uids] == list("1302340142")
    assert take(PromptStream(made, 4, parts=parts), 10) != groups  # the seed decides


def test_a_group_of_another_epoch_is_refused():
    made, parts = mixed({"a": 4}, {"a": 0.5})
    stream = PromptStream(made, 0, parts=parts)
    drawn = {group.partition("@")[0] for group in take(stream, 2)}
    other = next(prompt.uid for prompt in made if prompt.uid not in drawn)
    with pytest.raises(ValueError, match="its epoch does not draw that prompt"):
        stream.mark_consumed(f"{other}@0")


def test_another_mixture_cannot_resume():
    made, parts = mixed({"a": 4, "b": 2}, {"a": 0.5, "b": 1})
    state = json.loads(json.dumps(PromptStream(made, 0, parts=parts).state()))
    again, others = mixed({"a": 4, "b": 2}, {"a": 0.75, "b": 1})
    with pytest.raises(
        DataError, match=r"^data\.train_sources: the mixture is not that of the checkpoint: a: 2 of 4 .* -> 3 of 4 "
    ):
        PromptStream(again, 0, state, parts=others)
    again, others = mixed({"a": 4, "b": 2}, {"a": 0.5, "b": 2})
    with pytest.raises(DataError, match=r"b~2: none -> 2 of 2 prompts an epoch$"):
        PromptStream(again, 0, state, parts=others)
    with pytest.raises(DataError, match=r"a: 2 of 4 prompts an epoch -> none$"):
        PromptStream(made, 0, state)
    plain = json.loads(json.dumps(PromptStream(made, 0).state()))
    assert PromptStream(made, 0, plain).state() == plain
    del plain["mixture"]  # as checkpoints were before there were mixtures
    assert PromptStream(made, 0, plain).state()["mixture"] == []


def test_parts_must_be_of_the_prompts():
    made, parts = mixed({"a": 4}, {"a": 1})
    with pytest.raises(ValueError, match="the parts hold 4 prompts, there are 3"):
        PromptStream(made[:3], 0, parts=parts)


@st.composite
def mixtures(draw: Any) -> tuple[dict[str, int], dict[str, float]]:
    names = ["a", "b", "c"][: draw(st.integers(1, 3))]
    sizes = {name: draw(st.integers(1, 4)) for name in names}
    weights = {name: draw(st.sampled_from([0.5, 0.75, 1.0, 1.4, 2.0])) for name in names}
    return sizes, weights


@given(mixtures(), st.integers(0, 3))
def test_each_epoch_draws_its_quota_and_no_problem_gets_ahead(mixture, seed):
    sizes, weights = mixture
    made, parts = mixed(sizes, weights)
    epochs, of_an_epoch = 7, sum(draws(weights[name], sizes[name]) for name in sizes)
    groups = take(PromptStream(made, seed, parts=parts), epochs * of_an_epoch)
    assert len(set(groups)) == len(groups)  # a copy has an id of its own
    for epoch in range(epochs):
        own = groups[epoch * of_an_epoch : (epoch + 1) * of_an_epoch]
        assert {group.partition("@")[2] for group in own} == {str(epoch)}
        names = Counter(base(group).partition("/")[0] for group in own)
        assert names == {name: draws(weights[name], sizes[name]) for name in sizes}
    times = Counter(base(group.partition("@")[0]) for group in groups)
    for name, size in sizes.items():
        counts = [times[f"{name}/{index}"] for index in range(size)]
        assert max(counts) - min(counts) <= 1


@settings(suppress_health_check=[HealthCheck.large_base_example, HealthCheck.too_slow], max_examples=8)
@given(st.data(), mixtures())
def test_any_kills_and_resumes_consume_what_an_uninterrupted_run_does(data, mixture):
    made, parts = mixed(*mixture)
    seed, epochs = data.draw(st.integers(0, 3)), 2
    stream, in_flight, consumed = PromptStream(made, seed, parts=parts), [], []
    saved = (stream.state(), [])
    while stream.state()["epoch"] < epochs:
        action = data.draw(st.sampled_from(["take", "take", "consume", "consume", "checkpoint", "kill"]))
        if action == "take" or (action == "consume" and not in_flight):
            in_flight += take(stream, data.draw(st.integers(1, 4)))
        elif action == "consume":
            group = in_flight.pop(data.draw(st.integers(0, len(in_flight) - 1)))
            stream.mark_consumed(group)
            consumed.append(group)
        elif action == "checkpoint" or data.draw(st.integers(0, 3)) > 0:  # few kills, so that the run gets on
            saved = (json.loads(json.dumps(stream.state())), list(consumed))
        else:
            stream, in_flight, consumed = PromptStream(made, seed, saved[0], parts=parts), [], list(saved[1])
    whole = take(PromptStream(made, seed, parts=parts), epochs * sum(part.quota for part in parts))
    assert max(Counter(consumed).values()) == 1
    assert set(whole) <= set(consumed)


def config(**data: Any) -> Config:
    return Config(data=DataConfig(**{"train": "sources", **data}), engine=EngineConfig(kv_cache_gib=0.1))


def test_a_mixture_from_files_to_the_stream(tmp_path):
    for name, count in (("a", 4), ("b", 2)):
        lines = [json.dumps({"question": f"{name} {index}+1=?", "answer": index + 1, "level": index}) for index in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sources = [
        SourceConfig(path=str(tmp_path / "a.jsonl"), problem_field="question", weight=0.5),
        SourceConfig(path=str(tmp_path / "b.jsonl"), problem_field="question", weight=2, levels=[1, 1], name="bee"),
    ]
    loaded = config(train_sources=sources, heldout="", max_prompt=64)
    rows = read_rows(loaded)
    assert [row.uid for row in rows.train] == [f"a/a.jsonl:{line}" for line in range(1, 5)] + ["bee/b.jsonl:2"]
    assert rows.notes == (("data_dropped", "data.train_sources[1]: 1 problem of bee left out: outside of levels"),)
    datasets = load_datasets(loaded, build_tokenizer(), rows)
    assert [(part.name, part.size, part.quota) for part in datasets.parts] == [("a", 4, 2), ("bee", 1, 1), ("bee~2", 1, 1)]
    assert datasets.notes == (("note", "data.train_sources: an epoch draws 4 prompts: a 2 of 4 (50%), bee 2 of 1 (50%)"),)
    groups = take(PromptStream(datasets.train, 0, parts=datasets.parts), 4)
    assert {"bee/b.jsonl:2@0", "bee/b.jsonl:2~2@0"} < set(groups)


@pytest.mark.parametrize("word", ["sources", "path"])
def test_bad_rows_are_counted_and_told_like_what_other_policies_leave_out(tmp_path, word):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "1+1=?", "answer": "2"}\n{"problem": "1+2=?", "answer": ""}\nnot json\n')
    named = {"train_sources": [SourceConfig(path=str(path))]} if word == "sources" else {"train": str(path)}
    with pytest.raises(DataError, match=r"a\.jsonl:2: no answer"):
        read_rows(config(**named, heldout=""))
    rows = read_rows(config(**named, heldout=str(path), on_bad_row="drop", on_contamination="flag"))
    assert [row.problem for row in rows.train] == [row.problem for row in rows.heldout] == ["1+1=?"]
    place, name = ("data.train_sources[0]", "a") if word == "sources" else ("data.train", str(path))
    assert rows.notes[0][0] == rows.notes[1][0] == "data_dropped"
    assert rows.notes[0][1].startswith(
        f"{place}: 2 rows of {name} cannot be used (the first: {path}:2: no answer in column 'answer'"
    )
    assert rows.notes[0][1].endswith("): left out (data.on_bad_row=drop)")
    assert rows.notes[1][1].startswith(f"data.heldout: 2 rows of {path} cannot be used")
    announced: list[str] = []
    assert len(read_heldout(config(**named, heldout=str(path), on_bad_row="drop"), announced.append)) == 1
    assert announced == [rows.notes[1][1]]


def test_a_source_whose_prompts_are_all_too_long_is_left_out_of_the_mixture():
    rows = Rows(
        train=tuple(
            DataRow(uid=f"{name}/1", problem=problem, answer="1", source="f:1", source_name=name)
            for name, problem in (("a", "1+1"), ("b", "2 " * 40))
        ),
        heldout=(),
    )
    sources = [SourceConfig(path="a.jsonl"), SourceConfig(path="b.jsonl")]
    datasets = load_datasets(config(train_sources=sources, max_prompt=16, on_long_prompt="drop"), build_tokenizer(), rows)
    assert [part.name for part in datasets.parts] == ["a"]
    assert datasets.dropped == 1


def test_what_may_be_fetched_is_announced():
    """Minutes without a word look like a hang; here the fetching itself fails at once."""
    announced: list[str] = []
    loaded = config(train_sources=[SourceConfig(path="nobody/nothing", name="n")], heldout="")
    with pytest.raises(DataError, match="nobody/nothing"):
        read_rows(loaded, announce=announced.append)
    assert announced == [
        "data.train_sources[0].path: reading nobody/nothing, which is fetched from the Hugging Face hub if it is not cached"
    ]
