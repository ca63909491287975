"""Every shipped config loads and can be dry-run; the paper's numbers are what the paper says; the manual is up to date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.learner.memory import memory_estimate, model_shape
from fr3e_async.plan.placement import check_resources, local_resources, render_plan
from fr3e_async.settings.help import PATH_COLUMNS, WIDTH, knobs, refresh, render_help, schema, with_fresh_tables
from fr3e_async.settings.loader import PACKAGED, LoadedConfig, load_config

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml"))
PAPER = [name for name in SHIPPED if name.startswith("paper/qwen")]


def load(name: str) -> LoadedConfig:
    below = f"{ROOT / 'configs' / 'toy.yaml'}," if name.startswith("presets/") else ""  # a preset is laid over a run
    return load_config([f"config={below}{ROOT / 'configs' / name}"])


def test_the_package_ships_the_same_files() -> None:
    assert sorted(str(path.relative_to(PACKAGED)) for path in PACKAGED.rglob("*.yaml")) == SHIPPED
    assert all((PACKAGED / name).samefile(ROOT / "configs" / name) for name in SHIPPED)
    assert len(PAPER) == 3


@pytest.mark.parametrize("name", SHIPPED)
def test_every_config_loads_and_dry_runs(name: str) -> None:
    loaded = load(name)
    text = render_plan(loaded.config, origins=loaded.origins, yaml=loaded.yaml, model=model_shape(loaded.config))
    assert "is not on this disk" not in text  # the estimate needs no download
    assert f"\n    name: {loaded.config.run.name}\n" in text


@pytest.mark.parametrize("name", ["toy.yaml", "toy_grpo.yaml"])
def test_toy_runs_fit_two_cores(name: str) -> None:
    config = load(name).config
    check_resources(config, local_resources(config, machine_cpus=2, machine_gpus=0))
    assert local_resources(config, machine_cpus=2, machine_gpus=0)["CPU"] == 2
    assert make_strategy(config.algorithm).plan.rollouts * config.flow.groups_per_step == 512


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers(name: str) -> None:
    config = load(name).config
    assert make_strategy(config.algorithm).plan.rollouts == 16
    assert config.flow.groups_per_step * make_strategy(config.algorithm).plan.rollouts == 512
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


def test_the_preset_of_the_paper_holds_the_defaults() -> None:
    preset = yaml.safe_load((ROOT / "configs" / "presets" / "paper.yaml").read_text())
    given = {f"{section}.{name}": value for section, values in preset.items() for name, value in values.items()}
    differing = {path: value for path, value in given.items() if value != knobs()[path].default}
    assert differing == {"algorithm.anchor_rule": "entropy"}, "auto is entropy for fr3e"


def test_the_preset_of_the_released_code() -> None:
    config = load("presets/reference.yaml").config
    plan = make_strategy(config.algorithm).plan
    assert (plan.bases, plan.trunks, plan.anchors, plan.branches, plan.rollouts) == (4, 2, 5, 16, 164)
    assert plan.rule is not None
    assert plan.rule.name == "surprisal"
    assert (config.algorithm.train_bases, config.learner.optimiser_steps) == (False, 1)


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
    assert "[a whole number, at least 0; versions; default 1]" in flat
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


# ---- the JSON Schema, by which editors complete and check YAML ----


def test_the_schema_is_one_and_takes_every_shipped_config(tmp_path: Path) -> None:
    refresh(tmp_path / "settings.json")
    written = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(written)
    for name in SHIPPED:
        Draft202012Validator(written).validate(
            OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / name))
        )  # 1e-6 is a number
    assert written["$defs"]["FlowConfig"]["properties"]["max_staleness"] == {
        "default": 1, "description": knobs()["flow.max_staleness"].meaning, "minimum": 0, "title": "Max Staleness",
        "type": "integer", "unit": "versions",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("run: {stepz: 3}", ["run"]),
        ("run: {steps: many}", ["run", "steps"]),
        ("run: {steps: 0}", ["run", "steps"]),
        ("sampling: {top_p: 1.5}", ["sampling", "top_p"]),
        ("loss: {importance: cut}", ["loss", "importance"]),
        ("algorithm: {strategy: grop}", ["algorithm", "strategy"]),
        ("data: {train_sources: [{path: 3}]}", ["data", "train_sources", 0, "path"]),
        ("base: {a: 1}", ["base"]),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(text: str, path: list[object]) -> None:
    found = list(Draft202012Validator(schema()).iter_errors(yaml.safe_load(text)))
    assert [list(error.absolute_path) for error in found] == [path]
