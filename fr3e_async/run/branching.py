"""A new run that begins with a checkpoint of another one (``run.branch_from``): its weights become the model that the run is given."""

from __future__ import annotations

from pathlib import Path

from fr3e_async.config import Config
from fr3e_async.data.model import read_json, transformers_config
from fr3e_async.errors import ConfigError
from fr3e_async.run.export import LEARNER, export, find

START = "start"  # in the run directory: the model that the run began with
SAME = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")


def source_of(config: Config) -> Path:
    """The learner's part of the checkpoint that ``run.branch_from`` means. Raises ``StorageError``, and ``ConfigError`` for another model."""
    checkpoint = find(Path(config.run.branch_from).expanduser().absolute())
    learner = checkpoint / LEARNER if (checkpoint / LEARNER).is_dir() else checkpoint
    there, ours = read_json(learner / "base" / "config.json", "run.branch_from"), transformers_config(config)
    for name in SAME:
        if ours is not None and there.get(name) != getattr(ours, name, None):
            raise ConfigError(
                f"run.branch_from: {checkpoint} is of another model than model.path={config.model.path}: its {name} is {there.get(name)}, "
                f"not {getattr(ours, name, None)}"
            )
    return learner


def branched_model(config: Config, run: Path, learner: Path | None) -> Path:
    """The model folder of a branched run, made from ``learner`` if it is not there. Raises ``UserError`` kinds."""
    folder = run / START
    if not folder.is_dir():
        export(learner or source_of(config), folder, trust_remote_code=config.model.trust_remote_code)
    return folder
