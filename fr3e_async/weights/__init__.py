"""Versioned weights as buckets of checksummed arrays, and how they reach another process of the same host."""

from fr3e_async.weights.bundle import changed_buckets, collect, joined, pack_tensors, stream, unpack
from fr3e_async.weights.checksum import checksum, checksum_of_tensor
from fr3e_async.weights.shared import SharedBuffer, SharedMapping, SharedWeights, offsets, open_shared, shared_tensors

__all__ = [
    "SharedBuffer",
    "SharedMapping",
    "SharedWeights",
    "changed_buckets",
    "checksum",
    "checksum_of_tensor",
    "collect",
    "joined",
    "offsets",
    "open_shared",
    "pack_tensors",
    "shared_tensors",
    "stream",
    "unpack",
]
