"""Proposals of actor ratios: the search finds what is sensible, the data-sheet formulas by hand, the command's texts and errors."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from simulate_support import FixedWorkload, model, system

from fr3e_async.cli.main import run as fr3e
from fr3e_async.cli.sizing import forecast
from fr3e_async.config import Config
from fr3e_async.errors import ConfigError
from fr3e_async.learner.memory import KNOWN_SHAPES
from fr3e_async.settings.loader import load_config
from fr3e_async.simulate import roofline as r
from fr3e_async.simulate.propose import Candidate, Cluster, Search, Split, render
from fr3e_async.simulate.roofline import DEVICES, Device, roofline
from fr3e_async.simulate.service import SystemModel
from fr3e_async.simulate.workload import LogNormalWorkload


def gpu_config(**sections: dict[str, Any]) -> Config:
    pools = {"gpus": 1, "cpus": 1, "rollouts_in_flight": 64}
    defaults: dict[str, dict[str, Any]] = {"generators": pools, "explorers": pools, "learner": {"gpus": 1}}
    return system(groups=32, **{**defaults, **sections})


def best(times: SystemModel, *, gpus: int = 16, cpus: float = 0, **sections: dict[str, Any]) -> Split:
    return Search(gpu_config(**sections), times, Cluster(gpus=gpus, cpus=cpus), steps=3).best()[0].split


# An engine's time does not depend on its load here, so what is scarce is decode slots.
HEAVY = model(step=0.02, request=2e-3, prefill=1e-4, train=0.1, token=1e-3, workload=FixedWorkload(length=80, prompt=40))


def costlier_learner(times: SystemModel, factor: float) -> SystemModel:
    learner = times.service.learner
    return replace(times, service=replace(times.service, learner=replace(learner, token_s=factor * learner.token_s)))


def test_a_costlier_learner_gets_more_of_the_cluster() -> None:
    cheap, dear, dearest = (best(costlier_learner(HEAVY, factor)).ranks for factor in (0.25, 1, 4))
    assert cheap < dear < dearest


def test_longer_branches_get_more_explorers() -> None:
    """Anchors at the beginning: 12 branches of nearly full length for 4 bases. Without anchors there are no explorers at all."""
    split = best(HEAVY, algorithm={"min_gap": 3})
    assert split.explorers > split.generators
    flat = best(HEAVY, algorithm={"strategy": "grpo", "bases": 8})
    assert flat.explorers == 0


def test_a_dry_run_warns_of_a_learner_that_waits() -> None:
    """The paper's 7B on H100: with staleness 1 its eight ranks wait for the slowest groups; three ranks with staleness 4 work."""
    paper = load_config(["config=paper/qwen2.5-7b", "flow.max_staleness=1"]).config
    text = forecast(paper)
    assert re.match(r"  by the data sheet of H100: 1\d\d s a batch; idle: generators \d+ %", text.replace("%", " %"))
    assert re.search(r"warning: the learner waits 7\d% .*flow\.max_staleness=1 could be raised", text)
    assert "warning" not in forecast(load_config(["config=paper/qwen2.5-7b", "learner.ranks=3"]).config)


def test_a_proposal_fits_and_no_neighbour_is_better() -> None:
    search = Search(gpu_config(), HEAVY, Cluster(gpus=12, cpus=40), steps=3)
    found = search.best()
    assert all(sum((c.split.generators, c.split.explorers, c.split.ranks)) <= 12 for c in found)
    assert [c.report.step_s for c in found] == sorted(c.report.step_s for c in found)
    top = found[0].split
    for ranks, explorers in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        near = search.fill(top.ranks + ranks, top.explorers + explorers)
        assert near is None or near in search.tried


def test_verifiers_are_added_until_they_keep_up() -> None:
    slow = replace(HEAVY, service=replace(HEAVY.service, verifier=replace(HEAVY.service.verifier, answer_s=0.2)))
    candidate = Search(gpu_config(), slow, Cluster(gpus=12), steps=3).best()[0]
    assert candidate.config.verifiers.count > 1
    assert candidate.report.idle["verifiers"] > 0.4


def test_verifiers_take_their_part_where_cpus_are_scarce() -> None:
    config = system(groups=16)
    slow = replace(HEAVY, service=replace(HEAVY.service, verifier=replace(HEAVY.service.verifier, answer_s=0.05)))
    for candidate in Search(config, slow, Cluster(gpus=0, cpus=12), steps=2).best():
        c = candidate.config
        assert c.generators.count + c.explorers.count + c.learner.ranks + c.verifiers.count <= 12


def test_a_cluster_too_small_for_one_of_each_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"gpus=2: one actor of each role needs 3 \(generators\.gpus, explorers\.gpus, learner\.gpus\)"
    ):
        Search(gpu_config(), HEAVY, Cluster(gpus=2))


def test_the_table_says_what_it_is_and_what_to_set() -> None:
    found = Search(gpu_config(), HEAVY, Cluster(gpus=6), steps=2).best()
    text = render(found)
    assert text.startswith("simulation")
    split = found[0].split
    settings = f"generators.count={split.generators} explorers.count={split.explorers} learner.ranks={split.ranks}"
    assert settings in text
    assert "rollouts/s" in text


def test_data_sheet_times_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 weights of 4 bytes; 100 operations and 1000 bytes a second; efficiencies of 1, no overheads."""
    for name in ("MEMORY_EFFICIENCY", "DECODE_EFFICIENCY", "PREFILL_EFFICIENCY", "TRAIN_EFFICIENCY"):
        monkeypatch.setattr(r, name, 1.0)
    monkeypatch.setattr(r, "STEP_OVERHEAD_S", 0.0)
    shape = replace(KNOWN_SHAPES["toy"], parameters=1000, layers=1, kv_heads=1, head_dim=1)  # 2 · 4 bytes of cache a token
    device = Device(flops=100.0, memory_bytes_per_s=1000.0, memory_bytes=1e6)
    config = system(engine={"kv_cache_gib": 1.0})
    found = roofline(config, shape, device, LogNormalWorkload(mean=100, sigma=1, prompt=50), name="X").service
    assert found.engine.step_s == pytest.approx(4000 / 1000)
    assert found.engine.request_s == pytest.approx(2 * 1000 / 100 + 8 * (50 + 50) / 1000)
    assert found.engine.prefill_s == pytest.approx(2 * 1000 / 100)
    assert found.engine.kv_tokens == 2**30 // 8
    assert found.learner.token_s == pytest.approx((6 + 2) * 1000 / 100), "prox=recompute is one forward pass more"


def test_weights_that_do_not_fit_are_refused() -> None:
    config = load_config(["config=paper/qwen2.5-32b", "generators.gpus=1", "explorers.gpus=1"]).config
    shape = KNOWN_SHAPES["Qwen/Qwen2.5-32B"]
    with pytest.raises(ConfigError, match=r"generators\.gpus=1: 66 GB of weights do not fit into 80 GB|fit"):
        roofline(
            config, replace(shape, parameters=3 * shape.parameters), DEVICES["H100"], LogNormalWorkload(mean=9, sigma=1), name=""
        )


# ---- the command ----


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["config=paper/qwen2.5-7b", "gpus=12", "device=H100", "length=500", "sigma=300", "tries=8", "steps=1"]
    assert fr3e(["plan", *words, "flow.groups_per_step=8"]) == 0
    out = capsys.readouterr().out
    assert "data sheet of H100" in out
    assert "simulation" in out
    assert "learner.ranks=" in out
    assert "8 splits were simulated" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["config=toy", "gpus=many"], "gpus must be a number of at least 0, got 'many'"),
        (["config=toy", "cpus=1"], "cpus=1: one actor of each role needs"),
        (["config=paper/qwen2.5-7b"], "gpus=0: one actor of each role needs 3"),
        (["gpus=8"], "config=FILE is missing"),
        (["config=toy", "cpus=8", "flow.windw=2"], "unknown setting flow.windw (did you mean flow.window?)"),
        (["config=toy", "cpus=8", "model.path=no/such"], "set model.parameters, or give run= or model="),
        (["config=toy", "cpus=8", "run=/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fr3e(["plan", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_help_comes_from_the_module_and_a_dry_run_does_not_load_the_simulator() -> None:
    done = subprocess.run([sys.executable, "-m", "fr3e_async.plan", "--help"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: fr3e plan ")
    code = "import sys, fr3e_async.plan.placement; print([m for m in sys.modules if 'simulate' in m or 'control' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "[]"


def test_a_proposal_for_pools_that_come_and_go_can_be_copied_to_the_command_line() -> None:
    """The preset's own ``max`` is below what a larger cluster holds."""
    config = load_config(["config=paper/qwen2.5-7b"]).config
    search = Search(config, model(), Cluster(gpus=64), steps=1, most=2)
    made = search.config_of(Split(generators=30, explorers=20, ranks=14), verifiers=13)
    assert not made.generators.elastic
    settings = Candidate(split=Split(generators=30, explorers=20, ranks=14), config=made, report=None).settings  # type: ignore[arg-type]
    again = load_config(["config=paper/qwen2.5-7b", *settings.split()]).config
    assert (again.generators.count, again.generators.most, again.explorers.most, again.verifiers.most) == (30, 30, 20, 13)
    assert again.generators.least == config.generators.least
