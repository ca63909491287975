"""Branches of one trunk take it from the prefix cache: every full block, to the token, and never that of other weights.

What the cache must give follows from block arithmetic: a request whose context was computed before takes all its full
blocks, but never its last token, for whose logits something has to be computed. Every completion is compared with
transformers as well, so that what was taken is right.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from engine_world import END, TOLERANCE, VOCABULARY, World, build_model

from fr3e_async.algorithm.anchors import AnchorRule, with_anchors
from fr3e_async.config import EngineConfig
from fr3e_async.rollout import EngineSpec, engine_environment, start_engine
from fr3e_async.rollout.rollout_worker import RolloutWorker, TokenTexts
from fr3e_async.testing.engine import joined
from fr3e_async.types import Anchor, Completion, Draw, Finish, Prompt, RolloutBatch, RolloutId

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(240)]

BLOCK = 32
PROMPT = 20  # tokens
BRANCHES = 4
DRAW = Draw(max_tokens=200)
POSITIONS = (37, 76, 150)  # contexts of 57, 96 and 170 tokens: the second is three blocks to the token


class NoText:
    """Stands for a tokenizer: no token is special or ends an answer."""

    all_special_ids = ()

    def decode(self, ids: list[int]) -> str:
        return "x"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, World]]:
    """Two engines, by whether an update clears the cache: if it does not, only the version in the salt tells old from new."""
    folder = tmp_path_factory.mktemp("model")
    models = {clear: build_model(folder, tied=False) for clear in (True, False)}
    specs = {
        clear: EngineSpec(
            model=str(folder), end_token_ids=(END,), max_model_len=256, engine=EngineConfig(
                dtype="float32", kv_cache_gib=0.05, block_size=BLOCK, max_running=32, clear_cache_on_update=clear
            ),
        )
        for clear in (True, False)
    }  # fmt: skip
    before = dict(os.environ)
    os.environ.update(engine_environment(specs[True]))

    async def start() -> list[Any]:
        return await asyncio.gather(*(start_engine(spec) for spec in specs.values()))

    with asyncio.Runner() as runner:
        engines = dict(zip(specs, runner.run(start()), strict=True))
        found = {clear: World(runner, engines[clear], models[clear], specs[clear]) for clear in specs}
        for world in found.values():
            world.remember()
        yield found
        for engine in engines.values():
            runner.run(engine.close())
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(params=[True, False], ids=["cleared", "salted"])
def world(worlds: dict[bool, World], request: pytest.FixtureRequest) -> World:
    return worlds[request.param]


def rollout_worker(world: World) -> RolloutWorker:
    return RolloutWorker(world.engine, TokenTexts(NoText()), AnchorRule(name="uniform", count=3, min_gap=1), seed=0)


def trunk(seed: int) -> RolloutBatch:
    """A trunk that some other engine has sampled: tokens that this one has never seen, the end token not among them."""
    tokens = np.random.default_rng(seed).integers(END + 1, VOCABULARY, PROMPT + 180).astype(np.int32)
    length = len(tokens) - PROMPT
    numbers = np.zeros(length, dtype=np.float32)
    done = Completion(
        tokens=tokens[PROMPT:], logprobs=numbers, entropies=numbers, entropy_errors=numbers,
        versions=np.zeros(length, dtype=np.int32), finish=Finish.LENGTH,
    )  # fmt: skip
    return RolloutBatch.build(
        ids=[RolloutId(f"q{seed}@0", 0, 0)], contexts=[tokens[:PROMPT]], prompt_lens=[PROMPT], context_of=[0], completions=[done]
    )


def anchors_at(positions: Sequence[int]) -> list[Anchor]:
    return [Anchor(node=j, parent=j - 1, trunk=0, position=p, score=0.0) for j, p in enumerate(positions, start=1)]


async def branch(world: World, payload: RolloutBatch, positions: Sequence[int] = POSITIONS, row: int = 0) -> RolloutBatch:
    (id, anchors) = payload.ids[row], anchors_at(positions)
    ids = [RolloutId(id.group, anchor.node, m) for anchor in anchors for m in range(BRANCHES)]
    return await joined(rollout_worker(world).branch(with_anchors(payload, anchors), id, ids, DRAW))


def full_blocks(context: int) -> int:
    """Tokens that a request takes of a context of which all was computed before."""
    return (context - 1) // BLOCK * BLOCK


def expected(batch: RolloutBatch, *, fresh: bool = True) -> list[int]:
    """[R] cached tokens; ``fresh``: nothing of the trunk was computed before the first and longest request."""
    lengths = [len(batch.context(row)) for row in range(len(batch))]
    assert lengths == sorted(lengths, reverse=True)
    return [0 if fresh and row == 0 else full_blocks(length) for row, length in enumerate(lengths)]


def error(world: World, batch: RolloutBatch) -> float:
    """Largest difference of a batch's log-probs and entropies from transformers."""
    requests = [world.request(*batch.context(row).tolist()) for row in range(len(batch))]
    return max(world.error(request, batch.completion(row)) for row, request in enumerate(requests))


def test_branches_reuse_every_full_block_of_their_trunk(world):
    batch = world.run(branch(world, trunk(seed=1)))
    assert batch.cached_tokens.tolist() == expected(batch) == [0, *[160] * 3, *[64] * 4, *[32] * 4]
    assert error(world, batch) < TOLERANCE


def test_and_while_branches_of_other_trunks_run(world):
    payloads = [trunk(seed) for seed in range(10, 15)]

    async def together() -> list[RolloutBatch]:
        return await asyncio.gather(*(branch(world, payload) for payload in payloads))

    for batch in world.run(together()):  # 60 requests, more than the engine runs at once
        assert batch.cached_tokens.tolist() == expected(batch)
        assert error(world, batch) < TOLERANCE


def test_branches_issued_again_find_all_of_it(world):
    payload = trunk(seed=20)
    world.run(branch(world, payload))
    assert (again := world.run(branch(world, payload))).cached_tokens.tolist() == expected(again, fresh=False)


def test_the_engine_that_sampled_a_trunk_has_its_keys_and_values_already(world):
    prompt = Prompt(uid="own@0", text="", reference="", token_ids=np.arange(3, 3 + PROMPT, dtype=np.int32))
    ids = [RolloutId(prompt.uid, 0, branch) for branch in range(16)]
    bases = world.run(rollout_worker(world).sample_together([prompt] * len(ids), ids, DRAW))
    assert bases.cached_tokens.tolist() == [0] * len(ids), "a prompt of less than a block is nobody's"
    longest = int(np.diff(bases.offsets).argmax())
    length = len(bases.completion(longest))
    assert length > 2 * BLOCK, "another seed: all of them end early"
    batch = world.run(branch(world, bases, positions=(length // 3, length // 2, length - 1), row=longest))
    assert batch.cached_tokens.tolist() == expected(batch, fresh=False)
    assert batch.cached_tokens.max() >= 2 * BLOCK
    assert error(world, batch) < TOLERANCE


def test_new_weights_begin_with_an_empty_cache(world):
    """Of the same trunk: nothing computed under the old weights is served, and the new ones share as the old ones did."""
    payload = trunk(seed=30)
    old = world.run(branch(world, payload))
    world.run(world.engine.load_weights(world.next_bundle()))
    new = world.run(branch(world, payload))
    assert set(old.versions.tolist()) == {world.version - 1}
    assert set(new.versions.tolist()) == {world.version}
    assert new.cached_tokens.tolist() == expected(new)
    assert error(world, new) < TOLERANCE


def test_new_weights_in_the_middle_of_a_trunks_branches(world):
    """Those that run keep what they had or compute it again; those that come later find nothing of the old weights'."""
    payload = trunk(seed=40)

    async def main() -> tuple[RolloutBatch, RolloutBatch]:
        early = asyncio.create_task(branch(world, payload))
        while (await world.engine.stats()).running < 3 * BRANCHES:
            await asyncio.sleep(0.001)
        await world.engine.load_weights(world.next_bundle())
        late = await branch(world, payload)
        return await early, late

    early, late = world.run(main())
    assert early.versions.max() == world.version, "they had ended before the update"
    assert set(late.versions.tolist()) == {world.version}
    assert late.cached_tokens.tolist() == expected(late)
    assert error(world, late) < TOLERANCE
    if world.spec.engine.clear_cache_on_update:
        assert error(world, early) < TOLERANCE
