"""A checkpoint that does not fit is refused before anything is started, in one line that names the setting."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import prompt, small_config

from fr3e_async.actors.learner import CHECKPOINT_TAG
from fr3e_async.control.ledger import LedgerState
from fr3e_async.control.progress import Progress, control_state, save_control_state
from fr3e_async.data.prompts import Datasets
from fr3e_async.data.stream import PromptStream
from fr3e_async.errors import UserError
from fr3e_async.learner.checkpoint import Manifest
from fr3e_async.observe.checkpoints import CheckpointStore
from fr3e_async.session import check_resume

PROMPTS = tuple(prompt(f"p{i}") for i in range(4))


@pytest.fixture
def run_dir(tmp_path: Path) -> SimpleNamespace:
    """What ``check_resume`` sees of a run directory, with one checkpoint by two ranks of ZeRO-1."""
    store = CheckpointStore(tmp_path / "checkpoints")
    folder = store.begin(3)
    learner = folder / "learner" / CHECKPOINT_TAG
    learner.mkdir(parents=True)
    Manifest(version=3, ranks=2, zero_stage=1, dtype="float32").write(learner)
    ledger = LedgerState(version=3, admitted=0, fates={}, budget={})
    stream = PromptStream(PROMPTS, 0).state()
    save_control_state(control_state(ledger=ledger, stream=stream, progress=Progress(), now=1.0), folder)
    store.commit(folder, 3)
    return SimpleNamespace(resumed=True, checkpoints=store)


def check(run_dir: SimpleNamespace, *, prompts=PROMPTS, seed: int = 0, **learner) -> None:
    settings = {"ranks": 2, "zero_stage": 1} | learner
    config = small_config(learner=settings, run={"seed": seed})
    check_resume(config, Datasets(train=prompts, heldout=(), dropped=0), run_dir)


def test_a_checkpoint_that_fits_passes_and_a_new_run_has_none(run_dir):
    check(run_dir)
    check(SimpleNamespace(resumed=False, checkpoints=None), ranks=7)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ranks": 1}, r"learner\.ranks is 1"),
        ({"zero_stage": 2}, r"learner\.zero_stage is 2"),
        ({"prompts": PROMPTS[:3]}, r"data\.train"),
        ({"seed": 1}, r"run\.seed is 1"),
    ],
)
def test_what_does_not_fit_is_refused(run_dir, changes, says):
    with pytest.raises(UserError, match=says):
        check(run_dir, **changes)
