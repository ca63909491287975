"""A new run from another one's checkpoint: which checkpoint, of which model, and what is left in the new directory."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import small_config
from checkpoint_support import TAG, PlainState, save_whole
from learner_support import build_model
from safetensors.torch import load_file

from fr3e_async.config import Config, ModelConfig
from fr3e_async.errors import ConfigError, StorageError
from fr3e_async.run import preparing
from fr3e_async.store.checkpoints import CheckpointStore


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(A model, a run with a checkpoint of it at step 5, its weights 0.125 above the model's)."""
    model, run = build_model(tmp_path_factory.mktemp("model")), tmp_path_factory.mktemp("run")
    weights = {name: weight + 0.125 for name, weight in load_file(model / "model.safetensors").items()}
    save_whole(CheckpointStore(run / "checkpoints"), 5, base=model, state=PlainState(weights))
    return model, run


def config(world: tuple[Path, Path], source: Path | str, model: Path | None = None) -> Config:
    made: Any = small_config(run={"branch_from": str(source)})
    return replace(made, model=ModelConfig(path=str(model or world[0])))


@pytest.mark.parametrize("which", ["", "checkpoints/step-00000005", f"checkpoints/step-00000005/{TAG}"])
def test_a_run_or_a_checkpoint_becomes_the_model_that_a_run_begins_with(
    world: tuple[Path, Path], tmp_path: Path, which: str
) -> None:
    model, run = world
    settings = config(world, run / which)
    learner = preparing.source_of(settings)
    assert learner == run / "checkpoints" / "step-00000005" / TAG
    folder = preparing.branched_model(settings, tmp_path, learner)
    assert folder == tmp_path / "start"
    ours, theirs = load_file(folder / "model.safetensors"), load_file(model / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name] + 0.125) for name in theirs)


def test_what_was_made_once_is_enough(world: tuple[Path, Path], tmp_path: Path) -> None:
    """The other run may be removed, once the new one has begun."""
    copy = tmp_path / "other"
    shutil.copytree(world[1], copy)
    settings = config(world, copy)
    preparing.branched_model(settings, tmp_path, preparing.source_of(settings))
    shutil.rmtree(copy)
    assert preparing.branched_model(settings, tmp_path, None) == tmp_path / "start"
    with pytest.raises(StorageError, match="neither a checkpoint nor a run"):
        preparing.source_of(settings)


def test_another_model_is_refused_by_what_differs(world: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(world[0], other)
    content = (other / "config.json").read_text()
    (other / "config.json").write_text(content.replace('"vocab_size": 64', '"vocab_size": 65'))
    with pytest.raises(
        ConfigError, match=r"^run\.branch_from: .* is of another model than model\.path=.*: its vocab_size is 64, not 65"
    ):
        preparing.source_of(config(world, world[1], other))
