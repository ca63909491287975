"""Placement, resource checks and the memory formulas, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fr3e_async.config import Config
from fr3e_async.errors import ConfigError, ModelError
from fr3e_async.learner.memory import (
    GIB,
    KNOWN_SHAPES,
    ModelShape,
    activation_bytes,
    dense_parameters,
    kv_bytes_per_token,
    logits_bytes,
    memory_estimate,
    model_shape,
    state_bytes,
    version_bytes,
)
from fr3e_async.plan.placement import check_nodes, check_resources, local_resources, placement, render_plan, totals
from fr3e_async.settings.help import knobs
from fr3e_async.settings.loader import load_config


def config(*overrides: str, base: str = "toy") -> Config:
    return load_config([f"config={base}", *overrides]).config


SMALL = ModelShape(
    parameters=1000, layers=2, hidden=8, intermediate=16, heads=4, kv_heads=2, head_dim=2, vocabulary=10, dtype="float32"
)


def test_placement_rows_and_totals() -> None:
    rows = placement(config("generators.count=3", "verifiers.resources={verifier: 2}", "verifiers.count=2", "learner.ranks=2"))
    assert [(r.role, r.actors, r.cpus, r.gpus) for r in rows] == [
        ("generators", 3, 0.5, 0),
        ("explorers", 1, 0.5, 0),
        ("verifiers", 2, 0.25, 0),
        ("learner", 2, 0.5, 0),
    ]
    assert totals(rows) == {"CPU": 3.5, "GPU": 0, "verifier": 4}


def test_a_role_without_actors_has_no_row() -> None:
    assert [row.role for row in placement(config(base="toy_grpo"))] == ["generators", "verifiers", "learner"]


def test_local_cluster_grows_to_the_need_unless_told_otherwise() -> None:
    big = config("generators.cpus=4.5", "generators.resources={engine: 1}")  # 4.5 + 0.5 + 0.25 + 0.5 = 5.75
    assert local_resources(big, machine_cpus=2, machine_gpus=0) == {"CPU": 6, "GPU": 0, "engine": 1}
    assert local_resources(big, machine_cpus=16, machine_gpus=1)["CPU"] == 16
    check_resources(big, local_resources(big, machine_cpus=2, machine_gpus=0))
    tight = config("generators.cpus=4.5", "ray.num_cpus=4")
    with pytest.raises(ConfigError, match=r"5\.75 CPUs needed .* offers 4; .*or raise ray\.num_cpus"):
        check_resources(tight, local_resources(tight, machine_cpus=64, machine_gpus=0))


def test_too_few_resources_name_the_sum_and_the_settings() -> None:
    with pytest.raises(ConfigError) as caught:
        check_resources(config("generators.count=4", "learner.ranks=2"), {"CPU": 2})
    assert str(caught.value) == (
        "more actors than resources: 3.75 CPUs needed (generators 4×0.5 + explorers 1×0.5 + verifiers 1×0.25 + learner 2×0.5) "
        "but the cluster offers 2; lower generators.count or explorers.count or verifiers.count or learner.ranks, "
        "or generators.cpus or explorers.cpus or verifiers.cpus or learner.cpus"
    )


def test_gpus_and_custom_resources_are_checked_too() -> None:
    fixed = [f"{pool}.{bound}=0" for pool in ("generators", "explorers", "verifiers") for bound in ("min", "max")]
    seven = config(*fixed, base="paper/qwen2.5-7b")
    plenty = {"CPU": 1000, "GPU": 24, "engine": 16, "verifier": 4, "learner": 8}
    check_resources(seven, plenty)
    with pytest.raises(ConfigError, match=r"24 GPUs needed .* offers 23; lower .*generators\.gpus or .*learner\.gpus$"):
        check_resources(seven, plenty | {"GPU": 23})
    with pytest.raises(ConfigError, match=r"8 of the custom resource 'learner' needed \(learner 8×1\) but the cluster offers 0"):
        check_resources(seven, {k: v for k, v in plenty.items() if k != "learner"})


def test_an_actor_lies_on_one_node() -> None:
    """Two nodes of 8 GPUs have 16 together, but no engine of 16."""
    node = {"CPU": 96.0, "GPU": 8.0, "engine": 8.0, "learner": 8.0, "verifier": 8.0, "object_store_memory": 200e9}
    large = config("generators.gpus=8", base="paper/qwen2.5-32b")
    check_nodes(large, [node, node], weights=61e9)
    wide = config("generators.gpus=16", base="paper/qwen2.5-32b")
    says = r"generators: one actor needs 8 CPU, 16 GPU, 1 engine, and lies on one node, .* \(the most of each: 96 CPU, 8 GPU, 8 engine\)"
    with pytest.raises(ConfigError, match=says):
        check_nodes(wide, [node, node])


def test_a_nodes_store_holds_two_versions() -> None:
    """Of the nodes that engines or ranks fit on; a node for verifiers alone may have less."""
    large = config(base="paper/qwen2.5-32b")
    gpus = {"CPU": 96.0, "GPU": 8.0, "engine": 8.0, "learner": 8.0, "object_store_memory": 131.1e9}
    judges = {"CPU": 16.0, "verifier": 4.0, "object_store_memory": 1e9}
    bundle = version_bytes(large, KNOWN_SHAPES["Qwen/Qwen2.5-32B"])
    assert bundle == 2 * 32_763_876_352
    check_nodes(large, [gpus, judges], weights=bundle)
    with pytest.raises(ConfigError, match=r"122\.0 GiB on a node for generators, but two versions .* take 122\.1 GiB"):
        check_nodes(large, [gpus | {"object_store_memory": 131.0e9}, judges], weights=bundle)


def test_fractions_that_add_up_exactly_fit() -> None:
    check_resources(config("generators.count=7", "generators.cpus=0.1"), {"CPU": 0.1 * 7 + 0.5 + 0.25 + 0.5})


def test_parameters_by_hand_and_of_published_models() -> None:
    # embedding 10·8; a layer: q, o 2·8·8, k, v 2·8·4, biases 8 + 8, mlp 3·8·16, norms 2·8 = 608; last norm 8
    sizes = {"layers": 2, "hidden": 8, "intermediate": 16, "heads": 4, "kv_heads": 2, "head_dim": 2, "vocabulary": 10}
    assert dense_parameters(**sizes, tied=True, attention_bias=True) == 80 + 2 * 608 + 8
    assert dense_parameters(**sizes, tied=False, attention_bias=False) == 160 + 2 * 592 + 8
    assert KNOWN_SHAPES["Qwen/Qwen2.5-7B"].parameters == 7_615_616_512
    assert KNOWN_SHAPES["Qwen/Qwen2.5-32B"].parameters == 32_763_876_352


def test_the_toy_models_sizes_are_those_of_the_model_that_is_built(tmp_path: Path) -> None:
    from fr3e_async.data.toy.tokenizer import build_tokenizer
    from fr3e_async.data.toy.warm_start import build_model

    model = build_model(build_tokenizer())
    model.config.save_pretrained(tmp_path)
    read = model_shape(config(f"model.path={tmp_path}"))
    assert read == KNOWN_SHAPES["toy"]
    assert read.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("dtype", "stage", "expected"),  # 1000 weights on 4 ranks: (weights, gradients, optimiser)
    [
        ("float32", 0, (4000, 4000, 8000)),
        ("float32", 1, (4000, 4000, 3000)),
        ("bfloat16", 0, (2000, 2000, 12000)),
        ("bfloat16", 1, (2000, 2000, 3000)),
        ("bfloat16", 2, (2000, 500, 3000)),
        ("bfloat16", 3, (500, 500, 3000)),
    ],
)
def test_learner_state_by_zero_stage(dtype: str, stage: int, expected: tuple[float, ...]) -> None:
    assert tuple(state_bytes(1000, dtype=dtype, zero_stage=stage, ranks=4).values()) == expected


def test_activations_logits_and_cache_by_hand() -> None:
    # a token and layer: 4·8 + 2·8 + 2·4 + 4·16 = 120 numbers
    assert activation_bytes(SMALL, tokens=5, bytes_each=2, checkpointing=False) == 5 * 2 * 120 * 2
    assert activation_bytes(SMALL, tokens=5, bytes_each=2, checkpointing=True) == 5 * (2 * 8 + 120) * 2
    size = {"tokens": 5, "bytes_each": 4, "gpu": False}
    head = 4 * 10 * SMALL.hidden
    assert logits_bytes(SMALL, **size, kept_mib=1) == 5 * 10 * 4 + 3 * 5 * 10 * 4 + head
    assert logits_bytes(SMALL, **size, kept_mib=0) == 3 * 5 * 10 * 4 + head
    assert logits_bytes(SMALL, tokens=10**9, bytes_each=2, gpu=True, kept_mib=256) == 3 * 4 * 2**25 + head
    assert kv_bytes_per_token(SMALL, 4) == 2 * 2 * 2 * 2 * 4


def test_estimate_of_a_run_on_cpu() -> None:
    toy = config("generators.count=2")
    rows = {row.role: row for row in memory_estimate(toy, SMALL)}
    assert list(rows) == ["generators", "explorers", "verifiers", "learner", "weights", "engine buffers", "checkpoint"]
    engine = rows["generators"]
    assert (engine.where, engine.copies) == ("host", 2)
    assert engine.gib == pytest.approx(0.25 + 4000 / GIB)
    tokens = GIB // 4 // 64
    assert engine.note == f"{tokens:,} tokens, {tokens // toy.context_length:,} sequences of full length"
    assert rows["learner"].gib == pytest.approx((16000 + 4096 * 2 * 120 * 4 + 4 * 4096 * 10 * 4 + 4 * 10 * 8) / GIB)
    assert rows["weights"].gib == pytest.approx(2 * 4000 / GIB)
    assert rows["engine buffers"].gib == pytest.approx(4000 / GIB)
    assert (rows["checkpoint"].where, rows["checkpoint"].copies, rows["checkpoint"].gib) == (
        "disk",
        3,
        pytest.approx(12000 / GIB),
    )


def test_what_a_rank_of_stage_3_holds_beside_its_share() -> None:
    """32B on 32 ranks, by hand; its checkpoints are 393 GB, which 280 s need 1.4 GB/s for."""
    shape = KNOWN_SHAPES["Qwen/Qwen2.5-32B"]
    rows = {row.role: row for row in memory_estimate(config(base="paper/qwen2.5-32b"), shape)}
    learner, share = rows["learner"], shape.parameters / 32 / GIB
    want = {"weights": 2 * share, "gradients": 2 * share, "optimiser": 12 * share, "gradients of a step in float32": 4 * share}
    want |= {"reduce bucket": 2 * 2**25 / GIB, "gathered weights": 2 * (152064 * 5120 + 50_000_000) / GIB}
    assert {name: learner.parts[name] for name in want} == pytest.approx(want)
    assert rows["checkpoint"].gib * GIB == 12 * 32_763_876_352
    assert "2 kept and one being written; within run.stop_grace_s=280 at 1.4 GB/s or more" in rows["checkpoint"].note


@pytest.mark.parametrize(("stage", "gib"), [(0, 4000), (2, 4000), (3, 2000)])
def test_a_reference_is_a_second_set_of_weights_in_host_memory(stage: int, gib: float) -> None:
    referring = config("loss.reference_coef=0.1", "learner.ranks=2", f"learner.zero_stage={stage}")
    rows = {row.role: row for row in memory_estimate(referring, SMALL)}
    assert (rows["reference"].where, rows["reference"].copies, rows["reference"].gib * GIB) == ("host", 2, pytest.approx(gib))
    assert rows["checkpoint"].gib * GIB == pytest.approx(16 * SMALL.parameters)  # 12 bytes of float32, and its own 4


def test_the_best_checkpoint_needs_room_too() -> None:
    rows = {
        row.role: row
        for row in memory_estimate(config("run.keep_best=true", "run.keep_checkpoints=3", "evaluation.every=2"), SMALL)
    }
    assert (rows["checkpoint"].copies, rows["checkpoint"].note.split(";")[0]) == (5, "3 kept, the best one and one being written")


def test_tensor_parallel_engines_divide_weights() -> None:
    rows = memory_estimate(config(base="paper/qwen2.5-32b"), KNOWN_SHAPES["Qwen/Qwen2.5-32B"])
    engine = rows[0]
    assert (engine.where, engine.copies) == ("GPU", 16)
    assert engine.parts == {"weights": pytest.approx(32_763_876_352 * 2 / 4 / GIB)}
    assert "up to 90% of the GPU" in engine.note


def test_shape_comes_from_a_local_folder(tmp_path: Path) -> None:
    raw = {
        "model_type": "qwen2", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 10, "tie_word_embeddings": True, "dtype": "float32",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    local = config(f"model.path={tmp_path}")
    assert model_shape(local) == dataclasses.replace(SMALL, parameters=80 + 2 * 608 + 8)
    (tmp_path / "model.safetensors").write_bytes(bytes(4 * 1500))
    shape = model_shape(local)
    assert shape is not None
    assert shape.parameters == 1500


def test_shape_of_an_unfamiliar_architecture_has_its_number_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 8}))
    shape = model_shape(config(f"model.path={tmp_path}", "model.parameters=77"))
    assert shape == ModelShape(parameters=77, dtype="float32")
    rows = {row.role: row for row in memory_estimate(config(), shape)}
    assert rows["learner"].note == "activations and logits unknown"


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_broken_config_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        model_shape(config(f"model.path={tmp_path}"))


def test_an_unknown_hub_model_is_said_to_be_unknown() -> None:
    unknown = config("model.path=some/model")
    assert model_shape(unknown) is None
    assert "model.path=some/model is not on this disk; set model.parameters" in render_plan(unknown, origins={})
    assert model_shape(config("model.path=some/model", "model.parameters=5")) == ModelShape(parameters=5)


def test_plan_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: toy\nlearner:\n  betas: [0.9, 0.99]\n  lr: 1e-3\n")
    loaded = load_config([f"config={tmp_path}/mine.yaml", "learner.lr=5e-4", "data.heldout=", "learner.threads=1"])
    shape = model_shape(loaded.config)
    text = render_plan(loaded.config, origins=loaded.origins, model=shape)
    rows = {line.split()[0]: " ".join(line.split()) for line in text.split("\n\n")[0].splitlines()[1:]}
    assert text.startswith("settings that differ from the defaults\n  run.name ")
    assert len(rows) == 22  # of the toy's 20 with another lr, and two more
    assert rows["learner.lr"] == "learner.lr 0.0005 default 1e-06 command line"
    assert rows["learner.betas"] == "learner.betas [0.9, 0.99] default [0.9, 0.95] mine.yaml:3"
    assert rows["data.heldout"] == "data.heldout empty default toy command line"
    assert "learner.threads" not in rows  # given, and the default
    for part in (
        "  together         4       1.75          0",
        "32 groups × 16 rollouts = 512 rollouts, 4 optimiser steps a batch",
        "at most 64 groups alive at once",
        "model of ",
    ):
        assert part in text
    every = render_plan(loaded.config, origins=loaded.origins, yaml=loaded.yaml, model=shape)
    assert "\n\nall settings\n  resume: never\n" in every
    assert len(every.splitlines()) > len(text.splitlines()) + len(knobs())
