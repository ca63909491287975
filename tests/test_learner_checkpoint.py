"""Learner checkpoints: pieces by any cut, whole or not there, and real groups that continue in another layout."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_support import TAG, PlainState, save_learner, save_whole, small_base
from disk_support import Disk
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_support import build_model, largest_difference, make_samples, make_spec, start_rank
from safetensors import SafetensorError

from fr3e_async.errors import ConfigError, StorageError
from fr3e_async.learner import checkpoint
from fr3e_async.learner.checkpoint import Manifest
from fr3e_async.learner.checkpoint_pieces import MASTER, REFERENCE, Pieces, WeightRun, write_pieces
from fr3e_async.learner.spec import free_address, rank_environment
from fr3e_async.store.checkpoints import CheckpointStore

# ---- pieces ----


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 60), cuts=st.sets(st.integers(1, 59)), limit=st.integers(4, 120), ask=st.tuples(st.integers(0, 60), st.integers(0, 60))
)  # fmt: skip
def test_any_cut_is_read_by_any_other(tmp_path_factory: Any, size: int, cuts: set[int], limit: int, ask: tuple[int, int]) -> None:
    folder, whole = tmp_path_factory.mktemp("pieces"), torch.randn(size)
    edges = [0, *sorted(c for c in cuts if c < size), size]
    runs = [WeightRun(MASTER, "w", a, whole[a:b]) for a, b in itertools.pairwise(edges)]
    pieces = write_pieces(folder, "x", reversed(runs), limit=limit)
    by_file: dict[str, int] = {}
    for piece in pieces:
        by_file[piece.file] = by_file.get(piece.file, 0) + 4 * piece.numel
    assert max(by_file.values()) <= limit
    assert set(by_file) == {path.name for path in folder.iterdir()}
    start, stop = sorted(min(edge, size) for edge in ask)
    with Pieces(folder, pieces) as read:
        read.check()
        assert torch.equal(read.whole(MASTER, "w"), whole)
        if start < stop:
            assert torch.equal(read.read(MASTER, "w", start, stop), whole[start:stop])
        with pytest.raises(StorageError, match="is not whole"):
            read.read(MASTER, "w", start, size + 1)


def test_a_hole_is_an_error(tmp_path: Path) -> None:
    pieces = write_pieces(tmp_path, "x", [WeightRun(MASTER, "w", 0, torch.ones(3)), WeightRun(MASTER, "w", 5, torch.ones(3))])
    with Pieces(tmp_path, pieces) as read, pytest.raises(StorageError, match=r"numbers 3 to 8 are missing"):
        read.read(MASTER, "w", 0, 8)


# ---- whole or not there ----


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.randn(2)}
    save_learner(
        tmp_path / "c", PlainState(weights, buffers={"k": torch.tensor([7])}), version=9, base=small_base(tmp_path / "base")
    )
    random = torch.rand(3)
    state = PlainState({name: torch.zeros_like(weight) for name, weight in weights.items()})
    torch.manual_seed(1)
    manifest = checkpoint.load(tmp_path / "c", state, rank=0, world=1, seed=0)
    assert (manifest.version, manifest.model, manifest.buffers) == (9, "base", {"k": [1]})
    assert largest_difference(state.weights, weights) == 0
    assert state.restored["counters"] == {"global_steps": 5}
    assert torch.equal(torch.rand(3), random)
    assert {path.name for path in (tmp_path / "c" / "base").iterdir()} == {"config.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"c", "base"}


def test_another_number_of_ranks_draws_new_random_numbers(tmp_path: Path) -> None:
    state = PlainState({"a": torch.ones(4)})
    save_learner(tmp_path / "c", state, base=small_base(tmp_path / "base"))
    drawn = []
    for rank, world in ((0, 2), (1, 2), (0, 2)):
        checkpoint.load(tmp_path / "c", state, rank=rank, world=world, seed=5)
        drawn.append(float(torch.rand(1)))
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"a": torch.ones(4, 2)}, r"model\.path: the checkpoint is of another model: a has shape \[8\] in it and \[4, 2\] in"),
        ({"a": torch.ones(8), "b": torch.ones(1)}, r"b has shape \(none\) in it and \[1\]"),
        ({}, r"a has shape \[8\] in it and \(none\)"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, weights: dict[str, torch.Tensor], says: str) -> None:
    save_learner(tmp_path / "c", PlainState({"a": torch.ones(8)}), base=small_base(tmp_path / "base"))
    with pytest.raises(ConfigError, match=says):
        checkpoint.load(tmp_path / "c", PlainState(weights), rank=0, world=1, seed=0)


def test_a_format_of_another_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_learner(tmp_path / "c", PlainState({"a": torch.ones(8)}), base=small_base(tmp_path / "base"))
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(StorageError, match="learner checkpoint of format 1, this version reads 2"):
        Manifest.read(tmp_path / "c")
    with pytest.raises(StorageError, match="holds no learner checkpoint"):
        Manifest.read(tmp_path)


def test_a_flipped_bit_is_found_when_it_is_read(tmp_path: Path) -> None:
    state = PlainState({"a": torch.ones(800)})
    save_learner(tmp_path / "c", state, base=small_base(tmp_path / "base"))
    assert checkpoint.damage(tmp_path / "c") == ""
    shard = tmp_path / "c" / "rank-00000.000.safetensors"
    content = bytearray(shard.read_bytes())
    place = content.index(torch.ones(800).numpy().tobytes()) + 1602  # in the middle of the weight, whatever lies around it
    content[place] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StorageError, match=r"safetensors is damaged: master/a/0"):
        checkpoint.load(tmp_path / "c", state, rank=0, world=1, seed=0)
    assert "master/a/0" in checkpoint.damage(tmp_path / "c")


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Every write beyond ``size`` bytes of a file fails, as on a disk that has become full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    base, numbers = small_base(tmp_path / "base"), 10_000
    save_learner(tmp_path / "c", PlainState({"a": torch.ones(numbers)}), version=1, base=base)
    with files_end_at(20_000), pytest.raises(StorageError, match=r"cannot write to .*c: File too large$"):
        save_learner(tmp_path / "c", PlainState({"a": torch.zeros(numbers)}), version=2, base=base)
    assert Manifest.read(tmp_path / "c").version == 1
    assert checkpoint.damage(tmp_path / "c") == ""
    save_learner(tmp_path / "c", PlainState({"a": torch.zeros(numbers)}), version=2, base=base)
    assert Manifest.read(tmp_path / "c").version == 2


def test_a_checkpoint_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_base(tmp_path / "base")
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        save_learner(tmp_path / "c", PlainState({"a": torch.ones(3)}), base=base)
    named = disk.happened.index(("there", tmp_path / "c"))
    durable = {where for what, where in disk.happened[:named] if what == "durable"}
    assert durable >= {tmp_path / "c.tmp" / path.relative_to(tmp_path / "c") for path in (tmp_path / "c").rglob("*")}
    assert ("durable", tmp_path) in disk.happened[named:]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", r"the disk is full \(ENOSPC\)"),
        ("Error while serializing: some header", "Error while serializing: some header"),
    ],
)
def test_what_safetensors_says_of_a_disk_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError(text)

    monkeypatch.setattr("fr3e_async.learner.checkpoint_pieces.save_file", fail)
    with pytest.raises(StorageError, match=rf"cannot write to .*c: {says}$"):
        save_learner(tmp_path / "c", PlainState({"a": torch.ones(8)}), base=small_base(tmp_path / "base"))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import checkpoint_support as support
from fr3e_async.store.checkpoints import CheckpointStore
state = support.PlainState({name: support.torch.ones(50) for name in "abcdef"})
runs, place = state.runs, int(sys.argv[3])
def cut_short(rank, world):
    for index, run in enumerate(runs(rank, world)):
        if index == place:
            os.kill(os.getpid(), signal.SIGKILL)
        yield run
state.runs = cut_short
import fr3e_async.learner.checkpoint as checkpoint, fr3e_async.learner.checkpoint_pieces as pieces
pieces.write_pieces.__kwdefaults__["limit"] = 400
support.save_whole(CheckpointStore(Path(sys.argv[2])), 2, base=Path(sys.argv[4]), state=state)
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path: Path) -> None:
    base, store = small_base(tmp_path / "base"), CheckpointStore(tmp_path / "c")
    first = save_whole(store, 1, base=base)
    tests = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", KILLED, tests, str(store.root), "7", str(base)], timeout=600)
    assert killed.returncode == -9
    half = store.root / "step-00000002.tmp" / TAG.with_name("state.tmp")
    assert list(half.glob("*.safetensors"))
    assert store.latest(lambda folder: checkpoint.damage(folder / TAG)) == first
    assert "step-00000002.tmp was never completed" in store.skipped[0]
    assert save_whole(store, 2, base=base) == store.latest(lambda folder: checkpoint.damage(folder / TAG))


# ---- real groups in other layouts ----

OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
LAYOUTS: dict[str, dict[str, Any]] = {
    **{f"zero{stage}": {"zero_stage": stage} for stage in range(4)},
    **{f"bf16-zero{stage}": {"zero_stage": stage, "dtype": "bfloat16"} for stage in range(4)},
    "bf16-fp32-grads": {"zero_stage": 1, "dtype": "bfloat16", "ds_config": {"data_types": {"grad_accum_dtype": "fp32"}}},
    "offload2": {"zero_stage": 2, "ds_config": {"zero_optimization": OFFLOAD}},
    "offload3": {"zero_stage": 3, "ds_config": {"zero_optimization": {**OFFLOAD, "offload_param": {"device": "cpu"}}}},
    "many-groups": {"zero_stage": 3, "ds_config": {"zero_optimization": {"sub_group_size": 5000}}},
    "round-robin": {"zero_stage": 2, "ds_config": {"zero_optimization": {"round_robin_gradients": True}}},
}
SAVED = ("zero0", "zero1", "zero2", "zero3", "bf16-zero0", "bf16-zero3", "offload3")  # by 2 ranks
MOVES = [  # from 2 ranks, to so many ranks of this layout
    ("zero0", 2, "zero3"), ("zero1", 2, "bf16-zero2"), ("zero2", 2, "round-robin"), ("zero2", 2, "zero0"), ("zero3", 2, "zero1"),
    ("bf16-zero3", 2, "zero2"), ("bf16-zero3", 2, "bf16-zero0"), ("bf16-zero0", 2, "bf16-fp32-grads"), ("bf16-zero0", 2, "bf16-zero1"),
    ("offload3", 2, "offload2"), ("offload3", 2, "many-groups"), ("zero1", 2, "offload3"),
    ("zero3", 1, "zero0"), ("zero2", 1, "zero3"), ("bf16-zero3", 1, "bf16-zero2"),
    ("zero0", 3, "zero3"), ("zero3", 3, "zero1"),
]  # fmt: skip
SAME = [(layout, 2, layout) for layout in ("bf16-zero0", "bf16-zero3", "offload3")]  # zero0 to 3: see test_learner_group
WARMUP = 6


def share(version: int, rank: int, world: int) -> list[Any]:
    return make_samples(version, version=version - 1)[rank::world]


def whole_weights(rank: Any) -> dict[str, torch.Tensor]:
    return {name: weight.float().cpu().clone() for name, weight in rank.engine.weights()}


def go_on(spec: Any, source: Path, target: Path, *, index: int, world: int, port: int) -> dict[str, Any]:
    """Load, save again at once, and make one more update."""
    from fr3e_async.learner.rank import LearnerRank

    rank = LearnerRank(spec)
    rank.setup(index, world, "127.0.0.1", port)
    rank.load(source.parent, source.name)
    rank.save(target.parent, target.name)
    rank.train(share(3, index, world), version=3)
    return {"weights": whole_weights(rank), "version": rank.version, "steps": rank.engine.steps, "lr": rank.engine.lr}


def run_rank(index: int, world: int, model: str, folder: str, port: int) -> None:
    """Everything that a group of this size does, in one process a rank: imports cost more than all else."""
    root, spec = Path(folder), make_spec(Path(model))
    os.environ.update(rank_environment(spec))
    from fr3e_async.learner.rank import LearnerRank

    results: dict[Any, Any] = {}
    for name in SAVED if world == 2 else ():
        rank = LearnerRank(make_spec(Path(model), warmup_steps=WARMUP, **LAYOUTS[name]))
        rank.setup(index, world, "127.0.0.1", port)
        for version in (1, 2):
            rank.train(share(version, index, world), version=version)
        rank.save(root, name)
        rank.train(share(3, index, world), version=3)
        results[name] = {"weights": whole_weights(rank), "version": 3, "steps": rank.engine.steps, "lr": rank.engine.lr}
    for move in [move for move in MOVES + SAME if move[1] == world]:
        source, _, layout = move
        spec = make_spec(Path(model), warmup_steps=WARMUP, **LAYOUTS[layout])
        results[move] = go_on(spec, root / source, root / "-".join(map(str, move)), index=index, world=world, port=port)
    if index == 0:
        torch.save(results, root / f"world{world}.pt")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def groups(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Any, Any]]:
    folder, results = tmp_path_factory.mktemp("groups"), {}
    for world in (2, 1, 3):
        arguments = (world, str(model), str(folder), free_address("")[1])
        if world == 1:
            run_rank(0, *arguments)
        else:
            torch.multiprocessing.spawn(run_rank, arguments, nprocs=world)
        results |= torch.load(folder / f"world{world}.pt", weights_only=False)
    return folder, results


def numbers(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Every master and moment of a checkpoint, whole."""
    manifest = Manifest.read(folder)
    with Pieces(folder, manifest.pieces) as pieces:
        roles = {piece.part for piece in manifest.pieces} - {checkpoint.RANDOM}
        return {(role, name): pieces.whole(role, name) for role in sorted(roles) for name in manifest.shapes}


@pytest.mark.slow
@pytest.mark.parametrize("move", MOVES + SAME, ids=lambda move: "-".join(map(str, move)))
def test_masters_moments_steps_and_schedule_move_exactly(groups: Any, move: tuple[str, int, str]) -> None:
    folder, _ = groups
    source, target = folder / move[0], folder / "-".join(map(str, move))
    before, after = numbers(source), numbers(target)
    assert {role for role, _ in before} == {MASTER, REFERENCE, "exp_avg", "exp_avg_sq"}
    assert before.keys() == after.keys()
    # masters and moments are float32 everywhere, the reference is of the training precision
    assert all(torch.equal(before[key].to(after[key].dtype), after[key]) for key in before)
    assert {after[key].dtype for key in after if key[0] != REFERENCE} == {torch.float32}
    assert Manifest.read(source).state == Manifest.read(target).state
    assert Manifest.read(source).state["reference"] == 2  # loss.reference_reset batches: the weights that were saved
    assert all(
        torch.equal(before[REFERENCE, name], before[MASTER, name].to(before[REFERENCE, name].dtype))
        for name in Manifest.read(source).shapes
    )
    (group,) = Manifest.read(target).state["groups"]
    assert group["scalars"]["step"] == 8
    assert checkpoint.damage(target) == ""


@pytest.mark.slow
@pytest.mark.parametrize("move", MOVES + SAME, ids=lambda move: "-".join(map(str, move)))
def test_the_next_update_is_that_of_a_run_without_a_break(groups: Any, move: tuple[str, int, str]) -> None:
    _, results = groups
    expected, found = results[move[0]], results[move]
    assert (found["version"], found["steps"], found["lr"]) == (3, 12, expected["lr"])
    scale = max(float(weight.abs().max()) for weight in expected["weights"].values())
    difference = largest_difference(found["weights"], expected["weights"]) / scale
    if move in SAME:
        assert difference == 0
    elif move[0].startswith("bf16") == move[2].startswith("bf16"):
        assert difference <= (8e-3 if move[2].startswith("bf16") else 1e-6)  # bfloat16 has 8 bits: one may round the other way
    else:
        assert difference <= 2e-2  # the activations are of another precision


@pytest.mark.slow
def test_files_are_shared_out_over_the_ranks(groups: Any) -> None:
    """Also where every rank has everything, and nothing is written twice."""
    for name in SAVED:
        manifest = Manifest.read(groups[0] / name)
        by_rank = {rank: sum(p.numel for p in manifest.pieces if p.file.startswith(f"rank-0000{rank}")) for rank in (0, 1)}
        total = 4 * sum(torch.Size(shape).numel() for shape in manifest.shapes.values())
        assert sum(p.numel for p in manifest.pieces if p.part != checkpoint.RANDOM) == total
        assert min(by_rank.values()) > 0.4 * sum(by_rank.values())
        assert not list((groups[0] / name).rglob("*.p*t"))


@pytest.mark.slow
def test_a_checkpoint_before_the_first_update_has_no_moments(model: Path, tmp_path: Path) -> None:
    rank = start_rank(make_spec(model, zero_stage=2))
    rank.save(tmp_path, "start")
    assert {piece.part for piece in Manifest.read(tmp_path / "start").pieces} == {MASTER, REFERENCE, checkpoint.RANDOM}
    rank.train(make_samples(1), version=1)
    once = whole_weights(rank)
    rank.load(tmp_path, "start")
    assert rank.version == 0
    rank.train(make_samples(1), version=1)
    assert largest_difference(whole_weights(rank), once) == 0


PLAIN = {"betas": None, "torch_adam": None, "fused": None}  # takes AdamW's settings out
OPTIMISERS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "Adagrad": {"type": "Adagrad", "params": PLAIN},
    "SGD": {"type": "SGD", "params": PLAIN},
    "momentum": {"type": "SGD", "params": {**PLAIN, "momentum": 0.9}},
}
KEEPS = {"AdamW": "exp_avg, exp_avg_sq", "Adagrad": "sum", "SGD": "nothing", "momentum": "momentum_buffer"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_the_state_of_another_optimiser_is_refused(model: Path, tmp_path: Path, stage: int) -> None:
    ranks = {}
    for name, optimiser in OPTIMISERS.items():
        ranks[name] = start_rank(make_spec(model, zero_stage=stage, ds_config={"optimizer": optimiser}))
        ranks[name].train(make_samples(1), version=1)
        ranks[name].save(tmp_path, name)
    for source, target in itertools.product(OPTIMISERS, OPTIMISERS):
        if source == target:
            ranks[target].load(tmp_path, source)
            continue
        says = rf"learner\.ds_config\.optimizer: .* keeps {KEEPS[source]} of each weight where this one keeps {KEEPS[target]}$"
        with pytest.raises(ConfigError, match=says):
            ranks[target].load(tmp_path, source)


@pytest.mark.slow
def test_another_deepspeed_or_optimiser_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fr3e_async.learner import checkpoint_state

    engine = start_rank(make_spec(model)).engine.engine
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_state.deepspeed, "__version__", "99.0")
        with pytest.raises(ConfigError, match=r"deepspeed 99\.0 is installed, but checkpoints are made for"):
            checkpoint_state.TrainingState(engine, {}, {})
    monkeypatch.setattr(engine, "optimizer", object())
    with pytest.raises(ConfigError, match=r"learner\.ds_config: this optimiser \(object\) cannot be saved"):
        checkpoint_state.TrainingState(engine, {}, {})
