"""``flow.max_staleness=0`` is synchronous training: bit for bit what a plain loop without any of the control plane makes.

The whole system (Ray, four kinds of actors, leases, the object store) and ``plain_loop`` train the same toy side by side. Engines run
one request at a time and share no prefixes, so that no number depends on what runs beside it; each rollout has its own seed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.engine]

STEPS, GROUPS = 3, 4
SETTINGS = (
    "config=toy", "flow.max_staleness=0", "sampling.reproducible=true", "engine.max_running=1", "engine.prefix_caching=false",
    f"run.steps={STEPS}", f"flow.groups_per_step={GROUPS}", "algorithm.bases=3", "algorithm.anchors=2", "algorithm.branches=2",
    "learner.minibatches=2", "data.heldout=",
)  # fmt: skip
QUIET = ("observe.console=off", "observe.tensorboard=false")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The folders of the system's run, of the plain loop, and of the plain loop with one rollout drawn from another seed."""

    system: Path
    plain: Path
    astray: Path


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    folder = tmp_path_factory.mktemp("synchronous")
    system = ["-m", "fr3e_async.main", *SETTINGS, *QUIET, f"run.dir={folder / 'run'}"]
    plain = [str(Path(__file__).with_name("plain_loop.py")), str(folder), *SETTINGS]
    with subprocess.Popen([sys.executable, *system], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as one:
        two = subprocess.run([sys.executable, *plain], capture_output=True, text=True, timeout=200)
        said = one.communicate(timeout=200)[0]
    assert two.returncode == 0, two.stderr
    assert (one.returncode, said) == (0, "")
    return Done(system=folder / "run", plain=folder / "plain", astray=folder / "astray")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(folder: Path) -> dict:
    return json.loads((folder / "told.json").read_text())


def system_groups(run: Path) -> dict[str, dict]:
    """By name, in the words of ``plain_loop.Group.told``. A group admitted while version v is live is for step v + 1."""
    step_of = {row["group"]: row["live"] + 1 for row in rows_of(run / "ledger.jsonl") if row["what"] == "admitted"}
    return {
        row["group"]: {
            "step": step_of[row["group"]],
            "group": row["group"],
            "outcome": row["outcome"],
            "generated": row["tokens"]["generated"],
            "rollouts": row["rollouts"],
            "correct": row["correct"],
            "positions": [state["position"] for state in row["states"][1:]],
            "scores": [state["score"] for state in row["states"][1:]],
            "alphas": [state["alpha"] for state in row["states"]],
        }
        for row in rows_of(run / "groups.jsonl")
    }


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """By name: type, shape and the very bytes, so that 0 and -0 are not the same."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}


@pytest.mark.timeout(420)
def test_the_same_groups_with_the_same_outcomes(done):
    """Prompts, tokens drawn, anchors with their entropies, verdicts and alphas; trained in the order of the prompt stream."""
    plain = told(done.plain)["groups"]
    assert system_groups(done.system) == {group["group"]: group for group in plain}
    batches = [row["groups"] for row in rows_of(done.system / "ledger.jsonl") if row["what"] == "train"]
    assert batches == [
        [group["group"] for group in plain if group["step"] == step and group["outcome"] == "trained"]
        for step in range(1, STEPS + 1)
    ]
    outcomes = {group["outcome"] for group in plain}
    assert len(outcomes) > 1, "no group was rejected: nothing was admitted in the place of another"
    assert any(group["positions"] for group in plain), "nothing was branched"
    assert len({group["step"] for group in plain}) == STEPS


def test_the_same_numbers_at_every_step(done):
    """Loss, gradient norm and all else that the learner tells of a step. JSON keeps every bit of a float."""
    system, plain = rows_of(done.system / "metrics.jsonl"), told(done.plain)["steps"]
    assert [row["step"] for row in system] == [row["step"] for row in plain] == list(range(1, STEPS + 1))
    assert [{name: row[name] for name in other} for row, other in zip(system, plain, strict=True)] == plain
    assert {"train/loss", "train/grad_norm", "train/tokens", "train/mismatch_nats"} <= plain[0].keys()
    assert all(row["lag/versions_max"] == 0 for row in system)
    assert all(row["train/grad_norm"] > 0 for row in system)


def test_the_same_final_weights_bit_for_bit(done):
    plain = tensors(done.plain / "weights.safetensors")
    assert tensors(done.system / "model" / "model.safetensors") == plain
    assert {kind for kind, _, _ in plain.values()} == {"float32"}


def test_one_rollout_drawn_from_another_seed_changes_the_weights(done):
    """Else the equality above would say little."""
    astray = told(done.astray)
    assert astray["astray"] is not None
    assert astray["steps"][0]["train/loss"] != told(done.plain)["steps"][0]["train/loss"]
    here, there = (tensors(folder / "weights.safetensors") for folder in (done.plain, done.astray))
    assert here.keys() == there.keys()
    assert sum(here[name] != there[name] for name in here) > len(here) / 2
