"""Check ``learner.ds_config``: allow only DeepSpeed settings that keep the update correct. Pure, by names only.

A refused setting would silently train something else, do nothing, or end a run after the cluster is up.
DeepSpeed itself checks the values.
"""

from collections.abc import Mapping
from typing import Any, Literal

from fr3e_async.config.knobs import did_you_mean, require

ALLOWED = (
    "optimizer", "scheduler", "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "gradient_clipping", "prescale_gradients", "gradient_predivide_factor", "communication_data_type", "disable_allgather",
    "bf16", "data_types", "torch_autocast", "aio", "comms_logger", "flops_profiler", "wall_clock_breakdown", "memory_breakdown",
    "timers", "steps_per_print", "dump_state", "disable_python_gc", "log_level", "tensorboard", "wandb", "csv_monitor", "comet",
)  # fmt: skip
CHECKPOINTS = "the learner's own checkpoints load at any number of ranks and any stage"
RANKS = "ranks are data-parallel; use learner.ranks and learner.zero_stage"
ROLLOUTS = "samples come from the rollouts"
QUANTISED = "quantised weights are not trained here"
BATCHES = "micro-batches are as ragged as the samples, so the system counts them; set learner.micro_batch_tokens"
REFUSED = {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), BATCHES),
    **dict.fromkeys(("checkpoint", "nebula", "datastates_ckpt"), CHECKPOINTS),
    **dict.fromkeys(("tensor_parallel", "expert_parallel", "sequence_parallel_size"), RANKS),
    **dict.fromkeys(("data_efficiency", "curriculum_learning"), ROLLOUTS),
    **dict.fromkeys(("weight_quantization", "compression_training", "quantize_training"), QUANTISED),
    "managed_gradient_accumulation": "DeepSpeed would take every micro-batch for a step; the system says when one ends",
    "gradient_allreduce_op": "the loss counts on the mean over ranks",
    "fp16": "loss scaling is not supported; set learner.dtype=bfloat16",
    "amp": "set learner.dtype=bfloat16",
    "activation_checkpointing": "these do not reach a Hugging Face model; set learner.activation_checkpointing=true",
    "pipeline": "the policy is not a pipeline of stages",
    "compile": "DeepCompile does not work with ragged accumulation",
    "hybrid_engine": "vLLM engines generate",
    "elasticity": "a run is resumed with another learner.ranks",
    "autotuning": "a run is no search for settings",
}


def check_ds_config(
    settings: Mapping[str, Any], *, zero_stage: int, dtype: Literal["float32", "bfloat16"], warmup_steps: int, lr_schedule: str
) -> None:
    """Raise a one-line ``ConfigError`` that names the first forbidden key, and what to set instead."""
    for key in settings:
        require(key not in REFUSED, f"learner.ds_config.{key} must not be set: {REFUSED.get(key)}")
        hint = did_you_mean(str(key), ALLOWED)
        require(key in ALLOWED, f"learner.ds_config.{key} is none of DeepSpeed's settings that work here{hint}")
    for key in ("zero_optimization", "bf16", "gradient_clipping"):
        require(key not in settings or settings[key] is not None, f"learner.ds_config.{key} must not be null")
    for key in ("bf16_master_weights_and_grads", "bf16_optimizer_states"):
        require(
            not _block(settings, "bf16").get(key),
            f"learner.ds_config.bf16.{key} must not be on: small updates would be rounded away, and checkpoints hold float32",
        )
    precision = _block(settings, "bf16").get("enabled", dtype == "bfloat16")
    require(precision == (dtype == "bfloat16"), f"learner.ds_config.bf16.enabled={precision} contradicts learner.dtype={dtype}")
    require(
        "scheduler" not in settings or warmup_steps == 0,
        f"learner.warmup_steps={warmup_steps} would do nothing beside learner.ds_config.scheduler; set it to 0",
    )
    require(
        "scheduler" not in settings or lr_schedule == "constant",
        f"learner.lr_schedule={lr_schedule} would do nothing beside learner.ds_config.scheduler; set it to constant",
    )
    name = str(_block(settings, "optimizer").get("type", ""))
    require(
        name.lower() not in ("muon", "lamb", "onebitadam", "zerooneadam", "onebitlamb"),
        f"learner.ds_config.optimizer.type={name}: its state cannot be kept in a checkpoint",
    )
    _check_zero(_block(settings, "zero_optimization"), stage=zero_stage)


def owns_lr(settings: Mapping[str, Any]) -> bool:
    """``learner.lr`` is the learning rate, since DeepSpeed's settings name neither a schedule nor a rate."""
    return not settings.get("scheduler") and "lr" not in _block(_block(settings, "optimizer"), "params")


def _check_zero(zero: Mapping[str, Any], *, stage: int) -> None:
    path = "learner.ds_config.zero_optimization"
    require(zero.get("stage", stage) == stage, f"{path}.stage={zero.get('stage')} contradicts learner.zero_stage={stage}")
    require(
        not zero.get("overlap_comm") or stage >= 2,
        f"{path}.overlap_comm works with ragged accumulation at learner.zero_stage=2 and 3 only, not {stage}",
    )
    require(zero.get("compute_grad_norm", True) is not False, f"{path}.compute_grad_norm must not be off: the norm is checked")
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        block = _block(zero, key)
        device = block.get("device", "none")
        require(
            device in ("none", "cpu"), f"{path}.{key}.device must be cpu (a checkpoint does not reach {device}), got {device}"
        )
        require(device == "none" or stage >= least, f"{path}.{key} needs learner.zero_stage of at least {least}, not {stage}")
        for name in ("super_offload", "ratio"):
            value = block.get(name, 0)
            require(
                value in (0, 1.0) and value is not True, f"{path}.{key}.{name}={value}: its state cannot be kept in a checkpoint"
            )
    for name in ("zenflow", "mics_shard_size"):
        require(not zero.get(name), f"{path}.{name}: its state cannot be kept in a checkpoint")


def _block(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a nested mapping, empty if there is none."""
    value = settings.get(key) or {}
    require(isinstance(value, Mapping), f"learner.ds_config: {key} must be a mapping, got {value!r}")
    return value
