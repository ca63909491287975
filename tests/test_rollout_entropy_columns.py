"""The entropy columns as numbers, and what decodes them; the real sampler is tested in test_rollout_engine."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fr3e_async.errors import UserError
from fr3e_async.rollout import entropy_columns


def test_entropy_of_known_distributions():
    probabilities = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]])
    expected = [math.log(2), 0.0, math.log(4), -(0.7 * math.log(0.7) + 0.3 * math.log(0.1))]
    assert entropy_columns.entropy(probabilities.log()).tolist() == pytest.approx(expected, abs=1e-6)


def test_columns_carry_the_sampled_token_and_valid_ids():
    logprobs = torch.log_softmax(torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 0.0]]), dim=-1)
    ids, values, ranks = entropy_columns.columns(logprobs, torch.tensor([2, 0]))
    assert ids.tolist() == [[2, 0], [0, 1]]  # the second id wraps round, so that it stays in the vocabulary
    assert ids.dtype == torch.int32
    assert values[:, 0].tolist() == pytest.approx([logprobs[0, 2].item(), logprobs[1, 0].item()])
    assert values[:, 1].tolist() == pytest.approx(entropy_columns.entropy(logprobs).tolist())
    assert ranks.shape == (2,)


def test_decode_splits_the_columns():
    logprobs, entropies = entropy_columns.decode(SimpleNamespace(logprobs=[-1.0, 0.5, -2.0, 0.25]), 2)
    assert logprobs.tolist() == [-1.0, -2.0]
    assert entropies.tolist() == [0.5, 0.25]
    assert logprobs.dtype == np.float32
    assert logprobs.base is None  # owns its memory: travels without the other column


def test_decode_of_nothing_sampled():
    logprobs, entropies = entropy_columns.decode(SimpleNamespace(logprobs=[]), 0)
    assert len(logprobs) == len(entropies) == 0


def test_decode_refuses_other_widths():
    with pytest.raises(RuntimeError, match="3 log-prob columns for 2 tokens, expected 4"):
        entropy_columns.decode(SimpleNamespace(logprobs=[-1.0, 0.5, -2.0]), 2)


def test_an_unknown_signature_is_refused():
    def gather(logprobs, num_logprobs, token_ids, extra):
        return extra

    with pytest.raises(UserError, match="takes logprobs, num_logprobs, token_ids, extra; the entropy columns are written for"):
        entropy_columns._check_signature("Sampler.gather_logprobs", gather, entropy_columns.GATHER_LOGPROBS)
