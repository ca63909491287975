"""Proving a load of hand-built parameters: fused, padded, tied, sharded, transposed and packed ones, without vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from fr3e_async.rollout.load_trace import LoadLayout, LoadTrace, Region, WrittenPiece
from fr3e_async.rollout.loaded_weights import EVERY, Proof, Unproven, known_checksum, prove, same_bytes, unproven

Q, K, V = torch.ones(4, 3), 2 * torch.ones(2, 3), 3 * torch.ones(2, 3)
EMBEDDING = torch.arange(15.0).view(5, 3)
C_FC = torch.arange(12.0).view(3, 4)  # as GPT-2 stores a linear layer of 3 inputs and 4 outputs
EXPERTS = {
    f"experts.{e}.{part}": torch.arange(6.0).view(2, 3) + 10 * e + i for e in range(3) for i, part in enumerate(("w1", "w3"))
}
SENT = {"q": Q, "k": K, "v": V, "embed": EMBEDDING, "c_fc": C_FC} | EXPERTS


class Engine(nn.Module):
    """Kept as vLLM keeps them: q, k, v fused, the vocabulary padded from 5 to 8 rows, the head tied, experts stacked.

    ``rank`` of ``world`` takes its rows of each sharded weight. A loader may be spoilt: ``wrong`` names how.
    """

    def __init__(self, *, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        self.rank, self.world, self.wrong = rank, world, ""
        for name, shape in {
            "qkv": (8 // world, 3), "embed": (8, 3), "c_fc": (4, 3), "experts": (3, 4, 3), "lm_head": (8, 3),
        }.items():  # fmt: skip
            layer = nn.Module()
            layer.weight = nn.Parameter(torch.full(shape, torch.nan), requires_grad=False)
            self.add_module(name, layer)
        self.lm_head.weight = self.embed.weight

    def shard(self, tensor: Tensor) -> Tensor:
        rank = 0 if self.wrong == "shard" else self.rank
        rows = len(tensor) // self.world
        return tensor.narrow(0, rows * rank, rows)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        starts = {"q": 0, "k": 4 // self.world, "v": 6 // self.world}
        for name, tensor in weights:
            if name == self.wrong:
                continue
            if name in starts:
                part = self.shard(tensor)
                self.qkv.weight.data.narrow(0, starts[name], len(part)).copy_(part)
            elif name == "embed":
                self.embed.weight.data[:5].copy_(tensor)
                self.embed.weight[5:].data.fill_(0)
            elif name == "c_fc":
                self.c_fc.weight.data.copy_(tensor.t())
            elif name.startswith("experts"):
                _, expert, part = name.split(".")
                self.experts.weight.data[int(expert)].narrow(0, 0 if part == "w1" else 2, 2).copy_(tensor)


def load(
    model: Engine, sent: dict[str, Tensor] = SENT, *, spoil: Callable[[Engine], Any] = lambda model: None, keep: bool = True,
    **options: Any,
) -> Proof:  # fmt: skip
    """Prove a load into the model, which ``spoil`` has changed since."""
    trace = LoadTrace(model, keep=keep)
    with torch.no_grad(), trace:
        model.load_weights(trace.watched(sent.items()))
    with torch.no_grad():
        spoil(model)
    return prove(model, trace, shapes(sent), **options)


def shapes(sent: dict[str, Tensor] = SENT) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in sent.items()}


@pytest.mark.parametrize("keep", [True, False])
def test_every_element_of_every_parameter_is_accounted_for(keep):
    proof = load(Engine(), keep=keep)
    assert proof == Proof(exact=frozenset(SENT), probed=frozenset(), taken={})
    assert unproven([proof], shapes()) == []


def test_what_was_sent_is_not_held_on_to_where_only_checksums_are_kept():
    model, alive = Engine(), []

    def passing() -> Iterable[tuple[str, Tensor]]:
        for name, tensor in SENT.items():
            copied = tensor.clone()
            alive.append(StorageWeakRef(copied.untyped_storage()))
            yield name, copied

    trace = LoadTrace(model, keep=False)
    with torch.no_grad(), trace:
        model.load_weights(trace.watched(passing()))
    assert prove(model, trace, shapes()).exact == set(SENT)
    assert [ref.expired() for ref in alive] == [True] * len(SENT)


def test_across_devices_a_whole_tensors_checksum_is_not_found_again():
    model, known = Engine(), {name: number for number, name in enumerate(SENT)}
    trace = LoadTrace(model)
    with torch.no_grad(), trace:
        model.load_weights(trace.watched((name, tensor.clone()) for name, tensor in SENT.items()))
    away = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    of = {piece.names: known_checksum(piece, away, known) for piece in trace.pieces["qkv.weight"] + trace.pieces["embed.weight"]}
    assert of == {("q",): 0, ("k",): 1, ("v",): 2, ("embed",): 3, (): None}
    (transposed,) = trace.pieces["c_fc.weight"]
    assert known_checksum(transposed, away, known) is None
    first = trace.pieces["qkv.weight"][0]
    for held in (
        SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32),
        SimpleNamespace(device=away.device, dtype=torch.half),
    ):
        assert known_checksum(first, held, known) is None
    half = Engine(world=2)
    trace = LoadTrace(half)
    with torch.no_grad(), trace:
        half.load_weights(trace.watched(SENT.items()))
    assert known_checksum(trace.pieces["qkv.weight"][0], away, known) is None


def changed(layer: str, *index: int) -> Callable[[Engine], None]:
    return lambda model: getattr(model, layer).weight.data[index].add_(1)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (changed("qkv", 4, 1), r"qkv\.weight differs from k after"),
        (changed("embed", 4, 2), r"embed\.weight differs from embed after"),
        (changed("embed", 7, 0), r"embed\.weight differs from a constant"),
        (changed("experts", 2, 3, 0), r"experts\.weight differs from experts\.2\.w3 after"),
        (lambda model: model.c_fc.weight.data.copy_(C_FC.reshape(4, 3)), r"c_fc\.weight differs from c_fc"),
        (lambda model: setattr(model.c_fc, "weight", nn.Parameter(C_FC.clone())), r"c_fc\.weight \(c_fc\) is kept as"),
        (lambda model: setattr(model.qkv, "weight", nn.Parameter(torch.empty(0))), r"qkv\.weight \(q, k, v\) is kept"),
        (lambda model: setattr(model.qkv, "weight", nn.Parameter(model.qkv.weight.half())), r"qkv\.weight \(q, k, v\) is kept as"),
    ],
    ids=["fused", "plain", "padding", "one expert", "transposed", "other shape", "unknown form", "quantised"],
)  # fmt: skip
def test_a_difference_is_an_error_that_names_the_tensors(spoil, message, keep):
    with pytest.raises(Unproven, match=message):
        load(Engine(), spoil=spoil, keep=keep)


@pytest.mark.parametrize(
    ("wrong", "parameter"), [("k", "qkv"), ("embed", "embed"), ("c_fc", "c_fc"), ("experts.1.w3", "experts")]
)
def test_a_tensor_that_the_loader_skips_is_an_error(wrong, parameter):
    model = Engine()
    model.wrong = wrong
    with pytest.raises(Unproven, match=rf"weights of the engine were not loaded, or not wholly: {parameter}\.weight"):
        load(model)


def test_a_tensor_that_is_not_sent_is_an_error():
    with pytest.raises(Unproven, match=r"1 weights of the engine were not loaded, or not wholly: c_fc\.weight"):
        load(Engine(), {name: tensor for name, tensor in SENT.items() if name != "c_fc"})


def test_a_tensor_that_nobody_uses_is_told():
    extra = SENT | {"other": Q}
    assert unproven([load(Engine(), extra)], shapes(extra)) == ["other"]


SHARDED = {"q": Q, "k": torch.arange(6.0).view(2, 3), "v": V, "embed": EMBEDDING, "c_fc": C_FC} | EXPERTS


def test_the_shards_of_all_workers_make_up_each_tensor():
    proofs = [load(Engine(rank=rank, world=2), SHARDED) for rank in (0, 1)]
    assert proofs[1].taken["k"] == (Region(3, (1, 3), (3, 1)),)
    assert unproven(proofs, shapes(SHARDED)) == []
    assert unproven(proofs[:1], shapes(SHARDED)) == ["q", "k", "v"]


def test_a_worker_with_the_shard_of_another_is_seen():
    """Each of them has what it took; nobody has the second half."""
    models = [Engine(rank=rank, world=2) for rank in (0, 1)]
    models[1].wrong = "shard"
    assert unproven([load(model, SHARDED) for model in models], shapes(SHARDED)) == ["q", "k", "v"]


def test_weights_are_compared_in_the_engines_type():
    sent = SENT | {"embed": torch.full((5, 3), 1 / 3)}
    assert load(Engine().bfloat16(), sent).exact == set(SENT)
    with pytest.raises(Unproven, match="embed"):
        load(Engine().bfloat16(), sent, spoil=lambda model: model.embed.weight.data[:5].copy_(torch.full((5, 3), 0.3320)))


def test_what_a_loader_computes_is_compared_with_the_result():
    class Computing(Engine):
        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
            super().load_weights((name, 1 + tensor if name == "c_fc" else tensor) for name, tensor in weights)

    assert unproven([load(Computing())], shapes()) == []
    with pytest.raises(Unproven, match="c_fc"):
        load(Computing(), spoil=changed("c_fc", 0, 0))


def test_a_number_that_is_read_and_filled_in_is_known_by_its_name():
    class Scaled(Engine):
        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
            for name, tensor in weights:
                if name == "scale":
                    self.scale.weight.data.fill_(tensor.item())
                else:
                    super().load_weights([(name, tensor)])

    model, sent = Scaled(), SENT | {"scale": torch.tensor([2.5])}
    model.scale = nn.Module()
    model.scale.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
    assert unproven([load(model, sent)], shapes(sent)) == []
    with pytest.raises(Unproven, match=r"scale\.weight differs from scale"):
        load(model, sent, spoil=changed("scale", 0))


def test_a_parameter_that_is_computed_from_itself_is_an_error():
    """As vLLM's composed loaders do: the parameter has no memory when they are followed."""
    trace = LoadTrace(model := Engine())
    trace.pieces["c_fc.weight"] = [WrittenPiece(region=Region(0, (4, 3), (3, 1)), source=torch.empty(4, 3, device="meta"))]
    with pytest.raises(Unproven, match=r"c_fc\.weight is computed from itself"):
        prove(model, trace, {}, layers=())


def test_what_a_layer_makes_of_its_weights_must_come_out_the_same_again():
    def make(model: Engine) -> None:
        model.c_fc.made = nn.Parameter(2 * model.c_fc.weight, requires_grad=False)

    def again(layer: nn.Module) -> dict[str, Tensor]:
        return {"made": 2 * layer.weight} if "made" in layer._parameters else {}

    assert load(Engine(), spoil=make, remade=again).exact == set(SENT)
    with pytest.raises(Unproven, match=r"c_fc\.made is made after loading, nobody knows of what"):
        load(Engine(), spoil=make)
    with pytest.raises(Unproven, match=r"c_fc\.made is not what the layer makes"):
        load(Engine(), spoil=make, remade=lambda layer: {"made": 3 * layer.weight})


def pack(model: Engine) -> Tensor:
    """As on CPU: the linear's weight is gone, a multiplication by the packed copy is left."""
    weight = model.qkv.weight.clone()
    model.qkv.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    model.qkv.cpu_linear = lambda x, _weight, bias: nn.functional.linear(x, weight, bias)
    return weight


WIDE = {name: torch.arange(height * 16.0).view(height, 16) for name, height in (("q", 4), ("k", 2), ("v", 2))}


def wide() -> tuple[Engine, dict[str, Tensor]]:
    model = Engine()
    model.qkv.weight = nn.Parameter(torch.empty(8, 16), requires_grad=False)
    return model, SENT | WIDE


def test_packed_weights_are_compared_whole():
    model, sent = wide()
    assert load(model, sent, spoil=pack).exact == set(sent)
    for row in range(8):
        for column in range(16):
            model, sent = wide()
            with pytest.raises(Unproven, match=r"the packed copy of qkv\.weight differs from q, k, v"):
                load(model, sent, spoil=lambda m, r=row, c=column: pack(m)[r, c].add_(1))


def test_probes_reach_every_column_in_turn():
    for column in range(16):
        seen = 0
        for turn in range(4 * EVERY):
            model, sent = wide()
            try:
                proof = load(model, sent, spoil=lambda m, c=column: pack(m)[7, c].add_(1), whole=False, turn=turn)
                assert proof.probed == {"q", "k", "v"}
                assert proof.exact == set(sent) - {"q", "k", "v"}
            except Unproven:
                seen += 1
        assert seen == 1, "one load in EVERY, 4 of 16 columns each time"


def test_a_stale_copy_of_a_tied_head_is_seen():
    def tie(model: Engine) -> None:
        stale = model.lm_head.weight.clone()
        stale[0, 0] += 1
        model.lm_head.cpu_linear = lambda x, _weight, bias: nn.functional.linear(x, stale, bias)

    with pytest.raises(Unproven, match=r"the packed copy of lm_head\.weight differs from embed"):
        load(Engine(), spoil=tie)


def reversed_packer(layer: nn.Module) -> Any:
    """Experts are packed by turning their rows round."""
    return (lambda _, loose: {"weight": loose["weight"].flip(1)}) if layer.weight.ndim == 3 else None


def flip(model: Engine) -> None:
    model.experts.weight.data.copy_(model.experts.weight.flip(1))


def packer_of(layer: nn.Module) -> Any:
    return reversed_packer(layer) if hasattr(layer, "weight") else None


def test_packed_experts_are_packed_again_and_compared():
    assert load(Engine(), spoil=flip, packer_of=packer_of).exact == set(SENT)
    with pytest.raises(Unproven, match=r"packed copy of experts\.weight differs in expert 0 from experts\.0\.w1, experts\.0\.w3"):
        load(Engine(), packer_of=packer_of)

    def one_wrong(model: Engine) -> None:
        flip(model)
        model.experts.weight.data[1, 0, 0] += 1

    seen = []
    for turn in range(3 * EVERY):
        try:
            seen.append(load(Engine(), spoil=one_wrong, packer_of=packer_of, whole=False, turn=turn).probed)
        except Unproven as error:
            assert "expert 1 from experts.1.w1, experts.1.w3" in str(error)  # noqa: PT017
    assert seen == [frozenset(EXPERTS)] * (3 * EVERY - 1), "one expert in 3, one load in EVERY"


def test_a_layout_that_was_loaded_once_refuses_others():
    layout = LoadLayout()
    assert layout.misfit(shapes()) == ""
    model = Engine()
    trace = LoadTrace(model)
    with torch.no_grad(), trace:
        model.load_weights(trace.watched(SENT.items()))
    layout.learn(trace, shapes())
    assert layout.misfit(shapes()) == ""
    assert "q has shape (3, 4), it had (4, 3)" in layout.misfit(shapes() | {"q": (3, 4)})
    assert "other is none of the tensors" in layout.misfit(shapes() | {"other": (1,)})
    assert "1 of the tensors that this engine was loaded with are missing, e.g. k" in layout.misfit(
        {name: shape for name, shape in shapes().items() if name != "k"}
    )
    assert layout.touched(["k"]) == ({"qkv"}, {"q", "k", "v"})
    assert layout.touched(["experts.1.w1"]) == ({"experts"}, set(EXPERTS))


def test_only_layers_that_were_loaded_are_asked_for_if_that_is_told():
    model = Engine()
    load(model)
    part = {name: tensor + 1 for name, tensor in SENT.items() if name in "qkv"}
    assert load(model, part, layers={"qkv"}).exact == set("qkv")
    with pytest.raises(Unproven, match=r"c_fc\.weight"):
        load(model, part, layers={"qkv", "c_fc"})


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


def test_a_region_stays_inside_its_tensor():
    with pytest.raises(IndexError, match="elements up to 7 of 6"):
        Region(1, (2, 3), (3, 1)).of(torch.zeros(6))
