"""The entropy columns as tensors, and what decodes them; vLLM's samplers are met in test_entropy_sampler."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fr3e_async.errors import UserError
from fr3e_async.rollout import entropy_columns
from fr3e_async.rollout.entropy_columns import BOTH, NO_RANK, ONE, RawLogits, logprob_and_entropy


def answer(*values: float, ranks: int = NO_RANK) -> SimpleNamespace:
    """What the engine returns for a completion, as far as it is read."""
    return SimpleNamespace(logprobs=list(values), ranks=[ranks] * len(values))


def test_columns_of_one_distribution():
    logits, tokens = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 0.0]]), torch.tensor([2, 0])
    ids, values, ranks = entropy_columns.columns(logits, None, tokens)
    assert ids.tolist() == [[2, 0], [0, 1]]  # the second id wraps round, so that it stays in the vocabulary
    assert ids.dtype == torch.int32
    assert torch.equal(values, torch.stack(logprob_and_entropy(logits, tokens), dim=1))
    assert ranks.tolist() == [NO_RANK, NO_RANK]
    assert ranks.dtype == torch.int64


def test_columns_of_both_distributions():
    raw, tokens = torch.randn(5, 9), torch.arange(5)
    ids, values, ranks = entropy_columns.columns(raw / 0.5, raw, tokens)
    assert ids.shape == values.shape == (5, BOTH)
    assert [len(set(row)) for row in ids.tolist()] == [BOTH] * 5
    assert torch.equal(values[:, :2], torch.stack(logprob_and_entropy(raw / 0.5, tokens), dim=1))
    assert torch.equal(values[:, 2:], torch.stack(logprob_and_entropy(raw, tokens), dim=1))
    assert ranks.shape == (5,)


def test_decode_splits_the_columns():
    logprobs, entropies = entropy_columns.decode(answer(-1.0, 0.5, -2.0, 0.25), length=2, width=ONE, vocabulary=8)
    assert logprobs.tolist() == [-1.0, -2.0]
    assert entropies.tolist() == [0.5, 0.25]
    assert logprobs.dtype == np.float32
    assert logprobs.base is None  # owns its memory: travels without the other columns
    four = entropy_columns.decode(answer(-1.0, 0.5, -2.0, 0.25), length=1, width=BOTH, vocabulary=8)
    assert [column.tolist() for column in four] == [[-1.0], [0.5], [-2.0], [0.25]]


def test_decode_of_nothing_sampled():
    logprobs, entropies = entropy_columns.decode(answer(), length=0, width=ONE, vocabulary=8)
    assert len(logprobs) == len(entropies) == 0


def test_decode_refuses_other_widths():
    with pytest.raises(RuntimeError, match="3 log-prob columns for 2 tokens, expected 4"):
        entropy_columns.decode(answer(-1.0, 0.5, -2.0), length=2, width=ONE, vocabulary=8)


def test_decode_refuses_what_vllm_made_itself():
    """The ranks give it away: the values alone might pass for columns."""
    with pytest.raises(RuntimeError, match="not at work"):
        entropy_columns.decode(answer(-1.0, 0.5, ranks=1), length=1, width=ONE, vocabulary=8)


@pytest.mark.parametrize("values", [(0.5, 1.0), (-1.0, -0.5), (-1.0, 3.0), (-1.0, float("nan")), (float("nan"), 1.0)])
def test_decode_refuses_impossible_values(values):
    with pytest.raises(RuntimeError, match="no log-prob or no entropy of 8 tokens"):
        entropy_columns.decode(answer(*values), length=1, width=ONE, vocabulary=8)


def test_raw_logits_outlive_what_the_sampler_does_to_them():
    raw, logits = RawLogits(), torch.randn(4, 6)
    before = logits.clone()
    raw.copy(logits)
    logits.div_(0.5)
    assert torch.equal(raw.take(), before)
    with pytest.raises(RuntimeError, match="did not pass its logits by"):
        raw.take()


def test_the_buffer_of_raw_logits_fits_every_step():
    raw = RawLogits()
    for rows, dtype in [(4, torch.float32), (2, torch.float32), (9, torch.float32), (3, torch.float64)]:
        logits = torch.randn(6, rows, dtype=dtype).T  # not contiguous
        raw.copy(logits)
        taken = raw.take()
        assert torch.equal(taken, logits)
        assert taken.dtype == dtype


def test_an_unknown_signature_is_refused():
    def gather(logprobs, num_logprobs, token_ids, extra):
        return extra

    with pytest.raises(UserError, match="takes logprobs, num_logprobs, token_ids, extra; the entropy columns are written for"):
        entropy_columns.check_signature("Sampler.gather_logprobs", gather, entropy_columns.GATHER_LOGPROBS)
