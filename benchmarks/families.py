"""Which model families train right: tiny random models through learner and engine, each number held against transformers.

    python benchmarks/families.py [NAME ...] [--learner] [--rows FILE] [--docs FILE]

For each family and head: gradients of a batch in the learner's layout against single rows of transformers; a training step of a
learner rank; its export, read again by transformers and by an engine; two more steps, sent to the engine as in a run. After each
the engine samples sequences, some longer than the sliding window, and its log-probs and entropies are compared with a float32 forward pass of
transformers on the exported folder. Where that fails, vLLM alone is asked to reload the same folders. ``--learner`` starts no engine.
``--rows``: JSON lines, of which those of other families are kept; ``--docs``: the page whose table is made from them. Exits with 1
for numbers that are wrong without having been refused.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from family_alone import ask_alone
from family_models import END, FAMILIES, LONGEST, TEMPERATURE, VOCABULARY, build, reference, requests_of
from torch import Tensor

from fr3e_async.config import EngineConfig, LearnerConfig, LossConfig
from fr3e_async.errors import UserError
from fr3e_async.learner.spec import LearnerSpec, rank_environment
from fr3e_async.rollout import EngineSpec, SampleRequest, engine_environment, start_engine
from fr3e_async.types import Completion, TrainSample
from fr3e_async.weights.bundle import joined
from fr3e_async.weights.manifest import WeightBundle, WeightManifest

BOUND = 2e-4  # nats and relative norms; a wrong weight or mask is off by 0.01 and more
BEGIN, FINISH = "<!-- families: made by benchmarks/families.py -->", "<!-- /families -->"
Row = dict[str, Any]


# ---- the learner ----


def samples_of(version: int) -> list[TrainSample]:
    """Six rows of up to 64 tokens out of two trunks."""
    rng = np.random.default_rng(version)
    trunks = [rng.integers(3, VOCABULARY, 64) for _ in range(2)]
    samples = []
    for i in range(6):
        kept = int(rng.integers(4, 50))
        tokens = np.concatenate([trunks[i % 2][:kept], rng.integers(3, VOCABULARY, 14)]).astype(np.int32)
        size = len(tokens) - kept // 2
        sample = TrainSample(
            tokens=tokens, context_len=kept // 2, minibatch=0, behaviour_logprobs=np.full(size, -4.0, dtype=np.float32),
            versions=np.full(size, version, dtype=np.int32), advantages=rng.normal(size=size).astype(np.float32),
        )  # fmt: skip
        samples.append(sample)
    return samples


def gradient_error(spec: LearnerSpec) -> float:
    """Of all gradients in the learner's layout, relative to their norm by single rows of transformers with eager attention."""
    from fr3e_async.learner.layout import Inputs
    from fr3e_async.learner.packing import collate
    from fr3e_async.learner.policy import load_policy
    from fr3e_async.learner.suitability import check_model

    policy, samples = load_policy(spec), samples_of(0)
    check_model(policy, packing=spec.learner.packing, longest=LONGEST)
    batch = collate(samples, packing=spec.learner.packing)
    logprobs, entropies = policy(Inputs.of(batch, torch.device("cpu")))
    pick = torch.from_numpy(batch.pick)
    loss = (torch.from_numpy(batch.advantages) * logprobs[pick] + 0.1 * entropies[pick]).sum()
    found = torch.autograd.grad(loss, [weight for _, weight in policy.named_weights()])
    model = reference(Path(spec.path), **spec.overrides)
    want = torch.autograd.grad(torch.stack([row_loss(model, sample) for sample in samples]).sum(), list(model.parameters()))
    error = torch.stack([(f - w).norm() for f, w in zip(found, want, strict=True)]).norm()
    return float(error / torch.stack([w.norm() for w in want]).norm())


def row_loss(model: Any, sample: TrainSample) -> Tensor:
    tokens = torch.from_numpy(sample.tokens.astype(np.int64))
    log_p, entropies = measured(model, tokens, sample.context_len)
    return (torch.from_numpy(sample.advantages) * log_p + 0.1 * entropies).sum()


def measured(model: Any, tokens: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """([L], [L]) log-probs and entropies at the tokens after the context, nats, at the temperature."""
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, context - 1 : -1] / TEMPERATURE
    log_p = torch.log_softmax(logits, dim=-1)
    return log_p.gather(-1, tokens[context:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


# ---- the engine ----


@torch.no_grad()
def engine_error(folder: Path, requests: list[SampleRequest], completions: list[Completion]) -> list[float]:
    """Largest errors of log-probs and of entropies, nats."""
    model, worst = reference(folder), np.zeros(2)
    for request, completion in zip(requests, completions, strict=True):
        tokens = torch.from_numpy(np.concatenate([request.context, completion.tokens]).astype(np.int64))
        found = (completion.logprobs, completion.entropies)
        errors = [np.abs(w.numpy() - f).max() for w, f in zip(measured(model, tokens, len(request.context)), found, strict=True)]
        worst = np.maximum(worst, errors)
    return [float(error) for error in worst]


def engine_spec(folder: Path, **more: Any) -> EngineSpec:
    """``more``: settings of the section engine."""
    return EngineSpec(
        model=str(folder), end_token_ids=(END,), max_model_len=LONGEST, version=1,
        engine=EngineConfig(dtype="float32", kv_cache_gib=0.05, block_size=32, max_running=8, **more),
    )  # fmt: skip


def exported(rank: Any, version: int) -> WeightBundle:
    """All weights of the rank, copied."""
    buckets: list[Any] = []
    for part in rank.export(version):  # views: each is copied before the next is asked for
        buckets.append(part if isinstance(part, WeightManifest) else tuple(array.copy() for array in part))
    return joined(buckets.pop(), buckets)


async def through_engine(rank: Any, folders: list[Path], row: Row, *, served: Path, **more: Any) -> None:
    """Serve a folder, then the versions that the rank sends; errors from the exported folders go into the row as they are found."""
    spec = engine_spec(served, **more)
    os.environ.update(engine_environment(spec))
    engine = await start_engine(spec)
    try:
        for version, folder in enumerate(folders, start=1):
            if version > 1:
                step(rank, version, folder, behind=reference(folders[version - 2]))
            if version > 1 or served != folder:
                await engine.load_weights(exported(rank, version))
            asked = requests_of(f"v{version}")
            row["engine"].append(engine_error(folder, asked, await engine.generate(asked)))
    finally:
        await engine.close()


def step(rank: Any, version: int, folder: Path, *, behind: Any) -> None:
    """Train on rows as if ``behind``, the model of the version before, had sampled them, and export."""
    samples = []
    for sample in samples_of(version - 1):
        with torch.no_grad():
            own, _ = measured(behind, torch.from_numpy(sample.tokens.astype(np.int64)), sample.context_len)
        samples.append(replace(sample, behaviour_logprobs=own.numpy()))
    rank.train(samples, version=version)
    rank.save_hf(folder)


# ---- a family ----


def try_family(name: str, *, tied: bool, engine: bool = True) -> Row:
    """A row: what was measured up to the end, or up to the refusal or failure that it names."""
    row: Row = {"family": name, "head": "tied" if tied else "untied", "gradient": None, "engine": [], "refused": "", "failed": ""}
    with tempfile.TemporaryDirectory() as place:
        base = build(name, Path(place) / "base", tied=tied)
        folders = [Path(place) / f"v{version}" for version in (1, 2, 3)]
        try:
            _try(base, folders, row, engine=engine)
        except UserError as error:
            row["refused"] = " ".join(str(error).split())
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {' '.join(str(root(error)).split())[:160]}"
        if engine and folders[0].exists() and not sound(row):
            for older, newer in itertools.pairwise(folders):
                if not newer.exists():  # other weights for vLLM alone
                    model = reference(older)
                    with torch.no_grad():
                        for weight in model.parameters():
                            weight.add_(torch.randn_like(weight) * 0.05)
                    model.save_pretrained(newer)
            row |= ask_alone(folders)
    return row


def root(error: BaseException) -> BaseException:
    """The first error inside of a group."""
    return root(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _try(base: Path, folders: list[Path], row: Row, *, engine: bool) -> None:
    overrides = FAMILIES[row["family"]].overrides
    learner = LearnerConfig(lr=0.02, minibatches=1, epochs=1, micro_batch_tokens=512, stop_above_grad_norm=0.0)
    spec = LearnerSpec(
        path=str(base), learner=learner, loss=LossConfig(), temperature=TEMPERATURE, longest=LONGEST, overrides=overrides
    )
    os.environ.update(rank_environment(spec))
    row["gradient"] = gradient_error(spec)
    from fr3e_async.learner.rank import LearnerRank

    rank = LearnerRank(spec)
    rank.setup(0, 1, *rank.address())
    step(rank, 1, folders[0], behind=reference(base, **overrides))
    row["reload"] = reload_error(rank, folders[0])
    if engine:
        if overrides:  # the engine starts from the user's folder, as in a run, and the comparison is with the exported one
            asyncio.run(through_engine(rank, folders, row, served=base, options={"hf_overrides": overrides}))
        else:
            asyncio.run(through_engine(rank, folders, row, served=folders[0]))


@torch.no_grad()
def reload_error(rank: Any, folder: Path) -> float:
    """Largest difference of a weight in an exported folder, as transformers reads it, from the learner's."""
    held = dict(rank.engine.weights())
    return max(float((weight - held[name]).abs().max()) for name, weight in reference(folder).named_parameters())


def sound(row: Row) -> bool:
    """Everything was measured and nothing is wrong."""
    numbers = [row["gradient"], *(error for pair in row["engine"] for error in pair)]
    return not row["refused"] and not row["failed"] and all(number is not None and number <= BOUND for number in numbers)


# ---- the page ----


def verdict(row: Row) -> str:
    if sound(row):
        return "right" if row["engine"] else "right in the learner; no engine was asked"
    told = f"refused: {row['refused']}" if row["refused"] else f"failed: {row['failed']}" if row["failed"] else "**wrong**"
    if row.get("alone_error"):
        return f"{told}; vLLM alone ends with {row['alone_error']}"
    beyond = [f"v{n}" for n, errors in enumerate(row.get("alone", []), start=1) if max(errors) > BOUND]
    return told + (f"; vLLM alone, with its own reload, is wrong at {', '.join(beyond)}" if beyond else "")


def cells(row: Row) -> list[str]:
    engine = [f"{max(pair):.0e}" for pair in row["engine"]] + ["–"] * (3 - len(row["engine"]))
    gradient = "–" if row["gradient"] is None else f"{row['gradient']:.0e}"
    return [row["family"], row["head"], gradient, *engine, verdict(row).replace("|", "\\|")]


HEADER = ["family", "head", "gradient, as trees", "engine from the export", "after update 1", "after update 2", "verdict"]


def table(rows: list[Row]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_page(page: Path, rows: list[Row]) -> None:
    """Replace what stands between the two marks."""
    text = page.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(FINISH)
    page.write_text(f"{text[:start]}\n{table(rows)}\n{text[end:]}", encoding="utf-8")


def read_rows(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """Of every family and head the newest row, in the order of ``FAMILIES``."""
    rows = {(row["family"], row["head"]): row for row in [*old, *new]}
    order = [(name, "tied" if tied else "untied") for name, family in FAMILIES.items() for tied in family.tied]
    return [rows[key] for key in order if key in rows]


def main() -> int:
    args = arguments()
    warnings.simplefilter("ignore")
    rows = []
    for name in args.names or FAMILIES:
        for tied in FAMILIES[name].tied:
            row = try_family(name, tied=tied, engine=not args.learner)
            rows.append(row)
            print("| " + " | ".join(cells(row)) + " |", flush=True)
            if args.rows:
                everything = merged(read_rows(args.rows), rows)
                args.rows.write_text("".join(json.dumps(row) + "\n" for row in everything), encoding="utf-8")
    if args.docs:
        write_page(args.docs, merged(read_rows(args.rows) if args.rows else [], rows))
    return 1 if any(not sound(row) and not row["refused"] and not args.learner for row in rows) else 0


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("names", nargs="*", metavar="NAME", help=f"families (default: all): {', '.join(FAMILIES)}")
    made.add_argument("--learner", action="store_true", help="no engines")
    made.add_argument("--rows", type=Path, help="file of raw rows, JSON lines")
    made.add_argument("--docs", type=Path, help="page with the table")
    return made.parse_args()


if __name__ == "__main__":
    with common.quiet():
        code = main()
    sys.exit(code)
