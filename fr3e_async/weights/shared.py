"""One buffer seen by several processes of a host: anonymous shared memory, reachable through ``/proc``.

Unlike a file in ``/dev/shm`` it does not count against that mount's limit (64 MB in many containers) and cannot be left
behind: it is gone when the last process that holds it is. Linux only; both processes must belong to one user.
Knows bytes only.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray


class SharedBuffer:
    """A copy of an array that other processes can map by ``path`` until ``close``."""

    def __init__(self, array: NDArray) -> None:
        self._fd = os.memfd_create("fr3e-weights")
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        self.dtype = array.dtype.str
        try:
            os.ftruncate(self._fd, max(array.nbytes, 1))
            self.array: NDArray = _map(self._fd, array.nbytes, array.dtype)
            np.copyto(self.array, array.reshape(-1))
        except OSError:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Let go of the memory; mappings that other processes hold stay valid."""
        os.close(self._fd)

    def __enter__(self) -> SharedBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_shared(path: str, dtype: str) -> NDArray:
    """[n] the array behind another process's ``SharedBuffer.path``, without a copy. Raises ``OSError`` if it is gone."""
    fd = os.open(path, os.O_RDWR)
    try:
        return _map(fd, os.fstat(fd).st_size, np.dtype(dtype))
    finally:
        os.close(fd)  # the mapping keeps the memory


def _map(fd: int, nbytes: int, dtype: np.dtype) -> NDArray:
    return np.frombuffer(mmap.mmap(fd, max(nbytes, 1)), dtype=dtype, count=nbytes // dtype.itemsize)
