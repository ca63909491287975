"""Time of a hand-over of weights from a real learner rank to real vLLM engines, over the time of copying as many bytes.

    python benchmarks/weights.py [--quick] [--json OUT]

export     rank 0 finds a checksum of every tensor and puts the buckets into the object store, which the driver owns
transfer   the slowest engine has copied all of it into its own shared buffer and found the checksums there; requests could run
pause      the slowest engine stood still: ``load`` is vLLM's own reload, the floor for what comes after; ``verify`` our comparison

**Ratio**: (export + transfer) / (time to copy one model's bytes in one thread, between warm arrays, measured in the same run,
times the copies that this hand-over makes: one into the store and one into each engine). Goal: at most 3. ``/ model`` is the same over a
single copy, however many engines there are: all of them share one machine's memory here, so it grows with their number.
The load inside vLLM is not in it; it is shown beside it. Three kinds of update: all weights new, half of the bytes, none.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, machine, parser, quiet

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import torch

from fr3e_async.actors.engine import EngineActor
from fr3e_async.actors.learner import LearnerActor
from fr3e_async.actors.proxies import RayEngine, RayLearner
from fr3e_async.config import EngineConfig, LearnerConfig, LossConfig, WeightsConfig
from fr3e_async.learner.spec import LearnerSpec, rank_environment
from fr3e_async.rollout import EngineSpec, engine_environment
from fr3e_async.weights.manifest import WeightAck, WeightBundle

GOAL = 3.0
CHANGES = {"all": 1.0, "half": 0.5, "none": 0.0}  # part of the bytes
SIZES: dict[str, dict[str, int]] = {
    "1M": {"vocab_size": 2000, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4},
    "125M": {"vocab_size": 26000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}  # fmt: skip


class Learner(LearnerActor):
    """A rank whose weights can be changed without training."""

    def disturb(self, part: float) -> int:
        """Change tensors with about this part of the bytes; returns the bytes of all."""
        weights = [weight for _, weight in self._rank._require_sound().weights()]
        total, done = sum(weight.numel() for weight in weights), 0
        with torch.no_grad():
            for weight in weights:
                if done + weight.numel() / 2 < part * total:
                    weight.add_(1e-3)  # a product would leave zeros as they are
                    done += weight.numel()
        return 4 * total


class Bench:
    """One model: a learner and engines, all up, and versions handed over between them."""

    def __init__(self, folder: Path, *, engines: int) -> None:
        learner = LearnerSpec(path=str(folder), learner=LearnerConfig(), loss=LossConfig(), temperature=1.0, seed=0)
        spec = EngineSpec(
            model=str(folder),
            end_token_ids=(1,),
            max_model_len=64,
            engine=EngineConfig(dtype="float32", kv_cache_gib=0.02, block_size=32, max_running=4),
        )
        log = str(folder / "actors.log")
        self._rank = (
            ray.remote(Learner)
            .options(num_cpus=0, runtime_env={"env_vars": rank_environment(learner)})
            .remote(learner, None, log)
        )
        options = {"num_cpus": 0, "max_concurrency": 100, "runtime_env": {"env_vars": engine_environment(spec)}}
        self._actors = [ray.remote(EngineActor).options(**options).remote(spec, None, 0, log) for _ in range(engines)]
        host, port = ray.get(self._rank.address.remote())
        ray.get([self._rank.start.remote(0, 1, host, port, ""), *(actor.start.remote() for actor in self._actors)])
        self._learner = RayLearner([self._rank], None, bucket_bytes=WeightsConfig().bucket_mib << 20)
        self._engines = [RayEngine(f"engine-{i}", actor) for i, actor in enumerate(self._actors)]
        self._version = 0

    def nbytes(self) -> int:
        return ray.get(self._rank.disturb.remote(0.0))

    async def hand_over(self, part: float, *, engines: int) -> dict[str, float]:
        """One version with this part of the bytes changed. Seconds, and bytes sent and copied (mean over engines)."""
        await self._rank.disturb.remote(part)
        self._version += 1
        started = time.perf_counter()
        bundle: WeightBundle = await self._learner.export(self._version)
        exported = time.perf_counter()
        acks: list[WeightAck] = await asyncio.gather(*(engine.load_weights(bundle) for engine in self._engines[:engines]))
        ended = time.perf_counter()
        assert all((ack.version, ack.checksum) == (bundle.version, bundle.checksum) for ack in acks)
        assert all(ack.verified_tensors + ack.probed_tensors == len(bundle.manifest.names) for ack in acks)
        return {
            "export": exported - started,
            "transfer": max(ack.copy_s for ack in acks),
            "pause": max(ack.pause_s for ack in acks),
            "load": max(ack.load_s for ack in acks),
            "verify": max(ack.verify_s for ack in acks),
            "whole": ended - started,
            "sent": float(bundle.sent_bytes),
            "copied": statistics.mean(ack.copied_bytes for ack in acks),
        }

    def close(self) -> None:
        for actor in [self._rank, *self._actors]:
            ray.kill(actor)


def build(folder: Path, shape: dict[str, int]) -> None:
    """A random Qwen2 with a tokenizer, as small or large as ``shape`` says."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    heads = shape["num_attention_heads"]
    config = Qwen2Config(**shape, num_key_value_heads=heads, max_position_embeddings=128, tie_word_embeddings=False)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w0").save_pretrained(folder)


def memcpy_s(nbytes: int, times: int = 7) -> float:
    """Median seconds of copying so many bytes between two warm arrays, in one thread."""
    source, target = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
    found = []
    for _ in range(times):
        started = time.perf_counter()
        np.copyto(target, source)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def measure(bench: Bench, *, counts: list[int], rounds: int) -> dict[str, Any]:
    """Medians by number of engines and kind of change."""
    nbytes = bench.nbytes()
    figures: dict[str, Any] = {"bytes": nbytes, "engines": {}}
    for engines in counts:
        asyncio.run(_rounds(bench, 1.0, engines=engines, rounds=3))  # the store's and the buffers' pages are touched
        rows = {}
        for name, part in CHANGES.items():
            before = memcpy_s(nbytes)
            found = asyncio.run(_rounds(bench, part, engines=engines, rounds=rounds))
            memcpy = statistics.median([before, memcpy_s(nbytes)])
            row = {key: statistics.median(one[key] for one in found) for key in found[0]} | {"memcpy": memcpy}
            broadcast = row["export"] + row["transfer"]
            rows[name] = row | {"ratio": broadcast / (memcpy * (1 + engines)), "ratio_model": broadcast / memcpy}
        figures["engines"][str(engines)] = rows
    return figures


async def _rounds(bench: Bench, part: float, *, engines: int, rounds: int) -> list[dict[str, float]]:
    return [await bench.hand_over(part, engines=engines) for _ in range(rounds)]


def show(size: str, figures: dict[str, Any]) -> None:
    print(f"\n{size}: {figures['bytes'] / 2**20:.1f} MiB of weights; ms, medians")
    columns = ("memcpy", "export", "transfer", "pause", "load", "verify", "whole")
    print(f"{'engines':>7} {'changed':>7} " + " ".join(f"{c:>8}" for c in columns) + "   ratio  / model   sent  copied")
    for engines, rows in figures["engines"].items():
        for name, row in rows.items():
            times = " ".join(f"{1000 * row[c]:8.1f}" for c in columns)
            parts = [100 * row[key] / figures["bytes"] for key in ("sent", "copied")]
            print(
                f"{engines:>7} {name:>7} {times} {row['ratio']:7.2f} {row['ratio_model']:8.2f} {parts[0]:5.0f} % {parts[1]:5.0f} %"
            )
    for key, said in (("ratio", "the copies made"), ("ratio_model", "one copy of the model")):
        verdicts = [(engines, rows["all"][key]) for engines, rows in figures["engines"].items()]
        judged = ", ".join(f"{engines}: {value:.2f} {'met' if value <= GOAL else 'MISSED'}" for engines, value in verdicts)
        print(f"  all weights new, over {said} (goal {GOAL:g}), by engines: {judged}")


def main() -> int:
    args = parser(__doc__ or "").parse_args()
    facts = machine()
    sizes = {"1M": [1]} if args.quick else {size: [1, 2, 3, 4] for size in SIZES}
    figures: dict[str, Any] = {"goal": GOAL, "sizes": {}}
    with tempfile.TemporaryDirectory(prefix="fr3e-") as scratch, quiet():
        ray.init(
            address="local", include_dashboard=False, log_to_driver=False, object_store_memory=2 << 30, logging_level="ERROR"
        )
        for size, counts in sizes.items():
            folder = Path(scratch) / size
            build(folder, SIZES[size])
            bench = Bench(folder, engines=max(counts))
            figures["sizes"][size] = measure(bench, counts=counts, rounds=3 if args.quick else 7)
            bench.close()
        ray.shutdown()
    print(f"ratio: (export + transfer) / (memcpy x (1 + engines)); goal: at most {GOAL:g}; load average {facts['load']}")
    for size, found in figures["sizes"].items():
        show(size, found)
    finish(args, figures, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
