"""What entropies cost in the engine: throughput of each provider against plain vLLM with logprobs=0, in one run.

    python benchmarks/entropy.py [--quick] [--json OUT] [--repetitions N] [--models NAME ...] [--threads N]

For each model (random weights, built in a temporary folder) the engines run side by side and take turns with the same
work, so that whatever else the machine does hits all of them. A row is the median over the repetitions of the ratio of
times to the plain engine's turn beside it, with the quartiles, and the same of the CPU time that a turn took in all
processes, which other work on the machine changes less. "plain again" is a second plain engine and shows the noise.
The plain engine is vLLM as it comes: no column, no changed mode. Exits with 1 if a goal is missed, but with ``--quick``,
whose turns are too short for that. Run it on an idle machine.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import psutil

from fr3e_async.config import EngineConfig
from fr3e_async.rollout import Engine, EngineSpec, SampleRequest, engine_environment, start_engine
from fr3e_async.testing.engine import all_of

PROMPT = 16  # tokens
END = 0  # token id; no model here ever samples it, so that every request runs to its end
PLAIN = {"entropy": "learner", "options": {"logprobs_mode": "raw_logprobs"}}  # vLLM's defaults
ENGINES: dict[str, dict[str, Any]] = {
    "columns": {"entropy": "engine"},
    "top 20": {"entropy": "topk"},
    "plain again": PLAIN,
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A random Qwen2 and the work of one turn."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    goal: float  # largest ratio of times of the columns to plain, at temperature 1
    batch: int  # requests at once
    tokens: int  # of each request
    quick_tokens: int  # the same with --quick; 0: the model is left out then

    @property
    def head_share(self) -> float:
        """Part of the forward pass that the head's multiplications are (attention over the context left out)."""
        layer = 2 * self.hidden * (self.hidden + HEAD_DIM) + 3 * self.hidden * 4 * self.hidden  # q and o, k and v, MLP
        return self.vocabulary * self.hidden / (self.vocabulary * self.hidden + self.layers * layer)


HEAD_DIM = 32  # one key-value head, hidden / 32 query heads
MODELS = (
    Model(name="tiny", vocabulary=128, hidden=256, layers=4, goal=1.03, batch=64, tokens=64, quick_tokens=24),
    Model(name="small head", vocabulary=4096, hidden=256, layers=14, goal=1.03, batch=64, tokens=32, quick_tokens=0),
    Model(name="152k", vocabulary=151_936, hidden=64, layers=2, goal=1.08, batch=32, tokens=32, quick_tokens=8),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. Ratios are of times: above 1 is slower than plain."""

    model: str
    head_share: float
    temperature: float
    engine: str
    tokens_per_s: float
    plain_tokens_per_s: float
    ratio: float  # median over the repetitions
    low: float  # quartiles
    high: float
    cpu_ratio: float  # the median for CPU time instead of wall time
    goal: float | None = None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return f"<= {self.goal:.2f} {'met' if self.ratio <= self.goal else 'MISSED'}"


def build(model: Model, folder: Path) -> str:
    """Save the model to a folder of its own; returns the path."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=model.vocabulary, hidden_size=model.hidden, intermediate_size=4 * model.hidden,
        num_hidden_layers=model.layers, num_attention_heads=model.hidden // HEAD_DIM,
        num_key_value_heads=1, head_dim=HEAD_DIM,
        max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    network = Qwen2ForCausalLM(config).float()
    with torch.no_grad():
        network.model.embed_tokens.weight[:, 0] = 1.0  # is carried through to the head, where only END looks at it
        network.lm_head.weight *= 30.0  # logits some 3 nats apart, as in a trained model
        network.lm_head.weight[:, 0] = 0.0
        network.lm_head.weight[END, 0] = -100.0
    path = folder / model.name.replace(" ", "-")
    network.save_pretrained(path)
    return str(path)


def spec(model: Model, path: str, settings: dict[str, Any]) -> EngineSpec:
    given = {name: value for name, value in settings.items() if name != "options"}
    engine = EngineConfig(dtype="float32", kv_cache_gib=0.1, block_size=32, max_running=model.batch, **given)
    engine.options.update(settings.get("options", {}))  # a config may not set the plain engine's
    return EngineSpec(model=path, end_token_ids=(END,), max_model_len=256, engine=engine)


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


async def turn(engine: Engine, model: Model, temperature: float, processes: list[psutil.Process]) -> tuple[float, float]:
    """Seconds that a batch takes, and seconds of CPU time in ``processes``; the engines whose turn it is not take none."""
    context = np.arange(1, PROMPT + 1, dtype=np.int32)
    requests = [
        SampleRequest(request_id=f"{i}", context=context, max_tokens=model.tokens, temperature=temperature)
        for i in range(model.batch)
    ]
    started, used = time.perf_counter(), cpu_seconds(processes)
    completions = await all_of(engine, requests)
    took, used = time.perf_counter() - started, cpu_seconds(processes) - used
    assert all(len(completion) == model.tokens for completion in completions)
    return took, used


async def compare(plain: Engine, others: dict[str, Engine], model: Model, *, temperature: float, repetitions: int) -> list[Row]:
    """Interleave the engines, in an order that turns round every time, so that none always follows the same one."""
    engines = {"plain": plain, **others}
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for engine in engines.values():
        await turn(engine, model, temperature, processes)  # warm
    for repetition in range(repetitions):
        names = list(engines)
        names = names[repetition % len(names) :] + names[: repetition % len(names)]
        for name in names if repetition % 2 else reversed(names):
            turns[name].append(await turn(engines[name], model, temperature, processes))
    goals = {"columns": model.goal} if temperature == 1 else {}
    return [
        row(model, temperature, name, np.array(turns[name]), np.array(turns["plain"]), goal=goals.get(name)) for name in others
    ]


def row(model: Model, temperature: float, name: str, own: np.ndarray, plain: np.ndarray, *, goal: float | None) -> Row:
    """``own`` and ``plain``: [repetitions, 2] wall and CPU seconds of the turns."""
    tokens = model.batch * model.tokens
    low, middle, high = np.quantile(own[:, 0] / plain[:, 0], [0.25, 0.5, 0.75])
    return Row(
        model=model.name,
        head_share=model.head_share,
        temperature=temperature,
        engine=name,
        tokens_per_s=tokens / float(np.median(own[:, 0])),
        plain_tokens_per_s=tokens / float(np.median(plain[:, 0])),
        ratio=float(middle),
        low=float(low),
        high=float(high),
        cpu_ratio=float(np.median(own[:, 1] / plain[:, 1])),
        goal=goal,
    )


async def start_all(model: Model, path: str, *, quick: bool) -> dict[str, Engine]:
    settings = {"plain": PLAIN} | ({"columns": ENGINES["columns"]} if quick else ENGINES)
    started = await asyncio.gather(*(start_engine(spec(model, path, each)) for each in settings.values()))
    return dict(zip(settings, started, strict=True))


async def measure(engines: dict[str, Engine], model: Model, *, quick: bool, repetitions: int) -> list[Row]:
    """All rows of one model."""
    plain = engines["plain"]
    others = {name: engine for name, engine in engines.items() if name != "plain"}
    rows = await compare(plain, others, model, temperature=1.0, repetitions=repetitions)
    if not quick:
        columns = {"columns": engines["columns"]}
        rows += await compare(plain, columns, model, temperature=0.7, repetitions=repetitions)
    return rows


def table(rows: list[Row]) -> str:
    lines = [
        "| model | head's share | temperature | engine | tokens/s | plain tokens/s | time to plain (quartiles) | CPU time to plain | goal |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r.model} | {r.head_share:.1%} | {r.temperature:g} | {r.engine} | {r.tokens_per_s:,.0f} | {r.plain_tokens_per_s:,.0f} "
        f"| {r.ratio:.3f} ({r.low:.3f} to {r.high:.3f}) | {r.cpu_ratio:.3f} | {r.verdict} |"
        for r in rows
    ]
    return "\n".join(lines)


async def run(models: list[Model], *, quick: bool, repetitions: int) -> list[Row]:
    """The rows of all models. Engines of one model at a time; with ``quick`` all start at once, which saves time."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for together in [models] if quick else [[model] for model in models]:
            paths = [build(model, Path(folder)) for model in together]
            started = await asyncio.gather(*(start_all(m, path, quick=quick) for m, path in zip(together, paths, strict=True)))
            try:
                for model, engines in zip(together, started, strict=True):
                    rows += await measure(engines, model, quick=quick, repetitions=repetitions)
            finally:
                await asyncio.gather(*(engine.close() for engines in started for engine in engines.values()))
    return rows


def main() -> int:
    parser = common.parser(__doc__ or "")
    parser.add_argument("--repetitions", type=int, help="turns of each engine (default: 15; quick: 7)")
    parser.add_argument("--models", nargs="+", choices=[m.name for m in MODELS], default=[m.name for m in MODELS])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of one engine")
    args = parser.parse_args()
    facts = common.machine()
    os.environ.update(
        engine_environment(EngineSpec(model=".", end_token_ids=(0,), max_model_len=8, engine=EngineConfig(threads=args.threads)))
    )
    models = [model for model in MODELS if model.name in args.models]
    if args.quick:
        models = [replace(model, tokens=model.quick_tokens) for model in models if model.quick_tokens]
    with common.quiet():
        rows = asyncio.run(run(models, quick=args.quick, repetitions=args.repetitions or (7 if args.quick else 15)))
    print(table(rows))
    common.finish(args, {"rows": [asdict(row) for row in rows]}, facts)
    return int(not args.quick and any("MISSED" in row.verdict for row in rows))


if __name__ == "__main__":
    sys.exit(main())
