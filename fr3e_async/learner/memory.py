"""How much memory a run's weights, optimiser, caches and activations take: formulas with their sources.

Arithmetic on a config and a model's sizes. Imports no torch and reads one file at most, the ``config.json`` of a model on
this disk. The memory of Python and its libraries (about 1 GiB an actor) is not in the estimate.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fr3e_async.algorithm.strategies import critic_settings, explorer_count
from fr3e_async.config import Config, EnginePoolConfig
from fr3e_async.errors import ModelError
from fr3e_async.learner.spec import REDUCE_BUCKET, SLICE_ELEMENTS

GIB = 2**30
PREFETCHED = 50_000_000  # weights that ZeRO-3 gathers ahead of a pass (DeepSpeed's stage3_prefetch_bucket_size)
CHECKPOINT_BYTES = 12  # for each weight: float32 master and two moments
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


# --- the model's sizes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a dense decoder. ``layers`` is 0 where only the number of weights is known."""

    parameters: int
    layers: int = 0
    hidden: int = 0
    intermediate: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    vocabulary: int = 0
    dtype: str = "bfloat16"  # of the stored weights: what engine.dtype=auto takes

    @property
    def known(self) -> bool:
        return self.layers > 0


def dense_parameters(
    *, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int, vocabulary: int,
    tied: bool, attention_bias: bool,
) -> int:  # fmt: skip
    """Weights of a Llama- or Qwen2-like decoder.

    embedding V·h (twice unless tied); a layer: q and o 2·h·(heads·d), k and v 2·h·(kv·d), their biases heads·d + 2·kv·d,
    gate, up and down 3·h·i, two norms 2·h; one last norm h.
    """
    queries, keys = heads * head_dim, kv_heads * head_dim
    bias = queries + 2 * keys if attention_bias else 0
    layer = 2 * hidden * queries + 2 * hidden * keys + bias + 3 * hidden * intermediate + 2 * hidden
    return vocabulary * hidden * (1 if tied else 2) + layers * layer + hidden


def _qwen2(*, tied: bool, dtype: str = "bfloat16", **sizes: int) -> ModelShape:
    return ModelShape(parameters=dense_parameters(tied=tied, attention_bias=True, **sizes), dtype=dtype, **sizes)


_QWEN_7B = _qwen2(
    layers=28, hidden=3584, intermediate=18944, heads=28, kv_heads=4, head_dim=128, vocabulary=152064, tied=False
)  # fmt: skip
_QWEN_32B = _qwen2(
    layers=64, hidden=5120, intermediate=27648, heads=40, kv_heads=8, head_dim=128, vocabulary=152064, tied=False
)  # fmt: skip
# Models that shipped configs name: their dry run needs no download.
KNOWN_SHAPES: Mapping[str, ModelShape] = {
    "toy": _qwen2(
        layers=3, hidden=128, intermediate=512, heads=4, kv_heads=4, head_dim=32, vocabulary=399, tied=False, dtype="float32"
    ),
    "Qwen/Qwen2.5-7B": _QWEN_7B,
    "Qwen/Qwen2.5-Math-7B": _QWEN_7B,
    "Qwen/Qwen2.5-32B": _QWEN_32B,
}  # fmt: skip


def model_shape(config: Config) -> ModelShape | None:
    """Sizes of ``model.path``: from its config.json, of a model known by name, or from model.parameters alone; else None.

    Raises:
        ModelError: the folder has no readable config.json.
    """
    path = config.model.path
    if path in KNOWN_SHAPES:
        return KNOWN_SHAPES[path]
    folder = os.path.expanduser(path)
    if os.path.isdir(folder):
        return _read_shape(Path(folder), config.model.parameters)
    return ModelShape(parameters=config.model.parameters) if config.model.parameters else None


def _read_shape(folder: Path, parameters: int) -> ModelShape:
    try:
        raw: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path={folder}: config.json cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"model.path={folder}: config.json cannot be read: it holds no mapping")
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32")
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors")) // BYTES.get(dtype, 4)
    try:
        heads, hidden = int(raw["num_attention_heads"]), int(raw["hidden_size"])
        sizes = {
            "layers": int(raw["num_hidden_layers"]),
            "hidden": hidden,
            "intermediate": int(raw["intermediate_size"]),
            "heads": heads,
            "kv_heads": int(raw.get("num_key_value_heads") or heads),
            "head_dim": int(raw.get("head_dim") or hidden // heads),
            "vocabulary": int(raw["vocab_size"]),
        }
    except (KeyError, TypeError):  # an architecture with other names: the weights on disk still tell its number
        return ModelShape(parameters=parameters or stored, dtype=dtype)
    dense = dense_parameters(
        **sizes,
        tied=bool(raw.get("tie_word_embeddings")),
        attention_bias=bool(raw.get("attention_bias", raw.get("model_type") == "qwen2")),
    )
    return ModelShape(parameters=parameters or stored or dense, dtype=dtype, **sizes)


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """An estimate for one device of one role. ``parts`` are GiB; what is not known stands in ``note`` alone."""

    role: str
    where: str  # "GPU", "host" or "disk"
    copies: int  # devices or processes that hold this much each
    parts: dict[str, float]
    note: str = ""

    @property
    def gib(self) -> float:
        return sum(self.parts.values())


def kv_bytes_per_token(model: ModelShape, bytes_each: int) -> int:
    """A key and a value for each key-value head of each layer: 2 · layers · kv_heads · head_dim · bytes."""
    return 2 * model.layers * model.kv_heads * model.head_dim * bytes_each


def state_bytes(parameters: int, *, dtype: str, zero_stage: int, ranks: int) -> dict[str, float]:
    """Bytes a rank holds from step to step, after the ZeRO paper.

    bfloat16: weights 2, gradients 2, optimiser 12 (float32 master copy and two moments) bytes a parameter.
    float32: weights 4, gradients 4, optimiser 8 (the weights are the master copy), 12 from stage 1 on, whose partitions
    are copies. Over the ranks are divided: the optimiser from stage 1, gradients from stage 2, weights at stage 3.
    """
    weights = BYTES[dtype]
    optimiser = 8 if dtype == "float32" and zero_stage == 0 else 12
    per_parameter = {"weights": (weights, 3), "gradients": (weights, 2), "optimiser": (optimiser, 1)}
    return {
        name: parameters * size / (ranks if zero_stage >= divided_from else 1)
        for name, (size, divided_from) in per_parameter.items()
    }


def activation_bytes(model: ModelShape, *, tokens: int, bytes_each: int, checkpointing: bool) -> float:
    """What the forward pass of one micro-batch keeps for the backward pass, with an attention that stores no [P, P] matrix.

    Numbers a token and layer: 4·h (two norms, in and out) + 2·heads·d (query, attention's result) + 2·kv·d (key, value)
    + 4·i (gate, up, activated gate, their product). With checkpointing: h a layer, and one layer in full while its
    backward pass runs.
    """
    layer = (
        4 * model.hidden + 2 * model.heads * model.head_dim + 2 * model.kv_heads * model.head_dim + 4 * model.intermediate
    )  # fmt: skip
    numbers = model.layers * model.hidden + layer if checkpointing else model.layers * layer
    return float(tokens * numbers * bytes_each)


def logits_bytes(model: ModelShape, *, tokens: int, bytes_each: int, kept_mib: float, gpu: bool) -> float:
    """Logits [tokens, V] in training precision while they fit into ``kept_mib``, else none; three float32 copies of a slice of
    them; and the float32 gradient of the projection, V·h.

    ``tokens`` is the whole micro-batch: the case in which hardly any of it is context.
    """
    logits = tokens * model.vocabulary * bytes_each
    kept = logits if logits <= kept_mib * 2**20 else 0
    slices = 3 * 4 * min(SLICE_ELEMENTS["cuda" if gpu else "cpu"], tokens * model.vocabulary)
    return float(kept + slices + 4 * model.vocabulary * model.hidden)


def version_bytes(config: Config, model: ModelShape | None) -> float:
    """One version of the weights as it is handed over, through the object store; 0 where the model is not known."""
    return model.parameters * BYTES[config.learner.dtype] if model else 0.0


def memory_estimate(config: Config, model: ModelShape | None) -> list[Memory]:
    """Estimate memory in GiB: a row for each role, per GPU or per process, and one for a version of the weights in flight."""
    pools = (("generators", config.generators), ("explorers", config.explorers))
    rows = [
        _engine_memory(config, role, pool, model)
        for role, pool in pools
        if pool.count and (role == "generators" or explorer_count(config))
    ]
    v = config.verifiers
    rows.append(
        Memory(
            role="verifiers",
            where="host",
            copies=v.count * v.workers,
            parts={},
            note=f"limited to {v.memory_gib:g} GiB a process",
        )
    )
    rows.append(_learner_memory(config, model))
    if model is not None:
        if config.loss.reference_coef:
            n = config.learner
            held = state_bytes(model.parameters, dtype=n.dtype, zero_stage=n.zero_stage, ranks=n.ranks)["weights"] / GIB
            note = "a second set of weights, with neither gradients nor optimiser"
            rows.append(Memory(role="reference", where="host", copies=n.ranks, parts={"weights": held}, note=note))
        bundle = version_bytes(config, model) / GIB
        engines = sum(pool.count for role, pool in pools if role == "generators" or explorer_count(config))
        note = "per node while a version is handed over: it and the one before"
        rows.append(Memory(role="weights", where="host", copies=1, parts={"object store": 2 * bundle}, note=note))
        note = "each engine keeps a copy, which the next version overwrites"
        rows.append(Memory(role="engine buffers", where="host", copies=engines, parts={"one version": bundle}, note=note))
        run, parts = config.run, {"masters and moments": model.parameters * CHECKPOINT_BYTES / GIB}
        if config.loss.reference_coef:
            parts["reference"] = model.parameters * BYTES[config.learner.dtype] / GIB
        kept = f"{run.keep_checkpoints} kept" + (", the best one" if run.keep_best else "")
        speed = sum(parts.values()) * GIB / 1e9 / run.stop_grace_s
        note = f"{kept} and one being written; within run.stop_grace_s={run.stop_grace_s:g} at {speed:.2g} GB/s or more"
        copies = run.keep_checkpoints + run.keep_best + 1
        rows.append(Memory(role="checkpoint", where="disk", copies=copies, parts=parts, note=note))
    return rows


def _engine_memory(config: Config, role: str, pool: EnginePoolConfig, model: ModelShape | None) -> Memory:
    """Weights / tensor-parallel size + key-value cache, for each GPU of an engine, or its process on CPU."""
    devices, engine = max(pool.gpus, 1), config.engine
    parts: dict[str, float] = {}
    notes = []
    if model is None:
        notes.append("weights unknown")
    else:
        bytes_each = BYTES.get(model.dtype if engine.dtype == "auto" else engine.dtype, 4)
        parts["weights"] = model.parameters * bytes_each / devices / GIB
    if engine.kv_cache_gib:
        parts["key-value cache"] = engine.kv_cache_gib / devices
        if model is not None and model.known:
            tokens = int(engine.kv_cache_gib * GIB) // kv_bytes_per_token(model, bytes_each)
            notes.append(f"{tokens:,} tokens, {tokens // config.context_length:,} sequences of full length")
    else:
        notes.append(f"key-value cache: up to {engine.gpu_memory_utilization:.0%} of the GPU")
        if model is not None and model.known:
            full = kv_bytes_per_token(model, bytes_each) * config.context_length / devices / GIB
            notes.append(f"{full:.2f} GiB a sequence of full length")
    where = "GPU" if pool.gpus else "host"
    return Memory(role=role, where=where, copies=pool.count * devices, parts=parts, note="; ".join(notes))


def _learner_memory(config: Config, model: ModelShape | None) -> Memory:
    n = config.learner
    where = "GPU" if n.gpus else "host"
    if model is None:
        return Memory(role="learner", where=where, copies=n.ranks, parts={}, note="unknown")
    parts = state_bytes(model.parameters, dtype=n.dtype, zero_stage=n.zero_stage, ranks=n.ranks)
    weight, share = BYTES[n.dtype], model.parameters / n.ranks
    if n.zero_stage:
        parts["reduce bucket"] = min(REDUCE_BUCKET, model.parameters) * weight
        parts["gradients of a step in float32"] = 4 * share if n.dtype == "bfloat16" else 0.0
    if critic_settings(config) is not None:  # its head is one row in place of the vocabulary's
        parts["critic"] = sum(parts.values())
    note = "activations and logits unknown"
    if model.known:
        if n.zero_stage == 3:  # the largest tensor and what is fetched ahead of it; loading needs no more
            parts["gathered weights"] = (model.vocabulary * model.hidden + PREFETCHED) * weight
        size = {"tokens": n.micro_batch_tokens, "bytes_each": BYTES[n.dtype]}
        parts["activations"] = activation_bytes(model, **size, checkpointing=n.activation_checkpointing)
        parts["logits"] = logits_bytes(model, **size, kept_mib=n.logits_mib, gpu=n.gpus > 0)
        note = f"micro-batch of {n.micro_batch_tokens:,} tokens"
    return Memory(role="learner", where=where, copies=n.ranks, parts={k: v / GIB for k, v in parts.items()}, note=note)
