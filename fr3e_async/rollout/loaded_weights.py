"""Prove that a vLLM model holds the weights that were sent, every element of them. Pure torch: a module tree and a trace.

Parameters that are kept as they are loaded are compared byte by byte. On CPUs vLLM packs two kinds of weights: linear ones, which
are read through the layer's own multiplication, and experts, which a ``Packer`` packs again. Any other form is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fr3e_async.rollout.load_trace import LoadTrace, ParameterSlot, Region, Shape, WrittenPiece, covered
from fr3e_async.weights.checksum import checksum_of_tensor

EVERY = 8  # most updates compare one packed layer in so many, another one each time
PROBES = 4  # columns of its weight that they compare; others each time
BLOCK = 256  # columns compared at once in a whole proof
Sources = Mapping[str, tuple[ParameterSlot, list[WrittenPiece]]]  # attribute of a layer -> its form, and what was written into it
Packer = Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Tensor]]


class Unproven(RuntimeError):
    """The model does not hold what was sent, or holds it in a form that cannot be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The tensors that this worker found loaded without a difference.

    *Example*: ``Proof(exact=frozenset({"model.norm.weight"}), probed=frozenset({"lm_head.weight"}))``.
    """

    exact: frozenset[str]  # sent tensors of which every element of this worker's share was compared
    probed: frozenset[str] = frozenset()  # of which a part was compared, or none this time: packed ones
    # The elements that this worker took of the tensors that it did not take whole (tensor parallel ranks take a shard each).
    taken: dict[str, tuple[Region, ...]] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """Return the proof as lists and numbers, which vLLM passes between processes."""
        taken = {name: [(r.offset, r.size, r.stride) for r in regions] for name, regions in self.taken.items()}
        return {"exact": sorted(self.exact), "probed": sorted(self.probed), "taken": taken}

    @staticmethod
    def of(told: Mapping[str, Any]) -> Proof:
        """Rebuild the proof from what ``told`` returned."""
        taken = {
            name: tuple(Region(o, tuple(size), tuple(stride)) for o, size, stride in rs) for name, rs in told["taken"].items()
        }
        return Proof(exact=frozenset(told["exact"]), probed=frozenset(told["probed"]), taken=taken)


def prove(
    model: nn.Module, trace: LoadTrace, tensors: Mapping[str, Shape], *, layers: Collection[str] | None = None,
    known: Mapping[str, int] | None = None, packer_of: Callable[[nn.Module], Packer | None] = lambda layer: None,
    remade: Callable[[nn.Module], Mapping[str, Tensor]] = lambda layer: {}, whole: bool = True, turn: int = 0,
) -> Proof:  # fmt: skip
    """Compare the model with what was sent, after a load of ``tensors`` (name -> shape) that ``trace`` has followed.

    ``layers``: paths of those that must have been loaded; None: all. ``known``: checksums of sent tensors. ``whole``: compare every
    element of packed weights, too. Without it probes are compared: of one layer in ``EVERY``, ``PROBES`` columns or one expert,
    others at each ``turn``.

    Raises:
        Unproven: an element was not loaded, differs, or is kept in a form that cannot be compared; names the tensors.
    """
    loaded, missing = _written(model, trace, layers)
    if whole:
        for name, pieces in trace.pieces.items():
            if not covered([piece.region for piece in pieces], torch.Size(trace.slots[name].shape).numel()).all():
                missing.append(name)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise Unproven(
            f"{len(missing)} weights of the engine were not loaded, or not wholly: {', '.join(sorted(missing)[:3])}{more}"
        )
    if whole:
        _compare_remade(model, trace, remade)
    parts: set[str] = set()  # parameters of which not every element was compared
    packed = 0  # layers so far
    for path, layer, sources in loaded:
        packer = packer_of(layer)
        packed += packer is not None or hasattr(layer, "cpu_linear")
        look = Look(known=known or {}, whole=whole, due=whole or (packed + turn) % EVERY == 0, turn=turn // EVERY)
        parts |= {sources[attribute][0].name for attribute in _compare_layer(path, layer, sources, packer, look)}
    return _proof(trace, tensors, parts)


def _written(
    model: nn.Module, trace: LoadTrace, layers: Collection[str] | None
) -> tuple[list[tuple[str, nn.Module, Sources]], list[str]]:
    """(path, layer and what was written, of every layer that was loaded; parameters that should have been and were not)."""
    sharing = _twins(model)
    loaded: list[tuple[str, nn.Module, Sources]] = []
    missing: list[str] = []
    for path, layer in model.named_modules():
        own = {f"{path}.{attribute}".lstrip("."): attribute for attribute in dict(layer.named_parameters(recurse=False))}
        written = {name: twin for name in own for twin in sharing[name] if twin in trace.pieces}
        if written or layers is None or path in layers:
            missing += [name for name in own if name not in written and name in trace.slots]
        if written:
            loaded.append((path, layer, {own[n]: (trace.slots[twin], trace.pieces[twin]) for n, twin in written.items()}))
    return loaded, missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How much of a packed layer to compare: every element, some, or (not ``due``) none."""

    known: Mapping[str, int]  # checksums of sent tensors
    whole: bool
    due: bool
    turn: int  # selects other columns or experts each time


def _compare_layer(path: str, layer: nn.Module, sources: Sources, packer: Packer | None, look: Look) -> set[str]:
    """Compare a layer's parameters; return the attributes of which not all elements were compared. Raises ``Unproven``."""
    if packer is not None:
        compared = look.due and _compare_packed_again(path, layer, sources, packer, look)
        return set() if compared else set(sources)
    parts: set[str] = set()
    for attribute, (slot, pieces) in sources.items():
        weight = getattr(layer, attribute)
        gone = weight.numel() == 0
        multiplies = attribute == "weight" and hasattr(layer, "cpu_linear") and len(slot.shape) == 2
        if not gone and slot.name == f"{path}.{attribute}".lstrip("."):  # a tied parameter is compared where it was loaded
            _compare_plain(slot.name, weight, slot, pieces, look.known)
        if multiplies and not (look.due and _compare_columns(path, layer, slot, pieces, look)):
            parts.add(attribute)
        if gone and not multiplies:
            raise Unproven(f"{path}.{attribute} ({_names(pieces)}) is kept in a form that cannot be compared")
    return parts


def _compare_remade(model: nn.Module, trace: LoadTrace, remade: Callable[[nn.Module], Mapping[str, Tensor]]) -> None:
    """Compare parameters that the layer computes from others: recomputing them must give the same values."""
    for path, layer in model.named_modules():
        extra = [name for name in layer._parameters if f"{path}.{name}".lstrip(".") not in trace.slots]
        held = {name: getattr(layer, name).clone() for name in extra if getattr(layer, name) is not None}
        again = remade(layer) if held else {}
        for name, tensor in held.items():
            if name not in again:
                raise Unproven(f"{path}.{name} is made after loading, nobody knows of what: it cannot be compared")
            if not same_bytes(tensor, again[name]):
                raise Unproven(f"{path}.{name} is not what the layer makes of its weights")


def _compare_plain(
    parameter: str, weight: Tensor, slot: ParameterSlot, pieces: Sequence[WrittenPiece], known: Mapping[str, int]
) -> None:
    if tuple(weight.shape) != slot.shape or not weight.dtype.is_floating_point or weight.dtype.itemsize < slot.dtype.itemsize:
        raise Unproven(
            f"{parameter} ({_names(pieces)}) is kept as {weight.dtype} of shape {tuple(weight.shape)}, loaded as {slot.dtype} of "
            f"shape {slot.shape}: its numbers cannot be compared"
        )
    flat = weight.detach().contiguous().view(-1)
    if sum(piece.region.numel for piece in pieces) > flat.numel():  # a later piece lies over an earlier one
        if not same_values(flat, plain(slot, pieces).view(-1), slot.dtype):
            raise Unproven(f"{parameter} differs from {_names(pieces)} after loading")
        return
    for piece in pieces:
        held = piece.region.of(flat)
        if (total := known_checksum(piece, held, known)) is not None:
            same = checksum_of_tensor(held) == total
        elif piece.source is not None:
            same = same_values(held, _values(slot, piece), slot.dtype)
        elif piece.checksum is not None:
            same = checksum_of_tensor(held.to(slot.dtype)) == piece.checksum
        else:
            same = bool((held == piece.constant).all())
        if not same:
            raise Unproven(f"{parameter} differs from {_names([piece])} after loading")


def _compare_columns(path: str, layer: nn.Module, slot: ParameterSlot, pieces: Sequence[WrittenPiece], look: Look) -> bool:
    """Multiply unit vectors by the packed weight: exact in every float type, since each sum has one non-zero term.

    All sizes are those of the engine's own parameter. True if all columns were compared; else others come next time.
    """
    height, width = slot.shape
    every = max(1, width // PROBES)
    chosen = torch.arange(width) if look.whole else (look.turn % every + every * torch.arange(min(PROBES, width))) % width
    for block in chosen.split(BLOCK):
        units = torch.zeros(len(block), width, dtype=slot.dtype)
        units[torch.arange(len(block)), block] = 1.0
        answer = layer.cpu_linear(units, layer.weight, None)  # [P, N or more]
        if not torch.equal(answer[:, :height].to(slot.dtype), columns(slot, pieces, block).T):
            raise Unproven(f"the packed copy of {path}.weight differs from {_names(pieces)} after loading")
    return len(chosen) == width


def _compare_packed_again(path: str, layer: nn.Module, sources: Sources, packer: Packer, look: Look) -> bool:
    """Pack what was sent as the layer does at its first load, one expert after another, and compare the bytes."""
    count = min(slot.shape[0] for slot, _ in sources.values())
    sent = {name: plain(slot, pieces) for name, (slot, pieces) in sources.items()}
    for expert in range(count) if look.whole else (look.turn % count,):
        loose = {name: experts[expert : expert + 1] for name, experts in sent.items()}
        for name, wanted in packer(layer, loose).items():
            if not same_bytes(getattr(layer, name)[expert], wanted[0]):
                told = [piece for piece in sources[name][1] if _within(piece, sources[name][0], expert)]
                raise Unproven(f"the packed copy of {path}.{name} differs in expert {expert} from {_names(told)} after loading")
    return look.whole or count == 1


def plain(slot: ParameterSlot, pieces: Sequence[WrittenPiece]) -> Tensor:
    """Put a parameter together from its pieces as it was loaded, [slot.shape]."""
    whole = torch.zeros(slot.shape, dtype=slot.dtype)
    for piece in pieces:
        piece.region.of(whole.view(-1)).copy_(_values(slot, piece))
    return whole


def columns(slot: ParameterSlot, pieces: Sequence[WrittenPiece], chosen: Tensor) -> Tensor:
    """Put P chosen columns of a two-dimensional parameter together as they were loaded, [N, P], without building the rest."""
    height, width = slot.shape
    if any(len(piece.region.size) != 2 or piece.region.stride != (width, 1) for piece in pieces):
        return plain(slot, pieces)[:, chosen]
    found = torch.zeros(height, len(chosen), dtype=slot.dtype)
    for piece in pieces:
        top, left = divmod(piece.region.offset, width)
        inside = (chosen >= left) & (chosen < left + piece.region.size[1])
        found[top : top + piece.region.size[0], inside] = _values(slot, piece)[:, chosen[inside] - left].to(slot.dtype)
    return found


def _within(piece: WrittenPiece, slot: ParameterSlot, index: int) -> bool:
    step = torch.Size(slot.shape[1:]).numel()
    return piece.region.offset < (index + 1) * step and piece.region.end > index * step


def _values(slot: ParameterSlot, piece: WrittenPiece) -> Tensor:
    if piece.checksum is not None:
        raise Unproven(f"{slot.name} ({_names([piece])}) is packed, and what was sent is gone: it cannot be compared")
    if piece.source is not None and piece.source.is_meta:
        raise Unproven(f"{slot.name} is computed from itself after loading: it cannot be compared")
    return torch.full(piece.region.size, piece.constant, dtype=slot.dtype) if piece.source is None else piece.source


def known_checksum(piece: WrittenPiece, held: Tensor, known: Mapping[str, int]) -> int | None:
    """Return the known checksum of the one whole tensor of another device that a region holds; None in any other case.

    Computing it again on that device would take as long as the load.
    """
    if piece.source is None or piece.taken is None or held.device == piece.source.device or held.dtype != piece.source.dtype:
        return None
    (name,) = piece.names
    sent = piece.source.untyped_storage().nbytes() // piece.source.element_size()
    return known.get(name) if piece.taken.offset == 0 and piece.taken.numel == sent and piece.source.is_contiguous() else None


def same_values(held: Tensor, sent: Tensor, dtype: torch.dtype) -> bool:
    """Whether values are equal bit by bit in the type that the loader wrote. On two devices their checksums are compared."""
    sent = sent.to(dtype)
    if held.dtype != dtype:
        sent, dtype = sent.to(held.dtype), held.dtype
    return same_bytes(held, sent) if held.device == sent.device else checksum_of_tensor(held) == checksum_of_tensor(sent)


def same_bytes(left: Tensor, right: Tensor) -> bool:
    """Whether tensors of one shape and type are equal bit by bit. Compared as integers, three times as fast as floats."""
    left, right = left.contiguous().view(-1), right.contiguous().view(-1)
    wide = 8 // left.element_size()
    if left.numel() % wide == 0 and left.data_ptr() % 8 == 0 and right.data_ptr() % 8 == 0:
        return torch.equal(left.view(torch.int64), right.view(torch.int64))
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def _twins(model: nn.Module) -> dict[str, list[str]]:
    """Map each parameter to all that share its tensor, itself first: a tied head is loaded as the embedding."""
    by_tensor: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_tensor.setdefault(id(parameter), []).append(name)
    return {name: sorted(names, key=lambda other: other != name) for names in by_tensor.values() for name in names}


def _proof(trace: LoadTrace, tensors: Mapping[str, Shape], parts: set[str]) -> Proof:
    taken: dict[str, list[Region]] = {}
    probed: set[str] = set()
    whole: set[str] = set()
    for parameter, pieces in trace.pieces.items():
        for piece in pieces:
            if parameter in parts:
                probed.update(piece.names)
            for name in piece.names:
                size = torch.Size(tensors[name]).numel()
                if piece.taken is None or (piece.taken.numel == size and 0 not in piece.taken.stride):
                    whole.add(name)
                else:
                    taken.setdefault(name, []).append(piece.taken)
    used = whole | taken.keys()
    return Proof(
        exact=frozenset(used - probed),
        probed=frozenset(probed),
        taken={name: tuple(regions) for name, regions in taken.items() if name not in whole},
    )


def unproven(proofs: Sequence[Proof], tensors: Mapping[str, Shape]) -> list[str]:
    """Return the loaded tensors that the workers together did not use wholly: left out, or a shard that no worker took."""
    found = []
    for name, shape in tensors.items():
        using = [proof for proof in proofs if name in proof.exact or name in proof.probed]
        shards = [proof.taken.get(name) for proof in using]
        whole = None in shards or covered({r for shard in shards for r in shard or ()}, torch.Size(shape).numel()).all()
        if not using or not whole:
            found.append(name)
    return found


def _names(pieces: Sequence[WrittenPiece]) -> str:
    return ", ".join(dict.fromkeys(name for piece in pieces for name in piece.names)) or "a constant"
