"""One learner rank with real DeepSpeed in this process, against an update written out in plain torch."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from learner_support import (
    LOSS,
    PlainLearner,
    build_model,
    exported,
    largest_difference,
    make_samples,
    make_spec,
    start_rank,
    weights_of,
)

from fr3e_async.config import LossConfig
from fr3e_async.learner.metrics import TokenAgeError
from fr3e_async.learner.spec import free_address, rank_environment
from fr3e_async.observe.metrics import METRICS
from fr3e_async.types import TrainSample

TOLERANCE = 3e-5  # Adam divides by the gradient's size, so float noise in tiny gradients shows; a step moves weights by 1e-3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


def on_policy(plain: PlainLearner, samples: list[TrainSample]) -> list[TrainSample]:
    """The same samples with the behaviour log-probs that the model itself gives."""
    out = []
    for sample in samples:
        with torch.no_grad():
            log_p = plain.log_p(plain.model, sample).numpy()
        behaviour = log_p[np.arange(len(log_p)), sample.tokens[sample.context_len :]]
        out.append(replace(sample, behaviour_logprobs=behaviour))
    return out


@pytest.mark.parametrize(
    "loss",
    [
        LOSS,
        LossConfig(prox="behaviour"),
        LossConfig(importance_cap=1.1),
        LossConfig(objective="cispo", mean="sequence"),
        LossConfig(mean="constant", mean_length=24),
        LossConfig(reference_coef=0.1, reference_kl="k1", reference_in="token_reward", reference_reset=1),
        LossConfig(reference_coef=0.1, reference_kl="k2", reference_in="sequence_reward"),
    ],
    ids=["all terms", "prox behaviour", "plain", "cispo", "constant", "reference by token", "reference by sequence"],
)
def test_equals_plain_torch(model: Path, loss: LossConfig) -> None:
    spec = make_spec(model, loss=loss)
    rank, plain = start_rank(spec), PlainLearner(spec)
    for version in (1, 2):
        samples = make_samples(version, version=version - 1)
        report = rank.train(samples, version=version)
        norms = plain.train(samples)
        assert report.optimiser_steps == len(norms) == 4
        assert report.metrics["train/grad_norm"] == pytest.approx(np.mean(norms), rel=1e-4)
        assert report.metrics["train/grad_norm_max"] == pytest.approx(max(norms), rel=1e-4)
        assert ("train/reference_kl_nats" in report.metrics) == (loss.reference_coef > 0)
    assert largest_difference(weights_of(rank.export(2)), plain.weights()) < TOLERANCE


def test_weights_are_sent_by_the_names_of_checkpoints(tmp_path: Path) -> None:
    """transformers renames a mixture's layers in memory, and joins its experts; no engine loads those names."""
    from safetensors.torch import load_file
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=128,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    rank = start_rank(make_spec(tmp_path))
    stored = load_file(tmp_path / "model.safetensors")
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in stored
    assert largest_difference(weights_of(exported(rank, 1, bucket_bytes=1)), stored) == 0
    manifest = rank.describe(1)
    assert dict(zip(manifest.names, manifest.shapes, strict=True)) == {name: tuple(t.shape) for name, t in stored.items()}
    assert manifest.checksums == exported(rank, 1).manifest.checksums


def test_what_is_stored_and_not_trained_is_sent_too_if_the_type_can_hold_it() -> None:
    """A router's correction: an engine would keep the one of the model folder, or round it."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    from fr3e_async.errors import ModelError
    from fr3e_async.learner.rank import sent_weights

    model = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=32, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=0,
            q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        )
    )  # fmt: skip
    name = "model.layers.0.mlp.gate.e_score_correction_bias"
    buffers = {name: dict(model.named_buffers())[name].fill_(1 / 3)}
    engine = SimpleNamespace(
        model=SimpleNamespace(causal_lm=model), state=SimpleNamespace(buffers=buffers),
        weight_buckets=lambda: [list(model.named_parameters())],
    )  # fmt: skip
    sent = dict(pair for bucket in sent_weights(engine) for pair in bucket)
    assert torch.equal(sent[name], buffers[name])
    assert "model.layers.0.mlp.experts.3.down_proj.weight" in sent
    model.lm_head.to(torch.bfloat16)
    model.model.embed_tokens.to(torch.bfloat16)
    with pytest.raises(ModelError, match=rf"{name} of this model cannot be sent as torch\.bfloat16; set learner\.dtype=float32"):
        list(sent_weights(engine))


@pytest.mark.parametrize("change", [{"micro_batch_tokens": 1000}, {"activation_checkpointing": True}])
def test_memory_settings_do_not_change_the_update(model: Path, change: dict[str, Any]) -> None:
    samples = make_samples(1)
    ranks = [start_rank(make_spec(model)), start_rank(make_spec(model, **change))]
    reports = [rank.train(samples, version=1) for rank in ranks]
    assert largest_difference(*(weights_of(rank.export(1)) for rank in ranks)) < TOLERANCE
    assert reports[0].metrics["train/loss"] == pytest.approx(reports[1].metrics["train/loss"], abs=1e-6)


@pytest.mark.parametrize("stage", [0, 3])
def test_activation_checkpointing_runs_every_layer_again(model: Path, stage: int) -> None:
    """Counted in the product's own pass: equal weights alone would not tell that nothing was saved."""
    counts = []
    for checkpointing in (False, True):
        rank = start_rank(make_spec(model, activation_checkpointing=checkpointing, zero_stage=stage, epochs=1, minibatches=1))
        passes: list[int] = []
        layer = rank.engine.model.causal_lm.model.layers[0]
        layer.mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(torch.is_grad_enabled()))
        rank.train([replace(s, minibatch=0) for s in make_samples(1)], version=1)
        counts.append(sum(passes))
    assert counts[1] == 2 * counts[0] > 0


def test_report_of_one_on_policy_step(model: Path) -> None:
    spec = make_spec(model, minibatches=1, epochs=1, loss=LossConfig())
    samples = [replace(s, minibatch=0) for s in on_policy(PlainLearner(spec), make_samples(5, version=3))]
    report = start_rank(spec).train(samples, version=4)
    tokens = sum(len(s.tokens) - s.context_len for s in samples)
    ages = np.concatenate([3 - s.versions for s in samples])
    metrics = report.metrics
    ours = ("train/", "lag/")
    declared = {name for name in METRICS if name.startswith(ours)} - {"train/reference_kl_nats"}  # there is no reference
    assert {name for name in metrics if name.startswith(ours)} == declared
    assert (report.version, report.tokens, report.optimiser_steps) == (4, tokens, 1)
    assert report.time_s > 0
    # With one step the current policy is the proximal one, and here the behaviour policy too.
    assert metrics["train/ratio_mean"] == metrics["train/ratio_max"] == 1.0
    assert metrics["train/mismatch_nats"] == pytest.approx(0, abs=1e-5)
    assert metrics["train/ess_fraction"] == pytest.approx(1, abs=1e-6)
    assert metrics["train/kl_nats"] == metrics["train/clip_low_fraction"] == metrics["train/clip_high_fraction"] == 0
    expected_loss = -sum(float(s.advantages.sum()) for s in samples) / tokens
    assert metrics["train/loss"] == pytest.approx(expected_loss, abs=1e-5)
    assert metrics["lag/versions_mean"] == pytest.approx(ages.mean())
    assert metrics["lag/versions_max"] == ages.max() == 1
    assert 0 < metrics["train/entropy_nats"] <= math.log(64)
    assert 0 <= metrics["train/padding_fraction"] < 0.5


def test_on_fresh_samples_every_correction_gives_the_synchronous_update(model: Path) -> None:
    """Staleness 0: tokens sampled by the very weights that the update starts from."""
    spec = make_spec(model, loss=LossConfig(importance="off"), epochs=1)
    samples = on_policy(PlainLearner(spec), make_samples(5))
    synchronous = start_rank(spec)
    synchronous.train(samples, version=1)
    expected = weights_of(exported(synchronous, 1))
    for loss in (
        LossConfig(),
        LossConfig(importance="mask", importance_floor=0.5),
        LossConfig(importance="mask", sequence_mask=1.01),
        LossConfig(prox="behaviour"),
    ):
        rank = start_rank(make_spec(model, loss=loss, epochs=1))
        rank.train(samples, version=1)
        assert largest_difference(weights_of(exported(rank, 1)), expected) < TOLERANCE
    stale = start_rank(make_spec(model, epochs=1, loss=LossConfig()))  # the comparison can fail
    stale.train(make_samples(5), version=1)
    assert largest_difference(weights_of(exported(stale, 1)), expected) > 10 * TOLERANCE


def test_entropies_are_those_of_the_whole_vocabulary_and_stay_with_their_row(model: Path) -> None:
    spec = make_spec(model, micro_batch_tokens=60)  # several passes, in an order of their own
    rank, plain = start_rank(spec), PlainLearner(spec)
    rows = [(s.tokens[: s.context_len], s.tokens[s.context_len :]) for s in make_samples(6)]
    for sample, entropies in zip(make_samples(6), rank.entropies(rows), strict=True):
        with torch.no_grad():
            log_p = plain.log_p(plain.model, sample).double()
        exact = -(log_p.exp() * log_p).sum(-1)
        assert entropies == pytest.approx(exact.numpy(), abs=1e-4)
    assert rank.entropies([]) == []


def test_a_later_step_clips_on_both_sides(model: Path) -> None:
    spec = make_spec(model, lr=3e-2, epochs=3, loss=LossConfig())
    report = start_rank(spec).train(make_samples(2), version=1)
    assert report.metrics["train/clip_low_fraction"] > 0
    assert report.metrics["train/clip_high_fraction"] > 0
    assert report.metrics["train/ratio_max"] > 1.28


def test_learning_rate_warms_up_and_stays(model: Path) -> None:
    rank = start_rank(make_spec(model, warmup_steps=3, epochs=1, minibatches=2))
    rates = [rank.train(make_samples(v), version=v).metrics["train/lr"] for v in (1, 2, 3)]  # of steps 2, 4 and 6
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3])


def test_a_minibatch_without_tokens_is_skipped(model: Path) -> None:
    spec = make_spec(model, epochs=1)
    rank, plain = start_rank(spec), PlainLearner(replace(spec, learner=replace(spec.learner, minibatches=1)))
    samples = [s for s in make_samples(1) if s.minibatch == 1]
    report = rank.train(samples, version=1)
    plain.train([replace(s, minibatch=0) for s in samples])
    assert report.optimiser_steps == 1
    assert largest_difference(weights_of(rank.export(1)), plain.weights()) < TOLERANCE


def test_an_empty_batch_changes_no_weight(model: Path) -> None:
    rank = start_rank(make_spec(model))
    before = weights_of(rank.export(0))
    report = rank.train([], version=1)
    assert (report.version, report.tokens, report.optimiser_steps) == (1, 0, 0)
    assert largest_difference(weights_of(rank.export(1)), before) == 0
    assert all(math.isfinite(value) for value in report.metrics.values())


def test_export_is_the_state_dict_with_tied_weights_once(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for path in (model, build_model(tmp_path / "untied", tied=False)):
        bundle = exported(start_rank(make_spec(path)), 7)
        state = AutoModelForCausalLM.from_pretrained(path).state_dict()
        if path == model:
            del state["lm_head.weight"]
        assert bundle.version == 7
        assert bundle.manifest.dtype == "float32"
        assert largest_difference(weights_of(bundle), state) == 0


def test_what_is_told_of_the_weights_without_sending_them_is_what_is_sent(model: Path) -> None:
    rank = start_rank(make_spec(model))
    description = rank.describe(4)
    assert description.checksum == exported(rank, 4).checksum
    assert (description.version, rank.describe(None).version, exported(rank, None).version) == (4, 0, 0)
    with pytest.raises(RuntimeError, match=r"open_transfer\(\) has not been called"):
        rank.send()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_trains_and_exports_its_bits(model: Path, stage: int) -> None:
    spec = make_spec(model, dtype="bfloat16", zero_stage=stage)
    rank, plain = start_rank(spec), PlainLearner(spec)
    report = rank.train(make_samples(1), version=1)
    plain.train(make_samples(1))
    bundle = exported(rank, 1)
    assert (bundle.manifest.dtype, bundle.buckets[0][0].dtype) == ("bfloat16", np.uint16)
    assert report.optimiser_steps == 4
    found = {name: weight.float() for name, weight in weights_of(bundle).items()}
    assert largest_difference(found, plain.weights()) < 2e-2


def test_save_load_continues_identically(model: Path, tmp_path: Path) -> None:
    spec = make_spec(model, warmup_steps=6)
    first = start_rank(spec)
    first.train(make_samples(1), version=1)
    first.save(tmp_path, "state")
    second = start_rank(spec)
    second.load(tmp_path, "state")
    assert second.version == 1
    reports = [rank.train(make_samples(2), version=2) for rank in (first, second)]
    assert reports[0].metrics == reports[1].metrics
    assert largest_difference(*(weights_of(rank.export(2)) for rank in (first, second))) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_resume_continues_with_the_rate_that_it_is_given(model: Path, tmp_path: Path) -> None:
    """Four optimiser steps of a warm-up of seven are done: the fifth has 5/8 of the new rate, and the one after the warm-up all of it."""
    first = start_rank(make_spec(model, warmup_steps=7, lr=8e-4))
    first.train(make_samples(1), version=1)
    assert first.engine.lr == pytest.approx(5e-4)
    first.save(tmp_path, "state")
    second = start_rank(make_spec(model, warmup_steps=7, lr=8e-5))
    second.load(tmp_path, "state")
    assert second.engine.lr == pytest.approx(5e-5, rel=1e-12)
    second.train(make_samples(2), version=2)
    assert second.engine.lr == pytest.approx(8e-5, rel=1e-12)


def test_a_branch_begins_with_the_optimiser_of_another_run(model: Path, tmp_path: Path) -> None:
    """Its next update is that of the run that continued; without the optimiser it is another one. Versions count from 0."""
    loss = replace(LOSS, reference_coef=0.0)
    first = start_rank(make_spec(model, loss=loss))
    first.train(make_samples(1), version=1)
    first.save(tmp_path, "state")
    first.save_hf(tmp_path / "start")
    spec = replace(make_spec(model, loss=loss), path=str(tmp_path / "start"))
    whole, bare = start_rank(replace(spec, optimizer_from=str(tmp_path / "state"))), start_rank(spec)
    for rank in (whole, bare):
        rank.begin()
        assert rank.version == 0
        assert largest_difference(weights_of(rank.export(0)), weights_of(first.export(1))) == 0
        rank.train(make_samples(2), version=1)
    first.train(make_samples(2), version=2)
    assert largest_difference(weights_of(whole.export(1)), weights_of(first.export(2))) == 0
    assert largest_difference(weights_of(bare.export(1)), weights_of(first.export(2))) > 1e-5


def test_the_reference_of_a_branch_is_what_it_begins_with(model: Path, tmp_path: Path) -> None:
    """Not that of the other run, which is in its checkpoint."""
    first = start_rank(make_spec(model))
    first.train(make_samples(1), version=1)
    first.save(tmp_path, "state")
    branch = start_rank(replace(make_spec(model), optimizer_from=str(tmp_path / "state")))
    branch.begin()
    begun = weights_of(branch.export(0))
    with branch.engine.reference():
        assert largest_difference(weights_of(branch.export(0)), begun) == 0
    with first.engine.reference():
        assert largest_difference(weights_of(first.export(0)), begun) > 1e-5
    assert largest_difference(weights_of(first.export(1)), begun) == 0


def test_a_renewed_reference_takes_no_memory_of_its_own_and_without_a_weight_there_is_none(model: Path) -> None:
    rank, bare = (start_rank(make_spec(model, loss=replace(LOSS, reference_coef=c, reference_reset=1))) for c in (0.1, 0.0))
    before = [held.data_ptr() for held in rank.engine.state.reference.held]
    rank.train(make_samples(1), version=1)
    bare.train(make_samples(1), version=1)
    reference = rank.engine.state.reference
    assert (reference.version, [held.data_ptr() for held in reference.held]) == (1, before)
    now = weights_of(rank.export(1))
    with rank.engine.reference():
        assert largest_difference(weights_of(rank.export(1)), now) == 0
    assert bare.engine.state.reference is None


def test_a_rate_that_falls_starts_over_in_a_branch(model: Path, tmp_path: Path) -> None:
    """Two batches of four optimiser steps, in a line to 0: a branch that continued from there would never change a weight."""
    spec = make_spec(model, lr_schedule="linear", lr=8e-4)
    first = start_rank(spec)
    for version in (1, 2):
        first.train(make_samples(version, version=version - 1), version=version)
    assert first.engine.lr == 0
    first.save(tmp_path, "state")
    branch = start_rank(replace(spec, optimizer_from=str(tmp_path / "state")))
    branch.begin()
    assert branch.engine.lr == pytest.approx(8e-4, rel=1e-12)
    assert branch.train(make_samples(2), version=1).metrics["train/lr"] == pytest.approx(5e-4, rel=1e-12)  # of the fourth step
    assert branch.engine.lr == pytest.approx(4e-4, rel=1e-12)


def test_save_hf_loads_in_transformers(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rank = start_rank(make_spec(model))
    rank.train(make_samples(1), version=1)
    rank.save_hf(tmp_path / "final")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final", dtype=torch.float32)
    assert largest_difference(dict(loaded.named_parameters()), weights_of(rank.export(1))) == 0
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(tmp_path / "final").convert_ids_to_tokens([5, 9]) == ["w5", "w9"]
    assert loaded.config.use_cache is True
    assert list((tmp_path / "final").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("stage", "dtype"), [(0, "float32"), (1, "float32"), (3, "float32"), (0, "bfloat16"), (1, "bfloat16"), (3, "bfloat16")]
)
def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(model: Path, stage: int, dtype: str) -> None:
    rank = start_rank(make_spec(model, zero_stage=stage, dtype=dtype, loss=LossConfig()))
    before = {name: value.float() for name, value in weights_of(rank.export(0)).items()}
    weight = next(rank.engine.model.parameters())
    weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(FloatingPointError, match=r"optimiser step 1 \(epoch 1 of 2, minibatch 1 of 2, .*gradient norm is"):
        rank.train(make_samples(1), version=1)
    now = {name: value.clone().float() for name, value in rank.engine.weights()}
    assert largest_difference(now, before) == 0
    with pytest.raises(RuntimeError, match="the last update failed"):
        next(rank.export(1))


@pytest.mark.parametrize(
    ("damage", "cause"), [("model", "logits are not finite"), ("sampler", "log-probs are broken"), ("ratio", "ran away")]
)
def test_a_loss_that_is_not_finite_names_step_and_cause(model: Path, damage: str, cause: str) -> None:
    loss = LossConfig(prox="behaviour") if damage == "ratio" else LossConfig()
    rank = start_rank(make_spec(model, loss=loss))
    samples = make_samples(1)
    if damage == "model":
        with torch.no_grad():
            next(rank.engine.model.parameters()).fill_(math.nan)
    else:
        value = -math.inf if damage == "sampler" else -200.0
        samples[0] = replace(samples[0], behaviour_logprobs=np.full_like(samples[0].behaviour_logprobs, value))
    with pytest.raises(FloatingPointError, match=rf"optimiser step 1 \(epoch 1 of 2, minibatch 1 of 2.*{cause}"):
        rank.train(samples, version=1)


def test_refusals(model: Path) -> None:
    from fr3e_async.learner.rank import LearnerRank

    spec = replace(make_spec(model), max_staleness=1)
    with pytest.raises(RuntimeError, match=r"setup\(\) has not been called"):
        next(LearnerRank(spec).export(0))
    rank = start_rank(spec)
    with pytest.raises(ValueError, match=r"minibatch 5 of learner\.minibatches=2"):
        rank.train([replace(make_samples(1)[0], minibatch=5)], version=1)
    with pytest.raises(TokenAgeError, match=r"flow\.max_staleness is 1"):
        rank.train(make_samples(1), version=3)
    with pytest.raises(TokenAgeError, match="does not exist yet"):
        rank.train(make_samples(1, version=9), version=9)


@pytest.mark.parametrize("tied", [True, False])
def test_a_rank_of_stage_3_never_holds_the_whole_model(tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a weight comes from the disk, those before it are cut: no parameter is whole, and all shares are there in the end."""
    folder = build_model(tmp_path / "model", tied=tied)
    os.environ.update(rank_environment(make_spec(folder)))
    from transformers import AutoModelForCausalLM, core_model_loading

    from fr3e_async.learner.engine import join_group, sharded_as_loaded
    from fr3e_async.learner.policy import load_policy

    whole: list[int] = []
    place = core_model_loading.set_param_for_module

    def watched(model: Any, *arguments: Any) -> None:
        whole.append(sum(weight.numel() for weight in model.parameters() if not weight.is_meta))
        place(model, *arguments)

    monkeypatch.setattr(core_model_loading, "set_param_for_module", watched)
    spec = make_spec(folder, zero_stage=3)
    join_group(spec.learner, rank=0, world=1, host="127.0.0.1", port=free_address("")[1])
    with sharded_as_loaded(spec.learner):
        policy = load_policy(spec)
    assert core_model_loading.set_param_for_module is watched
    assert len(whole) > 20
    assert set(whole) == {0}
    want = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
    found: dict[str, Any] = dict(policy.named_weights())
    assert found.keys() == want.keys()
    for name, weight in found.items():
        assert (weight.numel(), tuple(weight.ds_shape)) == (0, tuple(want[name].shape)), name
        assert torch.equal(weight.ds_tensor.view(want[name].shape), want[name]), name
