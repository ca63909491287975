"""Do the weights inside a vLLM model equal the tensors of a bundle? Pure torch: a module tree and named tensors.

vLLM fuses projections (q/k/v into one, gate/up into one), pads the vocabulary, ties the head to the embedding, and on
CPU keeps only a packed copy of each linear weight, which is probed through the layer's own multiplication.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fr3e_async.weights.checksum import checksum_of_tensor

PROBES = 4  # columns of a packed weight that are compared


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bundle's tensors lie in the model: consecutive rows of one parameter of ``layer``."""

    layer: nn.Module
    attribute: str
    parameter: str  # the engine's name
    names: tuple[str, ...]  # in the bundle, in the order of the rows


def places(model: nn.Module) -> list[Place]:
    """Every parameter of the model with the Hugging Face names that belong in it; a tied head goes by its embedding's name."""
    packed: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    first_name: dict[int, str] = {}
    found = []
    for path, layer in model.named_modules():
        for attribute, parameter in layer.named_parameters(recurse=False):
            name = first_name.setdefault(id(parameter), f"{path}.{attribute}")
            parent, _, leaf = name.removesuffix(f".{attribute}").rpartition(".")
            parts = packed.get(leaf, [leaf])
            names = tuple(f"{parent}.{part}.{attribute}".lstrip(".") for part in parts)
            found.append(Place(layer=layer, attribute=attribute, parameter=f"{path}.{attribute}", names=names))
    return found


def stored_with(placed: Sequence[Place], names: Collection[str]) -> list[Place]:
    """The places of every layer that holds one of the names: what is loaded again when these tensors have changed.

    A layer is loaded as a whole, since vLLM repacks and fuses by the layer.
    """
    touched = {id(place.layer) for place in placed if any(name in names for name in place.names)}
    return [place for place in placed if id(place.layer) in touched]


def misfit(placed: Sequence[Place], tensors: Mapping[str, torch.Tensor]) -> str:
    """Why the tensors cannot be loaded, empty if nothing speaks against it before the model is touched.

    Looks for a fused parameter with a part missing, and for a tensor of another number of dimensions than its parameter.
    """
    for place in placed:
        present = [name for name in place.names if name in tensors]
        if len(present) not in (0, len(place.names)):
            return f"{place.parameter} is made of {', '.join(place.names)}, of which the bundle has only {', '.join(present)}"
        weight = getattr(place.layer, place.attribute)
        for name in present:
            if weight.numel() > 0 and tensors[name].ndim != weight.ndim:
                return f"{name} has shape {tuple(tensors[name].shape)}, {place.parameter} has {tuple(weight.shape)}"
    return ""


def verify_loaded(placed: Sequence[Place], tensors: Mapping[str, torch.Tensor], *, whole: bool) -> set[str]:
    """Names of the tensors found in these places as they are in the bundle; ``whole``: the model is not sharded.

    Parameters are compared byte by byte after conversion to their type, packed weights by ``PROBES`` columns. Raises
    ``RuntimeError`` on a difference, or if nothing could be compared.
    """
    verified: set[str] = set()
    for place in placed:
        if any(name not in tensors for name in place.names):
            continue
        expected = [tensors[name] for name in place.names]
        compared = False
        weight = getattr(place.layer, place.attribute)
        if weight.numel() > 0:
            compared = _compare_rows(place, weight, expected, whole=whole)
        if place.attribute == "weight" and whole and hasattr(place.layer, "cpu_linear"):
            compared |= _compare_probes(place, weight, expected)
        if compared:
            verified.update(place.names)
    if not verified:
        raise RuntimeError("no weight of the engine could be compared with the bundle")
    return verified


def confirm(placed: Sequence[Place], told: Mapping[str, tuple[Sequence[int], int]], *, dtype: torch.dtype) -> set[str]:
    """Names of the tensors found in these places by their (shape, checksum). Only parameters of ``dtype`` can be looked at.

    Raises ``RuntimeError`` on a difference, or if nothing could be looked at.
    """
    shapes = {name: shape for name, (shape, _) in told.items()}
    found: set[str] = set()
    for place in placed:
        for name, rows in held_rows(place, shapes).items():
            if rows.dtype != dtype:
                continue
            if checksum_of_tensor(rows) != told[name][1]:
                raise RuntimeError(f"{place.parameter} has not the checksum of {name} after the transfer")
            found.add(name)
    if not found:
        raise RuntimeError("no weight of the engine could be compared with the learner's")
    return found


def held_rows(place: Place, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """The rows of the parameter that hold each of the place's tensors, by name; empty if it is stored in another form."""
    weight = getattr(place.layer, place.attribute)
    if weight.numel() == 0 or any(name not in shapes for name in place.names):
        return {}
    heights = [shapes[name][0] for name in place.names]
    if weight.shape[0] < sum(heights) or any(tuple(shapes[name][1:]) != weight.shape[1:] for name in place.names):
        return {}
    return dict(zip(place.names, weight[: sum(heights)].split(heights), strict=True))


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal bit by bit, for tensors of one shape and type: as integers, which compare three times as fast as floats."""
    left, right = left.contiguous().view(-1), right.contiguous().view(-1)
    wide = 8 // left.element_size()
    if left.numel() % wide == 0 and left.data_ptr() % 8 == 0 and right.data_ptr() % 8 == 0:
        return torch.equal(left.view(torch.int64), right.view(torch.int64))
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def _compare_rows(place: Place, weight: torch.Tensor, expected: list[torch.Tensor], *, whole: bool) -> bool:
    """True if the parameter was compared; False if it is sharded or stored in another form."""
    rows = sum(tensor.shape[0] for tensor in expected)
    if weight.shape[1:] != expected[0].shape[1:] or weight.shape[0] < rows or not weight.dtype.is_floating_point:
        return False
    if weight.shape[0] > rows and not whole:  # padded vocabulary, or a shard that happens to be larger than a part
        return False
    start = 0
    for tensor, name in zip(expected, place.names, strict=True):
        held = weight[start : start + tensor.shape[0]]
        if not same_bytes(held, tensor.to(device=weight.device, dtype=weight.dtype)):
            raise RuntimeError(f"{place.parameter} differs from {name} after loading")
        start += tensor.shape[0]
    return True


def _compare_probes(place: Place, weight: torch.Tensor, expected: list[torch.Tensor]) -> bool:
    """Multiply unit vectors by the packed weight: exact in every float type, since each sum has one non-zero term."""
    if expected[0].ndim != 2:
        return False
    width = expected[0].shape[1]
    chosen = torch.linspace(0, width - 1, PROBES).long()
    columns = torch.cat([tensor[:, chosen] for tensor in expected]).to(weight.dtype)  # [N, PROBES]
    units = torch.zeros(PROBES, width, dtype=weight.dtype)
    units[torch.arange(PROBES), chosen] = 1.0
    answer = place.layer.cpu_linear(units, weight, None)  # [PROBES, N or more]
    if not torch.equal(answer[:, : len(columns)], columns.T):
        raise RuntimeError(f"the packed copy of {place.parameter} differs from {', '.join(place.names)} after loading")
    return True
