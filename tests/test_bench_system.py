"""What the system benchmarks compute, and the benchmarks themselves, in their smallest form, as a user starts them."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest
from make_support import figures, make

from fr3e_async.algorithm.anchors import AnchorRule
from fr3e_async.control.ports import Delivery
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS
from fr3e_async.machine.messages import Assign, Branch, Sample
from fr3e_async.testing.fakes import FakePayloads
from fr3e_async.types import Completion, Draw, Finish, RolloutBatch, RolloutId
from fr3e_async.weights.manifest import WeightBundle, WeightManifest


@pytest.fixture(autouse=True)
def _benchmarks(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))


# ---- rates ----


def test_a_steady_rate_leaves_out_the_first_and_the_last_tenth():
    """100 tokens: 10 come late at first, 80 at one a second, 10 very late."""
    from system_bare import steady

    moments = [(0.0, 10), *((1000.0 + i, 10) for i in range(0, 80, 10)), (9000.0, 10)]
    assert steady(moments) == pytest.approx(80 / 1070)  # from the moment that makes the first tenth whole
    assert steady(moments[::-1]) == steady(moments), "the order in which engines were heard does not matter"
    assert steady(moments, cut=0.2) == pytest.approx(60 / 60)


def test_a_rate_of_too_few_moments_is_refused():
    from system_bare import steady

    with pytest.raises(ValueError, match="not enough"):
        steady([(0.0, 10)])


def test_pace_counts_what_lies_between_two_steps():
    from system_parts import pace

    rows = [
        {"step": s, "time_s": 100.0 + t, "tokens/generated": n} for s, t, n in ((1, 0, 9), (2, 4, 10), (3, 5, 30), (4, 9, 50))
    ]
    assert pace(rows, first=2, last=4) == {"batches_per_s": pytest.approx(2 / 5), "tokens_per_s": pytest.approx(80 / 5)}


@pytest.mark.parametrize(("bounds", "steps", "expected"), [((0, 1, 2), 16, (2, 14)), ((0, 1), 16, (2, 15)), ((0, 2), 4, (1, 4))])
def test_a_job_is_measured_before_its_last_groups_are_admitted(bounds, steps, expected):
    from system import window

    assert window(bounds, steps) == expected


# ---- ports ----


def test_no_learner_gives_the_same_weights_a_new_name():
    from stand_ins import NoLearner

    manifest = WeightManifest(version=0, dtype="float32", names=("w",), shapes=((1,),), checksums=(5,), buckets=(1,))
    bundle = WeightBundle(manifest=manifest, buckets=("handle",), sent_bytes=4)
    exported = asyncio.run(NoLearner(bundle).export(7))
    assert (exported.version, exported.checksum, exported.buckets, exported.sent_bytes) == (7, bundle.checksum, ("handle",), 0)


def test_a_run_is_stopped_after_its_batches_and_its_cpu_time_counted():
    from stand_ins import Until

    stopped: list[str] = []

    async def train(rows, *, version):
        sum(range(3_000_000))
        return version

    async def go():
        learner = Until(SimpleNamespace(train=train, name="inner"), 4)
        learner.controller = SimpleNamespace(stop=stopped.append)
        for version in range(1, 5):
            assert await learner.train([], version=version) == version
            assert len(stopped) == (version == 4)
        return learner

    learner = asyncio.run(go())
    assert learner.name == "inner", "everything else is the inner port's"
    assert 0 < learner.batch_cpu_s < 1
    assert learner.cores > 0


def dispatcher(*, waiting: int = 0, working: int = 0) -> SimpleNamespace:
    roles = {GENERATORS: None, EXPLORERS: None}
    return SimpleNamespace(
        roles=roles, queued=lambda role: waiting, in_flight=lambda role: working if role == EXPLORERS else 0
    )  # fmt: skip


@pytest.mark.parametrize(
    ("live", "state", "begins"),
    [
        (3, dispatcher(), True),
        (2, dispatcher(), False),
        (3, dispatcher(waiting=1), False),
        (3, dispatcher(working=1), False),
        (4, dispatcher(), True),
    ],
)
def test_a_learner_that_lets_engines_run_ahead_waits_for_weights_and_work(live, state, begins):
    """Batch 4 begins when version 3 is live and no engine has anything to do."""
    from stand_ins import RunAhead

    learner = RunAhead(SimpleNamespace())
    learner.controller = SimpleNamespace(machine=SimpleNamespace(ledger=SimpleNamespace(live=live), dispatcher=state))
    assert learner.nothing_to_make(3) == begins


def test_requests_are_what_the_engine_was_asked_for():
    """A trunk of prompt [5 6 7], and a branch of it after two tokens: 10 tokens at most for prefix and continuation."""
    from system_bare import Listening

    def made(node: int, context: list[int]) -> RolloutBatch:
        one = np.zeros(4, dtype=np.float32)
        completion = Completion(
            tokens=np.array([8, 8, 8, 2], dtype=np.int32), logprobs=one, entropies=one, entropy_errors=one,
            versions=np.zeros(4, dtype=np.int32), finish=Finish.STOP,
        )  # fmt: skip
        return RolloutBatch.build(
            ids=[RolloutId("p@0", node, 0)], contexts=[np.array(context, dtype=np.int32)], prompt_lens=[3], context_of=[0],
            completions=[completion],
        )  # fmt: skip

    async def sample(prompts, ids, draw, *, trunk):
        batch = made(0, [5, 6, 7])
        yield Delivery(notes=(batch.note(0),)), batch

    async def branch(payload, trunk, ids, draw):
        batch = made(1, [5, 6, 7, 8, 8])
        yield Delivery(notes=(batch.note(0),)), batch

    async def go():
        engine = Listening(SimpleNamespace(name="generator-0", sample=sample, branch=branch))
        draw = Draw(max_tokens=10, temperature=0.5)
        for deliveries in (engine.sample([], [], draw, trunk=True), engine.branch(None, None, [], draw)):
            assert len([one async for one in deliveries]) == 1
        return engine

    engine = asyncio.run(go())
    first, second = engine.requests(lambda batch: batch)
    assert (first.context.tolist(), first.max_tokens, first.temperature) == ([5, 6, 7], 10, 0.5)
    assert (second.context.tolist(), second.max_tokens) == ([5, 6, 7, 8, 8], 8)
    assert [tokens for _, tokens in engine.moments()] == [4, 4]
    assert engine.name == "generator-0"


# ---- the staleness table ----


def cell(seed: int, bound: int, correction: str, after: float, failure: str = "") -> dict:
    return {
        "seed": seed, "bound": bound, "correction": correction, "before": 0.25, "after": after, "failure": failure,
        "staleness_mean": bound / 2, "staleness_max": bound,
    }  # fmt: skip


def test_every_cell_is_there_once():
    from staleness import CORRECTIONS, cells

    names = [cell.name for cell in cells([0, 1], [0, 8])]
    assert len(set(names)) == len(names) == 2 * 2 * len(CORRECTIONS)


def test_corrections_are_what_they_are_called():
    from staleness import CORRECTIONS
    from system_parts import toy

    loss = {name: toy(*settings).config.loss for name, settings in CORRECTIONS.items()}
    assert not loss["off"].uses_behaviour
    assert loss["behaviour"].prox == "behaviour"
    assert (loss["decoupled"].prox, loss["decoupled"].importance) == ("recompute", "truncate")


def test_the_table_has_means_ranges_and_what_diverged():
    from staleness import summarised

    done = {
        str(i): made
        for i, made in enumerate(
            [
                cell(0, 2, "off", 0.5),
                cell(1, 2, "off", 0.7, "refused"),
                cell(0, 2, "behaviour", 0.8),
                cell(0, 2, "decoupled", 0.9),
            ]
        )
    }
    (row,) = summarised(done, [2, 4])
    assert row == (
        "2", "1.00 / 2", "0.600 (0.500 to 0.700), 1 diverged", "0.800 (0.800 to 0.800)", "0.900 (0.900 to 0.900)",
    )  # fmt: skip


def test_a_restart_keeps_cells_of_the_same_settings_only(tmp_path):
    from staleness import kept

    path = tmp_path / "out.json"
    assert kept(path, {"steps": 4}) == {}
    path.write_text(json.dumps({"settings": {"steps": 4}, "cells": {"a": {}}}))
    assert kept(path, {"steps": 4}) == {"a": {}}
    with pytest.raises(ValueError, match="other settings"):
        kept(path, {"steps": 5})


# ---- the control plane ----


def test_the_recorded_mix_is_that_of_whole_groups():
    """4 bases, of which one is the trunk, and 3 anchors of 4 branches: three deliveries a group, each judged."""
    from system_control import Player
    from system_parts import toy

    player = Player(toy("run.steps=1000000").config)
    seen = []
    done = player.done
    player.done = lambda command: (seen.append(command), done(command))[1]
    events = player.play(3000)
    assert player.machine.ledger.version >= 5, "batches are trained"
    works = [command.work for command in seen if isinstance(command, Assign)]
    assert {len(work.ids) for work in works if isinstance(work, Sample)} == {1, 3}
    assert {len(work.ids) for work in works if isinstance(work, Branch)} == {12}
    again = Player(toy("run.steps=1000000").config).play(3000)
    assert list(map(repr, again)) == list(map(repr, events)), "what is told to a fresh machine fits what it has decided"


@pytest.mark.engine
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_sections_as_a_user_starts_them(tmp_path):
    splits = ("--staleness", "0", "1", "--splits", "flexible")
    done = make("bench-system", "--quick", *splits, "--json", str(tmp_path / "out.json"))
    found = figures(tmp_path / "out.json")
    assert set(found) >= {"engine", "async", "updates", "control", "state machine"}
    for row in (*found["engine"]["rounds"], found["engine"]["learning"]):
        assert row["ratio"] == pytest.approx(row["system"] / row["bare"])
        assert row["ratio"] > 0
    assert [row["update"] for row in found["updates"]["rows"]] == ["in_flight", "wait_idle"]
    assert all(row["sync_s"] > 0 for row in found["updates"]["rows"])
    assert [row["bound"] for row in found["async"]["search"]] == [0, 1]
    (job,) = found["async"]["jobs"]
    assert (job["bound"], job["split"]) == (1, "flexible")
    assert job["wall_s"] > 0
    assert found["control"]["rollouts"] >= 8 * 512, "8 batches of 32 groups of 4 + 3 · 4 rollouts"
    for name in ("control", "state machine"):
        assert f"goal {found[name]['goal']:g}: {'met' if found[name]['met'] else 'MISSED'}" in done.stdout
    assert found["control"]["rollouts"] >= 8 * 512, "8 batches of 32 groups of 4 + 3 · 4 rollouts"
    for name in ("control", "state machine"):
        assert f"goal {found[name]['goal']:g}: {'met' if found[name]['met'] else 'MISSED'}" in done.stdout


@pytest.mark.engine
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_staleness_as_a_user_starts_it(tmp_path):
    """One cell, as old as the bound allows from the second batch on."""
    one = ("--seeds", "0", "--staleness", "1", "--corrections", "decoupled")
    small = ("--steps", "3", "--groups", "4", "--problems", "16")
    done = make("bench-staleness", *one, *small, "--json", str(tmp_path / "out.json"))
    (found,) = figures(tmp_path / "out.json", quick=False)["cells"].values()
    assert (found["seed"], found["bound"], found["correction"], found["failure"]) == (0, 1, "decoupled", "")
    assert (found["steps"], found["staleness_max"]) == (3, 1)
    assert 0 <= found["after"] <= 1
    assert "seed 0, bound 1, decoupled: " in done.stdout


def test_a_stage_refuses_a_run_whose_anchors_its_engines_would_pick_by_another_rule():
    """Engines pick anchors by the rule they were started with: such a run would not be what its settings say."""
    from system_parts import Stage, toy

    stage = object.__new__(Stage)
    stage.overrides, stage.base, stage.config = (), "toy", toy().config
    for settings in (("algorithm.anchor_rule=random",), ("algorithm.strategy=vineppo",), ("algorithm.anchors=2",)):
        with pytest.raises(ValueError, match="ruled=True"):
            asyncio.run(stage.play(*settings))


def test_anchors_picked_beside_an_engine_are_those_of_the_run():
    """Hand-made entropies: the engine was started to rank by them, the run wants places that are evenly spaced."""
    from stand_ins import Ruled

    entropies = np.array([0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 0, 0], dtype=np.float32)
    completion = Completion(
        tokens=np.arange(12, dtype=np.int32), logprobs=-entropies, entropies=entropies, entropy_errors=np.zeros(12, dtype=np.float32),
        versions=np.zeros(12, dtype=np.int32), finish=Finish.STOP,
    )  # fmt: skip
    batch = RolloutBatch.build(
        ids=[RolloutId("p@0", 0, 0)], contexts=[np.ones(2, dtype=np.int32)], prompt_lens=[2], context_of=[0], completions=[completion],
        eligible=[np.array([False, *[True] * 10, False])],
    )  # fmt: skip

    class Engine:
        name = "e"

        async def sample(self, prompts, ids, draw, *, trunk):
            yield Delivery(notes=(batch.note(0),), anchors=()), batch

    def places(rule: str) -> list[int]:
        one = Ruled(Engine(), rule=AnchorRule(name=rule, count=2, min_gap=2), seed=0, payloads=FakePayloads())
        delivery, _ = asyncio.run(anext(one.sample([], [], None, trunk=True)))
        return [anchor.position for anchor in delivery.anchors]

    assert places("entropy") == [2, 6]
    assert places("uniform") != [2, 6]
    assert len(places("random")) == 2
