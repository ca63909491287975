"""Going on with a run: which checkpoint is whole, whether it fits the problems, and its rollouts back in the object store."""

from __future__ import annotations

from pathlib import Path

from fr3e_async.actors.learner import CHECKPOINT_TAG
from fr3e_async.config import Config
from fr3e_async.control.ports import Payload, PayloadStore
from fr3e_async.control.progress import load_control_state, load_trees
from fr3e_async.data.prompts import Datasets
from fr3e_async.data.stream import PromptStream
from fr3e_async.errors import DataError, StorageError
from fr3e_async.observe.run_dir import RunDir


def check_resume(config: Config, datasets: Datasets, run_dir: RunDir) -> Path | None:
    """The newest whole checkpoint of a run that is gone on with, every byte of it checked; None for a new run.

    The learner group may be another one. Raises ``UserError`` kinds: the problems are others, or no checkpoint is whole.
    """
    if not run_dir.resumed:
        return None
    run_dir.checkpoints.recover()
    folder = newest_checkpoint(run_dir)
    if folder is not None:
        state = load_control_state(folder)
        PromptStream(
            datasets.train, config.run.seed, state=state.stream, parts=datasets.parts, template=datasets.template, ends=datasets.ends
        )  # fmt: skip
        known = {prompt.uid for prompt in datasets.train}
        if any(group.prompt.uid not in known for group in state.ledger.groups):
            raise DataError("data.train: a problem that the checkpoint is at work on is not there any more")
    return folder


def newest_checkpoint(run_dir: RunDir) -> Path | None:
    """The newest whole one, every byte of it checked. Raises ``StorageError`` if there were some and none is whole."""
    # Imported here: torch takes a second, and a new run does not need it in this process.
    from fr3e_async.learner.checkpoint import damage

    return run_dir.checkpoints.latest(lambda folder: damage(folder / "learner" / CHECKPOINT_TAG) or _damage_of_control(folder))


def _damage_of_control(folder: Path) -> str:
    """What is wrong with the control part of a checkpoint, or an empty text."""
    try:
        load_control_state(folder)  # another format, say
        for _ in load_trees(folder):
            pass
    except StorageError as error:
        return str(error)
    return ""


def restored(source: Path, store: PayloadStore) -> dict[int, tuple[str, Payload]]:
    """The rollouts of a checkpoint's open groups, back in the object store: by key, (group, handle)."""
    return {key: (batch.ids[0].group, store.put(batch)) for key, batch in load_trees(source)}
