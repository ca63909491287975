"""Each benchmark, quick, as a user starts it: it ends well, and its JSON holds what docs and logs quote of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fr3e_async.types import Completion, Finish, RolloutBatch, RolloutId


def quick(repository: Path, name: str, out: Path) -> dict[str, Any]:
    """Run a benchmark and return its JSON."""
    command = [sys.executable, str(repository / "benchmarks" / f"{name}.py"), "--quick", "--json", str(out)]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["quick"] is True
    assert set(found["machine"]) >= {"processor", "cores", "load", "date"}
    return found


def test_prefill_is_counted_against_prefixes_and_whole_blocks(repository, monkeypatch):
    """Contexts of 10, 8 and 5 tokens of one sequence, then one of 8 that leaves it after 6; blocks of 4."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    from prefill import Known, Prefill, rounding

    spine = np.arange(10, dtype=np.int32)
    contexts = [spine, spine[:8], spine[:5], np.array([0, 1, 2, 3, 4, 5, 77, 78], dtype=np.int32)]
    one = np.zeros(1, dtype=np.float32)
    completions = [
        Completion(
            tokens=np.array([9], dtype=np.int32), logprobs=one, entropies=one, entropy_errors=one,
            versions=np.zeros(1, dtype=np.int32), finish=Finish.LENGTH, cached_tokens=cached,
        )
        for cached in (0, 4, 0, 4)
    ]  # fmt: skip
    batch = RolloutBatch.build(
        ids=[RolloutId("q@0", 1, m) for m in range(4)], contexts=contexts, prompt_lens=[1] * 4, context_of=range(4),
        completions=completions,
    )  # fmt: skip
    sums = Prefill()
    sums.add(batch, contexts=Known(), cache=Known(), block=4)
    assert sums.asked == 10 + 8 + 5 + 8
    assert sums.computed == 10 + 4 + 5 + 4
    assert sums.unique == 10 + 2
    assert sums.blocks == 10 + 4 + 1 + 4, "8 known tokens are two blocks, but the last token is computed, and so its block"
    assert rounding(prompt=200, response=1000, block=1) == pytest.approx(1 + 14 / (400 + 750), abs=0.001)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.long
def test_branching_recomputes_nothing_but_partial_blocks(repository, tmp_path):
    found = quick(repository, "branching", tmp_path / "out.json")
    assert set(found["loads"]) == {"long", "short"}
    for load in found["loads"].values():
        assert set(load["prefill"]) == {"two engines", "- generator", "- explorer", "one engine", "explorer uncached"}
        for name, row in load["prefill"].items():
            cached = name != "explorer uncached"
            assert (row["computed"] == row["blocks"]) == cached
            assert (row["computed"] == row["asked"]) == (not cached)
            assert (row["computed_to_blocks"] <= found["goal"]) == cached
            assert 0 < row["unique"] < row["asked"]
        for comparison in ("tree / independent, one engine", "tree / independent, two engines"):
            assert set(load["time"][comparison]) == {"generated", "wall", "cpu", "wall_to_floor", "cpu_to_floor"}
            assert all(value > 0 for value in load["time"][comparison].values())
        assert set(load["time"]["branches cached / uncached"]) == {"busy", "wall", "cpu"}
    for row in found["rounding"].values():
        assert (np.diff(list(row.values())) < 0).all(), "the longer the responses, the less whole blocks matter"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.long
def test_weights_are_handed_over_to_one_and_two_engines(repository, tmp_path):
    found = quick(repository, "weights", tmp_path / "out.json")["sizes"]["1M"]
    assert set(found["engines"]) == {"1", "2"}
    for engines, rows in found["engines"].items():
        assert set(rows) == {"all", "half", "none"}
        for row in rows.values():
            assert row["ratio"] * (1 + int(engines)) == pytest.approx(row["ratio_model"])
            assert row["ratio_model"] == pytest.approx((row["export"] + row["transfer"]) / row["memcpy"])
            assert row["whole"] > row["pause"] >= row["load"] + row["verify"]
        assert rows["all"]["sent"] == rows["all"]["copied"] == found["bytes"]
        assert rows["half"]["copied"] == pytest.approx(found["bytes"] / 2, rel=0.2)
        assert rows["none"]["sent"] == rows["none"]["copied"] == rows["none"]["load"] == 0
