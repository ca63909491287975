"""A real engine at the door of a real learner that has another weight, head, rope setting, temperature or tokenizer, or the same.

One engine starts for the module; what is broken is the learner beside it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import pack_tensors
from engine_world import END, World, build_model, save_tokenizer
from learner_support import exported, make_spec, start_rank

from fr3e_async.algorithm.batching import train_sample
from fr3e_async.config import EngineConfig, LossConfig
from fr3e_async.control.door import Door
from fr3e_async.control.ports import Delivery, Payload
from fr3e_async.learner.replay import replay
from fr3e_async.rollout import EngineSpec, engine_environment, start_engine
from fr3e_async.rollout.door import make_questions, tokenizer_digest
from fr3e_async.rollout.rollout_worker import RolloutWorker, TokenTexts
from fr3e_async.testing.fakes import FakePayloads
from fr3e_async.types import AdvantageSpan, Draw, RolloutId, TrainSample

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(240)]
BOUND, TEMPERATURE = 0.025, 0.8  # nats, where both are float32; that of ``make_spec``


class Guest:
    """Port ``EngineWorker``, as far as the door needs it, without a process of its own."""

    def __init__(self, world: World, tokenizer: Any) -> None:
        self.name, self.world, self._digest = "generator-0", world, tokenizer_digest(tokenizer)
        self.own_tokenizer = tokenizer
        self.rollout_worker = RolloutWorker(world.engine, TokenTexts(tokenizer), None, seed=0)

    async def tokenizer(self) -> str:
        return self._digest

    async def sample_together(self, prompts: Any, ids: Any, draw: Draw) -> tuple[Delivery, Payload]:
        batch = await self.rollout_worker.sample_together(prompts, ids, draw)
        return Delivery(notes=()), batch


class Scorer:
    """Port ``LearnerPort``, as far as the door needs it."""

    def __init__(self, rank: Any) -> None:
        self._rank = rank

    async def distributions(self, rows: Any) -> np.ndarray:
        return self._rank.distributions(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def guest(folder: Path) -> Iterator[Guest]:
    from transformers import AutoTokenizer

    model = build_model(folder, tied=False)
    save_tokenizer(folder)
    spec = EngineSpec(
        model=str(folder), end_token_ids=(END,), max_model_len=160,
        engine=EngineConfig(dtype="float32", kv_cache_gib=0.05, block_size=32, max_running=32),
    )  # fmt: skip
    before = dict(os.environ)
    os.environ.update(engine_environment(spec))
    with asyncio.Runner() as runner:
        engine = runner.run(start_engine(spec))
        yield Guest(World(runner, engine, model, spec), AutoTokenizer.from_pretrained(folder))
        runner.run(engine.close())
    os.environ.clear()
    os.environ.update(before)


def changed(folder: Path, to: Path, change: Callable[[Any], None]) -> Path:
    """The model of a folder after ``change``, in another folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        change(model)
    model.save_pretrained(to)
    save_tokenizer(to)
    return to


def weight(model: Any) -> None:
    layer = model.model.layers[1].mlp.down_proj.weight
    layer.copy_(layer.flip(0))


def head(model: Any) -> None:
    model.lm_head.weight.copy_(model.lm_head.weight.roll(1, dims=0))


def rope(model: Any) -> None:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 50.0}


def asked(guest: Guest, rank: Any, *, times: int = 1, tokenizer: Any = None, seen: list[str] | None = None) -> str:
    """What the door says in the end of an engine beside this learner, which it has asked so often."""
    questions = make_questions(tokenizer or guest.own_tokenizer, room=159)
    door = Door(
        questions, learner=Scorer(rank), payloads=FakePayloads(), temperature=TEMPERATURE, bound=BOUND, limit_s=60,
        record=lambda text, kind, **fields: (seen if seen is not None else []).append(text),
    )  # type: ignore[arg-type]  # fmt: skip

    async def ask() -> str:
        await door.learned(guest.world.version)
        return [await door.ask(guest) for _ in range(times)][-1]  # type: ignore[arg-type]

    return guest.world.run(ask())


@pytest.fixture(scope="module")
def rank(folder: Path, guest: Guest) -> Any:
    """A learner with the engine's weights."""
    return start_rank(make_spec(folder, packing="tree"))


@pytest.mark.parametrize("settings", [{}, {"packing": "padded", "zero_stage": 3}, {"packing": "flat", "attention": "eager"}])
def test_the_same_weights_agree_in_every_layout(guest: Guest, folder: Path, settings: Any) -> None:
    seen: list[str] = []
    assert asked(guest, start_rank(make_spec(folder, **settings)), times=2, seen=seen) == ""
    assert len(seen) == 2
    assert float(seen[0].split(" by ")[1].split()[0]) < 1e-4


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (weight, "weights, the output head"),
        (head, "weights, the output head"),
        (rope, "positions: after a single token they agree"),
    ],
)
def test_a_learner_with_something_else(guest: Guest, folder: Path, tmp_path: Path, change: Any, cause: str) -> None:
    reply = asked(guest, start_rank(make_spec(changed(folder, tmp_path, change))))
    assert "beyond 0.025 nats (learner.stop_above_mismatch)" in reply
    assert cause in reply


def test_another_temperature(guest: Guest, folder: Path) -> None:
    from dataclasses import replace

    learner = start_rank(replace(make_spec(folder), temperature=1.0))
    assert "a temperature: it seems to sample at 0.80 times sampling.temperature" in asked(guest, learner)


def test_another_tokenizer(guest: Guest, rank: Any, tmp_path: Path) -> None:
    """With the same ids for the model: only the texts differ."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{(i + 1) % 100}": i for i in range(100)}, unk_token="w0"))
    other = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{END + 1}", pad_token="w1")
    assert asked(guest, rank, tokenizer=other).startswith("its tokenizer is not the one that made the prompts")


def test_an_update_that_went_wrong_and_one_that_did_not(guest: Guest, folder: Path, rank: Any) -> None:
    world = guest.world
    try:
        world.run(world.engine.load_weights(exported(rank, world.version)))
        assert asked(guest, rank) == ""
        broken = {name: value.clone() for name, value in world.model.named_parameters()}
        broken["model.layers.0.self_attn.q_proj.weight"].zero_()
        world.run(world.engine.load_weights(pack_tensors(broken.items(), version=world.version)))
        assert "the likeliest cause" in asked(guest, rank)
    finally:
        world.run(world.engine.load_weights(pack_tensors(world.model.named_parameters(), version=world.version)))


# ---- in the run ----


def batch_of(guest: Guest) -> list[TrainSample]:
    """Rollouts of the engine, as they are trained."""
    questions = make_questions(guest.own_tokenizer, room=40)
    ids = [RolloutId(f"{id.group}", 0, id.branch) for id in questions.ids]
    draw = Draw(max_tokens=24, temperature=TEMPERATURE)
    batch = guest.world.run(guest.rollout_worker.sample_together(questions.prompts, ids, draw))
    advantage = (AdvantageSpan(start=0, value=1.0),)
    return [train_sample(batch, row, advantage=advantage, minibatch=row % 2) for row in range(len(batch))]


def run_spec(folder: Path, **settings: Any) -> Any:
    return make_spec(folder, loss=LossConfig(), stop_above_mismatch=BOUND, micro_batch_tokens=512, **settings)


def test_a_batch_of_an_engine_that_serves_the_learner_is_trained(guest: Guest, folder: Path) -> None:
    report = start_rank(run_spec(folder)).train(batch_of(guest), version=1)
    assert report.metrics["train/mismatch_nats"] < 1e-4


@pytest.mark.parametrize("change", [weight, head, rope])
def test_a_batch_of_another_policy_stops_with_a_dump(guest: Guest, folder: Path, tmp_path: Path, change: Any) -> None:
    from dataclasses import replace

    spec = replace(run_spec(changed(folder, tmp_path / "model", change)), dump_folder=str(tmp_path / "dumps"))
    with pytest.raises(
        FloatingPointError, match=r"sampled by these very weights differ by .* \(learner\.stop_above_mismatch is 0\.025"
    ) as raised:
        start_rank(spec).train(batch_of(guest), version=1)
    assert "; the likeliest cause is " in str(raised.value)
    dump, found = replay(tmp_path / "dumps" / "step-000001")
    assert dump.cause.startswith(found.cause.split(" differ by")[0])


def test_a_batch_at_another_temperature_stops(guest: Guest, folder: Path) -> None:
    from dataclasses import replace

    with pytest.raises(FloatingPointError, match="what all engines share"):
        start_rank(replace(run_spec(folder), temperature=1.0)).train(batch_of(guest), version=1)


@pytest.mark.parametrize("settings", [{"stop_above_mismatch": 0.0}, {"loss": LossConfig(prox="behaviour")}])
def test_without_a_bound_or_a_proximal_policy_nothing_stops(guest: Guest, folder: Path, settings: Any) -> None:
    from dataclasses import replace

    spec = run_spec(folder)
    spec = replace(spec, **settings) if "loss" in settings else replace(spec, learner=replace(spec.learner, **settings))
    start_rank(replace(spec, temperature=1.0)).train(batch_of(guest), version=1)
