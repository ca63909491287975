"""The learner benchmark's data and arithmetic, and the benchmark itself, quick, as a user starts it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import zlib
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from make_support import figures, make

from fr3e_async.algorithm.trees import build_forest, common_prefix
from fr3e_async.types import Prompt


@pytest.fixture(autouse=True)
def _benchmarks(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))


def test_recorded_groups_are_whole_and_small():
    from groups import FILE, load_recorded

    assert FILE.stat().st_size < 300_000
    recorded = load_recorded()
    groups = len(recorded.prompt_offsets) - 1
    assert groups == 64
    assert (np.bincount(recorded.group[recorded.node == 0], minlength=groups) == 4).all()
    anchors = set(
        zip(recorded.anchor_group.tolist(), recorded.anchor_node.tolist(), recorded.anchor_position.tolist(), strict=True)
    )
    for row in np.flatnonzero(recorded.node):
        assert (recorded.group[row], recorded.node[row], recorded.position[row]) in anchors
    assert (np.bincount(recorded.group[recorded.node > 0]) == 4 * np.bincount(recorded.anchor_group)).all()
    assert (recorded.anchor_entropy > 0).all()
    assert (recorded.logprobs <= 0).all()


def test_rows_begin_with_the_prompt_and_the_trunk_up_to_the_anchor():
    from groups import load_recorded

    recorded = load_recorded()
    for i, row in enumerate(list(recorded.rows())[:16]):
        prompt = recorded.prompts[: recorded.prompt_offsets[1]]
        trunk = np.concatenate([prompt, recorded.tokens[: recorded.offsets[1]]])
        assert row.context_len == len(prompt) + recorded.position[i]
        assert row.tokens[: row.context_len].tolist() == trunk[: row.context_len].tolist()
        assert row.tokens[row.context_len :].tolist() == recorded.tokens[recorded.offsets[i] : recorded.offsets[i + 1]].tolist()


@pytest.mark.parametrize("vocabulary", [1000, 16384])
@pytest.mark.parametrize("stretch", [2, 7])
def test_stretched_rows_share_what_they_shared(stretch, vocabulary):
    from groups import load_samples

    plain = load_samples(groups=5)
    longer = load_samples(groups=5, stretch=stretch, vocabulary=vocabulary)
    sizes = [len(build_forest([sample.tokens for sample in samples])) for samples in (plain, longer)]
    assert sizes[1] == stretch * sizes[0]
    for one, other in zip(plain, longer, strict=True):
        assert (len(other.tokens), other.context_len) == (stretch * len(one.tokens), stretch * one.context_len)
        assert other.advantages[0] == one.advantages[0]
    for (one, other), (left, right) in zip(combinations(plain, 2), combinations(longer, 2), strict=True):
        assert common_prefix(left.tokens, right.tokens) == stretch * common_prefix(one.tokens, other.tokens)


def test_apart_shares_contexts_and_nothing_else():
    """Prompt and completions once each: a branch's context is prompt and trunk, which are there already."""
    from groups import load_recorded, load_samples

    recorded = load_recorded()
    samples = load_samples(groups=[3], stretch=2, vocabulary=16384, apart=True)
    prompt = int(np.diff(recorded.prompt_offsets)[3])
    completions = sum(len(sample.versions) for sample in samples)
    assert len(build_forest([sample.tokens for sample in samples])) == 2 * prompt + completions


def test_samples_that_cannot_be_made_are_refused():
    from groups import load_samples

    with pytest.raises(ValueError, match="64 are recorded"):
        load_samples(groups=[64])
    with pytest.raises(ValueError, match="would not stay apart"):
        load_samples(groups=1, stretch=2, vocabulary=16)
    with pytest.raises(ValueError, match="would not stay apart"):
        load_samples(groups=1, stretch=2, vocabulary=500, apart=True)


def test_operations_are_counted_by_the_formula():
    """h 8, 2 layers, 4 heads and 2 key heads of 2, inner 10, vocabulary 16."""
    from passes import Work, flops

    config = SimpleNamespace(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=10, vocab_size=16
    )
    layer = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 10  # q, k, v, o and the three of the MLP: 432 weights
    assert layer == 432
    assert flops(config, Work(slots=5, head_slots=0, pairs=0)) == 6 * 5 * 2 * 432
    assert flops(config, Work(slots=0, head_slots=3, pairs=0)) == 6 * 3 * 8 * 16
    assert flops(config, Work(slots=0, head_slots=0, pairs=7)) == 3 * 7 * 2 * (2 * 8 + 2 * 8), "scores and values, 8 wide in all"


def test_groups_are_recorded_as_they_were_grown(monkeypatch):
    """With an engine that makes tokens up: what is recorded of two groups is what it gave."""
    import groups

    from fr3e_async import rollout
    from fr3e_async.settings.loader import load_config
    from fr3e_async.testing.engine import ScriptedEngine, completion

    def made_up(id):
        chance = np.random.default_rng(zlib.crc32(id.encode()))
        return completion(chance.integers(3, 64, size=30), chance.uniform(0.0, 4.0, size=30))

    async def start(spec):
        return ScriptedEngine(made_up)

    monkeypatch.setattr(rollout, "start_engine", start)
    prompts = [Prompt(uid=f"p{i}", text="", reference="", token_ids=np.arange(3, 8 + i, dtype=np.int32)) for i in range(2)]
    tokenizer = SimpleNamespace(all_special_ids=(), decode=lambda ids: "x", eos_token_id=2)
    monkeypatch.setattr("fr3e_async.data.tokenizer.end_tokens", lambda config, tokenizer: (2,))
    grown = asyncio.run(groups.record("fake", load_config(["config=toy"]).config, tokenizer, prompts))
    recorded = groups.columns(grown)
    assert np.diff(recorded.prompt_offsets).tolist() == [5, 6]
    assert (np.bincount(recorded.group[recorded.node == 0]) == 4).all()
    for number, (tree, anchors) in enumerate(grown):
        rows = [row for row in recorded.rows() if row.group == number]
        trunk = tree.bases[0]
        assert rows[0].tokens.tolist() == [*trunk.context(0), *trunk.completion(0).tokens]
        assert len(rows) == 4 + 4 * len(anchors)
        assert (recorded.anchor_group == number).sum() == len(anchors) > 0


def test_recorded_groups_are_told_of(repository, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, str(repository / "benchmarks" / "groups.py"), "--quick", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(repository)})
    assert done.returncode == 0, done.stderr
    found = figures(out)
    plain, longer, apart = found["recorded"], found["stretched"], found["stretched, apart"]
    assert longer["unique"] == 10 * plain["unique"]
    assert apart["tokens"] == longer["tokens"] == 10 * plain["tokens"]
    assert apart["unique"] > longer["unique"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_way_computes_the_same_and_the_tree_least(tmp_path):
    make("bench-learner", "--quick", "--threads", "1", "--json", str(tmp_path / "out.json"))
    found = figures(tmp_path / "out.json")
    for case in found["cases"].values():
        ways = case["ways"]
        assert set(ways) == {"padded", "flat", "flat, our attention", "tree", "dense"}
        assert case["compared"]["loss_error"] <= found["goals"]["agreement"]
        assert case["compared"]["grad_norm_error"] <= found["goals"]["agreement"]
        assert case["samples"]["unique"] <= ways["tree"]["slots"] < ways["flat"]["slots"] <= ways["padded"]["slots"]
        assert ways["tree"]["gflop"] < ways["flat"]["gflop"] < ways["padded"]["gflop"]
        assert ways["tree"]["peak_mib"] < ways["padded"]["peak_mib"]
    head = found["head"]
    for key in ("logprob", "entropy", "grad_norm"):
        assert len({round(row[key], 4) for row in head.values()}) == 1
