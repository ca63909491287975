"""``engine.options``: arguments that leave the model alone pass, what changes it is refused or followed by learner and export."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import small_config
from cli_support import TOY, Cli, guarded_cli, make_model
from learner_support import build_model, make_spec, start_rank

from fr3e_async.config import EngineConfig
from fr3e_async.config.vllm_options import ALLOWED, REFUSED
from fr3e_async.errors import ConfigError
from fr3e_async.learner.layout import Inputs
from fr3e_async.learner.packing import collate, unscored
from fr3e_async.learner.policy import load_policy
from fr3e_async.learner.spec import LearnerSpec
from fr3e_async.rollout import EngineSpec
from fr3e_async.run.export import export
from fr3e_async.settings.loader import load_config
from fr3e_async.wiring import PolicyFiles
from fr3e_async.wiring.starting import engine_spec, learner_spec

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
OVERRIDES = {"max_position_embeddings": 512, "rope_parameters": YARN}
FORMER = {"calculate_kv_scales", "rope_scaling", "rope_theta"}  # arguments of earlier releases, which people still try


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with guarded_cli(tmp_path, monkeypatch, capsys) as guarded:
        yield guarded


def test_every_name_is_one_of_the_installed_vllm() -> None:
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        pytest.skip("no vLLM is installed")
    tree = ast.parse((Path(package.origin).parent / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs")]
    fields = [part.target for node in classes for part in node.body if isinstance(part, ast.AnnAssign)]
    names = {target.id for target in fields if isinstance(target, ast.Name)}
    assert {*ALLOWED, *REFUSED} - names == FORMER
    assert not set(ALLOWED) & set(REFUSED)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quantization": "fp8"}, "must not set quantization: the learner trains and exports the weights as they are"),
        ({"max_num_seqs": 3}, "must not set max_num_seqs: set engine.max_running"),
        ({"kv_cache_dtype": "fp8"}, "must not set kv_cache_dtype: the learner computes with whole keys and values"),
        ({"speculative_config": {}}, "must not set speculative_config: log-probs and entropies are measured where one token"),
        ({"logits_processors": ["m.C"]}, "must not set logits_processors: it changes what is sampled"),
        ({"override_generation_config": {}}, "must not set override_generation_config: it changes what is sampled"),
        ({"enable_lora": True}, "must not set enable_lora: the learner trains whole weights"),
        ({"rope_theta": 3.0}, "must not set rope_theta: learner and export would not see it"),
        ({"worker_cls": "m.C"}, "worker_cls is none of the vLLM arguments that are known"),
        ({"max_num_batched_tokns": 3}, r"did you mean max_num_batched_tokens\?"),
        ({"hf_overrides": {"num_hidden_layers": 1}}, "hf_overrides must not set num_hidden_layers: learner and export follow"),
        ({"hf_overrides": [1]}, "hf_overrides must be a mapping"),
        ({"hf_overrides": {"max_position_embeddings": "many"}}, "max_position_embeddings must be a whole number, got 'many'"),
        ({"hf_overrides": {"rope_parameters": {"rope_type": "yarn"}}}, "must be a mapping with rope_type and rope_theta"),
    ],
)
def test_what_changes_the_model_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"^engine\.options.*{says}") as caught:
        EngineConfig(options=options)
    assert "\n" not in str(caught.value)


def test_what_changes_nothing_passes() -> None:
    EngineConfig(options={"max_num_batched_tokens": 64, "compilation_config": {"level": 3}, "hf_overrides": OVERRIDES})


def test_it_ends_a_command_before_anything_starts(cli: Cli) -> None:
    cli.refused(*TOY, "engine.options.quantization=fp8", says=["engine.options must not set quantization"])
    make_model(cli.folder / "fp8", quantization_config={"quant_method": "fp8"})
    cli.refused(*TOY, "model.path=fp8", says=["model.path: the weights of fp8 are quantised (quantization_config)"])
    make_model(cli.folder / "nested", text_config={"max_position_embeddings": 100})
    override = "engine.options.hf_overrides.max_position_embeddings=200"
    cli.refused(*TOY, "model.path=nested", override, says=["hf_overrides does not reach the text_config of model.path=nested"])


def test_engines_and_learner_are_told_the_same() -> None:
    config = load_config(["config=toy", f"engine.options.hf_overrides={json.dumps(OVERRIDES)}"]).config
    model = PolicyFiles(path="toy", end_token_ids=(1,))
    assert engine_spec(config, model, config.generators, seed=0).engine.options["hf_overrides"] == OVERRIDES
    assert learner_spec(config, model, dumps=Path("dumps")).overrides == OVERRIDES


def logprobs(path: Path, **settings: Any) -> torch.Tensor:
    from dataclasses import replace

    row = np.arange(60, dtype=np.int32)
    policy = load_policy(replace(make_spec(path), **settings))
    policy.causal_lm.set_attn_implementation("eager")
    with torch.no_grad():
        return policy(Inputs.of(collate([unscored(row[:1], row[1:])], packing="padded"), torch.device("cpu")))[0]


def test_the_learner_computes_and_exports_with_the_override(tmp_path: Path) -> None:
    from dataclasses import replace

    plain = build_model(tmp_path / "plain")
    rank = start_rank(replace(make_spec(plain), overrides=OVERRIDES))
    rank.save(tmp_path, "checkpoint")
    rank.save_hf(tmp_path / "model")
    export(tmp_path / "checkpoint", tmp_path / "exported")
    found = logprobs(plain, overrides=OVERRIDES)
    assert float((found - logprobs(plain)).abs().max()) > 1e-4
    for folder in ("model", "exported"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert {name: config[name] for name in OVERRIDES} == OVERRIDES
        torch.testing.assert_close(logprobs(tmp_path / folder), found)


ENGINE: dict[str, Any] = {
    "dtype": "bfloat16", "eager": False, "kv_cache_gib": 0.5, "gpu_memory_utilization": 0.7, "block_size": 16, "max_running": 9, "threads": 3,
    "prefix_caching": False, "clear_cache_on_update": False, "entropy": "topk", "entropy_top_k": 7, "options": {"max_num_batched_tokens": 640},
}  # fmt: skip


def test_engines_and_ranks_are_told_every_setting() -> None:
    """None of them is at its default, so one that is not passed on is missed."""
    config = small_config(
        engine=ENGINE,
        model={"path": "some/model", "revision": "abc", "trust_remote_code": True},
        generators={"gpus": 2, "cpus": 16.0},
        sampling={"temperature": 0.5, "max_response": 30},
        data={"max_prompt": 12},
        learner={"stop_above_mismatch": 0.25, "dtype": "bfloat16", "gpus": 1, "cpus": 4.0},
        run={"seed": 5},
        flow={"max_staleness": 3},
        observe={"verbose": True},
    )
    model = PolicyFiles(path="folder", end_token_ids=(1, 4))
    assert engine_spec(config, model, config.generators, seed=17) == EngineSpec(
        model="folder", end_token_ids=(1, 4), max_model_len=42, revision="abc", trust_remote_code=True, tensor_parallel=2, seed=17,
        seeded=config.sampling.reproducible, thoughts=tuple(config.data.thoughts), verbose=True,
        engine=EngineConfig(**ENGINE | {"threads": 8}),
    )  # fmt: skip
    assert learner_spec(config, model, dumps=Path("dumps")) == LearnerSpec(
        path="folder", learner=replace(config.learner, threads=4), loss=config.loss, revision="abc", trust_remote_code=True, temperature=0.5, max_staleness=3,
        batches=100,
        longest=42, seed=5, dump_folder="dumps", verbose=True,
    )  # fmt: skip
    collective = small_config(weights={"transfer": "collective"})
    assert engine_spec(collective, model, collective.explorers, seed=0).transfer == "gloo"


@pytest.mark.parametrize(
    ("engine", "learner", "top_k", "bound"),
    [
        ("float32", "float32", 0, 0.025),
        ("bfloat16", "float32", 0, 0.25),
        ("float32", "bfloat16", 0, 0.25),
        ("float32", "float32", 9, 0.0),
    ],
)
def test_the_bound_of_a_mismatch_is_of_both_types(engine: str, learner: str, top_k: int, bound: float) -> None:
    """A truncated distribution has other log-probs by right."""
    config = small_config(
        engine={"dtype": engine},
        sampling={"top_k": top_k},
        loss={"importance": "off"},
        learner={"dtype": learner, "stop_above_mismatch": 0.25, "gpus": int(learner == "bfloat16")},
    )
    spec = learner_spec(config, PolicyFiles(path="folder", end_token_ids=(1,)), dumps=Path("dumps"))
    assert spec.learner.stop_above_mismatch == pytest.approx(bound)
