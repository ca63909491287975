"""What each provider asks for and makes of the answer; then top-k bounds and the learner's share on real engines."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bundles import pack_tensors
from engine_world import END, TOLERANCE, VOCABULARY, World, build_model, expected, sampling_logprobs

from fr3e_async.config import EngineConfig
from fr3e_async.errors import ConfigError
from fr3e_async.rollout import EngineSpec, SampleRequest, engine_environment, start_engine
from fr3e_async.rollout.entropy import EXTENSION, ColumnsProvider, LearnerProvider, TopKProvider, one_distribution, provider_of
from fr3e_async.rollout.entropy_columns import NO_RANK


def request(**settings: Any) -> SampleRequest:
    return SampleRequest(request_id="r", context=np.array([3], dtype=np.int32), max_tokens=4, **settings)


def spec(model: str = "m", **engine: Any) -> EngineSpec:
    return EngineSpec(model=model, end_token_ids=(END,), max_model_len=160, engine=EngineConfig(**engine))


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.7}, False),
        ({"top_p": 0.9}, False),
        ({"top_k": 5}, False),
    ],
)
def test_one_distribution_is_told_by_the_request(settings, same):
    assert one_distribution(request(**settings)) is same
    assert ColumnsProvider().asks(request(**settings), vocabulary=100) == (1 if same else 3)


def test_columns_decode_to_exact_entropies():
    answer = SimpleNamespace(logprobs=[-1.0, 0.5, -2.0, 1.5], ranks=[NO_RANK] * 4)
    plain = ColumnsProvider().decode(answer, request=request(), length=2, vocabulary=8)
    assert (plain.logprobs.tolist(), plain.entropies.tolist()) == ([-1.0, -2.0], [0.5, 1.5])
    assert (plain.entropy_errors.tolist(), plain.raw_logprobs, plain.raw_entropies) == ([0.0, 0.0], None, None)
    both = ColumnsProvider().decode(answer, request=request(temperature=0.7), length=1, vocabulary=8)
    assert (both.logprobs.tolist(), both.entropies.tolist()) == ([-1.0], [0.5])
    assert both.raw_logprobs is not None
    assert both.raw_entropies is not None
    assert (both.raw_logprobs.tolist(), both.raw_entropies.tolist()) == ([-2.0], [1.5])


def test_the_likeliest_tokens_decode_to_an_interval():
    """Sampled a token of probability 1/4 from one of 1/2, 1/4 and two unknown ones."""
    answer = SimpleNamespace(logprobs=[math.log(0.25), math.log(0.5), math.log(0.25)])
    found = TopKProvider(2).decode(answer, request=request(), length=1, vocabulary=4)
    low, high = math.log(2) + 0.25 * math.log(4), math.log(2) + 0.25 * math.log(8)
    assert found.logprobs.tolist() == pytest.approx([math.log(0.25)])
    assert found.entropies.tolist() == pytest.approx([(low + high) / 2], abs=1e-4)
    assert found.entropy_errors.tolist() == pytest.approx([(high - low) / 2], abs=1e-4)
    assert found.raw_logprobs is None


@pytest.mark.parametrize("length", [0, 3])
def test_the_learners_share_is_everything(length):
    answer = SimpleNamespace(logprobs=[-1.0] * length)
    found = LearnerProvider().decode(answer, request=request(), length=length, vocabulary=100)
    assert found.logprobs.tolist() == [-1.0] * length
    assert found.entropies.tolist() == pytest.approx([math.log(100) / 2] * length)
    assert found.entropy_errors.tolist() == pytest.approx([math.log(100) / 2] * length)


@pytest.mark.parametrize("provider", [TopKProvider(2), LearnerProvider()])
def test_an_answer_of_another_size_is_refused(provider):
    with pytest.raises(RuntimeError, match="the engine returned 5 log-probs for 4 tokens"):
        provider.decode(SimpleNamespace(logprobs=[-1.0] * 5), request=request(), length=4, vocabulary=100)


def test_never_more_tokens_than_there_are():
    assert TopKProvider(20).asks(request(), vocabulary=7) == 7
    assert TopKProvider(5).asks(request(), vocabulary=7) == 5


def test_only_the_columns_touch_the_sampler():
    assert provider_of(spec()).worker_setup == "fr3e_install_columns"
    top_k = provider_of(spec(entropy="topk", entropy_top_k=50)).engine_args()
    assert top_k == {"logprobs_mode": "processed_logprobs", "max_logprobs": 50, "worker_extension_cls": EXTENSION}
    assert provider_of(spec(entropy="learner")).engine_args() == {
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": EXTENSION,
    }
    assert provider_of(spec(entropy="topk")).worker_setup == provider_of(spec(entropy="learner")).worker_setup == ""


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"entropy": "oracle"}, r"engine\.entropy must be one of engine, topk, learner, got 'oracle'"),
        ({"entropy_top_k": 0}, r"engine\.entropy_top_k must be positive, got 0"),
    ],
)
def test_a_spec_names_a_provider(wrong, says):
    with pytest.raises(ConfigError, match=says):
        spec(**wrong)


# ---- on real engines ----


def on_engines(test: Callable) -> Callable:
    return pytest.mark.engine(pytest.mark.slow(test))


KINDS = {"some": {"entropy": "topk", "entropy_top_k": 5}, "all": {"entropy": "topk", "entropy_top_k": 2 * VOCABULARY},
         "learner": {"entropy": "learner"}}  # fmt: skip
SETTINGS = [{}, {"temperature": 0.7}, {"top_k": 3}, {"top_k": 30, "top_p": 0.8}, {"temperature": 0.0}]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, World]]:
    folder = tmp_path_factory.mktemp("model")
    model = build_model(folder, tied=False)
    shared = {"dtype": "float32", "kv_cache_gib": 0.05, "block_size": 32, "max_running": 32}
    specs = {name: spec(str(folder), **shared, **kind) for name, kind in KINDS.items()}
    before = dict(os.environ)
    os.environ.update(engine_environment(specs["some"]))

    async def start() -> list[Any]:
        return await asyncio.gather(*(start_engine(each) for each in specs.values()))

    with asyncio.Runner() as runner:
        engines = dict(zip(specs, runner.run(start()), strict=True))
        yield {name: World(runner, engines[name], model, specs[name]) for name in specs}
        for engine in engines.values():
            runner.run(engine.close())
    os.environ.clear()
    os.environ.update(before)


def sample_each(world: World) -> list[tuple[Any, Any, np.ndarray]]:
    """(request, completion, exact entropies) of every kind of request, all in one batch; log-probs are checked."""
    world.remember()
    requests = [world.request(4, 5, i, **settings) for i, settings in enumerate(SETTINGS * 4)]
    found = []
    for each, completion in zip(requests, world.sample(*requests), strict=True):
        logprobs, entropies = expected(sampling_logprobs(world.logits(each, completion, world.version), each), completion)
        assert np.abs(logprobs - completion.logprobs).max() < TOLERANCE
        found.append((each, completion, entropies))
    return found


@on_engines
def test_the_bounds_contain_the_entropy(worlds):
    widths = []
    for each, completion, entropies in sample_each(worlds["some"]):
        assert (np.abs(entropies - completion.entropies) <= completion.entropy_errors + TOLERANCE).all()
        assert completion.raw_entropies is None
        assert each.top_k != 3 or completion.entropy_errors.max() < TOLERANCE  # all that the filter left is known
        widths.extend(completion.entropy_errors.tolist())
    assert max(widths) > 0.05  # else exact values would pass as well
    assert np.mean(widths) < math.log(VOCABULARY) / 8


@on_engines
def test_all_tokens_make_the_entropy_exact(worlds):
    for _, completion, entropies in sample_each(worlds["all"]):
        assert completion.entropy_errors.max() < TOLERANCE
        assert np.abs(entropies - completion.entropies).max() < 2 * TOLERANCE


@on_engines
def test_the_learners_engine_gives_logprobs_and_the_widest_interval(worlds):
    for _, completion, _ in sample_each(worlds["learner"]):
        assert completion.entropy_errors == pytest.approx(math.log(VOCABULARY) / 2)


@on_engines
def test_weights_still_arrive(worlds):
    world = worlds["some"]
    before = {name: value.detach().clone() for name, value in world.model.named_parameters()}
    world.run(world.engine.load_weights(world.next_bundle()))
    assert set(sample_each(world)[0][1].versions.tolist()) == {world.version}
    with torch.no_grad():  # the model is that of the other engines, too
        for name, value in world.model.named_parameters():
            value.copy_(before[name])
    world.version += 1
    world.run(world.engine.load_weights(pack_tensors(world.model.named_parameters(), version=world.version)))
