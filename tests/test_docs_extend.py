"""Each example of docs/extend.md, taken from the page and run as the page says."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fr3e_async.algorithm import anchors
from fr3e_async.algorithm.strategies import REGISTRY, GroupRewards, make_strategy
from fr3e_async.config import AlgorithmConfig, Config, EngineConfig
from fr3e_async.data.rows import read_rows
from fr3e_async.evaluation.suite import read_benchmark
from fr3e_async.observe.trackers import Feed, Trackers
from fr3e_async.settings.loader import load_config
from fr3e_async.types import AdvantageSpan, Completion, Finish, RolloutId
from fr3e_async.verify.rewards import check_reward

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")


def example(heading: str, language: str = "python") -> str:
    """The only code block of that language below a heading."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert section is not None
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", section[1], flags=re.MULTILINE | re.DOTALL)
    return block


def module(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(code, f"docs/extend.md: {name}", "exec"), made.__dict__)
    return made


def test_every_section_is_tested() -> None:
    sections = re.findall(r"^## An? (.*)$", PAGE, flags=re.MULTILINE)
    tested = [
        name.removeprefix("test_a_").removeprefix("test_an_").replace("_", " ") for name in globals() if name.startswith("test_a")
    ]
    assert sorted(sections) == sorted(tested)


def test_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards.py").write_text(example("A reward"))
    monkeypatch.syspath_prepend(str(tmp_path))
    check_reward("rewards:close_enough")
    reward: Callable[[str, str, str], float | None] = module("rewards", example("A reward"), monkeypatch).close_enough
    assert reward("it is 4", "5", "") == pytest.approx(0.8)
    assert [reward("5", "5", ""), reward("", "5", ""), reward("5", "x + 1", "")] == [1.0, 0.0, None]


def test_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jsonl").write_text(example("A dataset", "json"))
    (tmp_path / "mine.yaml").write_text(example("A dataset", "yaml"))
    monkeypatch.chdir(tmp_path)
    rows = read_rows(load_config(["config=mine.yaml"]).config)
    assert [(row.problem, row.answer) for row in rows.train] == [("What is 7 * 8?", "56")]
    assert rows.heldout == ()


def test_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = module("mine", example("A benchmark"), monkeypatch).MINE
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "2+3?", "answer": "5"}\n{"question": "1/2+1/2?", "answer": "It is \\\\boxed{1}."}\n')
    items = read_benchmark(mine, path=str(file))
    assert [(item.problem, item.reference.text) for item in items] == [("2+3?", "5"), ("1/2+1/2?", "1")]
    assert len(items) == mine.problems


def test_a_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "half", module("half", example("A strategy"), monkeypatch).Half)
    strategy = make_strategy(AlgorithmConfig(strategy="half", bases=3))
    assert strategy.plan.rollouts == 3
    ids = [RolloutId("g", 0, branch) for branch in range(3)]
    credit = strategy.credit(GroupRewards(group="g", rewards=dict(zip(ids, (1.0, 0.0, None), strict=True))))
    assert credit.advantages == {ids[0]: (AdvantageSpan(0, 0.5),), ids[1]: (AdvantageSpan(0, -0.5),)}
    assert strategy.credit(GroupRewards(group="g", rewards=dict.fromkeys(ids, 1.0))).rejected == "all_correct"


def test_an_anchor_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case is put where the page says, into a copy of the module."""
    code, last = inspect.getsource(anchors), "        case name:\n"
    assert code.count(last) == 1
    made = module("anchors_with_rise", code.replace(last, example("An anchor rule") + last), monkeypatch)
    entropies = np.array([0.1, 0.2, 0.9, 1.0, 0.3, 0.7], np.float32)  # rises most into 2 (+0.7), then into 5 (+0.4)
    columns: dict[str, Any] = {"logprobs": -entropies, "entropies": entropies, "entropy_errors": np.zeros(6, np.float32)}
    tokens = Completion(
        tokens=np.arange(6, dtype=np.int32), versions=np.zeros(6, np.int32), finish=Finish.STOP, **columns
    )  # fmt: skip
    rule = made.AnchorRule(name="rise", count=2, min_gap=1)
    chosen = made.select_anchors(rule, trunk=0, completion=tokens, eligible=np.arange(6) > 0, seed=(0,))
    assert [(anchor.position, round(anchor.score, 4)) for anchor in chosen] == [(2, 0.7), (5, 0.4)]


def test_a_metric(tmp_path: Path) -> None:
    """Two files are changed in a copy of the package; dashboard, tables, exporter and page then have the metric."""
    for folder in ("fr3e_async", "scripts", "docs", "cluster"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "images", "adr"))
    row, value = example("A metric", "text"), example("A metric")
    put_after(tmp_path / "fr3e_async/observe/metrics.py", "  verify/unknown  ", row)
    put_after(tmp_path / "fr3e_async/machine/tally.py", '"verify/policy_fraction": (', value)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "scripts/dashboard.py"], cwd=tmp_path, env=environment, check=True)
    panels = json.loads((tmp_path / "cluster/monitoring/grafana-dashboard.json").read_text())["panels"]
    (panel,) = [panel for panel in panels if panel["title"] == "Unknown of a batch"]
    assert panel["targets"][0]["expr"] == 'max by (run) (ray_fr3e_verify_unknown_ratio{run=~"$run"})'
    assert panel["fieldConfig"]["defaults"]["unit"] == "percentunit"
    assert "| `verify/unknown_fraction` | fraction | part of the rollouts" in (tmp_path / "docs/outputs.md").read_text()
    assert "| `ray_fr3e_verify_unknown_ratio` | gauge | ratio |" in (tmp_path / "docs/operations.md").read_text()
    code = (
        "from fr3e_async.machine.tally import Tally; from fr3e_async.report.page import declarations;"
        "tally = Tally(sums={'rollouts': 8, 'unknown': 2}); page = declarations([])['metrics']['verify/unknown_fraction'];"
        "print(tally.take()['verify/unknown_fraction'], page['code'][0])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0.25", "machine/tally.py:Tally.take"]


def test_a_setting(tmp_path: Path) -> None:
    """Two files are changed in a copy of the package; loader, help, schema, manual and engine then know the setting."""
    shutil.copytree(ROOT / "fr3e_async", tmp_path / "fr3e_async", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "docs" / "configuration.md", tmp_path)
    put_after(tmp_path / "fr3e_async/config/actors.py", "CPU threads of one engine;", example("A setting", "text"))
    put_after(tmp_path / "fr3e_async/rollout/install.py", '"MKL_NUM_THREADS": threads', example("A setting"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def python(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout

    output = python(
        "from fr3e_async.errors import ConfigError; from fr3e_async.rollout import EngineSpec, engine_environment\n"
        "from fr3e_async.settings.help import render_topic, schema; from fr3e_async.settings.loader import load_config\n"
        "config = load_config(['config=toy', 'engine.spin_s=0.5']).config\n"
        "spec = EngineSpec(model='m', end_token_ids=(1,), max_model_len=8, engine=config.engine)\n"
        "print(engine_environment(spec)['KMP_BLOCKTIME'], schema()['$defs']['EngineConfig']['properties']['spin_s']['minimum'])\n"
        "try: load_config(['config=toy', 'engine.spin_s=-1'])\n"
        "except ConfigError as error: print(error)\n"
        "print(' '.join(render_topic('engine.spin_s').split()))"
    )
    assert output.splitlines()[:2] == ["500 0", "engine.spin_s=-1: engine.spin_s must be at least 0, got -1"]
    assert "spins before it sleeps [a number, at least 0; s; default 0.2]" in output
    python("from pathlib import Path; from fr3e_async.settings.help import refresh; refresh(Path('configuration.md'))")
    row = (
        "| `engine.spin_s` | `0.2` | s | how long an idle CPU thread of an engine spins before it sleeps | a number, at least 0 |"
    )
    assert row in (tmp_path / "configuration.md").read_text(encoding="utf-8").splitlines()


def put_after(file: Path, mark: str, text: str) -> None:
    """Put ``text`` below the only line that holds ``mark``."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    (at,) = [number for number, line in enumerate(lines, 1) if mark in line]
    file.write_text("".join([*lines[:at], text, *lines[at:]]), encoding="utf-8")


def test_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module("csv_tracker", example("A tracker"), monkeypatch)
    config = Config(engine=EngineConfig(kv_cache_gib=0.25))
    feed = Feed("CSV", lambda: made.CsvTracker(config, tmp_path, settings={}))
    trackers = Trackers({"csv": feed}, close_s=5.0)
    trackers.write(1, {"train/loss": 0.5}, time_s=0.0)
    trackers.back_to(0)
    assert trackers.close() == []
    assert (tmp_path / "metrics.csv").read_text() == "1,train/loss,0.5\n0,back to this step,\n"
