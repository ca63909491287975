"""The fake engine keeps the port's promises, and the busy meter's arithmetic."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import virtual_time
from bundles import pack_tensors

from fr3e_async.config import EngineConfig
from fr3e_async.rollout import EngineDead, EngineSpec, SampleRequest, WeightsRefused
from fr3e_async.rollout.port import BusyMeter
from fr3e_async.testing.engine import EngineFault, FakeBehaviour, FakeEngine, all_of
from fr3e_async.types import Finish

SPEC = EngineSpec(model="fake", end_token_ids=(2,), max_model_len=64, seed=5)


def request(name: str = "a", *, max_tokens: int = 40, context: tuple[int, ...] = (7, 8)) -> SampleRequest:
    return SampleRequest(request_id=name, context=np.array(context, dtype=np.int32), max_tokens=max_tokens)


def bundle(version: int):
    return pack_tensors([("w", torch.ones(2))], version=version)


def test_tokens_depend_on_seed_id_and_context_only():
    async def draw(spec, name, **kw):
        return (await FakeEngine(spec, FakeBehaviour(mean_length=30)).sample(request(name, **kw))).tokens.tolist()

    async def main():
        first = await draw(SPEC, "a")
        assert first == await draw(SPEC, "a")
        assert first != await draw(SPEC, "b")
        assert first != await draw(replace(SPEC, seed=6), "a")
        assert first != await draw(SPEC, "a", context=(7, 9))

    virtual_time.run(main())


def test_a_seeded_request_depends_on_its_seed_and_not_on_its_id():
    async def main():
        drawn = [
            (await FakeEngine(SPEC, FakeBehaviour(mean_length=30)).sample(replace(request(name), seed=seed))).tokens.tolist()
            for name, seed in (("a", 1), ("b", 1), ("a", 2))
        ]
        assert drawn[0] == drawn[1] != drawn[2]

    virtual_time.run(main())


def test_the_pulse_counts_what_the_engine_does():
    async def main():
        engine = FakeEngine(SPEC)
        await all_of(engine, [request("a"), request("b")])
        assert engine.pulse() == 4  # two entered, two finished
        await engine.load_weights(bundle(1))
        assert engine.pulse() == 5

    virtual_time.run(main())


def test_ends_with_an_end_token_or_at_the_budget():
    async def main():
        engine = FakeEngine(SPEC)
        for completion in await all_of(engine, [request(f"r{i}", max_tokens=8) for i in range(50)]):
            assert 1 <= len(completion) <= 8
            assert (completion.finish is Finish.STOP) == (completion.tokens[-1] == 2)
            assert 2 not in completion.tokens[:-1]
            assert completion.finish is Finish.STOP or len(completion) == 8
        stats = await engine.stats()
        assert stats.prompt_tokens == 100
        assert stats.running == 0
        assert stats.tokens_generated > 100

    virtual_time.run(main())


def test_versions_step_where_the_update_fell():
    async def main():
        engine = FakeEngine(SPEC, FakeBehaviour(mean_length=1000, token_s=0.002), clock=virtual_time.now)
        sampling = asyncio.create_task(engine.sample(request(max_tokens=30)))
        await asyncio.sleep(0.02)
        ack = await engine.load_weights(bundle(4))
        completion = await sampling
        assert ack.version == 4
        assert set(completion.versions.tolist()) == {0, 4}
        assert (np.diff(completion.versions) >= 0).all()
        assert (await engine.stats()).version == 4

    virtual_time.run(main())


def test_a_damaged_bundle_is_refused_and_the_old_version_stays():
    async def main():
        engine = FakeEngine(SPEC)
        with pytest.raises(WeightsRefused, match="damaged"):
            await engine.load_weights(replace(bundle(4), buckets=((np.zeros(1, np.float32),) * len(bundle(4).manifest.names),)))
        assert (await engine.stats()).version == 0

    virtual_time.run(main())


def test_faults_are_injected_by_request_and_attempt():
    def fault(name: str, attempt: int) -> EngineFault | None:
        return EngineFault.ABORT if name == "a" and attempt == 1 else None

    async def main():
        engine = FakeEngine(SPEC, FakeBehaviour(fault=fault, mean_length=30))
        assert (await engine.sample(request("a"))).finish is Finish.ABORT
        assert (await engine.sample(request("a"))).finish is not Finish.ABORT

    virtual_time.run(main())


def test_death_takes_every_request_along():
    async def main():
        engine = FakeEngine(SPEC, FakeBehaviour(fault=lambda name, _: {"h": EngineFault.HANG, "d": EngineFault.DEATH}.get(name)))
        hanging = asyncio.create_task(engine.sample(request("h")))
        await asyncio.sleep(0)
        with pytest.raises(EngineDead):
            await engine.sample(request("d"))
        with pytest.raises(EngineDead):
            await hanging
        with pytest.raises(EngineDead):
            await engine.stats()

    virtual_time.run(main())


def test_abort_returns_what_there_is():
    async def main():
        engine = FakeEngine(SPEC, FakeBehaviour(mean_length=1000, token_s=0.002), clock=virtual_time.now)
        sampling = asyncio.create_task(engine.sample(request(max_tokens=50)))
        await asyncio.sleep(0.02)
        await engine.abort("a")
        await engine.abort("unknown")
        completion = await sampling
        assert completion.finish is Finish.ABORT
        assert 0 < len(completion) < 50

    virtual_time.run(main())


def test_busy_intervals_leave_out_idle_and_paused_time():
    meter = BusyMeter()
    meter.enter(1.0)
    meter.enter(2.0)
    meter.leave(3.0)
    meter.pause(4.0)
    meter.enter(4.5)  # arrives during the pause
    meter.resume(5.0)
    meter.leave(6.0)
    meter.leave(7.0)
    assert meter.take(9.0) == ((1.0, 4.0), (5.0, 7.0))
    assert meter.pause_s == 1.0


def test_busy_interval_that_still_lasts_is_cut():
    meter = BusyMeter()
    meter.enter(1.0)
    assert meter.take(2.0) == ((1.0, 2.0),)
    assert meter.take(2.0) == ()
    meter.leave(5.0)
    assert meter.take(9.0) == ((2.0, 5.0),)


@pytest.mark.parametrize(("provider", "errors"), [("engine", 0.0), ("topk", 0.1), ("learner", math.log(64) / 2)])
def test_it_knows_of_entropies_what_its_provider_can_tell(provider, errors):
    async def main():
        engine = FakeEngine(replace(SPEC, engine=EngineConfig(entropy=provider)), FakeBehaviour(mean_length=30))
        plain, cold = await all_of(engine, [request(), replace(request("b"), temperature=0.7)])
        assert plain.entropy_errors == pytest.approx(errors)
        assert plain.raw_entropies is None
        assert (cold.raw_entropies is not None) == (provider == "engine")

    virtual_time.run(main())
