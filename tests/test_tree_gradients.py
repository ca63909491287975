"""Loss and gradients over shared prefixes against an independent computation, and which models are refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tree_support import (
    CPU,
    DEFAULT,
    EVERYTHING,
    MODELS,
    NEAR,
    PACKINGS,
    VOCABULARY,
    Outcome,
    Row,
    assert_equal,
    errors_of,
    long_rows,
    make_samples,
    packed,
    plain_model,
    policy_model,
    policy_of,
    row_by_row,
    tree_rows,
)  # fmt: skip

from fr3e_async.algorithm.trees import build_forest
from fr3e_async.config import LossConfig
from fr3e_async.errors import ModelError
from fr3e_async.learner import layout as inputs_module
from fr3e_async.learner import layout as layout_module
from fr3e_async.learner.layout import FLEX_BLOCK, Inputs, blockwise_layout, flex_layout, kernel_for, slots_of
from fr3e_async.learner.logprobs import HeadOptions
from fr3e_async.learner.packing import MicroBatch, Packing, collate, pack
from fr3e_async.learner.policy import PolicyModel
from fr3e_async.types import TrainSample

# ---- equality ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6)
@given(rows=tree_rows(), seed=st.integers(0, 99), config=st.sampled_from([DEFAULT, EVERYTHING, NEAR]), extra=st.integers(0, 30))
def test_every_layout_equals_single_rows(
    name: str, dtype: torch.dtype, rows: list[Row], seed: int, config: LossConfig, extra: int
) -> None:
    """All samples in one micro-batch, and cut into several."""
    samples = make_samples(name, rows, seed=seed)
    want = row_by_row(name, dtype, samples, config)
    exact = None if dtype is torch.float64 else lambda: row_by_row(name, torch.float64, samples, config)
    budget = max(len(row) for row, _ in rows) + extra
    for packing in PACKINGS:
        policy = policy_model(name, dtype, packing)
        for batches in ([collate(samples, packing=packing)], pack(samples, packing=packing, budget=budget)):
            assert_equal(packed(policy, batches, config), want, dtype=dtype, exact=exact)


Case = tuple[list[TrainSample], Outcome]


@pytest.fixture(scope="module")
def long_case() -> Case:
    samples = make_samples("qwen2 tied", long_rows(), seed=4)
    return samples, row_by_row("qwen2 tied", torch.float64, samples, EVERYTHING)


@pytest.mark.parametrize("waste", [1.0, 100.0])
@pytest.mark.parametrize("free_pairs", [0, 1 << 30])
@pytest.mark.parametrize("query_block", [1, 3, 10_000])
def test_how_blocks_are_cut_and_stacked_changes_nothing(
    query_block: int, free_pairs: int, waste: float, long_case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, want = long_case
    for name, value in (("QUERY_BLOCK", query_block), ("FREE_PAIRS", free_pairs), ("WASTE", waste)):
        monkeypatch.setattr(layout_module, name, value)
    batch = collate(samples, packing="tree")
    assert batch.forest is not None
    stacks = blockwise_layout(batch.forest, device=CPU).stacks
    assert max(stack.queries for stack in stacks) == min(query_block, 40)
    if free_pairs or waste > 1:
        assert len(stacks) == 1
    else:  # without padding only blocks of one shape share a stack
        assert len(stacks) > 3
        assert sum(stack.count * stack.queries for stack in stacks) == len(batch.forest)
        assert all(stack.depth[:, -1].max() == stack.depth[:, -1].min() == stack.keys - 1 for stack in stacks)
    policy = policy_model("qwen2 tied", torch.float64, "tree")
    assert_equal(packed(policy, [batch], EVERYTHING), want, dtype=torch.float64)


@pytest.mark.parametrize("budget", [40, 90, 200])
def test_micro_batches_of_any_size_add_up_to_one(budget: int, long_case: Case) -> None:
    samples, want = long_case
    batches = pack(samples, packing="tree", budget=budget)
    assert (len(batches) == 1) == (budget == 200)
    policy = policy_model("qwen2 tied", torch.float64, "tree")
    assert_equal(packed(policy, batches, EVERYTHING), want, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "packing"),
    [(name, packing) for name in ("gpt2", "granite", "mistral", "qwen2 sliding", "mistral sliding") for packing in PACKINGS]
    + [("gemma2", "tree")]  # caps on scores and on logits, and windows
    + [(name, "padded") for name in ("stablelm", "mamba", "qwen3 next")],
)
def test_other_models_equal_single_rows_in_the_layouts_that_they_are_accepted_for(name: str, packing: Packing) -> None:
    samples = make_samples(name, long_rows(), seed=5)
    want = row_by_row(name, torch.float32, samples, DEFAULT)
    policy = policy_model(name, torch.float32, packing)
    assert_equal(packed(policy, pack(samples, packing=packing, budget=90), DEFAULT), want, dtype=torch.float32)


@pytest.mark.parametrize("packing", PACKINGS)
def test_layers_that_run_again_in_the_backward_pass_see_the_same_mask(packing: Packing, long_case: Case) -> None:
    samples, _ = long_case
    want = row_by_row("qwen2 tied", torch.float32, samples, EVERYTHING)
    policy = policy_of(plain_model("qwen2 tied", torch.float32), packing=packing)
    policy.causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.train()
    passes: list[int] = []
    policy.causal_lm.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    assert_equal(packed(policy, [collate(samples, packing=packing)], EVERYTHING), want, dtype=torch.float32)
    assert len(passes) == 2


# ---- the comparison can fail ----


def blind_forest(batch: MicroBatch) -> MicroBatch:
    """Every slot sees all slots before it, as in a plain causal model."""
    assert batch.forest is not None
    size = len(batch.forest)
    runs = tuple(replace(run, path=np.arange(run.stop)) for run in batch.forest.runs)
    return replace(batch, forest=replace(batch.forest, depth=np.arange(size), end=np.full(size, size), runs=runs))


def one_strange_ancestor(batch: MicroBatch) -> MicroBatch:
    """Runs that hang below a second slot see the last place of the layout in its stead."""
    assert batch.forest is not None
    runs = [
        replace(run, path=np.concatenate([run.path[:1], [len(batch.forest) - 1], run.path[2:]]))
        if run.path[1] < run.start
        else run
        for run in batch.forest.runs
    ]
    return replace(batch, forest=replace(batch.forest, runs=tuple(runs)))


def later_positions(batch: MicroBatch) -> MicroBatch:
    """A slot stands where it is in the layout, and not in its row."""
    assert batch.positions is not None
    return replace(batch, positions=np.arange(batch.positions.shape[1])[None])


def one_pair_for_another(batch: MicroBatch) -> MicroBatch:
    return replace(batch, pick=np.roll(batch.pick, 1))


def places_for_predecessors(batch: MicroBatch) -> MicroBatch:
    """The slot before a token in the layout: where the tree forks, that is another row's end."""
    assert batch.forest is not None
    contexts = [context for _, context in long_rows()]
    wanted = [path[context:] for path, context in zip(batch.forest.paths, contexts, strict=True)]
    return replace(batch, rows=np.unique(np.concatenate(wanted)) - 1)


@pytest.mark.parametrize(
    "broken", [blind_forest, one_strange_ancestor, later_positions, one_pair_for_another, places_for_predecessors]
)
def test_a_broken_layout_is_told_from_a_right_one(broken: Any, long_case: Case) -> None:
    samples, want = long_case
    batch = broken(collate(samples, packing="tree"))
    found = packed(policy_model("qwen2 tied", torch.float64, "tree"), [batch], EVERYTHING)
    errors = errors_of(found, want)
    assert max(errors.values()) > 1e-3
    with pytest.raises(AssertionError, match="relative errors above"):
        assert_equal(found, want, dtype=torch.float64)


def test_numbers_that_are_not_finite_are_told_from_right_ones(long_case: Case) -> None:
    _, want = long_case
    name = next(iter(want.gradients))
    with pytest.raises(AssertionError, match=f"{name}.: nan"):
        assert_equal(
            replace(want, gradients=want.gradients | {name: want.gradients[name] * torch.nan}), want, dtype=torch.float64
        )


# ---- FlexAttention ----


def many_places(count: int) -> list[Row]:
    """Rows of exactly ``count`` distinct prefixes."""
    rows = long_rows(60)
    while len(build_forest([np.asarray(row) for row, _ in rows])) > count - 2:
        rows.pop()
    have = len(build_forest([np.asarray(row) for row, _ in rows]))
    return [*rows, ((VOCABULARY - 1,) * (count - have), 1)]


@pytest.mark.parametrize(("count", "spare"), [(127, 0), (128, 0), (129, 0), (128, 1), (300, 1)])
@pytest.mark.parametrize("name", ["granite", "qwen3", "gemma2"])
def test_flex_attention_gives_the_same_log_probs(name: str, count: int, spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples(name, many_places(count), seed=0)
    policy = policy_model(name, torch.float32, "tree")
    batch = collate(samples, packing="tree")
    assert batch.forest is not None
    assert len(batch.forest) == count
    width = (-(-count // FLEX_BLOCK) + spare) * FLEX_BLOCK
    with torch.no_grad():
        want = policy(Inputs.of(batch, CPU, kernel="blocks"))
        monkeypatch.setattr(inputs_module, "slots_of", lambda *_: width)
        inputs = Inputs.of(batch, CPU, kernel="flex")
        assert inputs.tokens.shape == (1, width)
        torch.testing.assert_close(policy(inputs), want, rtol=1e-5, atol=1e-5)
        assert inputs.layout is not None
        hidden = policy.causal_lm.model(
            input_ids=inputs.tokens, position_ids=inputs.positions, use_cache=False,
            forest_mask=inputs.layout.mask(torch.float32),
        ).last_hidden_state  # fmt: skip
        assert hidden.isfinite().all()
        blind = flex_layout(replace(batch.forest, end=np.full(count, count)), slots=width, device=CPU)
        broken = policy(replace(inputs, layout=blind))
    assert float((broken[0] - want[0]).abs().max()) > 0.1


def test_flex_attention_takes_whole_blocks_of_places() -> None:
    for count, want in ((1, 128), (128, 128), (129, 256)):
        forest = build_forest([np.arange(count)])
        assert (slots_of(forest, "flex"), slots_of(forest, "blocks")) == (want, count)
    assert (kernel_for(CPU, "auto"), kernel_for(torch.device("cuda"), "auto")) == ("blocks", "flex")
    assert [kernel_for(torch.device(kind), "flex") for kind in ("cpu", "cuda")] == ["flex", "flex"]


@given(rows=tree_rows(), spare=st.integers(0, 1))
@settings(max_examples=10)
def test_flex_attention_sees_prefixes_only_and_padding_itself(rows: list[Row], spare: int) -> None:
    forest = build_forest([np.asarray(row) for row, _ in rows])
    slots = FLEX_BLOCK * (1 + spare)
    blocks = flex_layout(forest, slots=slots, device=CPU).blocks
    assert blocks is not None
    want = torch.eye(slots, dtype=torch.bool)
    for path in forest.paths:
        for n, slot in enumerate(path.tolist()):
            want[slot, path[: n + 1]] = True
    query, key = torch.arange(slots)[:, None], torch.arange(slots)[None]
    assert torch.equal(blocks(None).mask_mod(0, 0, query, key), want)
    for path in forest.paths:  # in a window of two: itself and the one before
        for n, slot in enumerate(path.tolist()):
            want[slot, path[: max(n - 1, 0)]] = False
    assert torch.equal(blocks(2).mask_mod(0, 0, query, key), want)


@given(data=st.data(), window=st.sampled_from([None, 1, 100, 200]), spare=st.integers(0, 1))
@settings(max_examples=15)
def test_block_masks_are_those_of_flex_attention(data: st.DataObject, window: int | None, spare: int) -> None:
    """Bit for bit, full blocks and partial ones and their transpose, on trees of several blocks."""
    lengths = data.draw(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), min_size=1, max_size=4))
    rows = [np.concatenate([np.arange(shared), np.full(own, 1000 + i)]) for i, (shared, own) in enumerate(lengths)]
    forest = build_forest(rows)
    slots = slots_of(forest, "flex") + spare * FLEX_BLOCK
    blocks = flex_layout(forest, slots=slots, device=CPU).blocks
    assert blocks is not None
    ours = blocks(window)
    theirs = create_block_mask(ours.mask_mod, None, None, slots, slots, device="cpu", BLOCK_SIZE=FLEX_BLOCK)
    assert (ours.seq_lengths, ours.BLOCK_SIZE, ours.shape) == (theirs.seq_lengths, theirs.BLOCK_SIZE, theirs.shape)
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices",
                 "full_q_num_blocks", "full_q_indices"):  # fmt: skip
        mine, their = getattr(ours, name), getattr(theirs, name)
        assert (mine.dtype, mine.is_contiguous()) == (their.dtype, their.is_contiguous()), name
        assert torch.equal(mine, their), name


class Largest(TorchDispatchMode):
    """The largest tensor that an operation has made, bytes."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.found = max([self.found, *(part.nbytes for part in tree_leaves(made) if torch.is_tensor(part))])
        return made


def test_a_block_mask_takes_no_memory_for_each_pair() -> None:
    """FlexAttention's own takes an int64 for each; ours less than a hundredth of that."""
    rows = [np.concatenate([np.arange(1000), np.full(1000, 2000 + i)]) for i in range(7)]
    forest = build_forest(rows)
    assert len(forest) == 8000
    blocks = flex_layout(forest, slots=8064, device=CPU).blocks
    assert blocks is not None
    with Largest() as largest:
        blocks(None)
    assert 0 < largest.found < 8 * 8064**2 / 100


# ---- refusals ----

NO_TREE = r"learner\.packing=tree does not work with this model \(set flat or padded\): "
NO_FLAT = r"learner\.packing=flat does not work with this model \(set padded\): "


@pytest.mark.parametrize(
    ("name", "packing", "message"),
    [
        ("stablelm", "tree", NO_TREE + "it does not hand keywords on to its attention layers$"),
        ("mamba", "tree", NO_TREE + "it has layers of type linear_attention$"),
        ("mamba", "flat", NO_FLAT + "it has layers of type linear_attention$"),
        ("qwen3 next", "tree", NO_TREE + "it has layers of type linear_attention$"),
        ("qwen3 next", "flat", NO_FLAT + "it has layers of type linear_attention$"),
        ("gemma2", "flat", r"learner\.attention=sdpa ignores this model's attn_logit_softcapping"),
    ],
)
def test_a_model_that_a_layout_would_train_wrongly_is_refused(name: str, packing: Packing, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        policy_of(plain_model(name, torch.float32), packing=packing)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_vocabulary_projection_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^model\.path: this model has no linear output embeddings"):
        PolicyModel(plain_model("qwen2", torch.float32).model, options=HeadOptions())


def test_log_probs_that_are_not_numbers_are_refused() -> None:
    broken = copy.deepcopy(plain_model("qwen2", torch.float32))
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="nan nats"):
        policy_of(broken, packing="tree")
