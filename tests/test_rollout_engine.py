"""The real engine on tiny random models, against a float32 forward pass of transformers.

Two engines start once for the module: one with an untied head, one with a tied head that keeps its cache over updates.
Every test leaves the engine with the weights that its ``World`` knows, so that the order of the tests does not matter;
those that end an engine run last.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import pack_tensors
from engine_world import END, TOLERANCE, World, build_model, core_of, save_tokenizer
from transformers import AutoTokenizer

from fr3e_async.algorithm.answer_span import stop_end
from fr3e_async.config import EngineConfig
from fr3e_async.learner.spec import free_address
from fr3e_async.rollout import EngineDead, EngineSpec, SampleRequest, WeightsRefused, engine_environment, start_engine
from fr3e_async.rollout.held_weights import HeldWeights
from fr3e_async.rollout.port import TransferMeeting
from fr3e_async.testing.engine import all_of
from fr3e_async.types import Completion, Finish
from fr3e_async.weights.manifest import WeightAck, WeightManifest

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, World]]:
    folders = {tied: tmp_path_factory.mktemp("tied" if tied else "untied") for tied in (False, True)}
    models = {tied: build_model(folder, tied=tied) for tied, folder in folders.items()}
    specs = {
        tied: EngineSpec(
            model=str(folder), end_token_ids=(END,), max_model_len=160, transfer="gloo", seeded=True, engine=EngineConfig(
                dtype="float32", kv_cache_gib=0.05, block_size=32, max_running=32, clear_cache_on_update=not tied,
                options={"max_num_batched_tokens": 192},  # little more than one longest context: prompts would be cut, if they may
            ),
        )
        for tied, folder in folders.items()
    }  # fmt: skip
    before = dict(os.environ)
    os.environ.update(engine_environment(specs[False]))

    async def start() -> list[Any]:
        return await asyncio.gather(*(start_engine(spec) for spec in specs.values()))

    with asyncio.Runner() as runner:
        engines = dict(zip(specs, runner.run(start()), strict=True))
        found = {tied: World(runner, engines[tied], models[tied], specs[tied]) for tied in specs}
        for world in found.values():
            world.remember()
            world.run(world.engine.load_weights(pack_tensors(world.model.named_parameters(), version=0)))
        yield found
        for engine in engines.values():
            runner.run(engine.close())
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def world(worlds: dict[bool, World]) -> World:
    return worlds[False]


@pytest.fixture(scope="module")
def single(worlds: dict[bool, World]) -> Iterator[World]:
    """An engine that runs one request at a time, with its own copy of the untied world's model."""
    world = worlds[False]
    spec = replace(world.spec, transfer="", engine=replace(world.spec.engine, max_running=1, options={}))
    other = World(world.runner, world.run(start_engine(spec)), world.model, spec)
    yield other
    other.run(other.engine.close())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.7}, {"temperature": 1.3, "top_k": 7}, {"top_p": 0.8}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9}],
)
def test_logprobs_and_entropies_are_those_of_the_sampled_distribution(worlds, tied, settings):
    world = worlds[tied]
    requests = [world.request(5, 6, 7 + i, **settings) for i in range(6)]
    for request, completion in zip(requests, world.sample(*requests), strict=True):
        assert (completion.raw_logprobs is None) == (settings == {})
        assert world.error(request, completion) < TOLERANCE
        assert not completion.entropy_errors.any()


def test_requests_of_all_kinds_mix_in_one_batch(world):
    kinds = [{}, {"temperature": 0.0}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.9, "top_p": 0.9}]
    requests = [world.request(9, 8, 7, i, **kinds[i % len(kinds)], max_tokens=4 + 3 * i) for i in range(12)]
    for i, (request, completion) in enumerate(zip(requests, world.sample(*requests), strict=True)):
        assert (completion.raw_entropies is None) == (i % len(kinds) < 2)
        assert world.error(request, completion) < TOLERANCE


def test_the_two_distributions_differ_where_they_should(world):
    """Else the comparison of both with transformers could not tell them apart."""
    (cold,) = world.sample(world.request(9, 8, 7, temperature=0.5))
    assert np.median(cold.raw_entropies - cold.entropies) > 10 * TOLERANCE
    assert np.abs(cold.raw_logprobs - cold.logprobs).max() > 10 * TOLERANCE


def test_a_stop_text_ends_a_completion_and_is_its_end(world):
    """``w7`` is whole with any token from w70 to w79 too, ``w31 w`` with whatever follows w31; nothing is generated behind it."""
    save_tokenizer(Path(world.spec.model))
    tokenizer = AutoTokenizer.from_pretrained(world.spec.model)
    spec = replace(world.spec, stops=("w7", "w31 w"), transfer="", engine=replace(world.spec.engine, options={}))
    other = World(world.runner, world.run(start_engine(spec)), world.model, spec)
    try:
        requests = [other.request(5, 6, 40 + i, max_tokens=60) for i in range(16)]
        found = other.sample(*requests)
    finally:
        other.run(other.engine.close())
    texts = [tokenizer.decode(one.tokens.tolist()) for one in found]
    ended = [stop_end(text, spec.stops) for text in texts]
    assert sum(end is not None for end in ended) > 8
    for request, completion, end in zip(requests, found, ended, strict=True):
        assert world.error(request, completion) < TOLERANCE
        assert stop_end(tokenizer.decode(completion.tokens[:-1].tolist()), spec.stops) is None
        assert completion.finish is (Finish.STOP if end is not None or completion.tokens[-1] == END else Finish.LENGTH)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9}])
def test_a_seed_gives_the_same_tokens_whatever_runs_beside_it(world, settings):
    seeds = (7, 7, 8, 2**63 - 1)
    requests = [world.request(5, 6, 7, seed=seed, max_tokens=40, **settings) for seed in seeds]
    alone = [world.sample(request)[0] for request in requests]
    others = [world.request(9, i, **settings, max_tokens=5 + i) for i in range(20)]
    mixed = world.sample(*others[:10], *reversed(requests), *others[10:])[10:14][::-1]
    for request, one, two in zip(requests, alone, mixed, strict=True):
        assert one.tokens.tolist() == two.tokens.tolist()
        assert max(world.error(request, one), world.error(request, two)) < TOLERANCE
    assert len({tuple(completion.tokens) for completion in alone}) == 3


def test_engines_that_run_one_request_at_a_time_agree_to_the_bit(world, single):
    world.run(single.engine.load_weights(pack_tensors(world.model.named_parameters(), version=world.version)))
    kinds = [{}, {"temperature": 0.7}, {"top_p": 0.8}]
    requests = [world.request(9, 8, i, **kinds[i % 3], seed=i) for i in range(6)]
    first = single.sample(*requests)
    second = [world.sample(request)[0] for request in reversed(requests)][::-1]
    for one, two in zip(first, second, strict=True):
        assert one.tokens.tolist() == two.tokens.tolist()
        assert one.logprobs.tolist() == two.logprobs.tolist()
        assert one.entropies.tolist() == two.entropies.tolist()


def test_seeded_requests_of_long_contexts_run_side_by_side_and_over_an_update(world):
    """A prompt that is cut in parts ends vLLM's CPU process if its request has a seed."""
    requests = [world.request(*range(5, 85), i, seed=i, max_tokens=70) for i in range(8)]
    assert len({tuple(completion.tokens) for completion in world.sample(*requests)}) == 8
    preempted = world.run(world.engine.stats()).preempted

    async def main() -> list[Completion]:
        sampling = asyncio.create_task(all_of(world.engine, requests))
        await asyncio.sleep(0.05)
        await world.engine.load_weights(world.next_bundle())
        return await sampling

    completions = world.run(main())
    assert max(world.error(request, completion) for request, completion in zip(requests, completions, strict=True)) < TOLERANCE
    assert any(len(set(completion.versions.tolist())) > 1 for completion in completions)
    assert 0 < world.run(world.engine.stats()).preempted - preempted <= 8  # the update clears the cache


def test_greedy_takes_the_likeliest_token(world):
    request = world.request(11, 12, 13, temperature=0.0)
    (completion,) = world.sample(request)
    assert completion.tokens.tolist() == world.logits(request, completion, world.version).argmax(-1).tolist()


def test_the_end_token_is_kept_with_its_logprob(world):
    requests = [world.request(3, 4, i, max_tokens=100) for i in range(32)]
    completions = world.sample(*requests)
    finishes = {completion.finish for completion in completions}
    assert finishes == {Finish.STOP, Finish.LENGTH}
    for request, completion in zip(requests, completions, strict=True):
        assert END not in completion.tokens[:-1]
        assert (completion.finish is Finish.STOP) == (completion.tokens[-1] == END)
        assert (completion.finish is Finish.LENGTH) == (len(completion) == 100 and completion.tokens[-1] != END)
        assert world.error(request, completion) < TOLERANCE


@pytest.mark.parametrize(
    ("tied", "part"),
    [(False, part) for part in (
        "embed_tokens", "q_proj.weight", "k_proj.weight", "v_proj.weight", "q_proj.bias", "v_proj.bias", "o_proj", "layernorm",
        "gate_proj", "up_proj", "down_proj", "model.norm", "lm_head",
    )] + [(True, "embed_tokens"), (True, "")],
)  # fmt: skip
def test_an_update_of_each_tensor_arrives(worlds, tied, part):
    world = worlds[tied]
    before = world.version
    bundle = world.next_bundle(part)
    ack = world.run(world.engine.load_weights(bundle))
    assert (ack.version, ack.checksum, accounted(ack)) == (world.version, bundle.checksum, len(bundle.manifest.names))
    request = world.request(20, 21, 22)
    (completion,) = world.sample(request)
    assert set(completion.versions.tolist()) == {world.version}
    assert world.error(request, completion) < TOLERANCE
    stale = replace_versions(completion, before)
    assert world.error(request, stale) > 10 * TOLERANCE  # else the test could not tell


def test_a_version_in_which_nothing_changed_moves_the_label_alone(world):
    world.run(world.engine.load_weights(world.next_bundle()))
    bundle = world.next_bundle("no tensor has this name")
    ack = world.run(world.engine.load_weights(bundle))
    assert (ack.loaded_tensors, ack.copied_bytes, ack.pause_s) == (0, 0, 0.0)
    assert (ack.version, ack.checksum, accounted(ack)) == (world.version, bundle.checksum, len(bundle.manifest.names))
    request = world.request(20, 21, 22)
    (completion,) = world.sample(request)
    assert set(completion.versions.tolist()) == {world.version}
    assert world.error(request, completion) < TOLERANCE


def test_only_layers_with_something_new_are_loaded_and_missed_versions_too(world):
    """The engine never sees the version that changes k_proj; a layer's q, k, v weights and biases are stored together."""
    world.run(world.engine.load_weights(world.next_bundle()))
    world.next_bundle("0.self_attn.k_proj.weight")
    bundle = world.next_bundle("model.norm")
    ack = world.run(world.engine.load_weights(bundle))
    assert (ack.loaded_tensors, ack.copied_bytes) == (6 + 1, 4 * (32 * 64 + 64))
    assert (ack.checksum, accounted(ack)) == (bundle.checksum, len(bundle.manifest.names))
    request = world.request(20, 21, 22)
    assert world.error(request, world.sample(request)[0]) < TOLERANCE


def accounted(ack: WeightAck) -> int:
    return ack.verified_tensors + ack.probed_tensors


def replace_versions(completion: Completion, version: int) -> Completion:
    return replace(completion, versions=np.full(len(completion), version, dtype=np.int32))


def test_bfloat16_weights_arrive(world):
    with torch.no_grad():
        for parameter in world.model.parameters():
            parameter.copy_(parameter.bfloat16())
    world.version += 1
    world.remember()
    bundle = pack_tensors(world.model.named_parameters(), version=world.version, dtype="bfloat16")
    assert accounted(world.run(world.engine.load_weights(bundle))) == len(bundle.manifest.names)
    request = world.request(20, 21, 22)
    assert world.error(request, world.sample(request)[0]) < TOLERANCE


@pytest.mark.parametrize("tied", [False, True])
def test_updates_in_flight_switch_at_the_right_token(worlds, tied):
    """Requests run and arrive during three updates; every token agrees with the version that it names.

    (With old keys and values kept, a switched completion is of neither policy: then only the versions are checked.)
    """
    world = worlds[tied]
    first = world.version
    early = [world.request(30, 31, i, max_tokens=120) for i in range(12)]
    late = [world.request(*range(40, 80), i, max_tokens=40) for i in range(12)]

    async def arrive() -> list[Completion]:
        async def one(i: int, request: SampleRequest) -> Completion:
            await asyncio.sleep(0.02 * i)
            return await world.engine.sample(request)

        return await asyncio.gather(*(one(i, request) for i, request in enumerate(late)))

    async def update() -> None:
        for _ in range(3):
            await asyncio.sleep(0.05)
            await world.engine.load_weights(world.next_bundle())

    async def main() -> list[Completion]:
        groups = await asyncio.gather(all_of(world.engine, early), arrive(), update())
        return [*groups[0], *groups[1]]

    completions = world.run(main())
    seen: set[int] = set()
    for request, completion in zip([*early, *late], completions, strict=True):
        assert (np.diff(completion.versions) >= 0).all()
        assert world.error(request, completion) < TOLERANCE or not world.spec.engine.clear_cache_on_update
        seen.update(completion.versions.tolist())
    assert len(seen) >= 3
    assert seen <= {first, first + 1, first + 2, first + 3}
    assert any(len(set(completion.versions.tolist())) > 1 for completion in completions)
    assert world.run(world.engine.stats()).version == first + 3


def test_concurrent_updates_are_done_one_after_another(world):
    bundles = [world.next_bundle() for _ in range(3)]

    async def main() -> Any:
        return await asyncio.gather(*(world.engine.load_weights(bundle) for bundle in bundles))

    assert [ack.version for ack in world.run(main())] == [bundle.version for bundle in bundles]
    request = world.request(50, 51)
    (completion,) = world.sample(request)
    assert set(completion.versions.tolist()) == {world.version}
    assert world.error(request, completion) < TOLERANCE


def test_a_cancelled_update_is_finished(world):
    bundle = world.next_bundle()

    async def main() -> None:
        update = asyncio.create_task(world.engine.load_weights(bundle))
        await asyncio.sleep(0.01)
        update.cancel()
        await asyncio.wait([update])
        while (await world.engine.stats()).version != bundle.version:
            await asyncio.sleep(0.01)

    world.run(asyncio.wait_for(main(), timeout=20))
    request = world.request(50, 51)
    assert world.error(request, world.sample(request)[0]) < TOLERANCE


@pytest.mark.parametrize("wrong", ["checksum", "part of a fused parameter"])
def test_a_wrong_bundle_is_refused_and_the_old_version_stays(world, wrong):
    good = pack_tensors(world.model.named_parameters(), version=999)
    if wrong == "checksum":
        other = pack_tensors([(name, p + 1) for name, p in world.model.named_parameters()], version=999)
        bad, message = replace(other, buckets=good.buckets), "weights v999 are damaged"
    else:
        kept = [(name, p) for name, p in world.model.named_parameters() if "1.self_attn.k_proj.weight" not in name]
        bad, message = (
            pack_tensors(kept, version=999),
            r"1 of the tensors that this engine was loaded with are missing, e\.g\. .*k_proj\.weight",
        )
    running = world.request(60, 61, max_tokens=60)

    async def main() -> Completion:
        sampling = asyncio.create_task(world.engine.sample(running))
        with pytest.raises(WeightsRefused, match=message):
            await world.engine.load_weights(bad)
        return await sampling

    for request, completion in [(running, world.run(main())), (again := world.request(62), world.sample(again)[0])]:
        assert set(completion.versions.tolist()) == {world.version}
        assert world.error(request, completion) < TOLERANCE


async def transferred(world: World, told: WeightManifest) -> WeightAck:
    """Hand the model over by vLLM's own transfer, from this process."""
    from fr3e_async.rollout.transfer import open_sender

    host, port = free_address("127.0.0.1")
    meeting = TransferMeeting(backend="gloo", host=host, port=port, world=2, timeout_s=20)
    tensors = list(world.model.named_parameters())
    opening = asyncio.to_thread(open_sender, meeting, rank=0, manifest=told, weights=lambda: iter(tensors))
    sender, _ = await asyncio.gather(opening, world.engine.join_transfer(meeting, rank=1))
    ack, _ = await asyncio.gather(world.engine.receive_weights(told), asyncio.to_thread(sender.send_weights))
    return ack


@pytest.mark.parametrize("tied", [False, True])
def test_weights_arrive_by_vllms_own_transfer_and_then_by_bundle(worlds, tied):
    """A second group replaces the first; what came by one way is not loaded again by the other."""
    world = worlds[tied]
    running = world.request(30, 31, max_tokens=120)

    async def main() -> Completion:
        sampling = asyncio.create_task(world.engine.sample(running))
        for _ in range(2):
            await asyncio.sleep(0.03)
            manifest = world.next_bundle().manifest
            ack = await transferred(world, manifest)
            assert (ack.version, ack.checksum) == (world.version, manifest.checksum)
            assert accounted(ack) == len(manifest.names)
        return await sampling

    completion = world.run(main())
    assert world.error(running, completion) < TOLERANCE or not world.spec.engine.clear_cache_on_update
    assert world.run(world.engine.load_weights(world.next_bundle("0.mlp"))).loaded_tensors == 3
    request = world.request(20, 21, 22)
    assert world.error(request, world.sample(request)[0]) < TOLERANCE


def test_a_transfer_of_another_type_is_refused_before_anything_changes(world):
    manifest = pack_tensors(world.model.named_parameters(), version=999, dtype="bfloat16").manifest
    with pytest.raises(
        WeightsRefused, match=r"weights\.transfer=collective: engine\.dtype is float32, learner\.dtype is bfloat16"
    ):
        world.run(world.engine.receive_weights(manifest))
    assert world.run(world.engine.stats()).version == world.version


@pytest.mark.parametrize("tied", [False, True])
def test_the_prefix_cache_serves_one_version_only(worlds, tied):
    world = worlds[tied]
    prefix = range(10, 80)
    world.sample(world.request(*prefix, 1))
    again = world.request(*prefix, 2)
    (hit,) = world.sample(again)
    assert hit.cached_tokens == 64  # two blocks of 32
    assert world.error(again, hit) < TOLERANCE
    world.run(world.engine.load_weights(world.next_bundle()))
    fresh = world.request(*prefix, 3)
    (miss,) = world.sample(fresh)
    assert miss.cached_tokens == 0
    assert world.error(fresh, miss) < TOLERANCE


@pytest.mark.parametrize("tied", [False, True])
def test_a_version_that_comes_again_with_other_weights_finds_nothing_in_the_cache(worlds, tied):
    """So it is when the learner goes back to a checkpoint."""
    world, prefix = worlds[tied], range(10, 80)
    world.run(world.engine.load_weights(world.next_bundle()))
    world.sample(world.request(*prefix, 1))
    world.version -= 1
    world.run(world.engine.load_weights(world.next_bundle("layernorm")))
    again = world.request(*prefix, 2)
    (completion,) = world.sample(again)
    assert completion.cached_tokens == 0
    assert world.error(again, completion) < TOLERANCE


def test_abort_returns_the_tokens_so_far(world):
    request = world.request(70, 71, max_tokens=150)

    async def main() -> Completion:
        sampling = asyncio.create_task(world.engine.sample(request))
        await asyncio.sleep(0.05)
        await world.engine.abort(request.request_id)
        await world.engine.abort("nobody")
        return await sampling

    completion = world.run(main())
    assert completion.finish is Finish.ABORT or completion.tokens[-1] == END
    assert len(completion) < 150
    if len(completion):
        assert world.error(request, completion) < TOLERANCE


def test_stats_add_up(world):
    before = world.run(world.engine.stats())
    requests = [world.request(*range(5, 20), i, max_tokens=9) for i in range(4)]
    completions = world.sample(*requests)
    after = world.run(world.engine.stats())
    assert after.tokens_generated - before.tokens_generated == sum(len(completion) for completion in completions)
    assert after.prompt_tokens - before.prompt_tokens == 64
    assert after.running == 0
    assert len(after.busy) == 1
    assert 0 < after.busy[0][1] - after.busy[0][0] < 10


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_a_step_of_the_wall_clock_shows_in_no_busy_time(world, monkeypatch, step_s):
    """Before, while requests are under way, and after."""
    before = world.run(world.engine.stats())
    real = time.time

    async def main() -> None:
        sampling = asyncio.create_task(all_of(world.engine, [world.request(*range(5, 20), i, max_tokens=60) for i in range(4)]))
        await asyncio.sleep(0.05)
        monkeypatch.setattr(time, "time", lambda: real() + step_s)
        await sampling

    world.run(main())
    after = world.run(world.engine.stats())
    assert 0 < after.at - before.at < 600
    assert after.busy, "it has worked"
    moments = [before.at, *(moment for interval in after.busy for moment in interval), after.at]
    assert moments == sorted(moments)


def test_stats_tell_of_the_cache_and_of_who_waits(world):
    before = world.engine.pulse()
    requests = [world.request(*range(5, 40), i, max_tokens=100) for i in range(48)]

    async def main() -> tuple[Any, Any]:
        sampling = asyncio.create_task(all_of(world.engine, requests))
        while not (during := await world.engine.stats()).waiting:
            await asyncio.sleep(0.005)
        await sampling
        return during, await world.engine.stats()

    during, after = world.run(asyncio.wait_for(main(), timeout=30))
    assert 0 < during.kv_used < 1
    assert 0 < during.waiting <= 48 - 1
    assert (after.kv_used, after.waiting, after.running) == (0.0, 0, 0)
    assert world.engine.pulse() - before >= 2 * 48 + 100


def test_a_seed_needs_an_engine_that_was_started_for_them(world, monkeypatch):
    monkeypatch.setattr(world.engine, "spec", replace(world.spec, seeded=False))
    with pytest.raises(ValueError, match=r"carries a seed; the engine was started without EngineSpec\.seeded"):
        world.run(world.engine.sample(world.request(5, seed=1)))


def test_a_context_that_is_too_long_is_the_callers_error(world):
    with pytest.raises(ValueError, match="leaves no room in a model length of 160"):
        world.run(world.engine.sample(world.request(*[5] * 160)))
    assert world.run(world.engine.stats()).running == 0


def test_the_death_of_the_core_ends_every_call(worlds):
    world = worlds[True]

    async def main() -> None:
        sampling = [asyncio.create_task(world.engine.sample(world.request(5, i, max_tokens=150))) for i in range(8)]
        await asyncio.sleep(0.02)
        os.kill(core_of(world), signal.SIGKILL)
        for outcome in await asyncio.gather(*sampling, return_exceptions=True):
            assert isinstance(outcome, EngineDead | Completion)
        with pytest.raises(EngineDead):
            await world.engine.sample(world.request(5))
        with pytest.raises(EngineDead):
            await world.engine.load_weights(world.next_bundle())
        with pytest.raises(EngineDead):
            await world.engine.stats()

    world.run(asyncio.wait_for(main(), timeout=30))


def test_the_death_of_the_core_inside_an_update_ends_the_call(single):
    """vLLM would wait for the core's answer for ever."""
    bundle = pack_tensors([(name, p + 1) for name, p in single.model.named_parameters()], version=999)

    async def main() -> None:
        os.kill(core_of(single), signal.SIGSTOP)
        loading = asyncio.create_task(single.engine.load_weights(bundle))
        await asyncio.sleep(0.3)
        assert not loading.done()
        os.kill(core_of(single), signal.SIGKILL)
        with pytest.raises(EngineDead, match="died during a weight update"):
            await loading
        with pytest.raises(EngineDead):
            await single.engine.stats()

    single.run(asyncio.wait_for(main(), timeout=10))


def test_a_tensor_of_another_size_is_refused(world):
    tensors = [(name, p[:-1] if name == "model.norm.weight" else p) for name, p in world.model.named_parameters()]
    with pytest.raises(WeightsRefused, match=r"model\.norm\.weight has shape \(63,\), it had \(64,\)"):
        world.run(world.engine.load_weights(pack_tensors(tensors, version=999)))
    request = world.request(62)
    assert world.error(request, world.sample(request)[0]) < TOLERANCE


def test_a_half_loaded_engine_never_serves_again(world, monkeypatch):
    """The load breaks off inside the worker: what it should read is gone."""
    call = HeldWeights.load_call
    monkeypatch.setattr(HeldWeights, "load_call", lambda held, manifest: ("/proc/0/fd/0", *call(held, manifest)[1:]))
    bundle = world.next_bundle()

    async def main() -> None:
        sampling = asyncio.create_task(world.engine.sample(world.request(5, max_tokens=150)))
        await asyncio.sleep(0.02)
        with pytest.raises(EngineDead, match=f"weights v{bundle.version} were not loaded to the end"):
            await world.engine.load_weights(bundle)
        (outcome,) = await asyncio.gather(sampling, return_exceptions=True)
        assert isinstance(outcome, EngineDead | Completion)  # it may have come to its end before the load
        with pytest.raises(EngineDead):
            await world.engine.stats()

    world.run(asyncio.wait_for(main(), timeout=30))
