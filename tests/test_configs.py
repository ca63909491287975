"""Every shipped config loads and can be dry-run; the paper's numbers are what the paper says; the manual is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from fr3e_async.help import PATH_COLUMNS, WIDTH, knobs, render_help, with_fresh_tables
from fr3e_async.loader import PACKAGED, LoadedConfig, load_config
from fr3e_async.memory import memory_estimate, model_shape
from fr3e_async.plan import check_resources, local_resources, render_plan

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml"))
PAPER = [name for name in SHIPPED if name.startswith("paper/qwen")]


def load(name: str) -> LoadedConfig:
    return load_config([f"config={ROOT / 'configs' / name}"])


def test_the_package_ships_the_same_files() -> None:
    assert sorted(str(path.relative_to(PACKAGED)) for path in PACKAGED.rglob("*.yaml")) == SHIPPED
    assert all((PACKAGED / name).samefile(ROOT / "configs" / name) for name in SHIPPED)
    assert len(PAPER) == 3


@pytest.mark.parametrize("name", SHIPPED)
def test_every_config_loads_and_dry_runs(name: str) -> None:
    loaded = load(name)
    text = render_plan(loaded.config, yaml=loaded.yaml, model=model_shape(loaded.config))
    assert "is not on this disk" not in text  # the estimate needs no download
    assert f"\n    name: {loaded.config.run.name}\n" in text


@pytest.mark.parametrize("name", ["toy.yaml", "toy_grpo.yaml"])
def test_toy_runs_fit_two_cores(name: str) -> None:
    config = load(name).config
    check_resources(config, local_resources(config, machine_cpus=2, machine_gpus=0))
    assert local_resources(config, machine_cpus=2, machine_gpus=0)["CPU"] == 2
    assert config.algorithm.rollouts_per_group * config.flow.groups_per_step == 512


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers(name: str) -> None:
    config = load(name).config
    assert config.algorithm.rollouts_per_group == 16
    assert config.flow.groups_per_step * config.algorithm.rollouts_per_group == 512
    assert (config.learner.lr, config.loss.clip_low, config.loss.clip_high) == (1e-6, 0.22, 0.28)
    assert (config.sampling.temperature, config.sampling.filtered, config.learner.optimiser_steps) == (1.0, False, 2)
    assert (config.learner.dtype, config.engine.dtype) == ("bfloat16", "bfloat16")
    assert (config.evaluation.samples, config.evaluation.temperature, config.evaluation.top_p) == (16, 1.0, 0.95)
    assert config.model.path.lower().endswith(Path(name).stem)
    # each optimiser step's rollouts divide evenly over the ranks
    assert 512 // config.learner.minibatches % config.learner.ranks == 0


def test_the_papers_lengths_and_parallelism() -> None:
    seven, math, large = (load(f"paper/qwen2.5-{name}.yaml").config for name in ("7b", "math-7b", "32b"))
    assert (seven.sampling.max_response, large.sampling.max_response) == (16384, 16384)
    assert math.context_length == 4096  # what the model was trained for
    assert (large.learner.zero_stage, large.generators.gpus, large.explorers.gpus) == (3, 4, 4)


@pytest.mark.parametrize("name", PAPER)
def test_learner_ranks_fit_an_80_gb_gpu(name: str) -> None:
    config = load(name).config
    learner = next(row for row in memory_estimate(config, model_shape(config)) if row.role == "learner")
    assert learner.gib < 60


def test_help_lists_every_knob_with_default_and_unit() -> None:
    text = render_help()
    flat = " ".join(text.split())
    for path, knob in knobs().items():
        assert f"\n  {path} " in text
        assert " ".join(knob.meaning.split()) in flat
    assert "[a whole number; versions; default 1]" in flat
    assert "[one of truncate, mask, off; default truncate]" in flat
    assert max(map(len, text.splitlines())) <= WIDTH
    assert max(map(len, knobs())) + 4 <= PATH_COLUMNS


def test_every_knob_has_a_meaning() -> None:
    assert [path for path, knob in knobs().items() if len(knob.meaning) < 8] == []


def test_the_manual_is_up_to_date() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert with_fresh_tables(text) == text, "run: python -m fr3e_async.help docs/configuration.md"


def test_the_manual_needs_its_markers() -> None:
    with pytest.raises(ValueError, match="must hold the lines"):
        with_fresh_tables("no markers")


def test_the_manual_names_every_shipped_config() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert [name for name in SHIPPED if f"`{name.removesuffix('.yaml')}`" not in text] == []
