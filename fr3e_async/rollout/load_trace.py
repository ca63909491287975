"""Trace a model's own weight loader: every copy into a parameter, with the sent tensor that the values come from. Pure torch.

A loader fuses, shards, transposes, pads and renames in ways that differ from model to model. It does so by copying views of
what it is given into views of parameters, and torch reports each copy. So this module needs no rule about any model.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fr3e_async.weights.checksum import checksum_of_tensor

COPY, FILL, ZERO = torch.ops.aten.copy_.default, torch.ops.aten.fill_.Scalar, torch.ops.aten.zero_.default
Shape = tuple[int, ...]
ITEM = torch.ops.aten._local_scalar_dense.default


@dataclass(frozen=True, slots=True)
class Region:
    """Elements of a flat tensor, in the terms of ``as_strided``. *Example*: rows 2 and 3 of [4, 8] are ``Region(16, (2, 8), (8, 1))``."""

    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        return torch.Size(self.size).numel()

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.offset + 1 + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))

    def of(self, flat: Tensor) -> Tensor:
        """A view of a contiguous tensor. ``IndexError`` if it reaches beyond its end."""
        if self.end > flat.numel():
            raise IndexError(f"elements up to {self.end} of {flat.numel()}")
        return flat.as_strided(self.size, self.stride, flat.storage_offset() + self.offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPiece:
    """What the loader wrote into one region of a parameter: a constant, or values from sent tensors.

    *Example*: ``WrittenPiece(region=Region(0, (64, 64), (64, 1)), source=q, names=("model.layers.0.self_attn.q_proj.weight",))``
    is the first third of a fused q/k/v weight.
    """

    region: Region
    source: Tensor | None = None  # the values, if they were kept
    checksum: int | None = None  # of the values in the parameter's type, if they were not
    constant: float = 0.0  # of neither
    names: tuple[str, ...] = ()  # of the sent tensors
    taken: Region | None = None  # the elements of the one sent tensor, if they were copied as they are


@dataclass(frozen=True, slots=True)
class ParameterSlot:
    """A parameter in the form in which it is loaded."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Sent:
    """Where a sent tensor lies in memory. The trace keeps no reference to the memory itself."""

    name: str
    start: int  # address
    nbytes: int
    dtype: torch.dtype
    contiguous: bool


class LoadTrace(TorchDispatchMode):
    """Records every piece that a loader writes into a parameter while this torch mode is on.

    ``keep``: keep references to the values, which must not change until they are compared. Otherwise keep their checksums, for
    sources that are gone after the load.
    """

    def __init__(self, model: nn.Module, *, keep: bool = True) -> None:
        super().__init__()
        self._keep = keep
        self._known: list[StorageWeakRef] = []  # keeps a freed storage's identity from being reused
        self._slots: dict[int, ParameterSlot] = {}  # by storage
        self._sent: dict[int, list[Sent]] = {}  # by storage, the newest last
        self._made: dict[int, tuple[str, ...]] = {}  # storage of what was computed -> names of the sent tensors
        self._item: tuple[Any, tuple[str, ...]] = None, ()  # the last number that was read, and of which tensors
        self.slots: dict[str, ParameterSlot] = {}
        self.pieces: dict[str, list[WrittenPiece]] = {}  # by parameter, in the order of writing
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.slots[name] = slot = ParameterSlot(name, tuple(parameter.shape), parameter.dtype)
            self._slots.setdefault(self._remember(parameter), slot)

    def watched(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass the tensors on, and remember the name of each."""
        for name, tensor in tensors:
            sent = Sent(name, tensor.data_ptr(), tensor.nbytes, tensor.dtype, tensor.is_contiguous())
            self._sent.setdefault(self._remember(tensor), []).append(sent)
            yield name, tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func in (COPY, FILL, ZERO) and (slot := self._slots.get(_storage(args[0]))):
            self._record(slot, func, args)
        out = func(*args, **(kwargs or {}))
        if func is ITEM:
            self._item = out, self._origin(args[0])[0]
        if isinstance(out, Tensor) and func is not COPY and not out.is_meta:
            self._follow(args, out)
        return out

    def _record(self, slot: ParameterSlot, func: Any, args: Sequence[Any]) -> None:
        if func is COPY and self._slots.get(_storage(args[1])) is slot:  # vLLM puts some back into themselves
            return
        region = Region(args[0].storage_offset(), tuple(args[0].size()), tuple(args[0].stride()))
        pieces = self.pieces.setdefault(slot.name, [])
        pieces[:] = [piece for piece in pieces if piece.region != region]  # vLLM loads some regions twice
        if func is not COPY:
            value = args[1] if func is FILL else 0
            names = self._item[1] if func is FILL and value == self._item[0] else ()
            pieces.append(WrittenPiece(region=region, constant=float(value), names=names))
            return
        source = args[1].detach().expand(region.size)
        names, taken = self._origin(source)
        kept = self._keep or source.is_meta
        pieces.append(
            WrittenPiece(
                region=region, names=names, taken=taken, source=source if kept else None,
                checksum=None if kept else checksum_of_tensor(source.to(slot.dtype)),
            )
        )  # fmt: skip

    def _follow(self, args: Sequence[Any], out: Tensor) -> None:
        """Record the names of the sent tensors behind a computed one."""
        key = _storage(out)
        if not key or key in self._slots or key in self._sent or key in self._made:
            return
        if names := dict.fromkeys(name for arg in args if isinstance(arg, Tensor) for name in self._origin(arg)[0]):
            self._made[self._remember(out)] = tuple(names)

    def _origin(self, tensor: Tensor) -> tuple[tuple[str, ...], Region | None]:
        """Names of the sent tensors behind these values; and which elements of the one, if they are a view of it."""
        key = _storage(tensor)
        for sent in reversed(self._sent.get(key, [])):
            start = tensor.data_ptr() - sent.start
            if 0 <= start < max(sent.nbytes, 1):
                region = Region(start // tensor.element_size(), tuple(tensor.size()), tuple(tensor.stride()))
                return (sent.name,), region if sent.contiguous and sent.dtype == tensor.dtype else None
        return self._made.get(key, ()), None

    def _remember(self, tensor: Tensor) -> int:
        self._known.append(StorageWeakRef(tensor.untyped_storage()))
        return _storage(tensor)


@dataclass(slots=True)
class LoadLayout:
    """Which layers of a model hold which sent tensors, learnt from loads that were proven."""

    shapes: dict[str, Shape] = field(default_factory=dict)  # of the sent tensors
    layers: dict[str, set[str]] = field(default_factory=dict)  # sent tensor -> paths of the layers that it went to

    def learn(self, trace: LoadTrace, tensors: Mapping[str, Shape]) -> None:
        """Add what the trace of a proven load shows. ``tensors``: shapes of the sent ones, by name."""
        self.shapes |= tensors
        for parameter, pieces in trace.pieces.items():
            for name in (name for piece in pieces for name in piece.names):
                self.layers.setdefault(name, set()).add(parameter.rpartition(".")[0])

    def misfit(self, tensors: Mapping[str, Shape]) -> str:
        """Return why tensors of these shapes cannot replace those loaded before; empty if they can."""
        if not self.shapes:
            return ""
        for name, shape in tensors.items():
            if name not in self.shapes:
                return f"{name} is none of the tensors that this engine was loaded with"
            if shape != self.shapes[name]:
                return f"{name} has shape {shape}, it had {self.shapes[name]} when this engine was loaded"
        if missing := self.shapes.keys() - tensors.keys():
            return f"{len(missing)} of the tensors that this engine was loaded with are missing, e.g. {min(missing)}"
        return ""

    def touched(self, changed: Sequence[str]) -> tuple[set[str], set[str]]:
        """(paths of the layers that hold a changed tensor, names of all tensors in these layers).

        A layer is loaded as a whole, since vLLM repacks and fuses by the layer.
        """
        layers = {path for name in changed for path in self.layers.get(name, ())}  # another worker may hold it
        names = set(changed)
        while True:
            names |= {name for name, paths in self.layers.items() if paths & layers}
            more = {path for name in names for path in self.layers.get(name, ())}
            if more == layers:
                return layers, names
            layers = more


def _storage(tensor: Tensor) -> int:
    """Return the identity of a tensor's memory, valid while the memory lives; 0 for a tensor without memory."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else 0


def covered(regions: Iterable[Region], numel: int) -> Tensor:
    """[numel] bool: the elements that lie in one of the regions."""
    seen = torch.zeros(numel, dtype=torch.bool)
    for region in regions:
        region.of(seen).fill_(True)
    return seen
