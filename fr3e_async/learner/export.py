"""Model folders for transformers and vLLM: weights in files of bounded size, with the base model's config and tokenizer.

Knows nothing of DeepSpeed or ranks: the weights come one after another, from a learner or from a checkpoint's masters.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fr3e_async.errors import ConfigError, ModelError
from fr3e_async.files.durable import fsync_tree, storage_errors
from fr3e_async.learner.checkpoint import Manifest, clear, copy_base, put
from fr3e_async.learner.checkpoint_pieces import BUFFER, MASTER, Pieces, write_tensors

FILE_BYTES = 1 << 31
INDEX = "model.safetensors.index.json"


def model_folder(path: str, *, revision: str = "") -> Path:
    """Find the folder of a local model, or of a hub id that was downloaded. Raises ``ModelError`` if there is none here."""
    if os.path.isdir(path):
        return Path(path)
    from transformers.utils import cached_file

    try:
        return Path(cached_file(path, "config.json", revision=revision or None)).parent
    except OSError as error:
        raise ModelError(f"model.path: no config.json of {path} is on this machine: {error}") from error


def checkpoint_weights(folder: Path, manifest: Manifest) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face name, whole float32 master weight) of a learner checkpoint. Raises ``StorageError``."""
    with Pieces(folder, manifest.pieces) as pieces:
        for name, shape in manifest.shapes.items():
            yield name, pieces.read(MASTER, name, 0, math.prod(shape)).view(shape)


def checkpoint_buffers(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Read the buffers of a learner checkpoint (what a model stores beside its weights), by name. Raises ``StorageError``."""
    with Pieces(folder, manifest.pieces) as pieces:
        return {name: pieces.whole(BUFFER, name).view(shape) for name, shape in manifest.buffers.items()}


def write_model(
    folder: Path,
    weights: Iterable[tuple[str, Tensor]],
    *,
    dtype: str,
    base: Path,
    overrides: Mapping[str, Any] | None = None,
    model: Any = None,
    buffers: Mapping[str, Tensor] | None = None,
    texts: Mapping[str, str] | None = None,
    limit: int = FILE_BYTES,
    trust_remote_code: bool = False,
) -> None:
    """Write a folder that transformers and vLLM load; it is whole or not there. Memory: one file of ``limit`` bytes.

    Args:
        weights: by the names that transformers uses inside; they are stored as ``dtype`` under those that it uses on disk.
        base: folder of the config and the tokenizer; ``overrides``: values of the config that were others in training.
        model: the transformers model; None: a skeleton of it is made, with Python code of ``base`` if ``trust_remote_code``.
        buffers: stored as they are. ``texts``: further files by name.

    Raises:
        StorageError: it cannot be written.
        ConfigError: the skeleton needs code that is not trusted.
    """
    filled = folder.with_name(folder.name + ".tmp")
    with storage_errors(folder, "the model folder"), ExitStack() as undo:
        clear(filled)
        undo.callback(clear, filled)
        copy_base(base, filled, overrides)
        set_dtype(filled / "config.json", dtype)
        for name, text in (texts or {}).items():
            (filled / name).write_text(text, encoding="utf-8")
        skeleton = make_skeleton(filled, trust_remote_code=trust_remote_code) if model is None else model
        placed: dict[str, int] = {}
        total = 0
        cast = ((name, weight.detach().to("cpu", dtype=getattr(torch, dtype), copy=True)) for name, weight in weights)
        for index, batch in enumerate(_batches(chain(cast, (buffers or {}).items()), limit=limit)):
            stored = {name: tensor.contiguous() for name, tensor in on_disk(skeleton, batch).items()}
            write_tensors(filled / _part(index), stored, metadata={"format": "pt"})
            placed |= dict.fromkeys(stored, index)
            total += sum(tensor.nbytes for tensor in stored.values())
        _name_files(filled, placed, total)
        fsync_tree(filled)
        put(filled, folder)


def set_dtype(file: Path, dtype: str) -> None:
    """Write the type of the weights into a config.json, and remove what it says of quantisation."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in (config, *(value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in part:
                part[key] = dtype
    if "torch_dtype" not in config:
        config["dtype"] = dtype
    config.pop("quantization_config", None)
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def make_skeleton(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The model of a folder without memory for its weights: it knows how transformers names them on disk.

    A checkpoint may come from anywhere: code in it is run only if the caller says so. ``ConfigError`` if there is no way without.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if trust_remote_code or not any(folder.glob("*.py")):
            raise
        raise ConfigError(
            "the model comes with Python code of its own, which is not run unless you trust where the checkpoint is from: "
            f"--trust-remote-code ({' '.join(str(error).split())[:200]})"
        ) from error


def _batches(weights: Iterable[tuple[str, Tensor]], *, limit: int) -> Iterator[dict[str, Tensor]]:
    """Yield as many weights as fit a file of ``limit`` bytes, at least one."""
    batch: dict[str, Tensor] = {}
    size = 0
    for name, weight in weights:
        if batch and size + weight.nbytes > limit:
            yield batch
            batch, size = {}, 0
        batch[name] = weight
        size += weight.nbytes
    if batch:
        yield batch


def on_disk(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename, and split or join, weights as checkpoints have them: transformers renames and joins some in memory.

    Views where the parts allow it. A tensor that is joined on disk needs all its parts in one batch.
    """
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, batch)


def _part(index: int) -> str:
    return f"part-{index:05d}.tmp"


def _name_files(folder: Path, placed: Mapping[str, int], total: int) -> None:
    """Give the files their final names, which hold their number, and write the index."""
    count = max(placed.values()) + 1
    names = ["model.safetensors"] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for index, name in enumerate(names):
        os.replace(folder / _part(index), folder / name)
    if count > 1:
        index_of = {name: names[index] for name, index in sorted(placed.items())}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index_of}, indent=2)
        (folder / INDEX).write_text(text + "\n", encoding="utf-8")
