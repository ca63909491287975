"""Memory seen by several processes of a host, and one version's tensors in it: anonymous memory, reachable through ``/proc``.

Unlike a file in ``/dev/shm`` it does not count against that mount's limit (64 MB in many containers) and cannot be left
behind: it is gone when the last process that holds it is. Linux only; both processes must belong to one user.
"""

import itertools
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from fr3e_async.weights.bundle import WIRE_TYPES, from_wire, require_checksum, require_size, tensor_bytes
from fr3e_async.weights.checksum import copy_checked
from fr3e_async.weights.manifest import WeightBucket, WeightManifest

ALIGNMENT = 64  # bytes, of each tensor: what vector instructions like


class SharedBuffer:
    """Zeroed bytes that other processes can map by ``path`` until ``close``."""

    def __init__(self, nbytes: int) -> None:
        self._fd = os.memfd_create("fr3e-weights")
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        try:
            os.ftruncate(self._fd, max(nbytes, 1))
            self.array: NDArray[np.uint8] = _map(self._fd)
        except OSError:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Let go of the memory; mappings that other processes hold stay valid."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_shared(path: str) -> NDArray[np.uint8]:
    """[n] the bytes behind another process's ``SharedBuffer.path``, without a copy. Raises ``OSError`` if it is gone."""
    fd = os.open(path, os.O_RDWR)
    try:
        return _map(fd)
    finally:
        os.close(fd)  # the mapping keeps the memory


class SharedMapping:
    """The latest shared buffer of another process, kept mapped from one use to the next."""

    def __init__(self) -> None:
        self._identity: tuple[int, int] | None = None
        self._array: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def of(self, path: str) -> NDArray[np.uint8]:
        """[n] the bytes behind the path. A path may come to name another buffer, which the inode tells."""
        found = os.stat(path)
        if (found.st_dev, found.st_ino) != self._identity:
            self._array = open_shared(path)
            self._identity = (found.st_dev, found.st_ino)
        return self._array


class SharedWeights:
    """One version's tensors in a shared buffer that stays: an update overwrites what differs and leaves the rest alone.

    The buffer is made again only when names, shapes or types change. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._buffer: SharedBuffer | None = None
        self._layout: tuple[object, ...] = ()
        self._held: dict[int, int] = {}  # tensor -> checksum of its bytes in the buffer

    @property
    def path(self) -> str:
        """Where other processes map it. Only after ``prepare``."""
        assert self._buffer is not None
        return self._buffer.path

    def prepare(self, manifest: WeightManifest) -> list[int]:
        """Make room for the manifest's tensors; returns the buckets with a tensor that is not here yet."""
        layout = (manifest.dtype, manifest.names, manifest.shapes)
        if layout != self._layout:
            self.close()
            self._offsets = offsets(manifest)
            self._buffer, self._layout = SharedBuffer(self._offsets[-1]), layout
        return [number for number, span in enumerate(manifest.spans) if self._missing(manifest, span)]

    def fill(self, manifest: WeightManifest, number: int, bucket: WeightBucket) -> int:
        """Copy what differs of a bucket and check the copies. Returns the bytes copied; ``ValueError`` for a wrong checksum."""
        assert self._buffer is not None
        span = manifest.spans[number]
        if len(bucket) != len(span):
            raise ValueError(f"weights v{manifest.version}: bucket {number} has {len(bucket)} tensors, not {len(span)}")
        copied = 0
        for index in self._missing(manifest, span):
            source = bucket[index - span.start].reshape(-1).view(np.uint8)
            target = self._buffer.array[self._offsets[index] :][: tensor_bytes(manifest, index)]
            self._held.pop(index, None)  # until the new bytes are known to be right
            require_size(manifest, index, source)
            found = copy_checked(target, source)
            require_checksum(manifest, index, found)
            self._held[index] = found
            copied += len(target)
        return copied

    def checksums(self, manifest: WeightManifest) -> dict[str, int]:
        """By name, what was found of the copies here that are as the manifest has them."""
        if self._buffer is None:
            return {}
        return {n: self._held[i] for i, n in enumerate(manifest.names) if self._held.get(i) == manifest.checksums[i]}

    def close(self) -> None:
        """Let go of the buffer. ``prepare`` makes a new one."""
        if self._buffer is not None:
            self._buffer.close()
        self._buffer, self._layout, self._held = None, (), {}

    def _missing(self, manifest: WeightManifest, span: range) -> list[int]:
        return [index for index in span if self._held.get(index) != manifest.checksums[index]]


def offsets(manifest: WeightManifest) -> list[int]:
    """[N + 1] where each tensor begins in the buffer, and the buffer's size: bytes."""
    sizes = [-(-tensor_bytes(manifest, index) // ALIGNMENT) * ALIGNMENT for index in range(len(manifest.names))]
    return list(itertools.accumulate(sizes, initial=0))


def shared_tensors(
    buffer: NDArray[np.uint8], names: Sequence[str], shapes: Sequence[Sequence[int]], starts: Sequence[int], dtype: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) views into a shared buffer; nothing is copied."""
    wire = WIRE_TYPES[dtype]
    for name, shape, start in zip(names, shapes, starts, strict=True):
        size = int(np.prod(shape, dtype=np.int64)) * wire.itemsize
        yield name, from_wire(buffer[start : start + size].view(wire), dtype).view(tuple(shape))


def _map(fd: int) -> NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(fd, os.fstat(fd).st_size), dtype=np.uint8)
