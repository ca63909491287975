r"""What is judged is what was sampled: special tokens are seen, ids without a text make a response unreadable, thoughts stay closed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_support import FAMILIES, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fr3e_async.actors.verifier import Problem, VerifierActor
from fr3e_async.algorithm.answer_span import THINK, Thoughts, answer_end, thoughts_by
from fr3e_async.config import DataConfig, VerifierPoolConfig
from fr3e_async.data.prompts import encode_prompt
from fr3e_async.data.tokenizer import speller
from fr3e_async.errors import ConfigError
from fr3e_async.outcomes import Outcome
from fr3e_async.rollout.rollout_worker import TokenTexts
from fr3e_async.types import Answer, Completion, Finish, RolloutBatch, RolloutId, Verdict
from fr3e_async.verify import rewards
from fr3e_async.verify.pool import VerifierPool
from fr3e_async.verify.responses import SPOILED, UNREADABLE, Reader, Response

TOKENIZER = make_tokenizer(eos="<|end|>", special=("<|pad|>", "<|user|>"), plain=("<turn>",))
END = int(TOKENIZER.eos_token_id)
ENDS = (END, int(TOKENIZER.convert_tokens_to_ids("<turn>")))
SIZE = len(TOKENIZER)
CHANNELS = Thoughts("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")


def ids_of(text: str, tokenizer: Any = TOKENIZER) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def sampled(ids: Sequence[int], *, prompt: Sequence[int] = (65,), prefix: Sequence[int] = ()) -> RolloutBatch:
    """One row: a response to a prompt, of which the prefix was sampled by another rollout."""
    floats = np.zeros(len(ids), dtype=np.float32)
    completion = Completion(
        tokens=np.asarray(ids, dtype=np.int32), logprobs=floats, entropies=floats, entropy_errors=floats,
        versions=np.zeros(len(ids), dtype=np.int32), finish=Finish.STOP if ids and ids[-1] in ENDS else Finish.LENGTH,
    )  # fmt: skip
    return RolloutBatch.build(
        ids=[RolloutId("g@0", 0, 0)], contexts=[np.asarray([*prompt, *prefix], dtype=np.int32)], prompt_lens=[len(prompt)],
        context_of=[0], completions=[completion],
    )  # fmt: skip


def read(ids: Sequence[int], *, tokenizer: Any = TOKENIZER, thoughts: Thoughts = THINK, **batch: Any) -> Response:
    return Reader(tokenizer, ends=ENDS, thoughts=thoughts).read(sampled(ids, **batch), 0)


def actor(reward: str = "math") -> VerifierActor:
    """Without Ray around it."""
    made = VerifierActor.__new__(VerifierActor)
    made.config, made.scored = VerifierPoolConfig(workers=1), 0
    made.reader, made.pool = Reader(TOKENIZER, ends=ENDS, thoughts=THINK), VerifierPool(made.config, reward)
    return made


def judged(ids: Sequence[int], gold: str, reward: str = "math") -> Verdict:
    made = actor(reward)
    try:
        (verdict,) = asyncio.run(made.judge(sampled(ids), [0], [Problem(gold)]))
        return verdict
    finally:
        asyncio.run(made.close())


# --- the text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "exact", "shown"),
    [
        ([*ids_of("so 4"), END], "so 4", "so 4"),
        (ids_of("so 4"), "so 4", "so 4"),
        ([*ids_of("so 4"), ENDS[1]], "so 4", "so 4"),
        ([*ids_of("so 4"), END, END], "so 4<|end|>", "so 4"),
        (ids_of("1<|pad|>2<|user|>3<|end|>"), "1<|pad|>2<|user|>3", "123"),
        ([END], "", ""),
        ([], "", ""),
    ],
)
def test_the_text_is_that_of_the_sampled_ids_less_the_end_token(ids: list[int], exact: str, shown: str) -> None:
    response = read(ids)
    assert (response.exact, response.shown, response.fault) == (exact, shown, "")


def test_a_prefix_is_part_of_the_response_and_the_prompt_is_not() -> None:
    assert read(ids_of("}<|end|>"), prompt=ids_of("2+3=?"), prefix=ids_of("so \\boxed{5")).exact == "so \\boxed{5}"


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, SIZE - 1), max_size=40), prefix=st.lists(st.integers(0, SIZE - 1), max_size=10))
def test_any_sampled_ids_are_judged_by_their_own_decoding(ids: list[int], prefix: list[int]) -> None:
    """Each token by itself: its bytes, or the text of an added token. Only an end token at the very end is taken off."""
    response = read(ids, prefix=prefix)
    whole = [*prefix, *ids]
    whole = whole[:-1] if whole and whole[-1] in ENDS else whole
    assert response.exact == TOKENIZER.backend_tokenizer.decode(whole, skip_special_tokens=False)
    special = [token for token in whole if token in TOKENIZER.all_special_ids]
    assert set(response.special) == set(TOKENIZER.convert_ids_to_tokens(special))
    assert response.shown == TOKENIZER.backend_tokenizer.decode(whole, skip_special_tokens=True)


def test_spaces_are_not_tidied_up_where_a_tokenizer_would() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, ".": 2, "5": 3}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", clean_up_tokenization_spaces=True)
    assert tokenizer.decode([1, 2, 3]) == "a. 5"
    assert read([1, 2, 3], tokenizer=tokenizer, prompt=[1]).exact == "a . 5"


def test_an_id_in_a_hole_of_the_vocabulary_is_unreadable() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 5}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert [read([id], tokenizer=tokenizer, prompt=[1]).fault for id in range(8)] == [
        "",
        "",
        *[UNREADABLE] * 3,
        "",
        *[UNREADABLE] * 2,
    ]


def test_a_token_without_a_role_that_the_vocabulary_calls_special_is_one() -> None:
    """As Llama 3's <|reserved_special_token_0|>: a decoder leaves it out, though no list of special tokens has it."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.add_special_tokens(["<|reserved|>"])
    response = read(ids_of("\\boxed{1<|reserved|>2}", tokenizer), tokenizer=tokenizer)
    assert (response.exact, response.shown, response.answer) == ("\\boxed{1<|reserved|>2}", "\\boxed{12}", None)
    assert response.special == ("<|reserved|>",)
    assert TokenTexts(tokenizer).special(np.asarray([65, len(tokenizer) - 1])).tolist() == [False, True]


def test_people_see_an_id_that_has_no_text() -> None:
    assert speller(TOKENIZER)(np.asarray([*ids_of("a<|pad|>"), SIZE, *ids_of("b")])) == ["a", "<|pad|>", f"<id {SIZE}>", "b"]


# --- verdicts ----------------------------------------------------------------------------------------------------------

BOX = ids_of("\\boxed{")


@pytest.mark.parametrize(
    ("ids", "outcome", "reason"),
    [
        ([*BOX, *ids_of("12}"), END], Outcome.CORRECT, "integer"),
        (ids_of("\\boxed{1<|pad|>2}<|end|>"), Outcome.WRONG, SPOILED),
        (ids_of("\\boxed{12<|user|>}<|end|>"), Outcome.WRONG, SPOILED),
        (ids_of("<|pad|>\\boxed{12}<|pad|><|end|>"), Outcome.CORRECT, "integer"),
        ([*ids_of("\\boxed{1"), SIZE, *ids_of("2}"), END], Outcome.WRONG, UNREADABLE),
        ([SIZE + 5, *ids_of("\\boxed{12}"), END], Outcome.WRONG, UNREADABLE),
        (ids_of("\\boxed{1<|end|>2}<|end|>"), Outcome.WRONG, SPOILED),
        (ids_of("\\boxed{1"), Outcome.WRONG, "no answer"),
    ],
)
def test_what_is_invisible_is_not_overlooked(ids: list[int], outcome: Outcome, reason: str) -> None:
    verdict = judged(ids, "12")
    assert (verdict.outcome, verdict.reason, verdict.reward) == (outcome, reason, float(outcome is Outcome.CORRECT))


def test_an_unreadable_response_has_no_vote_and_no_margin() -> None:
    made = actor()
    assert asyncio.run(made.answers(sampled(ids_of("\\boxed{12}")), [0])) == [Answer("12", None)]
    for ids in (ids_of("\\boxed{1<|pad|>2}"), [*ids_of("\\boxed{12}"), SIZE]):
        assert asyncio.run(made.answers(sampled(ids), [0])) == [Answer(None, None)]
        (verdict,) = asyncio.run(made.judge(sampled(ids), [0], [Problem("12.5", margins=[Fraction(1)])]))
        assert verdict.outcome is Outcome.WRONG
    asyncio.run(made.close())


# --- thoughts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "response", "thoughts", "answer"),
    [
        ("2+3=?", "\\boxed{5}", THINK, "5"),
        ("2+3=?<think>\n", "\\boxed{5}", THINK, None),  # cut off while it thought
        ("2+3=?<think>\n", "no, \\boxed{4}</think>\\boxed{5}", THINK, "5"),
        ("2+3=?<think>\n", "\\boxed{5}</think>so", THINK, None),
        ("2+3=?<think>\n\n</think>\n\n", "\\boxed{5}", THINK, "5"),
        ("write <think> first", "\\boxed{5}", THINK, "5"),
        ("2+3=?<think>\n", "\\boxed{4}</think>\\boxed{5}<think>\\boxed{6}", THINK, "5"),
        ("2+3=?", "[THINK]\\boxed{4}", THINK, "4"),
        ("2+3=?", "[THINK]\\boxed{4}", Thoughts("[THINK]", "[/THINK]"), None),
        ("2+3=?[THINK]", "\\boxed{4}[/THINK]\\boxed{5}", Thoughts("[THINK]", "[/THINK]"), "5"),
        ("<|start|>assistant", "<|channel|>analysis<|message|>\\boxed{4}", CHANNELS, None),
        (
            "<|start|>assistant",
            "<|channel|>analysis<|message|>\\boxed{4}<|end|><|start|>assistant<|channel|>final<|message|>\\boxed{5}",
            CHANNELS,
            "5",
        ),
        ("2+3=?<think>\n", "\\boxed{5}", thoughts_by([]), "5"),
    ],
)
def test_nothing_in_a_thought_is_an_answer(prompt: str, response: str, thoughts: Thoughts, answer: str | None) -> None:
    assert read(ids_of(response), prompt=ids_of(prompt), thoughts=thoughts).answer == answer


@pytest.mark.parametrize("name", FAMILIES)
def test_a_thought_that_a_familys_prompt_opens_is_open(name: str) -> None:
    tokenizer = FAMILIES[name].tokenizer()
    prompt = encode_prompt("2+3=?", tokenizer, DataConfig()).tolist()
    opened = name in ("qwen3-thinking", "deepseek-r1-distill")
    assert read(ids_of("\\boxed{5}", tokenizer), tokenizer=tokenizer, prompt=prompt).answer == (None if opened else "5")
    assert read(ids_of("</think>\\boxed{5}", tokenizer), tokenizer=tokenizer, prompt=prompt).answer == "5"


def test_anchors_stand_up_to_the_answer_that_is_judged() -> None:
    texts, prompt = TokenTexts(TOKENIZER, ends=ENDS), np.asarray(ids_of("2+3=?<think>\n"), dtype=np.int32)
    pieces = [*"ab", "\\boxed{4}", "</think>", "so ", "\\boxed{5}", "!"]
    assert texts.answer_end(prompt, pieces) == 6
    assert texts.answer_end(prompt, pieces[:3]) is None
    assert texts.answer_end(prompt[:5], pieces[:3]) == answer_end(pieces[:3]) == 3
    assert texts.special(np.asarray([65, *ENDS])).tolist() == [False, True, True]


def test_marks_of_thoughts_are_two_texts_or_none() -> None:
    assert thoughts_by(DataConfig().thoughts) == THINK
    for wrong in (["<think>"], ["<think>", ""], ["a", "b", "c"]):
        with pytest.raises(ConfigError, match=r"data\.thoughts must be two texts"):
            DataConfig(thoughts=wrong)


# --- a user's reward ---------------------------------------------------------------------------------------------------

MODULE = """
def plain(response, gold, prompt):
    return response == gold

def both(response, gold, prompt, exact):
    return (response, exact) == ("12", gold)

def named(response, gold, prompt, *, exact=""):
    return exact == gold

def odd(response, gold, exact):
    return 1
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "exact_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "exact_rewards"


@pytest.mark.parametrize(("function", "gold"), [("plain", "12"), ("both", "1<|pad|>2"), ("named", "1<|pad|>2")])
def test_a_reward_gets_the_text_for_people_and_the_exact_one_if_it_asks(module: str, function: str, gold: str) -> None:
    rewards.check_reward(f"{module}:{function}")
    assert judged(ids_of("1<|pad|>2<|end|>"), gold, f"{module}:{function}").score == 1.0


def test_an_unreadable_response_is_wrong_whatever_a_reward_would_say(module: str) -> None:
    verdict = judged([*ids_of("12"), SIZE], "12", f"{module}:plain")
    assert (verdict.outcome, verdict.reason, verdict.reward) == (Outcome.WRONG, UNREADABLE, 0.0)


def test_a_reward_that_takes_the_exact_text_in_the_place_of_another_is_refused(module: str) -> None:
    with pytest.raises(ConfigError, match=r"odd must take \(response, gold, prompt\)"):
        rewards.check_reward(f"{module}:odd")


# --- stop texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "exact", "shown"),
    [
        ("so <|pad|>4</a>", "so <|pad|>4</a>", "so 4</a>"),
        ("so 4</a>b", "so 4</a>", "so 4</a>"),  # the token that completed it said more
        ("<|pad|>4</a>b<|end|>", "<|pad|>4</a>", "4</a>"),
        ("4</a", "4</a", "4</a"),
        ("4<turn>5", "4<turn>", "4<turn>"),  # added tokens are texts too
    ],
)
def test_a_stop_text_is_the_end_of_what_is_judged(text: str, exact: str, shown: str) -> None:
    response = Reader(TOKENIZER, ends=ENDS, thoughts=THINK, stops=("</a>", "<turn>")).read(sampled(ids_of(text)), 0)
    assert (response.exact, response.shown) == (exact, shown)


def test_length_and_finish_are_told() -> None:
    """Tokens with prefix and end token; "length" for one that ran into its budget."""
    whole, cut = read([*ids_of("so 4"), END], prefix=ids_of("2 ")), read(ids_of("so 4"))
    assert [(one.length, one.finish) for one in (whole, cut, read([SIZE + 5]))] == [(7, "stop"), (4, "length"), (1, "length")]
    question = whole.question("g", "p", (), {"level": 1})
    assert (question.length, question.finish, question.columns) == (7, "stop", {"level": 1})


def test_texts_that_are_kept_are_exact_and_long_ones_lose_their_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    made = actor()
    batch = sampled([*ids_of("so <|pad|>\\boxed{4}"), END])
    assert asyncio.run(made.answers(batch, [0], [0])) == [Answer("4", "so <|pad|>\\boxed{4}")]
    monkeypatch.setattr("fr3e_async.actors.verifier.MAX_TEXT_CHARS", 6)
    ((_, text),) = asyncio.run(made.answers(sampled(ids_of("abcdefgh")), [0], [0]))
    assert text == "abc\n[… 2 characters …]\nfgh"
    asyncio.run(made.close())
