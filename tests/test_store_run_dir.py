"""Run directory, checkpoints and durable writes: what is refused, what survives, what is left behind."""

from __future__ import annotations

import errno
import fnmatch
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from disk_support import Disk
from hypothesis import given, settings
from hypothesis import strategies as st

from fr3e_async.config import BudgetConfig, Config, EngineConfig, FlowConfig, LearnerConfig, RunConfig
from fr3e_async.errors import ConfigError, StorageError
from fr3e_async.files import durable as storage
from fr3e_async.files import jsonl
from fr3e_async.store.checkpoints import CheckpointStore, step_of
from fr3e_async.store.fingerprint import CHANGEABLE, differences, fingerprint, flat, lasting
from fr3e_async.store.run_dir import RunDir, default_path, newest_path

CONFIG = Config(engine=EngineConfig(kv_cache_gib=0.25))


def opened(path: Path, config: Config = CONFIG) -> RunDir:
    return RunDir.open(path, config=config, config_yaml="run:\n  name: test\n")


def everything_below(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*")}


def auto(**changes: Any) -> Config:
    return replace(CONFIG, resume="auto", **changes)


# ---- opening ----


def test_a_new_run_directory_holds_config_and_identity(tmp_path: Path) -> None:
    run = opened(tmp_path / "a" / "b")
    assert not run.resumed
    assert (run.path / "config.yaml").read_text() == "run:\n  name: test\n"
    assert json.loads((run.path / "run.json").read_text())["fingerprint"] == fingerprint(lasting(CONFIG))
    assert run.logs.is_dir()


def test_an_existing_run_is_refused_without_resume(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    with pytest.raises(StorageError, match="resume=auto"):
        opened(tmp_path / "run")


def test_an_existing_run_is_opened_again_with_settings_that_may_change(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    run = opened(tmp_path / "run", auto(run=RunConfig(steps=500)))
    assert run.resumed


def test_a_run_of_another_config_is_refused_by_the_settings_that_differ(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    other = auto(run=RunConfig(seed=7), learner=LearnerConfig(lr=1e-3))
    with pytest.raises(StorageError, match=r"learner\.lr: 1e-06 -> 0\.001; run\.seed: 0 -> 7"):
        opened(tmp_path / "run", other)


@pytest.mark.parametrize(
    "changes",
    [
        {"run": RunConfig(steps=9, max_wall_s=60.0)}, {"budget": BudgetConfig(tokens=9)}, {"flow": FlowConfig(max_rejected_in_a_row=9)},
        {"flow": FlowConfig(max_attempts=9)}, {"learner": LearnerConfig(max_restarts=9)},
    ],
)  # fmt: skip
def test_limits_that_end_a_run_may_change(tmp_path: Path, changes: dict[str, Any]) -> None:
    opened(tmp_path / "run").close()
    run = opened(tmp_path / "run", auto(**changes))
    assert (run.resumed, run.changed) == (True, "")


def test_the_learning_rate_changes_with_a_word_and_once_it_has_it_stays(tmp_path: Path) -> None:
    """Until the run is on its way (``renew``) nothing has happened: a start that fails leaves the old rate."""
    path, slower = tmp_path / "run", LearnerConfig(lr=5e-7)
    opened(path).close()
    with pytest.raises(
        StorageError, match=r"learner\.lr: 1e-06 -> 5e-07; use the same .*; run\.change_lr=true continues with the new"
    ):
        opened(path, auto(learner=slower))
    for renewed in (False, True):
        run = opened(path, auto(learner=slower, run=RunConfig(change_lr=True)))
        assert run.changed == "from here on learner.lr: 1e-06 -> 5e-07"
        if renewed:
            run.renew(auto(learner=slower))
        run.close()
    run = opened(path, auto(learner=slower))
    assert (run.resumed, run.changed) == (True, "")
    run.close()
    with pytest.raises(StorageError, match=r"learner\.lr: 5e-07 -> 1e-06"):
        opened(path, auto())


def test_a_learning_rate_that_is_not_ours_to_change(tmp_path: Path) -> None:
    settings = {"optimizer": {"params": {"lr": 1e-4}}}
    opened(tmp_path / "run", replace(CONFIG, learner=LearnerConfig(ds_config=settings))).close()
    with pytest.raises(
        ConfigError, match=r"^run\.change_lr: learner\.lr: 1e-06 -> 1e-05 would do nothing, since learner\.ds_config"
    ):
        opened(tmp_path / "run", auto(learner=LearnerConfig(lr=1e-5, ds_config=settings), run=RunConfig(change_lr=True)))


def test_a_word_for_the_learning_rate_allows_nothing_else(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    with pytest.raises(StorageError, match=r"another config: run\.seed: 0 -> 7; use"):
        opened(tmp_path / "run", auto(learner=LearnerConfig(lr=1e-5), run=RunConfig(change_lr=True, seed=7)))


def test_the_newest_run_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert newest_path("toy") is None
    for name in (
        "toy-20260101-120000",
        "toy-20260301-090000",
        "toy-long-20260401-090000",
        "toy-20260501-090000x",
        "toyx20260601-090000",
    ):
        opened(Path("runs") / name).close()
    Path("runs/toy-20260701-090000").mkdir()  # of a start that failed half-way, say: it holds no run
    assert newest_path("toy") == Path("runs/toy-20260301-090000")
    assert newest_path("toy-long") == Path("runs/toy-long-20260401-090000")


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for config in (CONFIG, auto()):
        with pytest.raises(StorageError, match="holds no run"):
            opened(tmp_path, config)
    assert everything_below(tmp_path) == {"thesis.tex"}


def test_a_directory_in_use_is_refused_and_its_files_stay(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    before = everything_below(tmp_path)
    with pytest.raises(StorageError, match="in use"):
        opened(tmp_path / "run", auto())
    assert everything_below(tmp_path) == before
    run.close()
    assert opened(tmp_path / "run", auto()).resumed


def test_discard_removes_what_opening_made_but_never_a_resumed_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    opened(tmp_path / "x" / "y").discard()
    run = opened(tmp_path / "empty")
    (run.logs / "driver.log").write_text("a line")
    run.discard()
    assert everything_below(tmp_path) == {"empty"}
    opened(tmp_path / "kept").close()
    before = everything_below(tmp_path)
    opened(tmp_path / "kept", auto()).discard()
    assert everything_below(tmp_path) == before


def test_the_default_path_names_run_and_time() -> None:
    assert default_path("toy", 0.0).parent == Path("runs")
    assert default_path("toy", 0.0).name.startswith("toy-19")


# ---- disks that refuse ----


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EIO, "error")])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: str
) -> None:
    monkeypatch.setattr(storage.os, call, failing(code))
    with pytest.raises(StorageError, match=words) as caught:
        opened(tmp_path / "a" / "b")
    assert "run.dir" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything_below(tmp_path) == set()


def test_a_failure_after_the_first_file_leaves_nothing_in_an_existing_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.replace, []

    def second_fails(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        real(source, target)

    monkeypatch.setattr(storage.os, "replace", second_fails)
    with pytest.raises(StorageError, match="full"):
        opened(tmp_path)
    assert len(calls) == 2
    assert everything_below(tmp_path) == set()


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StorageError, match="ENOTDIR"):
            opened(path)


def test_a_really_full_disk_is_refused(tmp_path: Path) -> None:
    """A file size limit of 64 KiB stops the probe as a full disk would, with another errno."""
    code = (
        "import resource, sys; from pathlib import Path; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16));"
        "from fr3e_async.config import *; from fr3e_async.store.run_dir import RunDir;"
        "RunDir.open(Path(sys.argv[1]), config=Config(engine=EngineConfig(kv_cache_gib=0.25)), config_yaml='')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert "StorageError: run.dir: cannot write to" in done.stderr
    assert everything_below(tmp_path) == set()


def test_an_atomic_write_keeps_the_old_content_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    storage.write_atomically(path, "old")
    monkeypatch.setattr(storage.os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        storage.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert everything_below(tmp_path) == {"x"}


# ---- which settings may change ----


@pytest.mark.parametrize("pattern", CHANGEABLE)
def test_every_changeable_setting_exists(pattern: str) -> None:
    config = replace(CONFIG, learner=LearnerConfig(ds_config={"zero_optimization": {"round_robin_gradients": True}}))
    assert any(fnmatch.fnmatch(path, pattern) for path in flat(config))


def test_what_is_learned_may_not_change() -> None:
    fixed = lasting(CONFIG)
    assert {"run.seed", "model.path", "algorithm.anchors", "learner.lr", "flow.max_staleness", "loss.clip_high"} <= fixed.keys()
    assert not {"run.steps", "generators.count", "resume", "learner.start_timeout_s"} & fixed.keys()


def test_deepspeeds_partition_may_change_and_its_optimiser_may_not() -> None:
    fixed = lasting(
        replace(CONFIG, learner=LearnerConfig(ds_config={"zero_optimization": {"stage": 0}, "optimizer": {"type": "Adam"}}))
    )
    assert fixed["learner.ds_config.optimizer"] == {"type": "Adam"}
    assert not {"learner.ranks", "learner.zero_stage", "learner.dtype", "learner.ds_config.zero_optimization"} & fixed.keys()


def test_a_fingerprint_is_of_the_content_not_the_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})
    assert differences({"a": 1, "b": 2}, {"b": 3, "c": 4}) == ["a: 1 -> '(none)'", "b: 2 -> 3", "c: '(none)' -> 4"]
    trunk = "algorithm.trunk"
    assert differences({trunk: "one_right_one_wrong"}, {trunk: "one_correct_one_wrong"}) == [], "renamed, and the same"
    assert differences({trunk: "one_right_one_wrong"}, {trunk: "all"}) == [f"{trunk}: 'one_correct_one_wrong' -> 'all'"]


# ---- metrics.jsonl ----


def test_rows_after_the_resumed_step_and_torn_lines_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = jsonl.JsonlWriter(path)
    for step in (1, 2, 3):
        writer.write({"step": step})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert jsonl.cut_after(path, 2) == 2
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert jsonl.cut_after(path, 2) == 0
    assert jsonl.cut_after(tmp_path / "absent", 2) == 0


def test_a_row_is_on_disk_when_write_returns_and_nan_is_refused(tmp_path: Path) -> None:
    writer = jsonl.JsonlWriter(tmp_path / "m")
    writer.write({"step": 1, "x": 0.5})
    assert (tmp_path / "m").read_text() == '{"step": 1, "x": 0.5}\n'
    with pytest.raises(ValueError, match="Out of range"):
        writer.write({"x": float("nan")})


# ---- checkpoints ----


def save(store: CheckpointStore, step: int, content: str = "weights") -> Path:
    folder = store.begin(step)
    (folder / "learner").mkdir()
    (folder / "learner" / "w.bin").write_text(f"{content} {step}")
    return store.commit(folder, step)


def test_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep=2)
    assert store.latest() is None
    for step in (1, 2, 3):
        save(store, step)
    latest = store.latest()
    assert latest is not None
    assert step_of(latest) == 3
    assert (latest / "learner" / "w.bin").read_text() == "weights 3"
    assert {p.name for p in store.root.iterdir()} == {"step-00000002", "step-00000003", "latest"}


def test_the_best_checkpoint_stays_until_another_is_best_or_its_branch_is_left(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for step in (1, 2):
        save(store, step)
    store.keep_best(2)
    store.keep_best(7)  # of which there is none
    save(store, 3)
    assert (store.steps(), (tmp_path / "best").read_text()) == ([3, 2], "step-00000002\n")
    store.keep_best(3)
    save(store, 4)
    assert store.steps() == [4, 3]
    store.commit(store.begin(5), 5, spare={4})
    assert store.steps() == [5, 4, 3]
    save(store, 2)  # after going back: 3 to 5 are of a run that has not been
    assert store.steps() == [2]
    assert not (tmp_path / "best").exists()  # it named 3
    for step in (3, 4):
        save(store, step)
    assert store.steps() == [4]


def test_evaluations_and_commits_in_threads_of_their_own_do_not_meet(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2):
        save(store, step)
    with ThreadPoolExecutor(4) as threads:
        for told in [threads.submit(store.keep_best, 1 + turn % 2) for turn in range(200)]:
            told.result()  # raises if two of them wrote one temporary file
    assert (tmp_path / "best").read_text() in {"step-00000001\n", "step-00000002\n"}


def test_a_checkpoint_that_was_never_committed_is_skipped_and_later_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    kept = save(store, 1)
    (store.begin(2) / "half").write_text("half")
    with caplog.at_level(logging.WARNING):
        assert store.latest() == kept
    assert "step-00000002.tmp was never completed" in caplog.text
    save(store, 3)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest", "earlier"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    older, newer = save(store, 1), save(store, 2)
    if damage == "truncate":
        (newer / "learner" / "w.bin").write_text("w")
    elif damage == "earlier":  # as versions before this one wrote it
        (newer / "checkpoint.json").write_text(jsonl.checked_json({"step": 2, "files": {"learner/w.bin": [1, 2]}}))
    else:
        (newer / ("learner/w.bin" if damage == "remove" else "checkpoint.json")).unlink()
    with caplog.at_level(logging.WARNING):
        assert store.latest() == older
    assert str(newer) in caplog.text


@pytest.mark.parametrize("kill_at", range(1, 6))
def test_a_kill_at_any_rename_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int) -> None:
    """Every rename of a commit is a point at which a kill could fall; the store must open with step 1 or step 2, whole."""
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    real, calls = os.replace, []

    def replace_or_die(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == kill_at:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", replace_or_die)
        try:
            save(store, 2)
        except KeyboardInterrupt:
            assert len(calls) == kill_at
        else:
            assert len(calls) < kill_at
    latest = CheckpointStore(tmp_path, keep=1).latest()
    assert latest is not None
    assert (latest / "learner" / "w.bin").read_text() == f"weights {step_of(latest)}"
    final = save(store, 2, "again")
    assert store.latest() == final
    assert (final / "learner" / "w.bin").read_text() == "again 2"


def test_a_checkpoint_is_durable_before_it_is_there_and_there_before_latest_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path / "c")
    for step in (1, 2, 2):
        with monkeypatch.context() as patch:
            disk = Disk(patch)
            final = save(store, step)
        inside = {str(path.relative_to(final)) for path in final.rglob("*")} | {"."}
        assert inside == {".", "learner", "learner/w.bin", "checkpoint.json"}
        named = disk.happened.index(("there", final))
        durable = {where for what, where in disk.happened[:named] if what == "durable"}
        assert durable >= {final.with_name(final.name + ".tmp") / name for name in inside}
        assert ("durable", store.root) in disk.happened[named:]
        assert disk.happened.index(("there", store.root / "latest")) > disk.happened.index(("durable", store.root), named)


def test_resuming_from_an_older_checkpoint_forgets_the_abandoned_later_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (10, 20, 30):
        save(store, step)
    save(store, 15)
    assert {p.name for p in tmp_path.glob("step-*")} == {"step-00000010", "step-00000015"}


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.integers(0, 20), min_size=1, max_size=6), keep=st.integers(1, 3))
def test_the_last_saved_checkpoint_is_always_the_latest(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep: int
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("store"), keep=keep)
    for step in steps:
        assert save(store, step) == store.latest()
        assert len(list(store.root.glob("step-*"))) <= keep


def test_a_full_disk_during_a_checkpoint_keeps_the_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    first = save(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", failing(errno.ENOSPC))
        with pytest.raises(StorageError, match="disk is full"):
            save(store, 2)
    assert store.latest() == first
