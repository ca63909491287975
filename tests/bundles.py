"""Both ends of a stream of weights in one process: bundles that tests make and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from fr3e_async.weights.bundle import from_wire, joined, require_checksum, require_size, stream
from fr3e_async.weights.checksum import checksum
from fr3e_async.weights.manifest import WeightBucket, WeightBundle, WeightManifest


def collect(parts: Iterable[WeightBucket | WeightManifest], held: WeightBundle | None = None) -> WeightBundle:
    """The bundle of a whole stream: every bucket is copied as it comes."""
    buckets: list[WeightBucket] = []
    for part in parts:
        if isinstance(part, WeightManifest):
            return joined(part, buckets, held)
        buckets.append(tuple(array.copy() for array in part))
    raise ValueError("weights: the stream ended without a manifest")


def pack_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]], *, version: int, dtype: str = "float32", bucket_size: int = 1 << 30
) -> WeightBundle:
    """One bundle of all tensors, copied, in buckets of so many tensors."""
    named = list(tensors)
    buckets = [named[start : start + bucket_size] for start in range(0, len(named), bucket_size)]
    return collect(stream(buckets, version=version, dtype=dtype))


def unpack(bundle: WeightBundle) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a checked copy of every array. Raises ``ValueError`` if a checksum is wrong."""
    manifest = bundle.manifest
    for span, bucket in zip(manifest.spans, bundle.buckets, strict=True):
        for index, array in zip(span, bucket, strict=True):
            copy = array.copy()  # arrays from an object store are read-only
            require_size(manifest, index, copy)
            require_checksum(manifest, index, checksum(copy))
            yield manifest.names[index], from_wire(copy, manifest.dtype).view(manifest.shapes[index])
