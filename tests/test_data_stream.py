"""The prompt stream: seeded epochs; and over any kills and resumes each (prompt, epoch) is consumed exactly once."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fr3e_async.data.stream import PromptStream, group_id
from fr3e_async.errors import DataError
from fr3e_async.types import Prompt


def prompts(count: int, prefix: str = "p") -> list[Prompt]:
    ids = np.array([1], dtype=np.int32)
    return [Prompt(uid=f"{prefix}{index}", text="?", reference="1", token_ids=ids) for index in range(count)]


def take(stream: PromptStream, count: int) -> list[str]:
    return [group_id(prompt.uid, epoch) for prompt, epoch in (stream.take() for _ in range(count))]


def reloaded(stream: PromptStream, count: int, seed: int = 0) -> PromptStream:
    """A new stream from the state as it comes back out of a JSON file."""
    return PromptStream(prompts(count), seed, json.loads(json.dumps(stream.state())))


def test_each_epoch_is_another_permutation_and_the_seed_decides():
    groups = take(PromptStream(prompts(50), 0), 100)
    assert {group.partition("@")[2] for group in groups[:50]} == {"0"}
    assert {group.partition("@")[2] for group in groups[50:]} == {"1"}
    first, second = ([group.partition("@")[0] for group in half] for half in (groups[:50], groups[50:]))
    assert sorted(first) == sorted(second) == sorted(prompt.uid for prompt in prompts(50))
    assert first != second
    assert take(PromptStream(prompts(50), 0), 100) == groups
    assert take(PromptStream(prompts(50), 1), 100) != groups


def test_what_was_taken_and_not_consumed_comes_again_first_and_in_order():
    stream = PromptStream(prompts(10), 0)
    groups = take(stream, 6)
    for group in (groups[4], groups[1]):
        stream.mark_consumed(group)
    resumed = take(reloaded(stream, 10), 8)
    assert resumed[:4] == [groups[0], groups[2], groups[3], groups[5]]
    assert resumed == [group for group in take(PromptStream(prompts(10), 0), 10) if group not in (groups[4], groups[1])]


def test_an_epoch_closes_when_all_of_it_is_consumed():
    stream = PromptStream(prompts(3), 0)
    groups = take(stream, 5)
    stream.mark_consumed(groups[4])
    for group in groups[:3]:
        stream.mark_consumed(group)
    assert stream.state()["epoch"] == 1
    assert stream.state()["consumed"] == {"1": [groups[4].partition("@")[0]]}


def test_a_group_that_the_caller_restored_is_not_given_again():
    expected = take(PromptStream(prompts(4), 0), 8)
    stream = PromptStream(prompts(4), 0)
    for group in (expected[1], expected[5]):
        stream.mark_consumed(group)
    assert take(stream, 6) == [group for group in expected if group not in (expected[1], expected[5])]


def test_an_epoch_closed_ahead_of_the_cursor_is_left():
    expected = take(PromptStream(prompts(3), 0), 6)
    stream = PromptStream(prompts(3), 0)
    for group in expected[:3]:
        stream.mark_consumed(group)
    assert take(stream, 3) == expected[3:]


@pytest.mark.parametrize("group", ["nobody@0", "p0", "p0@", "p0@x", "p0@-1"])
def test_an_unknown_group_is_refused(group):
    with pytest.raises(ValueError, match="not of this stream"):
        PromptStream(prompts(3), 0).mark_consumed(group)


def test_nothing_counts_twice():
    stream = PromptStream(prompts(2), 0)
    first, second = take(stream, 2)
    stream.mark_consumed(first)
    with pytest.raises(ValueError, match="twice"):
        stream.mark_consumed(first)
    stream.mark_consumed(second)  # closes the epoch
    with pytest.raises(ValueError, match="twice"):
        stream.mark_consumed(first)


def test_uids_may_hold_the_separator():
    stream = PromptStream(prompts(2, prefix="a@b"), 0)
    for group in take(stream, 2):
        stream.mark_consumed(group)
    assert stream.state()["epoch"] == 1


@pytest.mark.parametrize(
    ("count", "seed", "message"), [(4, 0, "problems are not those of the checkpoint"), (3, 1, r"run\.seed is 1")]
)
def test_a_state_of_other_prompts_or_another_seed_is_refused(count, seed, message):
    state = PromptStream(prompts(3), 0).state()
    with pytest.raises(DataError, match=message):
        PromptStream(prompts(count), seed, state)


def test_no_prompts_and_equal_ids_are_refused():
    with pytest.raises(DataError, match="no prompt"):
        PromptStream([], 0)
    with pytest.raises(DataError, match="same id"):
        PromptStream(prompts(2) + prompts(1), 0)


@settings(suppress_health_check=[HealthCheck.large_base_example, HealthCheck.too_slow], max_examples=60)
@given(st.data())
def test_any_kills_and_resumes_consume_what_an_uninterrupted_run_does(data):
    """Checkpoints may be older than the kill: what was consumed after the checkpoint is undone, as the weights are."""
    count, seed, epochs = data.draw(st.integers(1, 7)), data.draw(st.integers(0, 3)), 3
    stream, in_flight, consumed = PromptStream(prompts(count), seed), [], []
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
            stream, in_flight, consumed = PromptStream(prompts(count), seed, saved[0]), [], list(saved[1])
    assert max(Counter(consumed).values()) == 1
    whole = {group_id(prompt.uid, epoch) for prompt in prompts(count) for epoch in range(epochs)}
    assert whole <= set(consumed)


def test_other_texts_under_the_same_ids_are_refused():
    """A dataset of the hub that was changed, and whose rows have no ids of their own."""
    state = json.loads(json.dumps(PromptStream(prompts(3), 0).state()))
    changed = [*prompts(2), dataclasses.replace(prompts(3)[2], reference="2")]
    with pytest.raises(
        DataError, match=r"^data\.train: the problems have the ids of the checkpoint's, but other texts or answers"
    ):
        PromptStream(changed, 0, state)
    del state["texts"]  # as earlier versions left it
    assert PromptStream(changed, 0, state).state()["epoch"] == 0
