"""What a tree costs the engines: prefill against its unique tokens, time against as many independent rollouts.

    python benchmarks/branching.py [--quick] [--json OUT]

Groups of 4 bases + 3 anchors x 4 branches go through ``RolloutWorker`` on real engines. The model's weights are random and it never
ends by itself, so that all lengths are given: half to one and a half times the mean, one for each group. Prompts are new
in every round. ``prefill.py`` says what is counted; the goal is computed / blocks <= 1.10. Times are medians of ratios of
variants within a round. Their floor is the ratio of the generated tokens: what is left if a token costs the same wherever it
stands, and prefill nothing. "One at a time" shows the tree's depth: branches wait for their trunk, so that a group alone takes
more steps, of fewer sequences each, than its rollouts would independently; engines with work waiting hide that.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import cpu_s, finish, machine, parser, quiet
from prefill import Known, Prefill, rounding

from fr3e_async.algorithm.anchors import AnchorRule, with_anchors
from fr3e_async.config import EngineConfig
from fr3e_async.rollout import Engine, EngineSpec, engine_environment, start_engine
from fr3e_async.rollout.rollout_worker import RolloutWorker, TokenTexts
from fr3e_async.testing.engine import joined
from fr3e_async.types import Draw, Prompt, RolloutBatch, RolloutId

GOAL = 1.10
BASES, ANCHORS, BRANCHES = 4, 3, 4
ROLLOUTS = BASES + ANCHORS * BRANCHES
RULE = AnchorRule(name="random", count=ANCHORS, min_gap=8)
VOCABULARY, END = 1024, 2
RUNNING = 24  # sequences at once: a tree keeps fewer of them busy than its 16 rollouts, so engines are given more than they take

Figures = dict[str, float]
Group = Callable[[int, Prompt, Draw], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``groups`` prompts, at most ``in_flight`` of them at once, ``rounds`` times."""

    name: str
    prompt: int  # tokens
    response: int  # tokens, mean
    groups: int
    in_flight: int
    rounds: int


FULL = (
    Load(name="long", prompt=200, response=1000, groups=8, in_flight=8, rounds=2),
    Load(name="long, one at a time", prompt=200, response=1000, groups=1, in_flight=1, rounds=1),
    Load(name="short", prompt=60, response=120, groups=16, in_flight=8, rounds=3),
)
QUICK = (
    Load(name="long", prompt=100, response=80, groups=2, in_flight=2, rounds=1),
    Load(name="short", prompt=60, response=40, groups=2, in_flight=2, rounds=1),
)
WARM = Load(name="warm", prompt=20, response=20, groups=2, in_flight=2, rounds=1)


# ---- what is run ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """What came of a group; the trunk is row 0 of the first batch of bases."""

    bases: tuple[RolloutBatch, ...]
    branches: RolloutBatch
    one_engine: bool

    @property
    def tokens(self) -> int:
        return sum(len(batch.tokens) for batch in (*self.bases, self.branches))

    def count(self, sums: Sequence[Prefill], *, block: int) -> None:
        """Add what was prefilled for the bases and for the branches to ``sums``, each to one of them, in that order."""
        contexts, cache = Known(), Known()
        for batch in self.bases:
            sums[0].add(batch, contexts=contexts, cache=cache, block=block)
        if self.one_engine:
            trunk = self.bases[0]
            cache.add(np.concatenate([trunk.context(0), trunk.completion(0).tokens[:-1]]))
        else:
            contexts, cache = Known(), Known()
        sums[1].add(self.branches, contexts=contexts, cache=cache, block=block)


async def grow(generator: RolloutWorker, explorer: RolloutWorker, prompt: Prompt, draw: Draw) -> Tree:
    """A group as the control loop has it done: branches begin when the trunk has ended, whatever the other bases do."""
    first, *others = base_ids(prompt, BASES)
    rest = asyncio.ensure_future(generator.sample_together([prompt] * len(others), others, draw))
    trunk = await joined(generator.sample([prompt], [first], draw, trunk=True))
    anchors = generator.anchors(trunk)
    ids = [RolloutId(prompt.uid, anchor.node, m) for anchor in anchors for m in range(BRANCHES)]
    branches = await joined(explorer.branch(with_anchors(trunk, anchors), first, ids, draw))
    return Tree(bases=(trunk, await rest), branches=branches, one_engine=generator is explorer)


async def independent(sampler: RolloutWorker, prompt: Prompt, draw: Draw) -> RolloutBatch:
    return await sampler.sample_together([prompt] * ROLLOUTS, base_ids(prompt, ROLLOUTS), draw)


def base_ids(prompt: Prompt, count: int) -> list[RolloutId]:
    return [RolloutId(prompt.uid, 0, branch) for branch in range(count)]


@dataclass(slots=True)
class Bench:
    """Engines of one model, with a rollout worker each. "uncached" has prefix caching off."""

    engines: dict[str, Engine]
    rollout_workers: dict[str, RolloutWorker]
    serial: Iterator[int] = field(default_factory=itertools.count)

    def variants(self) -> dict[str, Group]:
        """How the i-th group is done, by name."""
        generator, explorer, uncached = (self.rollout_workers[name] for name in ("generator", "explorer", "uncached"))
        return {
            "tree, one engine": lambda i, *g: grow(generator, generator, *g),
            "independent, one engine": lambda i, *g: independent(generator, *g),
            "tree, two engines": lambda i, *g: grow(generator, explorer, *g),
            "independent, two engines": lambda i, *g: independent((generator, explorer)[i % 2], *g),
            "tree, explorer uncached": lambda i, *g: grow(generator, uncached, *g),
        }

    def groups(self, load: Load) -> list[tuple[Prompt, Draw]]:
        """Prompts that were never seen. Names and lengths are those of every round, and so are the anchors."""
        source = np.random.default_rng(next(self.serial))
        prompts = source.integers(3, VOCABULARY, (load.groups, load.prompt)).astype(np.int32)
        lengths = np.random.default_rng(0).integers(load.response // 2, 3 * load.response // 2, load.groups)
        return [
            (Prompt(uid=f"{load.name}/{i}", text="", reference="", token_ids=tokens), Draw(max_tokens=int(length)))
            for i, (tokens, length) in enumerate(zip(prompts, lengths, strict=True))
        ]

    async def timed(self, load: Load, group: Group) -> tuple[list[Any], Figures]:
        """What the groups gave, and seconds a group: wall time, CPU time, and of each engine the time that it had work."""
        room = asyncio.Semaphore(load.in_flight)

        async def one(i: int, prompt: Prompt, draw: Draw) -> Any:
            async with room:
                return await group(i, prompt, draw)

        await self._busy()
        cpu, started = cpu_s(), time.perf_counter()
        done = await asyncio.gather(*(one(i, *group) for i, group in enumerate(self.groups(load))))
        seconds = {"wall": time.perf_counter() - started, "cpu": cpu_s() - cpu, **await self._busy()}
        return done, {name: value / load.groups for name, value in seconds.items()}

    async def _busy(self) -> Figures:
        stats = {name: await engine.stats() for name, engine in self.engines.items()}
        return {name: sum(end - start for start, end in stat.busy) for name, stat in stats.items()}


class NoText:
    """Stands for a tokenizer: no token is special or ends an answer."""

    all_special_ids = ()

    def decode(self, ids: list[int]) -> str:
        return "x"


def save_model(folder: Path, *, positions: int) -> None:
    """A random Qwen2 that never samples END: one dimension of its residual is 1 at every token, and only END's logit reads it."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=positions, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[END] = 0.0
        model.lm_head.weight[END, 0] = -1000.0
    model.save_pretrained(folder)


def spec_of(folder: str, loads: Sequence[Load], *, prefix_caching: bool) -> EngineSpec:
    """Room in the cache for every context of a load without any sharing: nothing is evicted while it may be needed."""
    return EngineSpec(
        model=folder,
        end_token_ids=(END,),
        max_model_len=max(load.prompt + 3 * load.response // 2 for load in loads),
        engine=EngineConfig(
            dtype="float32",
            kv_cache_gib=0.5,
            gpu_memory_utilization=0.2,
            block_size=16 if Path("/dev/nvidiactl").exists() else 32,  # the smallest that the attention kernels take
            max_running=RUNNING,
            prefix_caching=prefix_caching,
        ),
    )


# ---- what is said ----


async def measure(bench: Bench, load: Load, *, block: int) -> dict[str, Any]:
    """Rounds of all variants, one after another; what was prefilled in all of them."""
    rounds: list[dict[str, Figures]] = []
    trees: dict[str, list[Tree]] = {}
    for _ in range(load.rounds):
        rounds.append({})
        for name, group in bench.variants().items():
            done, seconds = await bench.timed(load, group)
            tokens = sum(one.tokens if isinstance(one, Tree) else len(one.tokens) for one in done)
            rounds[-1][name] = seconds | {"generated": tokens / load.groups}
            if isinstance(done[0], Tree):
                trees.setdefault(name, []).extend(done)
    return {"prefill": prefill_figures(trees, block=block), "time": time_figures(rounds)}


def prefill_figures(trees: dict[str, list[Tree]], *, block: int) -> dict[str, Figures]:
    """What was prefilled for a group, by engine."""
    sums = {name: Prefill() for name in ("two engines", "- generator", "- explorer", "one engine", "explorer uncached")}
    for tree in trees["tree, one engine"]:
        tree.count((sums["one engine"], sums["one engine"]), block=block)
    for tree in trees["tree, two engines"]:
        tree.count((sums["- generator"], sums["- explorer"]), block=block)
        tree.count((sums["two engines"], sums["two engines"]), block=block)
    for tree in trees["tree, explorer uncached"]:
        tree.count((Prefill(), sums["explorer uncached"]), block=block)
    return {name: prefill.figures(len(trees["tree, one engine"])) for name, prefill in sums.items()}


def time_figures(rounds: list[dict[str, Figures]]) -> dict[str, Any]:
    """Medians of seconds a group by variant, and of ratios of two variants within a round."""

    def ratio(key: str, one: str, other: str, other_key: str = "") -> float:
        return statistics.median(r[one][key] / r[other][other_key or key] for r in rounds)

    def ratios(one: str, other: str) -> Figures:
        found = {key: ratio(key, one, other) for key in ("generated", "wall", "cpu")}
        found |= {f"{key}_to_floor": found[key] / found["generated"] for key in ("wall", "cpu")}
        return {key: round(value, 4) for key, value in found.items()}

    cached, uncached = "tree, two engines", "tree, explorer uncached"
    return {
        "a_group": {
            name: {key: round(statistics.median(r[name][key] for r in rounds), 4) for key in rounds[0][name]}
            for name in rounds[0]
        },
        "tree / independent, one engine": ratios("tree, one engine", "independent, one engine"),
        "tree / independent, two engines": ratios("tree, two engines", "independent, two engines"),
        "branches cached / uncached": {"busy": round(ratio("explorer", cached, uncached, "uncached"), 4)}
        | {key: round(ratio(key, cached, uncached), 4) for key in ("wall", "cpu")},
    }


def report(load: Load, figures: dict[str, Any], *, block: int) -> None:
    print(
        f"\n{load.name}: prompts of {load.prompt} tokens, responses of {load.response}; {load.groups} groups, {load.in_flight} in flight, "
        f"{load.rounds} round(s); blocks of {block} tokens\n  prefill, tokens a group  "
        + "".join(f"{name:>10}" for name in ("asked", "computed", "unique", "blocks"))
        + "  computed/blocks  computed/unique  asked/unique"
    )
    for name, row in figures["prefill"].items():
        counts = "".join(f"{row[key]:>10,.0f}" for key in ("asked", "computed", "unique", "blocks"))
        met = "" if name.endswith("uncached") else f"{'met' if row['computed_to_blocks'] <= GOAL else 'MISSED'}: goal {GOAL:.2f}"
        print(
            f"  {name:<25}{counts}{row['computed_to_blocks']:>17.3f}{row['computed_to_unique']:>17.2f}{row['asked_to_unique']:>14.2f}  {met}"
        )
    times = figures["time"]
    print("  time a group              wall s     CPU s    generated")
    for name, row in times["a_group"].items():
        print(f"  {name:<25}{row['wall']:>7.2f}{row['cpu']:>10.2f}{row['generated']:>13,.0f}")
    for name in ("tree / independent, one engine", "tree / independent, two engines"):
        row = times[name]
        print(
            f"  {name}: wall {row['wall']:.2f}, CPU {row['cpu']:.2f}; floor, the generated tokens: {row['generated']:.2f}; "
            f"a generated token costs {row['wall_to_floor']:.2f} (wall), {row['cpu_to_floor']:.2f} (CPU) times as much"
        )
    row = times["branches cached / uncached"]
    print(
        f"  branches with prefix caching / without: explorer at work {row['busy']:.2f}, wall {row['wall']:.2f}, CPU {row['cpu']:.2f}",
        flush=True,
    )


def rounding_table(prompt: int = 200) -> dict[str, dict[str, float]]:
    """Printed and returned: computed / unique of both engines where blocks are all that is lost, by block size and response."""
    lengths = (1000, 2000, 4000, 16000)
    print(f"\ncomputed/unique of two engines if computed/blocks is 1, prompts of {prompt} tokens (arithmetic, no engine):")
    print("  block  " + "".join(f"{f'responses of {length}':>20}" for length in lengths))
    table = {}
    for block in (16, 32):
        row = {str(length): round(rounding(prompt=prompt, response=length, block=block), 3) for length in lengths}
        print(f"  {block:<7}" + "".join(f"{value:>20.3f}" for value in row.values()))
        table[str(block)] = row
    return table


async def run(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    loads = QUICK if args.quick else FULL
    specs = {name: spec_of(folder, loads, prefix_caching=name != "uncached") for name in ("generator", "explorer", "uncached")}
    block = specs["generator"].engine.block_size
    os.environ.update(engine_environment(specs["generator"]))
    save_model(Path(folder), positions=specs["generator"].max_model_len)
    engines = dict(zip(specs, await asyncio.gather(*map(start_engine, specs.values())), strict=True))
    try:
        bench = Bench(
            engines, {name: RolloutWorker(engine, TokenTexts(NoText()), RULE, seed=0) for name, engine in engines.items()}
        )
        await bench.timed(WARM, bench.variants()["tree, one engine"])
        await bench.timed(WARM, bench.variants()["tree, explorer uncached"])
        figures = {}
        for load in loads:
            figures[load.name] = await measure(bench, load, block=block)
            report(load, figures[load.name], block=block)
    finally:
        await asyncio.gather(*(engine.close() for engine in engines.values()))
    return {"block": block, "goal": GOAL, "loads": figures, "rounding": rounding_table()}


def main() -> int:
    args = parser(__doc__).parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory() as folder, quiet():
        figures = asyncio.run(run(args, folder))
    finish(args, figures, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
