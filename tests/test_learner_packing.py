"""From samples to micro-batches and from hidden states to log-probs: plans, layouts, and the head of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_support import make_samples
from torch import Tensor

from fr3e_async.learner import logprobs as logprobs_module
from fr3e_async.learner.logprobs import HeadOptions, head_logprobs
from fr3e_async.learner.packing import Packing, collate, dummy, first_fit, pack, plan
from fr3e_async.types import TrainSample

PACKINGS: tuple[Packing, ...] = ("tree", "flat", "padded")


def sample(context: Sequence[int], completion: Sequence[int], **fields: Sequence[float]) -> TrainSample:
    columns = {"behaviour_logprobs": [-0.5], "versions": [0], "advantages": [1.5]}
    dtypes = {"behaviour_logprobs": np.float32, "versions": np.int32, "advantages": np.float32}
    return TrainSample(
        tokens=np.asarray([*context, *completion], dtype=np.int32),
        context_len=len(context),
        minibatch=0,
        **{
            name: np.asarray(fields.get(name, default * len(completion)), dtype=dtypes[name]) for name, default in columns.items()
        },
    )


# ---- plans ----


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 300))
def test_padded_parts_hold_every_sample_once_within_the_budget(lengths: list[int], budget: int) -> None:
    parts = first_fit(lengths, padded=True, budget=budget)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        assert max(lengths[i] for i in part) * len(part) <= budget
    for before, after in pairwise(parts):  # none could have taken the next sample as well
        assert lengths[before[0]] * (len(before) + 1) > budget
        assert min(lengths[i] for i in before) >= max(lengths[i] for i in after)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 300))
def test_flat_parts_hold_every_sample_once_and_none_has_room_for_a_later_one(lengths: list[int], budget: int) -> None:
    parts = first_fit(lengths, padded=False, budget=budget)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for number, part in enumerate(parts):
        free = budget - sum(lengths[i] for i in part)
        assert free >= 0
        assert all(lengths[i] > free for later in parts[number + 1 :] for i in later)


def test_parts_are_filled_longest_first() -> None:
    assert first_fit([3, 7, 5, 2, 5], padded=False, budget=10) == [[1, 0], [2, 4], [3]]
    assert first_fit([3, 7, 5, 2, 5], padded=True, budget=10) == [[1], [2, 4], [0, 3]]
    assert first_fit([], padded=False, budget=10) == []


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_plan_refuses_a_sample_above_the_budget(packing: Packing) -> None:
    samples = [sample([1], [2, 3]), sample([1] * 20, [4] * 31)]
    assert sum(map(len, plan(samples, packing=packing, budget=51))) == 2
    with pytest.raises(ValueError, match=r"51 tokens is above learner\.micro_batch_tokens \(50\)"):
        plan(samples, packing=packing, budget=50)


# ---- layouts ----

# The second continues inside of the first's completion; the third repeats the second's tokens with another context.
SHARED = [
    sample([7, 8], [5, 6], advantages=[1.0, 2.0], behaviour_logprobs=[-0.1, -0.2], versions=[3, 4]),
    sample([7, 8, 5], [9], advantages=[3.0], behaviour_logprobs=[-0.3], versions=[5]),
    sample([7, 8], [5, 9], advantages=[4.0, 5.0], behaviour_logprobs=[-0.4, -0.5], versions=[6, 7]),
]


def test_a_tree_computes_a_shared_token_once_and_each_sample_trains_it() -> None:
    batch = collate(SHARED, packing="tree")
    assert batch.tokens.tolist() == [[7, 8, 5, 6, 9]]
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 2, 3, 3]]
    assert batch.forest is not None
    assert batch.forest.end.tolist() == [5, 5, 5, 4, 5]
    assert (batch.rows.tolist(), batch.targets.tolist()) == ([1, 2, 2], [5, 6, 9])
    assert batch.pick.tolist() == [0, 1, 2, 0, 2]
    assert batch.computed == 5


def test_flat_rows_stand_one_after_another_from_position_0() -> None:
    batch = collate(SHARED[:2], packing="flat")
    assert batch.tokens.tolist() == [[7, 8, 5, 6, 7, 8, 5, 9]]
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]
    assert (batch.rows.tolist(), batch.targets.tolist(), batch.pick.tolist()) == ([1, 2, 6], [5, 6, 9], [0, 1, 2])
    assert batch.forest is None
    assert batch.computed == 8


def test_padded_rows_are_filled_up_on_the_right() -> None:
    batch = collate([sample([7, 8], [5]), sample([9], [6, 4, 3])], packing="padded")
    assert batch.tokens.tolist() == [[7, 8, 5, 0], [9, 6, 4, 3]]
    assert batch.rows.tolist() == [1, 4, 5, 6]
    assert batch.targets.tolist() == [5, 6, 4, 3]
    assert batch.positions is None
    assert batch.computed == 7


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_belongs_to_a_token_stays_in_the_order_of_the_samples(packing: Packing) -> None:
    batch = collate(SHARED, packing=packing)
    assert batch.targets[batch.pick].tolist() == [5, 6, 9, 5, 9]
    assert batch.tokens.reshape(-1)[batch.rows[batch.pick]].tolist() == [8, 5, 5, 8, 5]
    assert batch.advantages.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert batch.behaviour_logprobs.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4, -0.5])
    assert batch.versions.tolist() == [3, 4, 5, 6, 7]
    assert batch.sequences.tolist() == [0, 0, 1, 2, 2]
    assert batch.mask.tolist() == [True] * 5
    assert batch.trainable == 5


@pytest.mark.parametrize("packing", PACKINGS)
def test_token_id_0_is_a_token_and_not_padding(packing: Packing) -> None:
    batch = collate([sample([1], [0, 0]), sample([2, 3], [4, 5])], packing=packing)
    assert batch.trainable == 4
    assert batch.targets[batch.pick].tolist() == [0, 0, 4, 5]


@pytest.mark.parametrize("packing", PACKINGS)
def test_pack_of_nothing_is_nothing_and_the_dummy_trains_nothing(packing: Packing) -> None:
    assert pack([], packing=packing, budget=10) == []
    assert dummy(packing).trainable == 0
    assert dummy(packing).tokens.size == 2


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_micro_batch_has_copies(packing: Packing) -> None:
    one = sample([1, 2], [3, 4])
    batch = collate([one], packing=packing)
    for name in ("tokens", "rows", "targets", "behaviour_logprobs", "advantages", "versions"):
        getattr(batch, name)[:] = 9
    assert one.tokens.tolist() == [1, 2, 3, 4]
    assert (one.behaviour_logprobs.tolist(), one.advantages.tolist(), one.versions.tolist()) == ([-0.5] * 2, [1.5] * 2, [0] * 2)


@pytest.mark.parametrize("packing", PACKINGS)
@given(seed=st.integers(0, 1000), budget=st.integers(64, 200))
def test_pack_keeps_every_trained_token_with_what_belongs_to_it(packing: Packing, seed: int, budget: int) -> None:
    samples = make_samples(seed, version=9)
    batches = pack(samples, packing=packing, budget=budget)
    assert all(batch.tokens.size <= budget for batch in batches)

    def columns(*arrays: np.ndarray) -> list[tuple[float, ...]]:
        return sorted(zip(*(array.tolist() for array in arrays), strict=True))

    got = [columns(b.targets[b.pick], b.advantages, b.behaviour_logprobs, b.versions) for b in batches]
    want = [columns(s.tokens[s.context_len :], s.advantages, s.behaviour_logprobs, s.versions) for s in samples]
    assert sorted(chain(*got)) == sorted(chain(*want))


# ---- the head ----

ROWS, WIDTH, VOCABULARY = 7, 5, 11
NAMES = ("hidden", "weight", "bias")


def inputs(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """Hidden states, weight and bias that want gradients, and targets, among them the first and the last token."""
    made = torch.Generator().manual_seed(3)
    shapes = [(ROWS, WIDTH), (VOCABULARY, WIDTH)] + [(VOCABULARY,)] * bias
    leaves = [torch.randn(shape, generator=made, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    return leaves, torch.tensor([0, 10, 3, 3, 7, 1, 9])


def slice_rows(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setitem(logprobs_module.SLICE_ELEMENTS, "cpu", rows * VOCABULARY)
    monkeypatch.setattr(logprobs_module, "LEAST_ROWS", 1)


def run_head(leaves: Sequence[Tensor], targets: Tensor, **options: float) -> tuple[Tensor, Tensor]:
    hidden, weight, *bias = leaves
    return head_logprobs(hidden, weight, bias[0] if bias else None, targets, options=HeadOptions(**options))


def categorical(
    leaves: Sequence[Tensor], targets: Tensor, *, temperature: float, scale: float = 1.0, cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    hidden, weight, *bias = leaves
    logits = (hidden @ weight.T + (bias[0] if bias else 0)) * scale
    logits = cap * torch.tanh(logits / cap) if cap else logits
    expected = torch.distributions.Categorical(logits=logits / temperature)
    return expected.log_prob(targets), expected.entropy()


def grads(outputs: tuple[Tensor, Tensor], leaves: Sequence[Tensor], *, sides: tuple[float, float]) -> tuple[Tensor, ...]:
    """Of a weighted sum, each token with a weight of its own; a weight of 0 leaves that output out of the graph."""
    along = torch.linspace(-1.0, 2.0, ROWS, dtype=outputs[0].dtype)
    terms = [(side * along.roll(n) * output).sum() for n, (side, output) in enumerate(zip(sides, outputs, strict=True)) if side]
    return torch.autograd.grad(sum(terms), list(leaves))  # type: ignore[arg-type]


@pytest.mark.parametrize("sides", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)], ids=["both", "logprobs", "entropies"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kept_mib", [0.0, 1.0], ids=["recomputed", "kept"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients_equal_torch(
    bias: bool, kept_mib: float, temperature: float, sides: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole and in slices of 1, 2 and 3 rows, the last of which is shorter."""
    leaves, targets = inputs(bias=bias, dtype=torch.float64)
    expected = categorical(leaves, targets, temperature=temperature)
    want = grads(expected, leaves, sides=sides)
    for rows in (128, 1, 2, 3):
        slice_rows(monkeypatch, rows)
        found = run_head(leaves, targets, temperature=temperature, kept_mib=kept_mib)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grads(found, leaves, sides=sides), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kept_mib", [0.0, 1.0])
@pytest.mark.parametrize(("scale", "cap"), [(0.5, 0.0), (1.0, 1.5), (3.0, 2.0)])
def test_what_a_model_does_to_its_logits_equals_torch(
    scale: float, cap: float, kept_mib: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_rows(monkeypatch, 3)
    leaves, targets = inputs(dtype=torch.float64)
    settings = {"temperature": 0.7, "scale": scale, "cap": cap}
    expected, found = categorical(leaves, targets, **settings), run_head(leaves, targets, kept_mib=kept_mib, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    want = grads(expected, leaves, sides=(1.0, 1.0))
    torch.testing.assert_close(grads(found, leaves, sides=(1.0, 1.0)), want, rtol=1e-12, atol=1e-12)


def test_a_cap_by_hand() -> None:
    """z = (2 atanh ½, 0) under a cap of 2 becomes (1, 0), whose log-probs are −log(1 + e⁻¹) and −log(1 + e)."""
    hidden, weight = torch.tensor([[2 * math.atanh(0.5)]] * 2), torch.tensor([[1.0], [0.0]])
    found, _ = head_logprobs(hidden, weight, None, torch.tensor([0, 1]), options=HeadOptions(cap=2.0))
    torch.testing.assert_close(found, torch.tensor([-math.log(1 + math.exp(-1)), -math.log(1 + math.e)]))


@pytest.mark.parametrize("kept_mib", [0.0, 1.0])
def test_gradients_pass_gradcheck(kept_mib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    slice_rows(monkeypatch, 3)
    leaves, targets = inputs(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *leaves: run_head(leaves, targets, temperature=0.7, kept_mib=kept_mib), leaves)


@pytest.mark.parametrize("wanted", NAMES)
@pytest.mark.parametrize("kept_mib", [0.0, 1.0])
def test_each_gradient_can_be_wanted_alone(wanted: str, kept_mib: float) -> None:
    leaves, targets = inputs()
    want = dict(zip(NAMES, grads(categorical(leaves, targets, temperature=1.0), leaves, sides=(1.0, 1.0)), strict=True))
    for name, leaf in zip(NAMES, leaves, strict=True):
        leaf.requires_grad_(name == wanted)
    alone = [leaf for leaf in leaves if leaf.requires_grad]
    (found,) = grads(run_head(leaves, targets, kept_mib=kept_mib), alone, sides=(1.0, 1.0))
    torch.testing.assert_close(found, want[wanted])


def test_values_without_gradients() -> None:
    leaves, targets = inputs()
    expected = categorical(leaves, targets, temperature=0.7)
    with torch.no_grad():
        found = run_head(leaves, targets, temperature=0.7)
    torch.testing.assert_close(found, tuple(value.detach() for value in expected))
    detached = run_head([leaf.detach() for leaf in leaves], targets)
    assert not any(value.requires_grad for value in (*found, *detached))


@pytest.mark.parametrize("kept_mib", [0.0, 1.0])
def test_no_pairs_at_all_give_empty_outputs_and_zero_gradients(kept_mib: float) -> None:
    leaves, targets = inputs()
    none = [leaves[0][:0], *leaves[1:]]
    logprobs, entropies = run_head(none, targets[:0], kept_mib=kept_mib)
    assert logprobs.shape == entropies.shape == (0,)
    (logprobs.sum() + entropies.sum()).backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def test_hidden_states_that_are_not_contiguous() -> None:
    leaves, targets = inputs(dtype=torch.float64)
    turned = [leaves[0].detach().T.contiguous().T.requires_grad_(), *leaves[1:]]
    want = grads(run_head(leaves, targets), leaves, sides=(1.0, 1.0))
    torch.testing.assert_close(grads(run_head(turned, targets), turned, sides=(1.0, 1.0)), want)


def relative(found: Tensor, want: Tensor) -> float:
    return float((found.detach().double() - want.detach()).norm() / want.detach().norm())


@pytest.mark.parametrize("kept_mib", [0.0, 1.0])
def test_bfloat16_is_right_to_its_precision(kept_mib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs come in float32; gradients in bfloat16, and no worse for being summed over many slices."""
    slice_rows(monkeypatch, 1)
    made = torch.Generator().manual_seed(5)
    narrow = [torch.randn(shape, generator=made).bfloat16().requires_grad_() for shape in ((600, WIDTH), (VOCABULARY, WIDTH))]
    wide = [leaf.detach().double().requires_grad_() for leaf in narrow]
    targets = torch.randint(VOCABULARY, (600,), generator=made)
    found, want = run_head(narrow, targets, kept_mib=kept_mib), categorical(wide, targets, temperature=1.0)
    assert {value.dtype for value in found} == {torch.float32}
    for value, expected in zip(found, want, strict=True):
        assert relative(value, expected) < 2**-8
    of_narrow, of_wide = (
        torch.autograd.grad(sum(value.sum() for value in out), of) for out, of in ((found, narrow), (want, wide))
    )
    for value, expected in zip(of_narrow, of_wide, strict=True):
        assert value.dtype is torch.bfloat16
        assert relative(value, expected) < 2**-7


@pytest.mark.parametrize("kept_mib", [0.0, 1.0])
@pytest.mark.parametrize("upstream", [1.0, 1e6])
def test_a_token_that_the_model_rules_out_leaves_entropy_and_gradients_finite(upstream: float, kept_mib: float) -> None:
    """Two tokens at odds of 1 : 1 and a third that is impossible: H = log 2, ∂H/∂x = 0, ∂ log p_1/∂x = (−½, ½, 0)."""
    hidden, weight = torch.zeros(1, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    bias = torch.tensor([0.0, 0.0, -math.inf], requires_grad=True)
    logprobs, entropies = run_head([hidden, weight, bias], torch.tensor([1]), kept_mib=kept_mib)
    assert entropies.item() == pytest.approx(math.log(2))
    (upstream * (logprobs + entropies)).sum().backward()
    assert bias.grad is not None
    assert (bias.grad / upstream).tolist() == [pytest.approx(value, abs=1e-6) for value in (-0.5, 0.5, 0.0)]
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad / upstream, (weight.detach()[1:2] - weight.detach()[:1]) / 2, rtol=1e-5, atol=1e-5)
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 0.0]] * 3


def test_logits_of_all_tokens_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made, by the projection; and what the graph holds between the passes, by what it saves."""
    made: list[int] = []
    plain = logprobs_module.linear

    def recorded(*tensors: Tensor) -> Tensor:
        out = plain(*tensors)
        made.append(len(out))
        return out

    monkeypatch.setattr(logprobs_module, "linear", recorded)
    slice_rows(monkeypatch, 2)
    leaves, targets = inputs()
    limit = ROWS * VOCABULARY * 4 / 2**20  # of float32 logits
    for kept_mib, again in ((limit, []), (limit * 0.99, [2, 2, 2, 1])):
        made.clear()
        outputs = run_head(leaves, targets, kept_mib=kept_mib)
        assert made == [2, 2, 2, 1]
        saved = [tensor.shape for tensor in outputs[0].grad_fn.saved_tensors]  # type: ignore[union-attr]
        assert ((2, VOCABULARY) in saved) == (not again)
        grads(outputs, leaves, sides=(1.0, 1.0))
        assert made == [2, 2, 2, 1, *again]


@pytest.mark.parametrize(("kept_mib", "least", "most"), [(0.0, 0, 8), (1e6, 32, 40)], ids=["recomputed", "kept"])
def test_peak_memory_is_that_of_a_slice(kept_mib: float, least: float, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 tokens over 2,048: 32 MiB of logits, of which a slice of 128 rows is 1 MiB. The profiler sees every allocation."""
    monkeypatch.setitem(logprobs_module.SLICE_ELEMENTS, "cpu", 1)
    hidden, weight = torch.randn(4096, 8, requires_grad=True), torch.randn(2048, 8, requires_grad=True)
    targets = torch.zeros(4096, dtype=torch.int64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        logprobs, entropies = run_head([hidden, weight], targets, kept_mib=kept_mib)
        (logprobs + entropies).sum().backward()
    assert least <= peak_mib(profile) <= most


def peak_mib(profile: torch.profiler.profile) -> float:
    """The most that was allocated at once since the profile began."""
    changes = [
        (event.start_ns(), event.nbytes()) for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]  # fmt: skip
    assert changes
    held = np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])])
    return float(held.max()) / 2**20
