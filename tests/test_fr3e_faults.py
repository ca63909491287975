"""The nine faults of the released code, one test each: what it computed is written out here, and must differ from ours."""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from builders import prompt, small_config
from ledger_support import delivered, judged, make_ledger
from oracle import Tree
from trees import GROUP, advantages_of, credit_of, outcome_of, tree

from fr3e_async.algorithm.anchors import AnchorRule, with_anchors
from fr3e_async.algorithm.batching import train_sample
from fr3e_async.algorithm.strategies import GroupPlan, GroupRewards, make_strategy
from fr3e_async.algorithm.strategies.base import whole
from fr3e_async.data.stream import PromptStream, group_id
from fr3e_async.data.toy.tokenizer import build_tokenizer
from fr3e_async.machine.budget import TokenBudget
from fr3e_async.machine.events import Admitted
from fr3e_async.machine.ledger_state import LedgerError
from fr3e_async.rollout.rollout_worker import RolloutWorker, TokenTexts
from fr3e_async.settings.loader import load_config
from fr3e_async.testing.engine import ScriptedEngine, completion, joined
from fr3e_async.types import Completion, Draw, RolloutId

CONFIGS = Path(__file__).parent.parent / "configs"
TOKENIZER = build_tokenizer()


def rollout_worker(script: dict[int, Completion], *, count: int, min_gap: int) -> tuple[RolloutWorker, ScriptedEngine]:
    """Base b gets the completion ``script[b]`` and every branch a fixed one."""

    def answer(id: str) -> Completion:
        node, branch = id.split("/")[-2:]
        return script[int(branch)] if node == "0" else completion([7, 8])

    engine = ScriptedEngine(answer)
    return RolloutWorker(engine, TokenTexts(TOKENIZER), AnchorRule(name="entropy", count=count, min_gap=min_gap), seed=0), engine


def sample(maker: RolloutWorker, branches: Sequence[int]):
    ids = [RolloutId(GROUP, 0, b) for b in branches]
    return asyncio.run(joined(maker.sample([prompt("q")] * len(ids), ids, Draw(max_tokens=60), trunk=True)))


def test_fault_1_cut_points_come_from_the_rows_own_entropies():
    """There: a batch is re-ordered to balance lengths, but cut points are read from log-probs in the old order."""
    lengths = {0: 20, 1: 12, 2: 28, 3: 16}
    peaks = {0: 15, 1: 4, 2: 25, 3: 9}
    plain = TOKENIZER.encode("1", add_special_tokens=False)[0]
    script = {b: completion([plain] * n, [2.0 if i == peaks[b] else 0.1 for i in range(n)]) for b, n in lengths.items()}

    reordered = sorted(lengths, key=lambda b: -lengths[b])
    theirs = {b: int(script[old].entropies.argmax()) for b, old in zip(reordered, lengths, strict=True)}
    assert theirs != peaks

    for order in (list(lengths), reordered, [3, 1, 0, 2]):
        maker, engine = rollout_worker(script, count=1, min_gap=1)
        batch = sample(maker, order)
        anchors = maker.anchors(batch)
        batch = with_anchors(batch, anchors)
        assert {a.trunk: a.position for a in anchors} == peaks
        engine.requests.clear()
        for anchor in anchors:
            trunk, id = RolloutId(GROUP, 0, anchor.trunk), RolloutId(GROUP, anchor.node, 0)
            asyncio.run(joined(maker.branch(batch, trunk, [id], Draw(max_tokens=60))))
        asked = [len(request.context) - len(prompt("q").token_ids) for request in engine.requests]
        assert asked == [peaks[b] for b in order]


def mixed_by_reshape(rows: list[tuple[int, int, float]], branches: int) -> list[float]:
    """Their alphas: rows in whatever order they are, taken to be states x branches."""
    table = np.asarray([reward for *_, reward in rows]).reshape(-1, branches)
    return [math.exp(-(b - a)) for a, b in pairwise(table.mean(axis=1))]


def test_fault_2_values_and_alphas_are_of_the_nodes_whatever_the_order_of_rows():
    """There: rows are re-ordered, then reshaped to states x branches: realised and intended alpha correlate by 0.03."""
    rng, intended, theirs, ours = random.Random(2), [], [], []
    strategy = make_strategy(small_config(algorithm={"anchors": 3}).algorithm)
    for _ in range(200):
        group = tree(*[[float(rng.random() < ease) for _ in range(4)] for ease in (0.5, 0.2, 0.8, 0.4)])
        values = [sum(sample) / 4 for sample in (group.bases, *(s.rewards for s in group.trunks[0]))]
        intended += [math.exp(-(b - a)) for a, b in pairwise(values)]
        whole_group = outcome_of(group)
        rows = [(id.node, id.branch, r) for id, r in whole_group.rewards.items() if r is not None]
        rng.shuffle(rows)
        theirs += mixed_by_reshape(rows, 4)
        rewards = {RolloutId(GROUP, node, branch): r for node, branch, r in rows}
        credit = strategy.credit(GroupRewards(group=GROUP, rewards=rewards, anchors=whole_group.anchors))
        ours += [credit.states[node].alpha for node in (1, 2, 3)]
    assert abs(np.corrcoef(theirs, intended)[0, 1]) < 0.2
    assert ours == pytest.approx(intended, abs=1e-12)


def test_fault_3_groups_of_accumulated_batches_do_not_collide():
    """There: a group's id is its place in its generation batch, so that two batches share ids and their rewards mix."""
    batches = [{"a": [1, 0, 0, 0]}, {"a": [1, 1, 1, 0]}]  # the same prompt in two epochs
    pooled: dict[int, list[float]] = defaultdict(list)
    for batch in batches:
        for place, rewards in enumerate(batch.values()):
            pooled[place] += rewards
    theirs = [[r - sum(pooled[0]) / len(pooled[0]) for r in batch["a"]] for batch in batches]
    assert theirs == [[0.5, -0.5, -0.5, -0.5], [0.5, 0.5, 0.5, -0.5]]

    stream = PromptStream([prompt("a")], seed=0)
    ledger = make_ledger(anchors=0, bases=4, groups=2)
    where, scores = {}, []
    for payload, batch in enumerate(batches):
        taken, epoch = stream.take()
        (command,) = ledger.handle(Admitted(group=group_id(taken.uid, epoch)))
        where |= {(payload, row): id for row, id in enumerate(command.ids)}
        (score,) = ledger.handle(delivered(command, payload=payload))
        scores.append((score, batch["a"]))
    assert len({id.group for id in where.values()}) == 2
    with pytest.raises(LedgerError, match="admitted already"):
        ledger.handle(Admitted(group="a@0"))
    (train,) = [command for score, rewards in scores for command in ledger.handle(judged(score, *rewards))]
    got = {where[item.payload, item.row]: item.advantage for item in train.items}
    ours = [[got[RolloutId(f"a@{epoch}", 0, b)][0].value for b in range(4)] for epoch in (0, 1)]
    assert ours == [[0.75, -0.25, -0.25, -0.25], [0.25, 0.25, 0.25, -0.75]]


def test_fault_4_the_previous_state_is_the_neighbour_also_if_it_is_dropped():
    """There: states without spread are dropped first, and alpha compares with the previous one that is left."""
    samples = [[1, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    values = [sum(sample) / 4 for sample in samples]
    surviving = [v for v, sample in zip(values, samples, strict=True) if len(set(sample)) > 1]
    theirs = math.exp(-(surviving[1] - surviving[0]))

    credit = credit_of(tree(*samples))
    assert credit.states[1].dropped == "all_correct"
    assert credit.states[2].alpha == pytest.approx(math.exp(-(0.25 - 1.0)))
    assert credit.states[2].alpha != pytest.approx(theirs)
    assert advantages_of(credit)[0, 2, 0] == pytest.approx(math.exp(0.75) * 0.75)


def test_fault_5_values_come_from_rewards_and_not_from_centred_scores():
    """There: V is the mean of scores that were centred before, so that every state is worth 0 and alpha is 1."""
    samples = [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    centred = [[r - sum(sample) / 4 for r in sample] for sample in samples]
    theirs = [sum(sample) / 4 for sample in centred]
    assert theirs == [0, 0, 0]

    states = credit_of(tree(*samples)).states
    assert [states[node].value.value for node in range(3)] == [0.25, 1.0, 0.5]
    assert [states[node].alpha for node in (1, 2)] == pytest.approx([math.exp(-0.75), math.exp(0.5)])
    assert credit_of(tree([1, 0], [0, 0])).states[1].value.value == 0.0


def sharpened(advantages: Sequence[float]) -> np.ndarray:
    """Theirs: each advantage over the sum of their sizes."""
    with np.errstate(invalid="ignore"):
        return np.asarray(advantages) / np.abs(advantages).sum()


@pytest.mark.parametrize("same", [0.0, 1.0, 0.5])
def test_fault_6_equal_rewards_give_no_nan(same):
    """There: "sharpening" divides 0 by 0 where all rewards of a state are equal."""
    assert np.isnan(sharpened([r - same for r in [same] * 4])).all()
    assert not np.isnan(sharpened([0.5, -0.5])).any()  # and only there

    for switches in ({}, {"std_normalise": "true"}, {"alpha_shrink": True}):
        credit = credit_of(tree([1, 0, 1, 0], [same] * 4), **switches)
        assert all(math.isfinite(a) for a in advantages_of(credit).values())
        assert {rollout[:-1] for rollout in advantages_of(credit)} == {()}
    assert set(advantages_of(credit_of(Tree([same] * 4), strategy="grpo")).values()) == {0.0}
    for strategy in ("fr3e", "grpo_pp", "rloo", "vineppo"):
        assert credit_of(tree([same] * 4, [same] * 4), strategy=strategy).rejected
    maker, _ = rollout_worker({0: completion([7, 8, 9])}, count=1, min_gap=1)
    with pytest.raises(ValueError, match="not finite"):  # nor could one be trained
        train_sample(sample(maker, [0]), 0, advantage=whole(math.nan), minibatch=0)


def test_fault_7_a_prefix_is_a_slice_of_ids_even_inside_a_character():
    """There: prefixes are decoded and encoded again; a character of several bytes that is cut becomes another one."""
    tokens = TOKENIZER.encode("日本語の🙂 naïve", add_special_tokens=False)
    differing = []
    for cut in range(1, len(tokens)):
        theirs = TOKENIZER.encode(TOKENIZER.decode(tokens[:cut]), add_special_tokens=False)
        peak = [2.0 if i == cut else 0.1 for i in range(len(tokens))]
        maker, engine = rollout_worker({0: completion(tokens, peak)}, count=1, min_gap=1)
        batch = sample(maker, [0])
        (anchor,) = maker.anchors(batch)
        assert anchor.position == cut
        engine.requests.clear()
        branch = asyncio.run(
            joined(
                maker.branch(with_anchors(batch, [anchor]), batch.ids[0], [RolloutId(GROUP, anchor.node, 0)], Draw(max_tokens=60))
            )
        )
        assert engine.requests[0].context.tolist() == [*prompt("q").token_ids, *tokens[:cut]]
        assert branch.response(0).tolist() == [*tokens[:cut], 7, 8]
        assert engine.requests[0].max_tokens == 60 - cut
        differing.append(theirs != tokens[:cut])
    assert any(differing)
    assert not all(differing)


def test_fault_8_no_anchor_at_the_start_at_a_special_token_or_beside_another():
    """There: the K highest of all positions, whatever they are."""
    tokens = TOKENIZER.encode("so 1+2=3 and \\boxed{3} or so", add_special_tokens=False)
    special = TOKENIZER.eos_token_id
    answer = next(n for n in range(1, len(tokens) + 1) if "}" in TOKENIZER.decode(tokens[:n]))
    tokens = [*tokens[:6], special, *tokens[6:], special]
    answer += 1
    entropies = np.linspace(0.2, 0.1, len(tokens))
    entropies[[0, 3, 4, 5, 6, answer, len(tokens) - 1]] = [9.0, 3.0, 5.0, 4.0, 8.0, 7.0, 6.0]
    theirs = sorted(np.argsort(-entropies)[:5].tolist())
    assert theirs == sorted([0, 6, answer, len(tokens) - 1, 4])

    maker, _ = rollout_worker({0: completion(tokens, entropies.tolist())}, count=5, min_gap=2)
    batch = sample(maker, [0])
    ours = [anchor.position for anchor in maker.anchors(batch)]
    assert 4 in ours
    assert 0 not in ours
    assert all(tokens[position] != special for position in ours)
    assert all(position < answer for position in ours)
    assert all(b - a >= 2 for a, b in pairwise(ours))


def plan_of(name: str) -> GroupPlan:
    return make_strategy(load_config([f"config={CONFIGS / name}"]).config.algorithm).plan


def tokens_per_prompt(plan: GroupPlan, budget: int) -> float:
    """Mean cost of 400 groups whose bases have 20 tokens and whose branches have 10."""
    account, costs = TokenBudget(plan, budget), []
    for n in range(400):
        sized = account.admit(f"g{n}")
        bases, branches = [20] * sized.bases, [10] * (sized.rollouts - sized.bases)
        account.settle(f"g{n}", sized, base_lengths=bases, branch_lengths=branches)
        costs.append(sum(bases) + sum(branches))
    return sum(costs) / len(costs)


def test_fault_9_the_baseline_has_as_many_rollouts_and_may_have_as_many_tokens():
    """There: a baseline of 4 rollouts a prompt against 16 and more."""
    ours, baseline = plan_of("toy.yaml"), plan_of("toy_grpo.yaml")
    theirs = GroupPlan(bases=4)
    assert ours.rollouts == baseline.rollouts == 16
    assert theirs.rollouts < ours.rollouts
    assert (ours.anchors > 0, baseline.anchors) == (True, 0)

    assert tokens_per_prompt(theirs, 0) < 0.5 * tokens_per_prompt(ours, 0)  # 80 of 200
    assert tokens_per_prompt(baseline, 0) > 1.5 * tokens_per_prompt(ours, 0)  # equal rollouts are not equal tokens
    for plan in (ours, baseline):
        assert tokens_per_prompt(plan, 300) == pytest.approx(300, rel=0.01)
