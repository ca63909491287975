"""Comparing a model's weights with a bundle's: fused, padded, tied, sharded and packed parameters, without vLLM."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fr3e_async.rollout import loaded_weights
from fr3e_async.rollout.loaded_weights import confirm, held_rows, places, same_bytes, stored_with
from fr3e_async.weights import checksum_of_tensor

Q, K, V = torch.ones(4, 3), 2 * torch.ones(2, 3), 3 * torch.ones(2, 3)
EMBEDDING = torch.arange(15.0).view(5, 3)


class Engine(nn.Module):
    """Names and shapes as vLLM has them: q/k/v fused, the vocabulary padded from 5 to 8 rows, the head tied."""

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.qkv_proj = nn.Linear(3, 8, bias=False)
        self.attn.qkv_proj.weight.data = torch.cat([Q, K, V])
        self.embed = nn.Module()
        self.embed.weight = nn.Parameter(torch.cat([EMBEDDING, torch.zeros(3, 3)]))
        self.lm_head = nn.Module()
        self.lm_head.weight = self.embed.weight


def verify_loaded(model: nn.Module, tensors: dict[str, torch.Tensor], *, whole: bool) -> set[str]:
    return loaded_weights.verify_loaded(places(model), tensors, whole=whole)


def misfit(model: nn.Module, tensors: dict[str, torch.Tensor]) -> str:
    return loaded_weights.misfit(places(model), tensors)


def bundle(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    tensors = {"attn.q_proj.weight": Q, "attn.k_proj.weight": K, "attn.v_proj.weight": V, "embed.weight": EMBEDDING}
    for name, tensor in changes.items():
        key = f"attn.{name}.weight" if name.endswith("proj") else f"{name}.weight"
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    return tensors


def test_every_tensor_is_found_in_fused_and_padded_parameters():
    assert misfit(Engine(), bundle()) == ""
    assert verify_loaded(Engine(), bundle(), whole=True) == set(bundle())


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("k_proj", 5 * torch.ones(2, 3), "qkv_proj.weight differs from attn.k_proj.weight"),
        ("embed", EMBEDDING + 1, "embed.weight differs"),
    ],
)
def test_a_difference_is_an_error(name, tensor, message):
    with pytest.raises(RuntimeError, match=message):
        verify_loaded(Engine(), bundle(**{name: tensor}), whole=True)


def test_weights_are_compared_in_the_engines_type():
    third = torch.full((5, 3), 1 / 3)
    model = Engine().bfloat16()
    model.embed.weight.data[:5] = third.bfloat16()
    assert verify_loaded(model, bundle(embed=third), whole=True) == set(bundle())


def test_shards_are_left_out():
    """Two ranks: the fused parameter holds half of each part, and the bundle's first part alone would fit into it."""
    model = Engine()
    model.attn.qkv_proj.weight.data = torch.cat([Q[:2], K[:1], V[:1]])
    model.norm = nn.LayerNorm(3, bias=False)
    assert verify_loaded(model, bundle(norm=torch.ones(3)), whole=False) == {"norm.weight"}


def test_nothing_to_compare_is_an_error():
    with pytest.raises(RuntimeError, match="no weight of the engine could be compared"):
        verify_loaded(Engine(), {"other": Q}, whole=True)


def test_a_part_missing_is_seen_before_loading():
    assert misfit(Engine(), bundle(v_proj=None)) == (
        "attn.qkv_proj.weight is made of attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight, "
        "of which the bundle has only attn.q_proj.weight, attn.k_proj.weight"
    )
    assert "has shape (5,)" in misfit(Engine(), bundle(embed=torch.ones(5)))


def packed(weight: torch.Tensor) -> Engine:
    """As on CPU: the linear's weight is gone, a multiplication by the packed copy is left."""
    model = Engine()
    model.attn.qkv_proj.weight = nn.Parameter(torch.empty(0))
    model.attn.qkv_proj.cpu_linear = lambda x, _weight, bias: nn.functional.linear(x, weight, bias)
    return model


def test_packed_weights_are_probed():
    assert verify_loaded(packed(torch.cat([Q, K, V])), bundle(), whole=True) == set(bundle())
    with pytest.raises(RuntimeError, match=r"packed copy of attn\.qkv_proj\.weight differs"):
        verify_loaded(packed(torch.cat([Q, V, K])), bundle(), whole=True)


def test_a_changed_part_takes_its_whole_layer_along():
    placed = stored_with(places(Engine()), {"attn.k_proj.weight"})
    assert {name for place in placed for name in place.names} == {f"attn.{part}_proj.weight" for part in "qkv"}
    tied = stored_with(places(Engine()), {"embed.weight"})
    assert [place.parameter for place in tied] == ["embed.weight", "lm_head.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_compared_and_not_numbers(dtype):
    zeros, odd = torch.zeros(6, dtype=dtype), torch.zeros(7, dtype=dtype)
    assert same_bytes(zeros, zeros.clone())
    assert not same_bytes(zeros, -zeros)
    assert same_bytes(odd[1:] * torch.nan, odd[1:] * torch.nan)
    for place in range(7):
        other = odd.clone()
        other[place] = 1
        assert not same_bytes(odd, other)
        assert same_bytes(other[1:], odd[1:]) == (place == 0)


def test_rows_of_a_fused_parameter_are_told_apart_by_name():
    shapes = {name: tensor.shape for name, tensor in bundle().items()}
    rows = {}
    for place in places(Engine()):
        rows |= held_rows(place, shapes)
    assert all(torch.equal(rows[name], tensor) for name, tensor in bundle().items())
    assert held_rows(places(packed(torch.cat([Q, K, V])))[0], shapes) == {}


def test_checksums_confirm_what_can_be_looked_at():
    told = {name: (tensor.shape, checksum_of_tensor(tensor)) for name, tensor in bundle().items()}
    assert confirm(places(Engine()), told, dtype=torch.float32) == set(bundle())
    assert confirm(places(packed(torch.cat([Q, K, V]))), told, dtype=torch.float32) == {"embed.weight"}
    wrong = told | {"attn.k_proj.weight": (K.shape, checksum_of_tensor(K + 1))}
    with pytest.raises(RuntimeError, match=r"qkv_proj\.weight has not the checksum of attn\.k_proj\.weight"):
        confirm(places(Engine()), wrong, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="no weight of the engine could be compared"):
        confirm(places(Engine()), told, dtype=torch.bfloat16)
