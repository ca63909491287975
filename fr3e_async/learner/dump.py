"""A failed optimiser step on disk: its samples, the policy that they are measured against, and what went wrong.

The weights lie beside it as an ordinary model folder, so that one process can repeat the step without DeepSpeed, at any
world size (``fr3e replay_step DUMP``). No pickles. Knows nothing of engines.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fr3e_async.config import LearnerConfig, LossConfig
from fr3e_async.errors import StorageError
from fr3e_async.files.durable import fsync_path, write_atomically
from fr3e_async.learner.spec import LearnerSpec
from fr3e_async.types import TrainSample

MODEL = "model"  # the weights as they were before the step
STEP = "step.json"  # written last: a folder without it is no dump
COLUMNS = ("behaviour_logprobs", "versions", "advantages")
# What of the learner's settings decides the numbers of a step, its memory and when it stops.
SETTINGS = (
    "gpus", "dtype", "packing", "attention", "tree_attention", "micro_batch_tokens", "logits_mib", "activation_checkpointing",
    "stop_above_grad_norm", "stop_above_ratio", "stop_above_mismatch",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpedSample:
    """A sample and its log-probs under two other policies; NaN where they are not known, or there is no reference."""

    sample: TrainSample
    prox: NDArray[np.float32]  # [completion] nats
    reference: NDArray[np.float32]  # [completion] nats
    imitation: NDArray[np.float32]  # [completion] weights of −log π; 0 without a critic


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedStep:
    """One optimiser step that must not be taken: as one rank sees it, or with the samples of all ranks when it is read back."""

    optimiser_step: int = 0  # of the run, from 1; it names the folder
    where: str  # "optimiser step 12 (epoch 1 of 1, minibatch 2 of 2, 5120 tokens)"
    cause: str
    version: int  # of the weights that the batch's update started from
    total_tokens: int  # trainable, over all ranks: the loss's denominator
    loss: float  # global, as it was found
    grad_norm: float | None  # global, before clipping; None: the loss alone stopped the step
    share: tuple[DumpedSample, ...]


FACTS = ("where", "cause", "version", "total_tokens", "loss", "grad_norm")  # of a ``FailedStep``, as they stand in ``STEP``


def write_share(folder: Path, share: Sequence[DumpedSample], *, rank: int) -> None:
    """One rank's samples as ``rank-R.npz``: flat columns and lengths. Durable when it returns. Raises ``OSError``."""
    samples = [measured.sample for measured in share]
    columns: dict[str, NDArray] = {
        "lengths": np.asarray([len(sample.tokens) for sample in samples], dtype=np.int64),
        "contexts": np.asarray([sample.context_len for sample in samples], dtype=np.int64),
        "tokens": _joined([sample.tokens for sample in samples], np.int32),
        "prox_logprobs": _joined([measured.prox for measured in share], np.float32),
        "reference_logprobs": _joined([measured.reference for measured in share], np.float32),
        "imitation": _joined([measured.imitation for measured in share], np.float32),
    }
    for name in COLUMNS:
        columns[name] = _joined([getattr(sample, name) for sample in samples], np.int32 if name == "versions" else np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STEP).unlink(missing_ok=True)  # a former dump of the same step is whole no more
    with (folder / f"rank-{rank}.npz").open("wb") as file:
        np.savez(file, **columns)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    fsync_path(folder)


def _joined(parts: Sequence[NDArray], dtype: type) -> NDArray:
    return np.concatenate([*parts, np.zeros(0, dtype=dtype)]).astype(dtype, copy=False)


def write_step(folder: Path, step: FailedStep, spec: LearnerSpec, *, ranks: int) -> None:
    """Write what is the same for all ranks, after the shares. Raises ``OSError``."""
    record = {name: getattr(step, name) for name in FACTS} | {
        "ranks": ranks, "base_model": spec.path, "base_revision": spec.revision, "trust_remote_code": spec.trust_remote_code,
        "temperature": spec.temperature, "learner": {name: getattr(spec.learner, name) for name in SETTINGS},
        "loss_config": asdict(spec.loss),
    }  # fmt: skip
    write_atomically(folder / STEP, json.dumps(record, indent=1))


def read_dump(folder: Path) -> tuple[FailedStep, LearnerSpec]:
    """Read a failed step with the samples of all ranks, and what its learner was: the model in the dump, ``SETTINGS`` of the run.

    Raises ``StorageError`` if there is no dump, or not all of it.
    """
    try:
        record: dict[str, Any] = json.loads((folder / STEP).read_text(encoding="utf-8"))
        share = tuple(measured for rank in range(record["ranks"]) for measured in _read_share(folder / f"rank-{rank}.npz"))
        return FailedStep(**{name: record[name] for name in FACTS}, share=share), LearnerSpec(
            path=str(folder / MODEL),
            learner=LearnerConfig(**record["learner"]),
            loss=LossConfig(**record["loss_config"]),
            temperature=record["temperature"],
            trust_remote_code=record["trust_remote_code"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{folder} holds no whole dump of a failed step: {error}") from error


def _read_share(path: Path) -> list[DumpedSample]:
    with np.load(path, allow_pickle=False) as columns:
        lengths, contexts = columns["lengths"], columns["contexts"]
        rows = np.split(columns["tokens"], np.cumsum(lengths)[:-1]) if len(lengths) else []
        ends = np.cumsum(lengths - contexts)[:-1]
        parts = {name: np.split(columns[name], ends) for name in (*COLUMNS, "prox_logprobs", "reference_logprobs", "imitation")}
    found = []
    for i, tokens in enumerate(rows):
        sample = TrainSample(
            tokens=tokens, context_len=int(contexts[i]), minibatch=0, **{name: parts[name][i] for name in COLUMNS}
        )
        prox, reference, imitation = (parts[name][i] for name in ("prox_logprobs", "reference_logprobs", "imitation"))
        found.append(DumpedSample(sample=sample, prox=prox, reference=reference, imitation=imitation))
    return found


# ---- Why the samplers' log-probs are not the learner's: read off the rollouts of a step that was refused ----

MOST = 0.8  # part of the rollouts from which all of them count as concerned
GROWTH = 3.0  # by which errors at the end of responses exceed those at the beginning, if positions are the cause


def likeliest(share: Sequence[DumpedSample], *, version: int, bound: float) -> str:
    """Name the likeliest cause, from tokens of age 0. ``bound``: nats that a rollout's mean difference may have."""
    errors = list(_errors(share, version))
    wrong = [one for one in errors if one.mean() > bound]
    if len(wrong) < MOST * len(errors):
        return f"one engine with other weights: {len(wrong)} of {len(errors)} rollouts differ, and the others do not"
    begin, end = (np.mean([np.mean(part) for one in wrong if len(part := one[span])] or [0.0]) for span in _EDGES)
    if end > GROWTH * max(begin, bound):
        return f"positions (rope settings, sliding window): from {begin:.2g} nats at the beginning of responses to {end:.2g} at the end"
    return (
        "what all engines share, since all rollouts differ alike: sampling.temperature, engine.options, the output head or the "
        "vocabulary, or weights that they do not load as the learner names them"
    )


_EDGES = (slice(0, 4), slice(-4, None))  # tokens at the beginning and the end of a response


def _errors(share: Sequence[DumpedSample], version: int) -> Iterator[NDArray[np.floating]]:
    """[tokens of age 0] |log-prob − log-prob| of each rollout that has any and whose proximal log-probs are known."""
    for measured in share:
        apart = np.abs(measured.prox - measured.sample.behaviour_logprobs)[measured.sample.versions == version]
        if len(apart) and np.isfinite(apart).all():
            yield apart
