"""The columns inside of vLLM's own samplers, without an engine; fails if what they replace has moved.

vLLM is imported, so these tests count as engine tests; both samplers run on plain CPU tensors.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fr3e_async.errors import UserError
from fr3e_async.rollout import EngineSpec, entropy_columns
from fr3e_async.rollout.entropy import LearnerProvider, TopKProvider, provider_of
from fr3e_async.rollout.entropy_columns import BOTH, LOGPROBS_MODE, ONE, logprob_and_entropy

pytestmark = pytest.mark.engine


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """vLLM's two sampler modules, as they were again afterwards."""
    from vllm.v1.sample import sampler as first
    from vllm.v1.worker.gpu.sample import sampler as second

    monkeypatch.setattr(first.Sampler, "forward", first.Sampler.forward)
    monkeypatch.setattr(first.Sampler, "gather_logprobs", staticmethod(first.Sampler.gather_logprobs))
    monkeypatch.setattr(second.Sampler, "sample", second.Sampler.sample)
    monkeypatch.setattr(second, "compute_topk_scores", second.compute_topk_scores)
    return first, second


def metadata(*, temperatures: list[float], top_k: list[int] | None, num_logprobs: int) -> Any:
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata

    greedy = [t == 0 for t in temperatures]
    none = torch.empty(0)
    return SamplingMetadata(
        temperature=None if all(greedy) else torch.tensor(temperatures), all_greedy=all(greedy), all_random=not any(greedy),
        top_p=None, top_k=None if top_k is None else torch.tensor(top_k), generators={}, max_num_logprobs=num_logprobs,
        no_penalties=True, prompt_token_ids=None, frequency_penalties=none, presence_penalties=none, repetition_penalties=none,
        output_token_ids=[[] for _ in temperatures], allowed_token_ids_mask=None, bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )  # fmt: skip


def sampled_logits(raw: torch.Tensor, temperatures: list[float], top_k: list[int] | None) -> torch.Tensor:
    logits = raw.float() / torch.tensor([t or 1.0 for t in temperatures])[:, None]
    for row, k in enumerate(top_k or []):
        logits[row, logits[row] < logits[row].topk(k).values[-1]] = -torch.inf
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("temperatures", "top_k", "width"),
    [
        ([1.0, 1.0, 1.0], None, ONE),
        ([0.0, 0.0], None, ONE),
        ([1.0, 0.0, 1.0], None, ONE),
        ([0.5, 1.0, 0.0, 1.5], None, BOTH),
        ([0.5, 1.0, 1.0], [4, 30, 2], BOTH),
    ],
)
def test_the_first_runners_sampler_gives_the_columns(untouched, dtype, temperatures, top_k, width):
    entropy_columns.install(second_runner=False)
    entropy_columns.install(second_runner=False)  # twice is harmless
    raw = (torch.randn(len(temperatures), 30) * 3).to(dtype)
    sampler = untouched[0].Sampler(logprobs_mode=LOGPROBS_MODE)
    out = sampler.forward(raw.clone(), metadata(temperatures=temperatures, top_k=top_k, num_logprobs=width - 1))
    tokens = out.sampled_token_ids.view(-1)
    expected = logprob_and_entropy(sampled_logits(raw, temperatures, top_k), tokens)
    if width == BOTH:
        expected += logprob_and_entropy(raw, tokens)
    assert torch.allclose(out.logprobs_tensors.logprobs, torch.stack(expected, dim=1), atol=1e-5)


def test_other_requests_get_what_vllm_gives(untouched):
    raw, asked = torch.randn(3, 30), metadata(temperatures=[1.0] * 3, top_k=None, num_logprobs=2)
    entropy_columns.install(second_runner=False)
    out = untouched[0].Sampler(logprobs_mode="processed_logprobs").forward(raw.clone(), asked).logprobs_tensors
    assert torch.allclose(out.logprobs[:, 1:], raw.log_softmax(-1).topk(2).values, atol=1e-5)
    assert (out.selected_token_ranks >= 1).all()


@pytest.mark.parametrize("width", [ONE, BOTH])
@pytest.mark.parametrize("mode", [LOGPROBS_MODE, "processed_logprobs", "raw_logprobs"])
def test_an_answer_of_the_untouched_sampler_is_refused(untouched, width, mode):
    """As if the patch were missing: nothing that vLLM returns by itself passes for columns."""
    from vllm.logprobs import FlatLogprobs

    assert not hasattr(untouched[0].Sampler.forward, entropy_columns.MARK)
    sampler, flat, steps = untouched[0].Sampler(logprobs_mode=mode), FlatLogprobs(), 5
    for _ in range(steps):
        asked = metadata(temperatures=[1.0], top_k=None, num_logprobs=width - 1)
        ids, values, rank, *_ = sampler.forward(torch.randn(1, 30), asked).logprobs_tensors
        ranks = iter([int(rank), *range(1, width)])
        flat.append_fast(ids[0].tolist(), values[0].tolist(), ranks, [None] * width)
    with pytest.raises(RuntimeError, match="not at work in its sampler"):
        entropy_columns.decode(flat, length=steps, width=width, vocabulary=30)


def sample_of_a_stub(
    self, logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, pos, input_ids, expanded_local_pos,
    seq_lens_upper_bound_np, return_logprobs=False,
):  # fmt: skip
    """Stands in for the second runner's sampler, whose kernels need a GPU: half the temperature, and the likeliest token."""
    return logits.argmax(-1), logits.float() / 0.5


@pytest.mark.parametrize("width", [ONE, BOTH])
@pytest.mark.parametrize("boundaries", [None, [0, 1, 2], torch.tensor([0, 1, 2])])
def test_columns_of_the_second_model_runner(untouched, monkeypatch, width, boundaries):
    """Model runner V2 serves on GPUs; what is put in its place is plain torch and can be called anywhere."""
    second = untouched[1]
    monkeypatch.setattr(second.Sampler, "sample", sample_of_a_stub)
    entropy_columns.install(second_runner=True)
    entropy_columns.install(second_runner=True)
    assert hasattr(second.Sampler.sample, entropy_columns.MARK)
    assert not hasattr(untouched[0].Sampler.forward, entropy_columns.MARK)
    raw = torch.randn(2, 30).bfloat16()
    tokens, processed = second.Sampler.sample(None, raw, *[None] * 7, return_logprobs=True)
    out = second.compute_topk_scores(processed, width - 1, tokens, boundaries, logits_mode=True)
    expected = logprob_and_entropy(raw.float() / 0.5, tokens)
    if width == BOTH:
        expected += logprob_and_entropy(raw, tokens)
    assert torch.allclose(out.logprobs, torch.stack(expected, dim=1), atol=1e-5)
    given = out.cu_num_generated_tokens if not isinstance(boundaries, torch.Tensor) else out.cu_num_generated_tokens_tensor
    assert given is boundaries


def test_the_second_runner_hands_over_processed_logits(untouched):
    """What the columns rely on in code that runs on GPUs only: the mode is one of those that return what was sampled from."""
    import inspect

    from vllm.config.model import PROCESSED_LOGPROBS_MODES

    assert LOGPROBS_MODE in PROCESSED_LOGPROBS_MODES
    body = inspect.getsource(untouched[1].Sampler.__call__)
    assert "if self.logprobs_mode in PROCESSED_LOGPROBS_MODES:\n                logits = processed_logits" in body
    assert 'logits_mode=self.logprobs_mode in ("raw_logits", "processed_logits")' in body
    assert "torch.empty_like(logits, dtype=torch.float32).copy_(logits)" in inspect.getsource(
        untouched[1].Sampler.apply_sampling_params
    )


@pytest.mark.parametrize("moved", ["forward", "gather_logprobs"])
def test_moved_internals_are_refused_for_the_columns_only(untouched, monkeypatch, moved):
    monkeypatch.setattr(untouched[0].Sampler, moved, lambda self, something, new: None)
    spec = EngineSpec(model="m", end_token_ids=(2,), max_model_len=8)
    with pytest.raises(UserError, match=rf"Sampler\.{moved} takes self, something, new; .* engine.entropy=topk"):
        provider_of(spec).check()
    with pytest.raises(UserError, match=moved):
        entropy_columns.install(second_runner=False)
    for provider in (TopKProvider(5), LearnerProvider()):
        provider.check()
        assert provider.worker_setup == ""


def test_engines_without_columns_leave_the_sampler_alone():
    """The worker extension of the other providers, on a vLLM whose sampler is another: it imports and changes nothing."""
    script = """
import importlib, sys
from vllm.v1.sample import sampler
sampler.Sampler.forward = sampler.Sampler.gather_logprobs = moved = lambda self, something, new: None
sys.modules["vllm.v1.worker.gpu.sample.sampler"] = None  # gone
from fr3e_async.rollout.entropy import EXTENSION
module, _, name = EXTENSION.rpartition(".")
getattr(importlib.import_module(module), name)
print(sampler.Sampler.forward is moved and sampler.Sampler.gather_logprobs is moved)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("True\n"), done.stderr


@pytest.mark.parametrize(("width", "passes"), [(ONE, 1), (BOTH, 2)])
def test_a_second_pass_is_made_only_for_steps_that_ask_for_it(untouched, monkeypatch, width, passes):
    calls = []
    monkeypatch.setattr(entropy_columns, "logprob_and_entropy", lambda x, t: calls.append(1) or logprob_and_entropy(x, t))
    entropy_columns.install(second_runner=False)
    asked = metadata(temperatures=[1.0, 1.0], top_k=None, num_logprobs=width - 1)
    untouched[0].Sampler(logprobs_mode=LOGPROBS_MODE).forward(torch.randn(2, 30), asked)
    assert len(calls) == passes
