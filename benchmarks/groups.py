"""Real FR3E groups of the toy run, recorded once, and the train samples that come of them at any length.

    python benchmarks/groups.py [--quick] [--json OUT]

Records 64 groups of the toy model on the real engine, as configs/toy.yaml has them sampled (4 bases, 3 entropy anchors, 4
branches each), into data/toy_groups.npz, and prints how much of their tokens is shared; ``--quick`` prints only, of the groups
that are there. ``load_samples`` reads them without an engine, as recorded or stretched to the lengths of prose. Rewards are
not recorded: advantages are drawn.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import finish, machine, parser, quiet
from numpy.typing import NDArray

from fr3e_async.algorithm.trees import build_forest
from fr3e_async.config import Config
from fr3e_async.types import Anchor, Draw, Prompt, TrainSample

if TYPE_CHECKING:
    from branching import Tree

Grown = tuple["Tree", tuple[Anchor, ...]]
FILE = Path(__file__).parent / "data" / "toy_groups.npz"
GROUPS = 64
IN_FLIGHT = 8
KINDS: dict[str, dict[str, Any]] = {
    "recorded": {},
    "stretched": {"stretch": 10, "vocabulary": 32768},
    "stretched, apart": {"stretch": 10, "vocabulary": 32768, "apart": True},
}
MULTIPLIERS = (2654435761, 40503)  # primes: the i-th of the tokens that one becomes is another for every other token


# ---- what is read ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """G groups of R rollouts in all. A rollout's context is its prompt and, of a branch, the trunk up to its anchor."""

    prompts: NDArray[np.int16]  # [Σ prompt lengths]
    prompt_offsets: NDArray[np.int32]  # [G + 1]
    group: NDArray[np.int16]  # [R] 0 … G-1, ascending; the first row of each is its trunk
    node: NDArray[np.int8]  # [R] 0: a base
    position: NDArray[np.int16]  # [R] tokens of the trunk in the context, the anchor's position; 0 of a base
    tokens: NDArray[np.int16]  # [Σ completion lengths]
    logprobs: NDArray[np.float32]  # [Σ completion lengths] nats, of the sampler
    offsets: NDArray[np.int32]  # [R + 1]
    anchor_group: NDArray[np.int16]  # [A]
    anchor_node: NDArray[np.int8]  # [A]
    anchor_position: NDArray[np.int16]  # [A] tokens
    anchor_entropy: NDArray[np.float32]  # [A] nats

    def rows(self) -> Iterator[Row]:
        """Every rollout."""
        spine, number = np.zeros(0, dtype=np.int64), 0
        for i, (group, position) in enumerate(zip(self.group, self.position, strict=True)):
            span = slice(self.offsets[i], self.offsets[i + 1])
            completion = self.tokens[span].astype(np.int64)
            first = i == 0 or group != self.group[i - 1]
            number = 1 if first else number + 1
            spine = completion if first else spine
            prompt = self.prompts[self.prompt_offsets[group] : self.prompt_offsets[group + 1]]
            lengths = (len(prompt), int(position), len(completion))
            yield Row(
                group=int(group),
                tokens=np.concatenate([prompt, spine[:position], completion]).astype(np.int64),
                writers=np.repeat([0, 1, number], lengths),
                context_len=lengths[0] + lengths[1],
                logprobs=self.logprobs[span],
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One rollout. ``writers`` tells who wrote each token: 0 the prompt, n the n-th rollout of the group; 1 is the trunk."""

    group: int
    tokens: NDArray[np.int64]  # [T] context + completion
    writers: NDArray[np.int64]  # [T]
    context_len: int
    logprobs: NDArray[np.float32]  # [T - context_len] nats


def load_recorded() -> Recorded:
    with np.load(FILE, allow_pickle=False) as file:
        return Recorded(**file)


def stretched(keys: NDArray[np.int64], *, stretch: int, vocabulary: int) -> NDArray[np.int64]:
    """[stretch · n] ``stretch`` tokens for each of n keys; rows share just as many keys as stretched keys.

    Two keys below ``vocabulary`` differ in every one of their tokens, so rows part where they did: at the first.
    """
    first, step = MULTIPLIERS
    return ((keys[:, None] * first + np.arange(stretch) * step) % vocabulary).reshape(-1)


def load_samples(
    *, groups: int | Sequence[int], stretch: int = 1, vocabulary: int = 0, apart: bool = False, seed: int = 0
) -> list[TrainSample]:
    """Samples of the first ``groups`` recorded groups, or of those listed, shuffled.

    Each has one advantage, ±1 give or take a half. As recorded (``vocabulary`` 0) behaviour log-probs are the sampler's;
    other tokens were sampled by no model, theirs are −ln ``vocabulary``, give or take 0.1 nats: near those of random weights.
    ``apart``: completions begin to differ with their first token, as prose does; toy solutions often begin, or are, alike.

    Raises:
        ValueError: a group that was not recorded, or a vocabulary that does not tell the tokens apart.
    """
    recorded = load_recorded()
    wanted = set(range(groups) if isinstance(groups, int) else groups)
    rows = [row for row in recorded.rows() if row.group in wanted]
    if {row.group for row in rows} != wanted:
        raise ValueError(f"groups {sorted(wanted)}: {len(recorded.prompt_offsets) - 1} are recorded")
    known = int(max(recorded.tokens.max(), recorded.prompts.max())) + 1
    needed = known * (1 + max(int(row.writers.max()) for row in rows) if apart else 1)
    if (stretch > 1 or apart or vocabulary) and (vocabulary < needed or math.gcd(vocabulary, MULTIPLIERS[0]) != 1):
        raise ValueError(f"vocabulary of {vocabulary}: {needed} kinds of tokens would not stay apart")
    rng, noise = np.random.default_rng(seed), np.random.default_rng([seed, 1])  # advantages and order are those of any stretch
    samples = []
    for row in rows:
        tokens, behaviour = row.tokens, row.logprobs
        size = stretch * len(behaviour)
        if vocabulary:
            keys = tokens + known * row.writers if apart else tokens
            tokens = stretched(keys, stretch=stretch, vocabulary=vocabulary)
            behaviour = noise.normal(-math.log(vocabulary), 0.1, size).astype(np.float32)
        samples.append(
            TrainSample(
                tokens=tokens.astype(np.int32),
                context_len=stretch * row.context_len,
                behaviour_logprobs=behaviour,
                versions=np.zeros(size, dtype=np.int32),
                advantages=np.full(size, rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.5), dtype=np.float32),
                minibatch=0,
            )
        )
    return [samples[i] for i in rng.permutation(len(samples))]


def structure(samples: Sequence[TrainSample]) -> dict[str, float]:
    """Numbers of rows and tokens: of all rows, distinct prefixes, trained, and distinct among the trained ones."""
    forest = build_forest([sample.tokens for sample in samples])
    trained = [path[sample.context_len :] for path, sample in zip(forest.paths, samples, strict=True)]
    tokens, completions = sum(len(s.tokens) for s in samples), sum(len(s.versions) for s in samples)
    return {
        "rows": len(samples),
        "tokens": tokens,
        "unique": len(forest),
        "trained": completions,
        "trained_unique": len(np.unique(np.concatenate(trained))),
        "row_mean": round(tokens / len(samples), 1),
        "context_mean": round((tokens - completions) / len(samples), 1),
        "completion_mean": round(completions / len(samples), 1),
        "tokens_to_unique": round(tokens / len(forest), 3),
    }


# ---- how it is recorded ----


async def record(folder: str, config: Config, tokenizer: Any, prompts: Sequence[Prompt]) -> list[Grown]:
    """The groups of these prompts, as ``branching`` grows them."""
    # What only recording needs is not imported by those who read.
    from branching import grow

    from fr3e_async.algorithm.strategies.base import tree_plan
    from fr3e_async.data.tokenizer import end_tokens
    from fr3e_async.rollout import EngineSpec, engine_environment, start_engine
    from fr3e_async.rollout.rollout_worker import RolloutWorker, TokenTexts

    spec = EngineSpec(
        model=folder,
        end_token_ids=end_tokens(config, tokenizer),
        max_model_len=config.context_length,
        engine=config.engine,
        seed=config.run.seed,
    )
    os.environ.update(engine_environment(spec))
    engine = await start_engine(spec)
    try:
        rule = tree_plan(config.algorithm, rule="entropy").rule
        rollout_worker = RolloutWorker(engine, TokenTexts(tokenizer), rule, seed=config.run.seed)
        draw = Draw(max_tokens=config.sampling.max_response, temperature=config.sampling.temperature)
        room = asyncio.Semaphore(IN_FLIGHT)

        async def one(prompt: Prompt) -> Grown:
            async with room:
                tree = await grow(rollout_worker, rollout_worker, prompt, draw)
                return tree, rollout_worker.anchors(tree.bases[0])

        return await asyncio.gather(*map(one, prompts))
    finally:
        await engine.close()


def columns(grown: Sequence[Grown]) -> Recorded:
    """The recorded form of pairs of a group and its anchors. Branches stand by their ids."""
    prompts, rows, anchors = [], [], []
    for group, (tree, found) in enumerate(grown):
        trunk = tree.bases[0]
        prompts.append(trunk.context(0))
        anchors += [(group, anchor.node, anchor.position, anchor.score) for anchor in found]
        for batch in (*tree.bases, tree.branches):
            for row in sorted(range(len(batch)), key=lambda row: batch.ids[row]):
                begin = len(batch.context(row)) - batch.prompt_len(row)
                rows.append((group, batch.ids[row].node, begin, batch.completion(row)))
    groups, node, position, done = zip(*rows, strict=True)
    of_anchors = list(zip(*anchors, strict=True))
    return Recorded(
        prompts=np.concatenate(prompts).astype(np.int16),
        prompt_offsets=np.cumsum([0, *map(len, prompts)]).astype(np.int32),
        group=np.asarray(groups, dtype=np.int16),
        node=np.asarray(node, dtype=np.int8),
        position=np.asarray(position, dtype=np.int16),
        tokens=np.concatenate([c.tokens for c in done]).astype(np.int16),
        logprobs=np.concatenate([c.logprobs for c in done]),
        offsets=np.cumsum([0, *map(len, done)]).astype(np.int32),
        anchor_group=np.asarray(of_anchors[0], dtype=np.int16),
        anchor_node=np.asarray(of_anchors[1], dtype=np.int8),
        anchor_position=np.asarray(of_anchors[2], dtype=np.int16),
        anchor_entropy=np.asarray(of_anchors[3], dtype=np.float32),
    )


def shapes(**settings: Any) -> dict[str, Any]:
    """The structure of all groups, and the least, median and largest ratio of tokens to distinct prefixes among them."""
    ratios = sorted(structure(load_samples(groups=[i], **settings))["tokens_to_unique"] for i in range(GROUPS))
    return structure(load_samples(groups=GROUPS, **settings)) | {"by_group": [ratios[0], ratios[GROUPS // 2], ratios[-1]]}


def main() -> int:
    args = parser(__doc__).parse_args()
    facts = machine()
    with quiet():
        if not args.quick:
            recorded = columns(grown_groups())
            FILE.parent.mkdir(exist_ok=True)
            np.savez_compressed(FILE, **{name: getattr(recorded, name) for name in Recorded.__slots__})
    figures = {name: shapes(**settings) for name, settings in KINDS.items()}
    for name, row in figures.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in row.items()))
    finish(args, figures, facts)
    return 0


def grown_groups() -> list[Grown]:
    from fr3e_async.data.model import load_tokenizer, resolve_model
    from fr3e_async.data.prompts import load_datasets
    from fr3e_async.settings.loader import load_config

    config = load_config(["config=toy"]).config
    folder = str(resolve_model(config))
    tokenizer = load_tokenizer(config, folder)
    prompts = load_datasets(config, tokenizer).train[:GROUPS]
    return asyncio.run(record(folder, config, tokenizer, prompts))


if __name__ == "__main__":
    sys.exit(main())
