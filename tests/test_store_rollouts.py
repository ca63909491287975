"""Rollout batches in safetensors shards: every batch comes back as it was, and damage is told by the file."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from test_learner_checkpoint import files_end_at

from fr3e_async.errors import StorageError
from fr3e_async.learner.checkpoint_pieces import write_tensors
from fr3e_async.store.rollouts import COLUMNS, load_payloads, save_payloads
from fr3e_async.types import Completion, Finish, RolloutBatch, RolloutId


def completion(length: int, *, seed: int = 0, raw: bool = False) -> Completion:
    rng = np.random.default_rng(seed)
    numbers = [rng.normal(size=length).astype(np.float32) for _ in range(5)]
    return Completion(
        tokens=rng.integers(0, 1000, length).astype(np.int32),
        logprobs=numbers[0],
        entropies=numbers[1],
        entropy_errors=np.abs(numbers[2]),
        versions=rng.integers(0, 9, length).astype(np.int32),
        finish=Finish.LENGTH,
        raw_logprobs=numbers[3] if raw else None,
        raw_entropies=numbers[4] if raw else None,
        cached_tokens=seed,
    )


def batch(*lengths: int, group: str = "q1@0", contexts: int = 1, raw: bool = False, eligible: bool = False) -> RolloutBatch:
    rows = range(len(lengths))
    return RolloutBatch.build(
        ids=[RolloutId(group, 0, row) for row in rows],
        contexts=[np.arange(3 + c, dtype=np.int32) for c in range(contexts)],
        prompt_lens=[3] * contexts,
        context_of=[row % contexts for row in rows],
        completions=[completion(length, seed=row, raw=raw) for row, length in enumerate(lengths)],
        eligible=[np.arange(length) % 2 == 0 for length in lengths] if eligible else None,
    )


def content(batch: RolloutBatch) -> dict[str, Any]:
    """Everything in a batch, so that == compares types and bits (a NaN as well)."""
    columns = {name: getattr(batch, name) for name in COLUMNS}
    contents = {name: None if c is None else (c.dtype.str, c.shape, c.tobytes()) for name, c in columns.items()}
    return {"ids": batch.ids, **contents}


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


texts = st.text(st.characters(), max_size=8)  # lone surrogates too
batches = st.builds(
    lambda lengths, **more: batch(*lengths, **more),
    st.lists(st.integers(0, 6), max_size=4),
    group=texts,
    contexts=st.integers(1, 3),
    raw=st.booleans(),
    eligible=st.booleans(),
)
keyed = st.dictionaries(st.integers(0, 2**63), batches, max_size=5)


@given(keyed, st.sampled_from([1, 2000, 5000, 1 << 30]))
def test_what_is_saved_comes_back(tmp_path_factory: pytest.TempPathFactory, batches: dict, shard_bytes: int) -> None:
    folder = tmp_path_factory.mktemp("payloads")
    written = save_payloads(batches.items(), folder, shard_bytes=shard_bytes)
    assert written == sum(path.stat().st_size for path in folder.iterdir())
    loaded = list(load_payloads(folder))
    assert [(key, content(b)) for key, b in loaded] == [(key, content(b)) for key, b in batches.items()]


def test_views_of_other_arrays_are_saved_as_what_they_show(tmp_path: Path) -> None:
    plain = batch(6)
    wide = np.zeros((6, 2), dtype=np.float32)
    wide[:, 1] = np.arange(6)
    viewed = RolloutBatch(ids=plain.ids, **{**{name: getattr(plain, name) for name in COLUMNS}, "entropies": wide[:, 1]})
    save_payloads([(1, viewed)], tmp_path)
    ((_, loaded),) = load_payloads(tmp_path)
    assert loaded.entropies.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_file_says_its_batches_by_column(tmp_path: Path) -> None:
    save_payloads([(7, batch(2, 3)), (9, batch(0, group="ü"))], tmp_path)
    assert shards(tmp_path) == ["open-00000.safetensors"]
    tensors = load_file(tmp_path / "open-00000.safetensors")
    absent = {"raw_logprobs", "raw_entropies", "eligible"}
    assert set(tensors) == {f"{key}/{name}" for key in (7, 9) for name in set(COLUMNS) - absent}
    assert tensors["7/offsets"].tolist() == [0, 2, 5]
    with safe_open(tmp_path / "open-00000.safetensors", framework="numpy") as file:
        notes = json.loads(file.metadata()["batches"])
    assert notes["9"]["ids"] == [["ü", 0, 0]]
    assert set(notes["9"]["none"]) == absent


def test_no_batch_is_a_file_too(tmp_path: Path) -> None:
    assert save_payloads([], tmp_path / "new") > 0
    assert shards(tmp_path / "new") == ["open-00000.safetensors"]
    assert list(load_payloads(tmp_path / "new")) == []


def test_a_shard_is_gone_from_memory_before_the_next_batch_is_made(tmp_path: Path) -> None:
    """Each batch is a shard of its own here, and the one before must be freed while the next is fetched."""
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def fetch() -> Iterator[tuple[int, RolloutBatch]]:
        nonlocal most
        for key in range(4):
            most = max(most, sum(ref() is not None for ref in alive))
            made = batch(1000)
            alive.append(weakref.ref(made.tokens))
            yield key, made
            del made

    save_payloads(fetch(), tmp_path, shard_bytes=1000)
    assert len(shards(tmp_path)) == 5  # and an empty one, which says that it is the last
    assert most == 0


def test_many_small_batches_do_not_overflow_a_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fr3e_async.store.rollouts.HEADER_BYTES", 6000)
    save_payloads([(key, batch(1)) for key in range(5)], tmp_path)
    assert len(shards(tmp_path)) == 2  # about 2.5 kB of header each: three, then two
    assert [key for key, _ in load_payloads(tmp_path)] == [0, 1, 2, 3, 4]


def test_a_key_comes_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rollout batch 3 came twice"):
        save_payloads([(3, batch(1)), (3, batch(1))], tmp_path, shard_bytes=1)


# ---- what cannot be written or read ----


def saved(folder: Path) -> list[Path]:
    """Three shards: of batch 0, of batch 1, and the empty last one."""
    save_payloads([(0, batch(40)), (1, batch(50))], folder, shard_bytes=1)
    return sorted(folder.iterdir())


def refused(folder: Path) -> str:
    with pytest.raises(StorageError) as error:
        list(load_payloads(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("left", [0, 4, 100, -1, -200])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, left: int) -> None:
    path = saved(tmp_path)[1]
    path.write_bytes(path.read_bytes()[:left])
    assert str(path) in refused(tmp_path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_tensors_may_be_read_by_whom_the_umask_lets(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save_payloads([(0, batch(1))], tmp_path)
        write_tensors(tmp_path / "weights.safetensors", {"w": torch.ones(2)})
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.glob("*.safetensors")] == [mode, mode]


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_a_file_that_is_missing_is_told(tmp_path: Path, shard: int) -> None:
    saved(tmp_path)[shard].unlink()
    assert f"open-0000{shard}.safetensors is missing" in refused(tmp_path)


def test_no_file_is_told(tmp_path: Path) -> None:
    assert "holds no rollouts" in refused(tmp_path)
    assert "holds no rollouts" in refused(tmp_path / "nowhere")


@given(st.data())
def test_a_changed_byte_of_a_batch_never_passes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("changed")
    save_payloads([(0, batch(3, 2, raw=True, eligible=True))], folder)
    (path,) = folder.iterdir()
    before = content(next(load_payloads(folder))[1])
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    try:
        loaded = dict(load_payloads(folder))
    except StorageError:
        return
    assert [content(b) for b in loaded.values()] == [before]  # a byte that says nothing, as a blank or the order of columns


def test_a_changed_number_is_told_by_file_and_batch(tmp_path: Path) -> None:
    path = saved(tmp_path)[1]
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    assert refused(tmp_path) == (
        f"{path}: rollout batch 1 is damaged: it does not have the checksum it was written with"
    )  # fmt: skip


def test_files_of_something_else_are_told(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "open-00000.safetensors")
    assert "holds no rollouts of the format" in refused(tmp_path)
    (tmp_path / "open-00000.safetensors").write_text("hello, this is a text and no tensors at all")
    assert "is not readable" in refused(tmp_path)


def test_a_shard_under_another_name_is_told(tmp_path: Path) -> None:
    first, second, _ = saved(tmp_path)
    first.write_bytes(second.read_bytes())
    assert "was written as open-00001.safetensors" in refused(tmp_path)


def test_shards_of_a_longer_list_are_told(tmp_path: Path) -> None:
    saved(tmp_path)
    save_payloads([(5, batch(1))], tmp_path)  # in one shard, over the first of three
    assert "open-00001.safetensors does not belong here" in refused(tmp_path)


def test_a_key_in_two_shards_is_told(tmp_path: Path) -> None:
    saved(tmp_path)
    other = tmp_path / "other"
    save_payloads([(8, batch(1)), (0, batch(2))], other, shard_bytes=1)
    (other / "open-00001.safetensors").replace(tmp_path / "open-00001.safetensors")
    assert "rollout batch 0 is there a second time" in refused(tmp_path)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with files_end_at(20_000), pytest.raises(StorageError, match=r"cannot write to .*open-00000\.safetensors: File too large$"):
        save_payloads([(0, batch(5000))], tmp_path)


def test_what_the_system_said_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("fr3e_async.store.rollouts.save_file", fail)
    with pytest.raises(StorageError, match=r"the disk is full \(ENOSPC\)$"):
        save_payloads([(0, batch(1))], tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write to"):
        save_payloads([], tmp_path / "file" / "open")
