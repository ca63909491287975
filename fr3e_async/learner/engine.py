"""How DeepSpeed is configured, started and asked for weights. The only module that imports it.

Knows nothing of samples, losses or Ray. Set ``spec.rank_environment`` before this module is imported.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import core_model_loading

from fr3e_async.config import LearnerConfig
from fr3e_async.config.deepspeed import owns_lr
from fr3e_async.learner.checkpoint_state import TrainingState
from fr3e_async.learner.layout import Inputs
from fr3e_async.learner.policy import PolicyModel
from fr3e_async.learner.spec import REDUCE_BUCKET, LearnerSpec, Pulse
from fr3e_async.learner.update import UnsoundGradient, unsound_norm

EXPORT_BUCKET = 1 << 26  # weights gathered at once under ZeRO-3: 256 MiB in float32


def deep_merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``override``; two dicts are merged in turn, None removes a key. Neither is changed."""
    merged = dict(base)
    for key, value in override.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = deep_merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def deepspeed_config(learner: LearnerConfig, *, parameters: int) -> dict[str, Any]:
    """Make DeepSpeed's settings for this learner, with ``learner.ds_config`` merged in last. ``parameters``: their number.

    Accumulation is unmanaged: any number of backward passes, then one ``step`` reduces and updates.
    """
    adamw = {"lr": learner.lr, "betas": list(learner.betas), "weight_decay": learner.weight_decay}
    ours = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": learner.grad_clip,
        "zero_optimization": {
            "stage": learner.zero_stage,
            # At stage 3 weights are gathered on a stream of their own, ahead of the pass; below, ragged accumulation reduces once a step.
            "overlap_comm": learner.zero_stage == 3,
            # A buffer of this many numbers is allocated; DeepSpeed's own default is 5e8 for any model.
            "reduce_bucket_size": min(REDUCE_BUCKET, parameters),
        },
        # torch's fused AdamW: DeepSpeed's own kernels are compiled on first use, which takes minutes and a compiler.
        "optimizer": {"type": "AdamW", "params": {**adamw, "torch_adam": True, "fused": True}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": learner.dtype == "bfloat16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    return deep_merge(ours, learner.ds_config)


def join_group(learner: LearnerConfig, *, rank: int, world: int, host: str, port: int) -> torch.device:
    """Meet the other ranks (gloo, or NCCL with a GPU) and return this rank's device. A second call is harmless.

    Raises:
        torch.distributed.DistStoreError: the others did not come within ``learner.start_timeout_s``.
    """
    # Each rank sees one device, numbered 0: Ray hides the others.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", MASTER_ADDR=host, MASTER_PORT=str(port))
    if learner.gpus == 0:
        # Compiled by a C++ compiler on first use, for a minute and more; gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        torch.set_num_threads(learner.threads)
    else:
        torch.cuda.set_device(0)
    deepspeed.init_distributed(
        "nccl" if learner.gpus else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=max(learner.start_timeout_s, learner.step_timeout_s)),
    )
    return torch.device("cuda:0" if learner.gpus else "cpu")


@contextmanager
def sharded_as_loaded(learner: LearnerConfig) -> Iterator[None]:
    """For the block transformers reads a checkpoint tensor by tensor, and each weight is cut into ZeRO-3's shares as it comes.

    So a rank never holds the whole model, but its share and the tensor that is being read. Other stages are left alone.
    All ranks, with the same checkpoint: each weight is a collective. ``RuntimeError``: the pinned way into transformers' loader is gone.
    """
    if learner.zero_stage != 3:
        yield
        return
    shares = deepspeed.zero.Init(
        module=torch.nn.Module(), config_dict_or_path=deepspeed_config(learner, parameters=REDUCE_BUCKET)
    )
    place, one_by_one = core_model_loading.set_param_for_module, "HF_DEACTIVATE_ASYNC_LOAD"
    cut: list[str] = []

    def place_and_cut(model: Any, name: str, *arguments: Any) -> None:
        place(model, name, *arguments)
        layer, _, own = name.rpartition(".")
        if (weight := dict(model.get_submodule(layer).named_parameters(recurse=False)).get(own)) is not None:
            # Rank 0 sends what it read. Where others would receive it into the mapped file, the whole file would become their memory.
            weight.data = weight.data if torch.distributed.get_rank() == 0 else torch.empty_like(weight.data)
            shares._convert_to_zero_parameters([weight])
            cut.append(name)

    before = os.environ.get(one_by_one)
    core_model_loading.set_param_for_module = place_and_cut
    os.environ[one_by_one] = "1"  # else threads read ahead of what is cut
    try:
        yield
    finally:
        core_model_loading.set_param_for_module = place
        os.environ.pop(one_by_one)
        os.environ.update({one_by_one: before} if before is not None else {})
    if not cut:
        raise RuntimeError("transformers placed no weight where ZeRO-3 could cut it: this version loads in another way")


class TrainingEngine:
    """A DeepSpeed engine whose every stage reports its gradient norm and refuses an update that is not finite."""

    def __init__(self, spec: LearnerSpec, model: PolicyModel, pulse: Pulse | None = None) -> None:
        learner = spec.learner
        self.model = model
        self._pulse = pulse or Pulse()  # beats with each forward and backward pass, optimiser step and bucket of weights
        self.grad_norm = 0.0  # of the last step, before clipping
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.parameter_count = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)  # partitioned ones are empty
        config = deepspeed_config(learner, parameters=self.parameter_count)
        # Plain float32 data parallelism clips without telling the norm, so there we clip (in ``_before_step``).
        self._own_clip = float(config["gradient_clipping"])
        self._clips = config["zero_optimization"]["stage"] == 0 and not config["bf16"]["enabled"]
        if self._clips:
            config["gradient_clipping"] = 0.0

        def schedule(optimiser: torch.optim.Optimizer) -> LambdaLR:
            return LambdaLR(optimiser, lambda step: lr_factor(step, learner, steps=spec.batches * learner.optimiser_steps))

        self.engine, _, _, _ = deepspeed.initialize(
            model=model,
            model_parameters=parameters,
            config=config,
            lr_scheduler=None if "scheduler" in config else schedule,
        )
        self._limit = learner.stop_above_grad_norm
        self.engine.basic_optimizer.register_step_pre_hook(self._before_step)
        trained = {p: name for name, p in model.named_weights() if p.requires_grad}
        self.state = TrainingState(self.engine, trained, stored_buffers(model.causal_lm))
        if spec.loss.reference_coef:
            self.state.hold_reference(0)

    @property
    def stage(self) -> int:
        return int(self.engine.zero_optimization_stage())

    @property
    def steps(self) -> int:
        """Optimiser steps taken, those before a resume included."""
        return self.engine.global_steps

    @property
    def lr(self) -> float:
        """Learning rate that the next step uses."""
        return float(self.engine.get_lr()[0])

    def begin(self, learner: LearnerConfig) -> None:
        """Begin a run of its own with the weights of another: they are its reference, and a rate that falls starts over."""
        if self.state.reference is not None:
            self.state.hold_reference(0)
        if learner.lr_schedule != "constant":  # the other run's course may have ended, at a rate of 0
            self.engine.lr_scheduler.last_epoch = 0
            self.set_lr(learner)

    def set_lr(self, learner: LearnerConfig) -> None:
        """Take the learning rate of ``learner`` in place of a checkpoint's, at the point of the warm-up that it had reached.

        Does nothing where ``learner.ds_config`` has a schedule or a rate of its own.
        """
        if not owns_lr(learner.ds_config):
            return
        scheduler = self.engine.lr_scheduler
        scheduler.base_lrs = [learner.lr] * len(scheduler.base_lrs)
        rates = [learner.lr * factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        measured = self.engine(inputs)
        self._pulse.beat()
        return measured

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within the block ``forward`` uses the weights of the reference, which must be held. All ranks; no backward pass."""
        assert self.state.reference is not None
        self.state.reference.swap()
        try:
            yield
        finally:
            self.state.reference.swap()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, which counts 1/world: DeepSpeed averages over the ranks."""
        self.engine.backward(loss, scale_wrt_gas=False)
        self._pulse.beat()

    def step(self) -> None:
        """Reduce, clip and update; ``grad_norm`` is then the global norm before clipping.

        Raises:
            UnsoundGradient: the norm is not finite, or above ``learner.stop_above_grad_norm``. The weights are those before
                the step, on every rank.
        """
        self.engine.step()
        self._pulse.beat()
        if not self._clips:
            norm = self.engine.get_global_grad_norm()
            # A gradient that is not finite makes DeepSpeed's optimisers skip the step, and only count it.
            self._accept(float(norm) if norm is not None and self.engine.was_step_applied() else math.nan)

    def _before_step(self, *_: Any) -> None:
        """Runs inside ``engine.step``, when gradients are reduced and weights untouched."""
        if self.state.restoring:  # a step of no gradients, which makes the optimiser's state
            return
        if self._clips:
            limit = self._own_clip if self._own_clip > 0 else math.inf
            self._accept(float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)))
        elif (norm := reduced_norm(self.engine.optimizer)) is not None:
            self._accept(norm)

    def _accept(self, norm: float) -> None:
        if cause := unsound_norm(norm, limit=self._limit):
            raise UnsoundGradient(norm if 0 <= norm < math.inf else math.nan, cause)
        self.grad_norm = norm

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name inside transformers, whole weight), valid until the next one is asked for. All ranks must run to the end."""
        for bucket in self.weight_buckets():
            yield from bucket

    def weight_buckets(self, numbers: int = EXPORT_BUCKET) -> Iterator[list[tuple[str, Tensor]]]:
        """``weights`` in buckets of about ``numbers`` numbers, which ZeRO-3 gathers at once; valid until the next bucket."""
        bucket: list[tuple[str, torch.nn.Parameter]] = []
        size = 0
        for name, parameter in self.model.named_weights():
            bucket.append((name, parameter))
            # A weight that ZeRO-3 has partitioned is empty itself and carries its true size.
            size += getattr(parameter, "ds_numel", parameter.numel())
            if size >= numbers:
                yield from self._gathered(bucket)
                bucket, size = [], 0
        if bucket:
            yield from self._gathered(bucket)

    def _gathered(self, bucket: list[tuple[str, torch.nn.Parameter]]) -> Iterator[list[tuple[str, Tensor]]]:
        with deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket], enabled=self.stage == 3):
            yield [(name, parameter.detach()) for name, parameter in bucket]
        self._pulse.beat()


def stored_buffers(model: torch.nn.Module) -> dict[str, Tensor]:
    """Find the buffers that a model stores beside its weights, by name (a router's correction, say)."""
    stored = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in stored}


def reduced_norm(optimiser: Any) -> float | None:
    """Read the global gradient norm inside a step of one of DeepSpeed's optimisers, before weights change; None: not computed.

    ``get_global_grad_norm`` knows it only after the step. This is the attribute that it is copied from.
    """
    norm = optimiser._global_grad_norm
    return None if norm is None else float(norm)


def lr_factor(step: int, learner: LearnerConfig, *, steps: int) -> float:
    """The part of ``learner.lr`` at an optimiser step, counted from 0, of a run of ``steps``.

    (step + 1) / (w + 1) in a warm-up of w steps; then, from 1 to the floor m = ``learner.lr_min_ratio`` at step ``steps``, which is none of
    the run's: 1 - (1 - m) · x or m + (1 - m) · (1 + cos πx) / 2, with x = (step - w) / (steps - w). Example: linear, w = 0, m = 0
    and 4 steps: 1, 3/4, 1/2, 1/4.
    """
    warmup, floor = learner.warmup_steps, learner.lr_min_ratio
    if step < warmup:
        return (step + 1) / (warmup + 1)
    x = min((step - warmup) / max(steps - warmup, 1), 1.0)
    left = {"constant": 1.0, "linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2}[learner.lr_schedule]
    return floor + (1 - floor) * left
