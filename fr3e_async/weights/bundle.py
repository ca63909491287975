"""Named tensors as a stream of buckets that ends with a manifest, put together again by the receiver. numpy and torch only.

Knows nothing of who trains, who serves and how the bytes travel. A learner that must not hold all weights twice sends one
bucket after another, and only what has changed (``stream``); the receiver joins them with what it holds (``joined``)::

    parts = list(stream(buckets, version=8, dtype="bfloat16", held=bundle.manifest))  # changed buckets, then the manifest
    bundle = joined(parts[-1], parts[:-1], bundle)

bfloat16 has no numpy type: its bits travel as uint16.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fr3e_async.weights.checksum import checksum
from fr3e_async.weights.manifest import WeightBucket, WeightBundle, WeightManifest

WIRE_TYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16)}
BUCKET_BYTES = 256 << 20


def stream(
    buckets: Iterable[Sequence[tuple[str, torch.Tensor]]], *, version: int, dtype: str, held: WeightManifest | None = None
) -> Iterator[WeightBucket | WeightManifest]:
    """Yield each bucket in which a checksum differs from ``held``, in order, then the manifest of all.

    Runs through ``buckets`` once, and one of them may be freed as soon as the next is asked for. The arrays are views of
    the tensors wherever type and device allow it: copy or send them before you ask for the next one.

    Args:
        buckets: (name, tensor) pairs; tied weights under one name (``named_parameters`` does that).
        dtype: on the wire, ``"float32"`` or ``"bfloat16"``; tensors of another type are converted.

    Raises:
        ValueError: a name comes twice, or there are no tensors.
    """
    if dtype not in WIRE_TYPES:
        raise ValueError(f"weights v{version}: dtype must be one of {sorted(WIRE_TYPES)}, got {dtype!r}")
    known = _known(held, dtype)
    names: list[str] = []
    shapes: list[tuple[int, ...]] = []
    checksums: list[int] = []
    sizes: list[int] = []
    for bucket in buckets:
        arrays = tuple(_to_wire(tensor, dtype) for _, tensor in bucket)
        found = [checksum(array) for array in arrays]
        told = [(name, tuple(int(n) for n in tensor.shape)) for name, tensor in bucket]
        names += [name for name, _ in told]
        shapes += [shape for _, shape in told]
        checksums += found
        sizes.append(len(arrays))
        if (tuple(told), tuple(found)) not in known:
            yield arrays
    yield WeightManifest(
        version=version, dtype=dtype, names=tuple(names), shapes=tuple(shapes), checksums=tuple(checksums), buckets=tuple(sizes)
    )


def changed_buckets(manifest: WeightManifest, held: WeightManifest | None) -> list[bool]:
    """[B] which of the manifest's buckets ``stream`` sent to someone who held ``held``."""
    known = _known(held, manifest.dtype)
    return [content not in known for content in _contents(manifest)]


def joined(manifest: WeightManifest, sent: Sequence[Any], held: WeightBundle | None = None) -> WeightBundle:
    """The bundle of a stream: ``sent`` are the changed buckets or handles of them, the others are those of ``held``."""
    known = {} if held is None else dict(zip(_contents(held.manifest), held.buckets, strict=True))
    changed = changed_buckets(manifest, held.manifest if held is not None else None)
    if sum(changed) != len(sent):
        raise ValueError(f"weights v{manifest.version}: {len(sent)} buckets arrived, {sum(changed)} have changed")
    arrived = iter(sent)
    buckets = [next(arrived) if new else known[content] for new, content in zip(changed, _contents(manifest), strict=True)]
    sizes = [sum(tensor_bytes(manifest, i) for i in span) for span in manifest.spans]
    fresh = sum(size for size, new in zip(sizes, changed, strict=True) if new)
    return WeightBundle(manifest=manifest, buckets=tuple(buckets), sent_bytes=fresh, skipped_bytes=sum(sizes) - fresh)


def require_size(manifest: WeightManifest, index: int, array: NDArray) -> None:
    if array.nbytes != tensor_bytes(manifest, index):
        raise _damaged(manifest, index, f"{array.nbytes} bytes, not {tensor_bytes(manifest, index)}")


def require_checksum(manifest: WeightManifest, index: int, found: int) -> None:
    if found != manifest.checksums[index]:
        raise _damaged(manifest, index, f"checksum {found:#018x}, not {manifest.checksums[index]:#018x}")


def _damaged(manifest: WeightManifest, index: int, found: str) -> ValueError:
    return ValueError(f"weights v{manifest.version} are damaged: {manifest.names[index]} has {found}")


def tensor_bytes(manifest: WeightManifest, index: int) -> int:
    """Bytes on the wire of the manifest's tensor ``index``."""
    return int(np.prod(manifest.shapes[index], dtype=np.int64)) * WIRE_TYPES[manifest.dtype].itemsize


def from_wire(flat: NDArray, dtype: str) -> torch.Tensor:
    """[size] the numbers as a tensor on the same memory. uint16 goes through int16, which every torch supports."""
    return torch.from_numpy(flat.view(np.int16)).view(torch.bfloat16) if dtype == "bfloat16" else torch.from_numpy(flat)


def _to_wire(tensor: torch.Tensor, dtype: str) -> NDArray:
    """[size] the numbers in the wire type: a view if they are in it, in order and on the CPU."""
    flat = tensor.detach().to(device="cpu", dtype=getattr(torch, dtype)).contiguous().view(-1)
    return flat.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else flat.numpy()


Content = tuple[tuple[tuple[str, tuple[int, ...]], ...], tuple[int, ...]]


def _contents(manifest: WeightManifest) -> list[Content]:
    """[B] what each bucket holds: names and shapes, and checksums."""
    named = tuple(zip(manifest.names, manifest.shapes, strict=True))
    return [(named[span.start : span.stop], manifest.checksums[span.start : span.stop]) for span in manifest.spans]


def _known(held: WeightManifest | None, dtype: str) -> set[Content]:
    return set(_contents(held)) if held is not None and held.dtype == dtype else set()
