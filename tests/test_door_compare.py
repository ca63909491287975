"""Numbers at the door: what tells an engine that serves the learner's policy from one that does not, on made-up distributions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learner_support import make_samples

from fr3e_async.control.door import Door
from fr3e_async.errors import cause_of, with_cause
from fr3e_async.files.process_logs import first_error
from fr3e_async.learner.dump import DumpedSample, likeliest
from fr3e_async.rollout.door import DRAWS, Difference, Questions, compare, make_questions, tokenizer_digest
from fr3e_async.types import Completion, Finish, RolloutBatch

V, BOUND = 12, 0.025
ROWS = tuple(np.arange(1, 1 + n, dtype=np.int32) for n in (1, 1, 7, 20))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def drawn(served: np.ndarray, *, version: int = 0, seed: int = 0, exact: bool = True) -> RolloutBatch:
    """What an engine answers whose distributions after the rows are ``served``, [n, V] log-probs."""
    rng, questions = np.random.default_rng(seed), Questions(rows=ROWS)
    completions = []
    for id in questions.ids:
        row = served[int(id.group.removeprefix("door/").split("@")[0])].astype(np.float64)
        token = rng.choice(V, p=np.exp(row) / np.exp(row).sum())
        completions.append(
            Completion(
                tokens=np.asarray([token], dtype=np.int32), logprobs=row[[token]].astype(np.float32),
                entropies=np.asarray([-(np.exp(row) * row).sum() if exact else 9.0], dtype=np.float32),
                entropy_errors=np.asarray([0.0 if exact else 9.0], dtype=np.float32),
                versions=np.asarray([version], dtype=np.int32), finish=Finish.LENGTH,
            )
        )  # fmt: skip
    contexts = [prompt.token_ids for prompt in questions.prompts]
    return RolloutBatch.build(
        ids=questions.ids, contexts=contexts, prompt_lens=list(map(len, contexts)), context_of=range(len(contexts)),
        completions=completions,
    )  # fmt: skip


def found(served: np.ndarray, learner: np.ndarray, *, bound: float = BOUND, exact: bool = True) -> Difference:
    return compare(drawn(served, exact=exact), {0: learner}, Questions(rows=ROWS), bound=bound)


LEARNER = log_softmax(np.random.default_rng(1).normal(size=(len(ROWS), V)) * 2)


def test_the_same_policy_differs_by_rounding_only() -> None:
    its = found(LEARNER, LEARNER)
    assert (its.draws, its.cause) == (len(ROWS) * DRAWS, "")
    assert max(its.mean, its.largest, its.entropy) < 1e-6


def test_a_difference_is_the_mean_over_tokens_worked_out_by_hand() -> None:
    """Two equally likely tokens against 1 : 3: the log-probs differ by ln 2 or ln 3/2, the entropies by 0.1308 nats."""
    even, odd = np.full((4, V), -50.0), np.full((4, V), -50.0)
    even[:, :2], odd[:, :2] = math.log(0.5), (math.log(0.25), math.log(0.75))
    its, ones = found(even, odd), sum(drawn(even).tokens)
    assert its.mean == pytest.approx((ones * math.log(1.5) + (16 - ones) * math.log(2)) / 16, abs=1e-6)
    assert its.entropy == pytest.approx(0.130812, abs=1e-5)
    assert its.cause


@pytest.mark.parametrize(
    ("served", "cause"),
    [
        (lambda: log_softmax(LEARNER / 0.8), "a temperature: it seems to sample at 0.80 times"),
        (lambda: log_softmax(LEARNER / 1.5), "a temperature: it seems to sample at 1.50 times"),
        (lambda: np.concatenate([LEARNER[:2], LEARNER[[3, 2]]]), "positions: after a single token they agree"),
        (lambda: LEARNER[:, ::-1], "weights, the output head or the order of the vocabulary"),
        (lambda: np.full_like(LEARNER, np.nan) + LEARNER * 0, "weights"),
    ],
)  # fmt: skip
def test_the_likeliest_cause(served: Callable[[], np.ndarray], cause: str) -> None:
    batch = drawn(np.nan_to_num(served(), nan=-math.log(V)))
    if np.isnan(served()).any():
        batch = dataclasses.replace(batch, logprobs=np.full_like(batch.logprobs, np.nan))
    its = compare(batch, {0: LEARNER}, Questions(rows=ROWS), bound=BOUND)
    assert its.cause.startswith(cause)


def test_entropies_that_are_not_exact_are_not_compared() -> None:
    assert found(LEARNER, LEARNER, exact=False).cause == ""


def test_a_token_that_the_learner_does_not_have() -> None:
    assert "the learner's vocabulary has 3" in found(LEARNER[:, ::-1], LEARNER[:, :3]).cause


def test_each_draw_is_held_against_the_version_that_made_it() -> None:
    """An update may come in between; one whose numbers are not known any more says nothing."""
    other = LEARNER[::-1]
    batch = drawn(other, version=7)
    assert compare(batch, {6: LEARNER, 7: other}, Questions(rows=ROWS), bound=BOUND).cause == ""
    assert compare(batch, {6: other, 7: LEARNER}, Questions(rows=ROWS), bound=BOUND).cause
    assert compare(batch, {6: LEARNER}, Questions(rows=ROWS), bound=BOUND).draws == 0


@given(st.floats(0.3, 3.0))
def test_another_temperature_is_beyond_the_bound_or_nearly_the_same(scale: float) -> None:
    its = found(log_softmax(LEARNER / scale), LEARNER)
    assert its.cause or abs(scale - 1) < 0.05


# ---- the questions ----


class Words:
    """A tokenizer of whole words."""

    def __init__(self, words: list[str], special: tuple[str, ...] = ("<pad>",)) -> None:
        self._ids = {word: i for i, word in enumerate(words)}
        self.all_special_ids = [self._ids[word] for word in special]

    def get_vocab(self) -> dict[str, int]:
        return self._ids

    def get_added_vocab(self) -> dict[str, int]:
        return {"<image>": self._ids["<image>"]}

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, 1) for word in text.split()]


WORDS = ["<pad>", "In", "<image>", *"abcdefgh"]


def test_questions_are_ordinary_tokens_and_always_the_same() -> None:
    left, right = (make_questions(Words(WORDS), room=160) for _ in range(2))
    assert [row.tolist() for row in left.rows] == [row.tolist() for row in right.rows]
    assert {len(row) for row in left.rows} == {1, 7, 20, 48}
    assert not {0, 2} & {int(token) for row in left.rows for token in row}
    assert {len(row) for row in make_questions(Words(WORDS), room=9).rows} == {1, 7, 9}
    assert len(set(left.ids)) == len(left.prompts) == len(left.rows) * DRAWS


def test_tokenizers_are_told_apart() -> None:
    digests = [
        tokenizer_digest(Words(WORDS)),
        tokenizer_digest(Words([*WORDS[:3], *"bacdefgh"])),  # two ids exchanged
        tokenizer_digest(Words(WORDS, special=("<pad>", "a"))),
        tokenizer_digest(Words([*WORDS, "so"])),
    ]
    assert len(set(digests)) == 4
    assert digests[0] == tokenizer_digest(Words(WORDS))


# ---- causes ----


def measured(shift: Callable[[int, int], float]) -> list[DumpedSample]:
    """Rollouts whose proximal log-probs are off by ``shift(sample, token)``."""
    return [
        DumpedSample(
            sample=dataclasses.replace(sample, versions=np.zeros_like(sample.versions)),
            prox=sample.behaviour_logprobs + np.asarray([shift(i, t) for t in range(len(sample.versions))], dtype=np.float32),
            reference=np.full(len(sample.versions), np.nan, np.float32),
            imitation=0 * sample.advantages,
        )
        for i, sample in enumerate(make_samples(3))
    ]


@pytest.mark.parametrize(
    ("shift", "cause"),
    [
        (lambda i, t: 1.0, "what all engines share"),
        (lambda i, t: float(i < 3), "one engine with other weights: 3 of 11 rollouts"),
        (lambda i, t: 0.2 * t, "positions (rope settings"),
    ],
)
def test_the_likeliest_cause_in_a_batch(shift: Callable[[int, int], float], cause: str) -> None:
    assert likeliest(measured(shift), version=0, bound=0.1).startswith(cause)


def test_a_cause_is_compared_without_its_numbers_and_named_once() -> None:
    left, right = (with_cause(f"generator-{n}: died", f"ValueError: head size {n} at 0xab{n}") for n in (1, 2))
    assert left == "generator-1: died; the likeliest cause: ValueError: head size 1 at 0xab1"
    assert cause_of(left) == cause_of(right) == "ValueError: head size # at #"
    assert with_cause(left, "another") == left
    assert cause_of(with_cause("generator-1: died", "")) == ""


def test_the_first_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "generator-0.log"
    log.write_text("ValueError: of a session before\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("(EngineCore pid=7) ERROR [core.py:1] EngineCore failed\n(EngineCore pid=7) ERROR   raise X('Error: no')\n")
        file.write("(EngineCore pid=7) ERROR [core.py:2] torch.OutOfMemoryError: 3 GiB\nRuntimeError: its consequence\n")
    assert first_error(log, start=start) == "torch.OutOfMemoryError: 3 GiB"
    assert first_error(log) == "ValueError: of a session before"
    assert first_error(tmp_path / "none.log") == ""


def test_an_error_without_a_text_is_named_with_its_place_and_one_that_points_back_is_not_the_cause(tmp_path: Path) -> None:
    """The log of vLLM's engine on DeepSeek-V2: an assertion in the core, then what its parent says of it."""
    log, core = tmp_path / "generator-0.log", "(EngineCore pid=7) ERROR 12-01 02:11:45 [core.py:1512]"
    dead = (
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause."
    )
    traceback = (
        f'{core}   File "/x/router.py", line 21, in _select', f"{core}     raise ValueError", f'{core}   File "/x/cpu_router.py", line 212, in go',
        f"{core}     assert self.topk_group is not None", f"{core}            ^^^^^^", f"{core} AssertionError",
    )  # fmt: skip
    log.write_text("\n".join([dead, *traceback, dead]))
    assert first_error(log) == "AssertionError at cpu_router.py:212: assert self.topk_group is not None"
    log.write_text(f"{dead}\nRuntimeError: Engine core initialization failed. See root cause above.\n")
    assert first_error(log) == dead
    log.write_text("ValueError: " + "long " * 100)
    assert len(first_error(log)) <= 300


def test_an_engine_that_could_not_be_compared_is_not_called_so_and_is_asked_again() -> None:
    """Its tokens are of a version whose numbers the learner's side has dropped."""
    lines: list[tuple[str, str]] = []
    unused: Any = None
    door = Door(
        Questions(rows=ROWS), learner=unused, payloads=unused, temperature=1.0, bound=BOUND, limit_s=5.0,
        record=lambda text, kind, **fields: lines.append((kind, text)),
    )  # fmt: skip
    door.distributions = {6: LEARNER}
    door.asked["generator-0"] = 1
    assert door.judge("generator-0", drawn(LEARNER, version=7), counts=True, other_tokenizer=False) == ""
    ((kind, text),) = lines
    assert kind == "note"
    assert "generator-0 at v7 was not compared" in text
    assert door.fresh("generator-0")
    assert door.judge("generator-0", drawn(LEARNER, version=6), counts=True, other_tokenizer=False) == ""
    assert lines[-1][0] == "engine_compared"
