"""Packs named tensors into a ``WeightBundle`` and takes them out again. numpy and torch only.

Refuses to know who trains, who serves and how the bytes travel. bfloat16 has no numpy type: its bits travel as uint16.

Example::

    bundle = pack_tensors(model.named_parameters(), version=7, dtype="bfloat16")
    model.load_state_dict(dict(unpack(bundle)), strict=False)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fr3e_async.types import WeightBundle

WIRE_TYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16)}


def checksum(flat: NDArray) -> int:
    """crc32 of the buffer's bytes. About 1 ms for 1 MB; the interpreter lock is free meanwhile."""
    return zlib.crc32(np.ascontiguousarray(flat).data)


def verify(bundle: WeightBundle, flat: NDArray | None = None) -> None:
    """Raise ``ValueError`` unless the buffer (the bundle's own, or a copy of it) has the bundle's checksum."""
    found = checksum(bundle.flat if flat is None else flat)
    if found != bundle.checksum:
        raise ValueError(f"weights v{bundle.version} are damaged: crc32 is {found:#010x}, not {bundle.checksum:#010x}")


def pack_tensors(tensors: Iterable[tuple[str, torch.Tensor | NDArray]], *, version: int, dtype: str = "float32") -> WeightBundle:
    """One bundle of all tensors, copied. Runs through them once, so each may be freed as soon as the next is asked for.

    ``dtype`` is the type on the wire, ``"float32"`` or ``"bfloat16"``; tensors of another float type are converted. A
    numpy array of uint16 is taken as bfloat16 bits. Name tied weights once (``named_parameters`` does).

    Raises ``ValueError`` for a name that comes twice, for no tensors, and for uint16 bits where float32 is asked for.
    """
    if dtype not in WIRE_TYPES:
        raise ValueError(f"weight bundle: dtype must be one of {sorted(WIRE_TYPES)}, got {dtype!r}")
    names: list[str] = []
    shapes: list[tuple[int, ...]] = []
    parts: list[NDArray] = []
    for name, tensor in tensors:
        names.append(name)
        shapes.append(tuple(int(n) for n in tensor.shape))
        parts.append(_to_wire(tensor, dtype))
    if not names or len(set(names)) != len(names):
        raise ValueError(f"weight bundle v{version}: {len(names)} tensors of {len(set(names))} names")
    flat = np.concatenate(parts)
    return WeightBundle(
        version=version, names=tuple(names), shapes=tuple(shapes), dtype=dtype, flat=flat, checksum=checksum(flat)
    )  # fmt: skip


def named_tensors(
    flat: NDArray, names: Sequence[str], shapes: Sequence[Sequence[int]], dtype: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) views into a bundle's buffer, in order; nothing is copied. The buffer must be writable (torch insists)."""
    start = 0
    for name, shape in zip(names, shapes, strict=True):
        size = math.prod(shape)
        yield name, _from_wire(flat[start : start + size], dtype).view(tuple(shape))
        start += size


def unpack(bundle: WeightBundle) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a checked copy of the bundle's buffer. Raises ``ValueError`` if the checksum is wrong."""
    flat = bundle.flat.copy()  # arrays from an object store are read-only
    verify(bundle, flat)
    yield from named_tensors(flat, bundle.names, bundle.shapes, bundle.dtype)


def _to_wire(tensor: torch.Tensor | NDArray, dtype: str) -> NDArray:
    """[size] a copy of the numbers in the wire type."""
    if isinstance(tensor, np.ndarray):
        if tensor.dtype == np.uint16 and dtype == "bfloat16":
            return tensor.reshape(-1).copy()
        if tensor.dtype.kind != "f":
            raise ValueError(f"weight bundle: an array of {tensor.dtype} cannot travel as {dtype}")
        tensor = torch.from_numpy(tensor.copy())
    flat = tensor.detach().to(device="cpu", dtype=getattr(torch, dtype), copy=True).contiguous().view(-1)
    return flat.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else flat.numpy()


def _from_wire(flat: NDArray, dtype: str) -> torch.Tensor:
    """[size] the numbers as a tensor on the same memory. uint16 goes through int16, which every torch supports."""
    return torch.from_numpy(flat.view(np.int16)).view(torch.bfloat16) if dtype == "bfloat16" else torch.from_numpy(flat)
