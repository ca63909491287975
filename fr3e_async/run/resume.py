"""Resume a run: find the newest whole checkpoint, check that it fits the problems, and put its rollouts back into the object store."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from fr3e_async.actors.learner import CHECKPOINT_TAG
from fr3e_async.algorithm.anchors import with_anchors
from fr3e_async.config import Config
from fr3e_async.control.ports import Payload, PayloadStore
from fr3e_async.control.progress import load_control_state, load_trees
from fr3e_async.data.prompts import Datasets
from fr3e_async.data.stream import PromptStream
from fr3e_async.errors import DataError, StorageError
from fr3e_async.machine.group import Group
from fr3e_async.store.checkpoints import step_of
from fr3e_async.store.run_dir import RunDir
from fr3e_async.types import RolloutBatch


def check_resume(config: Config, datasets: Datasets, run_dir: RunDir) -> Path | None:
    """The newest whole checkpoint of a run that is resumed, every byte of it checked; None for a new run.

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
        if any(group.name.rpartition("@")[0] not in known for group in state.ledger.groups):
            raise DataError("data.train: a problem that the checkpoint is at work on is not there any more")
    return folder


def nothing_left(config: Config, run_dir: RunDir, checkpoint: Path | None) -> str:
    """Say why a run to be resumed has nothing left to do; "" if it has."""
    if checkpoint is None or not run_dir.summary.is_file():
        return ""
    progress, version = load_control_state(checkpoint).progress, step_of(checkpoint)
    steps, budget, wall = config.run.steps, config.budget.tokens, config.run.max_wall_s
    if json.loads(run_dir.summary.read_text(encoding="utf-8")).get("version") != version:  # it is of an earlier end
        return ""
    if version >= steps and run_dir.model.is_dir():
        why = (
            f"all {steps} batches of run.steps are trained (the newest checkpoint has {version}), the model is in {run_dir.model}"
        )
    elif budget and progress.tokens_generated >= budget and run_dir.model.is_dir():
        why = f"budget.tokens ({budget:,}) is used up, the model is in {run_dir.model}"
    elif wall and progress.wall_before_s > wall:
        why = f"run.max_wall_s ({wall:.0f} s) is over at step {version}"
    else:
        return ""
    return f"{run_dir.path}: {why}. There is nothing left to do; a higher limit resumes it, another run.dir starts over"


def newest_checkpoint(run_dir: RunDir) -> Path | None:
    """Find the newest whole checkpoint and check every byte of it. Raises ``StorageError`` if all are damaged."""
    # Imported here: torch takes a second, and a new run does not need it in this process.
    from fr3e_async.learner.checkpoint import damage

    def look(folder: Path) -> str:
        parts = {
            folder / "learner" / CHECKPOINT_TAG,
            *(folder / "learner").glob("*"),
        }  # the policy's, and those of models beside it
        return next(filter(None, map(damage, sorted(parts))), "") or _damage_of_control(folder)

    return run_dir.checkpoints.latest(look)


def _damage_of_control(folder: Path) -> str:
    """Check the control part of a checkpoint; returns what is wrong with it, or ""."""
    try:
        load_control_state(folder)  # another format, say
        for _ in load_trees(folder):
            pass
    except StorageError as error:
        return str(error)
    return ""


def restored(source: Path, store: PayloadStore) -> dict[int, tuple[str, Payload]]:
    """The rollouts of a checkpoint's open groups, back in the object store with their anchors: by key, (group, handle)."""
    groups = {group.name: group for group in load_control_state(source).ledger.groups}
    return {key: (batch.ids[0].group, store.put(_anchored(batch, groups))) for key, batch in load_trees(source)}


def _anchored(batch: RolloutBatch, groups: Mapping[str, Group]) -> RolloutBatch:
    """With the anchors that the checkpoint's groups have on these rollouts; as it is where they are not chosen yet."""
    known = [groups[id.group].anchors_of.get(id.branch) for id in batch.ids if id.node == 0]
    chosen = [anchors for anchors in known if anchors is not None]
    return with_anchors(batch, itertools.chain(*chosen)) if chosen else batch
