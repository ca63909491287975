"""What a run resumes from is settled before anything is started: the newest whole checkpoint, or one line that says why not."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import prompt, small_config
from checkpoint_support import TAG, save_whole, small_base

from fr3e_async.control.progress import Progress
from fr3e_async.data.prompts import Datasets
from fr3e_async.data.stream import PromptStream
from fr3e_async.errors import StorageError, UserError
from fr3e_async.run.resume import check_resume, nothing_left
from fr3e_async.store.checkpoints import CheckpointStore
from fr3e_async.store.run_dir import RunDir
from fr3e_async.testing.fakes import FakeEngineWorker
from fr3e_async.types import Draw, RolloutId

PROMPTS = tuple(prompt(f"p{i}") for i in range(4))


def trees():
    """A rollout of an open group, by its payload's key."""
    engine = FakeEngineWorker("generator-0")
    draw = Draw(max_tokens=8, temperature=1.0)
    return [(3, asyncio.run(engine.sample([PROMPTS[0]], [RolloutId("p0@0", 0, 0)], draw, trunk=True))[1])]


@pytest.fixture
def run_dir(tmp_path: Path) -> SimpleNamespace:
    """What ``check_resume`` sees of a run directory, with checkpoints of steps 3 and 5."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (3, 5):
        save_whole(store, step, base=small_base(tmp_path / "base"), stream=PromptStream(PROMPTS, 0).state(), trees=trees())
    return SimpleNamespace(resumed=True, checkpoints=store)


def check(run_dir: SimpleNamespace, *, prompts=PROMPTS, seed: int = 0, template: str = "", ends=(), **learner) -> Path | None:
    config = small_config(learner=learner, run={"seed": seed})
    return check_resume(config, Datasets(train=prompts, heldout=(), dropped=0, template=template, ends=ends), run_dir)


def test_the_newest_is_taken_whatever_the_learner_group_is_now(run_dir):
    for learner in ({}, {"ranks": 7}, {"zero_stage": 3}, {"ranks": 4, "zero_stage": 2}):
        assert check(run_dir, **learner).name == "step-00000005"
    assert run_dir.checkpoints.skipped == []


@pytest.mark.parametrize(("template", "named"), [("a", "tokenizer"), ("b", "chat template")])
def test_prompts_of_other_tokens_are_refused_by_what_made_them(run_dir, template, named):
    """The problems are the same, and so is every setting: a file of the model has changed since."""
    base = run_dir.checkpoints.root.parent / "base"
    newest = save_whole(run_dir.checkpoints, 7, base=base, stream=PromptStream(PROMPTS, 0, template="a").state())
    assert check(run_dir, template="a") == newest
    assert check(run_dir, template="b") == newest  # written otherwise, but to the same tokens
    tokens = PROMPTS[2].token_ids[::-1].copy()
    others = (*PROMPTS[:2], replace(PROMPTS[2], token_ids=tokens), PROMPTS[3])
    with pytest.raises(UserError, match=rf"^model\.path: its {named} is not that of the checkpoint") as error:
        check(run_dir, prompts=others, template=template)
    assert error.value.exit_code == 2


def test_other_end_tokens_are_refused_and_a_checkpoint_that_does_not_know_them_is_not(run_dir):
    """A changed generation_config.json leaves every prompt as it was."""
    base, state = run_dir.checkpoints.root.parent / "base", PromptStream(PROMPTS, 0, ends=(2, 3)).state()
    newest = save_whole(run_dir.checkpoints, 7, base=base, stream=state)
    assert check(run_dir, ends=(2, 3)) == newest
    with pytest.raises(
        UserError, match=r"^model\.path: the tokens that end a response are \[2\] now, those .* were \[2, 3\]"
    ) as error:
        check(run_dir, ends=(2,))
    assert error.value.exit_code == 2
    del state["ends"]
    older = save_whole(run_dir.checkpoints, 9, base=base, stream=state)
    assert check(run_dir, ends=(2,)) == older


def test_a_new_run_has_none(tmp_path):
    assert check(SimpleNamespace(resumed=False, checkpoints=None)) is None
    assert check(SimpleNamespace(resumed=True, checkpoints=CheckpointStore(tmp_path / "none"))) is None


@pytest.mark.parametrize(
    ("changes", "says"), [({"prompts": PROMPTS[:3]}, r"data\.train"), ({"seed": 1}, r"run\.seed is 1")]
)  # fmt: skip
def test_other_problems_are_refused(run_dir, changes, says):
    with pytest.raises(UserError, match=says):
        check(run_dir, **changes)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    """Change a byte near the end, which leaves the size as it was."""
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


FILES = (
    "checkpoint.json",
    "control.json",
    "trees/open-00000.safetensors",
    str(TAG / "learner.json"),
    str(TAG / "rank-00000.000.safetensors"),
    str(TAG / "base" / "config.json"),
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(run_dir, name: str, harm: Callable[[Path], None]):
    harm(run_dir.checkpoints.root / "step-00000005" / name)
    assert check(run_dir).name == "step-00000003"
    (skipped,) = run_dir.checkpoints.skipped
    assert "step-00000005 is skipped: " in skipped
    assert Path(name).name in skipped
    assert "\n" not in skipped


def test_a_large_file_is_checked_by_what_the_learner_knows_of_it(run_dir, monkeypatch):
    """Large files carry no checksum in the list of files; those inside of them are looked at."""
    monkeypatch.setattr("fr3e_async.store.checkpoints.SUMMED_BYTES", 100)
    base = run_dir.checkpoints.root.parent / "base"
    newest = save_whole(run_dir.checkpoints, 7, base=base, stream=PromptStream(PROMPTS, 0).state())
    assert check(run_dir) == newest
    flip(newest / TAG / "rank-00000.000.safetensors")
    assert check(run_dir).name == "step-00000005"
    assert "rank-00000.000.safetensors is damaged" in run_dir.checkpoints.skipped[0]


def test_rollouts_are_checked_by_what_is_known_of_them_inside(run_dir, monkeypatch):
    """Else the run would end when they are needed, with an older checkpoint at hand that is whole."""
    monkeypatch.setattr("fr3e_async.store.checkpoints.SUMMED_BYTES", 100)
    base = run_dir.checkpoints.root.parent / "base"
    newest = save_whole(run_dir.checkpoints, 7, base=base, stream=PromptStream(PROMPTS, 0).state(), trees=trees())
    flip(newest / "trees" / "open-00000.safetensors")
    assert check(run_dir).name == "step-00000005"
    assert "rollout batch 3 is damaged" in run_dir.checkpoints.skipped[0]


def test_nothing_is_lost_silently(run_dir):
    for folder in run_dir.checkpoints.root.glob("step-*"):
        truncate(folder / "control.json")
    with pytest.raises(StorageError, match=r"run\.dir: none of the checkpoints in .* is whole.*control\.json has"):
        check(run_dir)
    for folder in list(run_dir.checkpoints.root.glob("step-*")):
        shutil.rmtree(folder)
    with pytest.raises(StorageError, match="step-00000005 is gone"):
        check(run_dir)


def test_a_commit_of_the_same_step_that_was_cut_short_gives_the_former_one_back(run_dir):
    root = run_dir.checkpoints.root
    (root / "step-00000005").rename(root / "step-00000005.old.tmp")
    (root / "step-00000005.tmp").mkdir()
    assert check(run_dir).name == "step-00000005"


# ---- a run that is at its end ----


@pytest.mark.parametrize(
    ("config", "reached", "says"),
    [
        (
            {"run": {"steps": 5}},
            {},
            r"all 5 batches of run\.steps are trained \(the newest checkpoint has 5\), the model is in .*model\. There is",
        ),
        ({"run": {"steps": 4}}, {}, r"all 4 batches of run\.steps are trained \(the newest checkpoint has 5\)"),
        ({"run": {"steps": 6}}, {}, ""),
        ({"run": {"steps": 6}, "budget": {"tokens": 900}}, {"tokens_generated": 900}, r"budget\.tokens \(900\) is used up"),
        ({"run": {"steps": 6}, "budget": {"tokens": 901}}, {"tokens_generated": 900}, ""),
        ({"run": {"steps": 6, "max_wall_s": 60.0}}, {"wall_before_s": 60.0}, r"run\.max_wall_s \(60 s\) is over at step 5"),
        ({"run": {"steps": 6, "max_wall_s": 62.0}}, {"wall_before_s": 60.0}, ""),
    ],
)
def test_a_run_with_nothing_left_to_do_is_known_by_its_checkpoint(tmp_path, config, reached, says):
    made = replace(small_config(**config), resume="auto")
    run = RunDir.open(tmp_path / "run", config=made, config_yaml="")
    folder = save_whole(run.checkpoints, 5, base=small_base(tmp_path / "base"), progress=Progress(**reached, began_at=0.0))
    assert nothing_left(made, run, folder) == "", "it was killed before its result was written"
    run.write_summary(json.dumps({"version": 5}))
    run.model.mkdir()
    found = nothing_left(made, run, folder)
    assert re.search(says, found)
    assert bool(found) == bool(says)
    run.write_summary(json.dumps({"version": 4}))
    assert nothing_left(made, run, folder) == "", "the result is of an earlier end"
    run.close()
