"""Settings of the actors: engines, verifiers, the learner group, and the weights between them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from fr3e_async.config.deepspeed import check_ds_config
from fr3e_async.config.knobs import PartOr0, Share, knob, require, settings
from fr3e_async.config.vllm_options import check_options


@settings("engine")
class EngineConfig:
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "type of weights and activations in the engines")
    eager: bool = knob(True, "no torch.compile and no CUDA graphs: quick start, right for CPU and small models")
    kv_cache_gib: NonNegativeFloat = knob(0.0, "key-value cache of one engine; must be set on CPU; 0: by gpu_memory_utilization")
    gpu_memory_utilization: Share = knob(0.9, "part of a GPU that an engine may use")
    block_size: NonNegativeInt = knob(0, "tokens of a key-value block; 0: the engine's own default", "tokens")
    max_running: PositiveInt = knob(256, "sequences that an engine decodes at once", "sequences")
    threads: PositiveInt = knob(1, "CPU threads of one engine; with GPUs at least cpus / gpus of its pool")
    prefix_caching: bool = knob(True, "share key-value blocks between rollouts of one prompt or trunk")
    clear_cache_on_update: bool = knob(True, "after new weights, recompute the cache of running requests with them")
    entropy: Literal["engine", "topk", "learner"] = knob(
        "engine",
        "token entropies; engine: exact, by the sampler; topk: bounds by the likeliest tokens; learner: exact, re-scored by it",
    )
    entropy_top_k: PositiveInt = knob(20, "likeliest tokens that give the bounds (engine.entropy=topk)", "tokens")
    start_timeout_s: PositiveFloat = knob(600.0, "time for an engine to load its model")
    options: dict[str, Any] = knob(
        {},
        "further vLLM engine arguments for scheduling, memory and speed, by vLLM's names; also hf_overrides of "
        "max_position_embeddings and rope_parameters, which learner and exports follow",
    )

    def __post_init__(self) -> None:
        check_options(self.options)


def require_some(path: str, actor: PoolConfig | LearnerConfig, gpus: int) -> None:
    """Refuse an actor that takes no resource: Ray cannot create an empty placement group."""
    require(
        any(amount > 0 for amount in (actor.cpus, gpus, *actor.resources.values())),
        f"{path}.cpus, {path}.gpus and {path}.resources are all 0: an actor must take some of a node to be placed on one",
    )


@settings()
class PoolConfig:
    """Settings common to all actor pools. *Example*: count 3, min 0, max 5: three at the start, never fewer, up to five."""

    count: NonNegativeInt = knob(1, "actors that a run asks for when it begins")
    min: NonNegativeInt = knob(0, "actors that a run waits for before it begins, and keeps; 0: count")
    max: NonNegativeInt = knob(0, "actors that the pool may grow to while tasks wait for one; 0: count")
    cpus: NonNegativeFloat = knob(1.0, "Ray CPUs of one actor")
    resources: dict[str, float] = knob({}, "custom Ray resources of one actor, to place the role on certain nodes")
    labels: dict[str, str] = knob({}, "labels of the nodes that the role may be placed on, such as ray.io/market-type: spot")

    @property
    def least(self) -> int:
        return self.min or self.count

    @property
    def most(self) -> int:
        return self.max or self.count

    @property
    def elastic(self) -> bool:
        return self.least < self.most

    def check_bounds(self, path: str) -> None:
        """Raise ``ConfigError`` unless min ≤ count ≤ max. ``path``: the pool's section."""
        require(
            self.least <= self.count <= self.most,
            f"{path}.count must be from {path}.min to {path}.max, got {self.count} with min {self.min} and max {self.max} (0: as count)",
        )


@settings()
class EnginePoolConfig(PoolConfig):
    gpus: NonNegativeInt = knob(0, "GPUs of one actor; also its tensor-parallel size")
    rollouts_in_flight: PositiveInt = knob(256, "rollouts that one actor has at once; others wait in the driver", "rollouts")

    def check(self, path: str) -> None:
        """Raise ``ConfigError`` about the pool of the section ``path``."""
        self.check_bounds(path)
        require_some(path, self, self.gpus)


@settings("pools")
class PoolsConfig:
    flexible_roles: bool = knob(
        False, "idle generators take branches, near their trunk if possible, and idle explorers take bases"
    )
    kv_high: float = knob(0.95, "an engine whose key-value cache is fuller, or that evicted, gets half as many rollouts at once")
    kv_low: PositiveFloat = knob(0.85, "an engine whose cache is emptier gets a few more, up to rollouts_in_flight")
    least_in_flight: PositiveInt = knob(4, "rollouts that an engine gets at once, however full its cache is", "rollouts")
    grow_after_s: NonNegativeFloat = knob(10.0, "a pool grows, or takes another's spare actors, after tasks waited this long")
    shrink_after_s: PositiveFloat = knob(300.0, "a pool shrinks after it had actors to spare for this long")
    busy_target: Share = knob(0.8, "part of the time that actors should work; a pool gives up those it does not need for it")
    drain_timeout_s: PositiveFloat = knob(
        300.0, "time for a leaving actor to end its tasks (at most half of the notice that a node gives); others get the rest"
    )
    max_deaths_in_a_row: PositiveInt = knob(5, "workers of a role that may die one after another without finishing a task")
    replace_backoff_s: NonNegativeFloat = knob(1.0, "wait before an idle worker that died is replaced; doubles each time")

    def __post_init__(self) -> None:
        require(
            self.kv_low < self.kv_high <= 1,
            f"pools.kv_high must be in (pools.kv_low, 1], got {self.kv_high} with kv_low {self.kv_low}",
        )


@settings("verifiers")
class VerifierPoolConfig(PoolConfig):
    workers: PositiveInt = knob(2, "killable processes of one actor", "processes")
    cpu_limit_s: PositiveFloat = knob(2.0, "CPU time for one answer; beyond it the verdict is unknown")
    wall_limit_s: PositiveFloat = knob(10.0, "wall time for one answer; beyond it the process is killed")
    memory_gib: PositiveFloat = knob(4.0, "address space of one process")
    exact_integers: bool = knob(True, "compare plain integers at once and exactly, without a process")
    max_answer_chars: PositiveInt = knob(2000, "longest answer that is parsed; a longer one is unknown", "characters")
    unfinished: Literal["wrong", "correct"] = knob("wrong", "an answer that leaves arithmetic to the reader: 17\\cdot 23 for 391")
    units: Literal["checked", "ignored"] = knob("checked", "checked: 12 m is not 12 cm; either side may leave the unit out")
    percent: Literal["optional", "exact"] = knob("optional", "may one side leave out the sign % (42 for 42 %)?")
    decimal_digits: PositiveInt = knob(4, "significant digits from which a rounded decimal stands for an exact value", "digits")
    on_unknown: Literal["retry", "drop", "zero"] = knob(
        "drop", "an answer without a verdict; retry: judge once more, then drop; drop: leave it out; zero: count it as wrong"
    )

    def __post_init__(self) -> None:
        require(self.count > 0, f"verifiers.count must be positive, got {self.count}")
        self.check_bounds("verifiers")


@settings("learner")
class LearnerConfig:
    ranks: PositiveInt = knob(1, "data-parallel ranks; each is a Ray actor")
    cpus: NonNegativeFloat = knob(1.0, "Ray CPUs of one rank")
    gpus: Annotated[int, Field(ge=0, le=1)] = knob(0, "GPUs of one rank: 0 (gloo) or 1 (NCCL); add ranks for more")
    resources: dict[str, float] = knob({}, "custom Ray resources of one rank")
    labels: dict[str, str] = knob({}, "labels of the nodes that ranks may be placed on, such as ray.io/market-type: on-demand")
    placement: Literal["pack", "strict_pack", "spread", "strict_spread"] = knob(
        "pack", "ranks on as few nodes as possible; on one; on as many as possible; each on another one"
    )
    threads: PositiveInt = knob(1, "CPU threads of one rank; with a GPU at least learner.cpus")
    zero_stage: Annotated[int, Field(ge=0, le=3)] = knob(0, "DeepSpeed ZeRO stage")
    dtype: Literal["float32", "bfloat16"] = knob("float32", "training precision")
    lr: PositiveFloat = knob(1e-6, "AdamW learning rate, reached after the warm-up")
    lr_schedule: Literal["constant", "linear", "cosine"] = knob(
        "constant", "its course from the warm-up to the last step of run.steps"
    )
    lr_min_ratio: PartOr0 = knob(0.0, "part of learner.lr at the end of a linear or cosine course")
    warmup_steps: NonNegativeInt = knob(0, "optimiser steps of linear warm-up", "optimiser steps")
    betas: list[float] = knob([0.9, 0.95], "AdamW betas")
    weight_decay: float = knob(0.0, "AdamW weight decay")
    grad_clip: NonNegativeFloat = knob(1.0, "largest global gradient norm; 0: off")
    minibatches: PositiveInt = knob(2, "parts of a batch, one optimiser step each")
    epochs: PositiveInt = knob(1, "passes over a batch")
    micro_batch_tokens: PositiveInt = knob(16384, "token slots (padding included) of one forward and backward pass", "tokens")
    packing: Literal["tree", "flat", "padded"] = knob(
        "tree",
        "how samples share a pass; tree: each shared prefix once; flat: one after another, for models whose attention "
        "cannot follow a tree; padded: a row each, for any model",
    )
    tree_attention: Literal["auto", "flex", "blocks"] = knob("auto", "kernel of packing=tree; auto: flex on CUDA, else blocks")
    logits_mib: NonNegativeFloat = knob(
        256.0, "logits that a pass keeps for its backward pass; others are computed twice, by slices"
    )
    stop_above_grad_norm: NonNegativeFloat = knob(1000.0, "a larger gradient norm, unclipped, stops the run; 0: if not finite")
    stop_above_ratio: NonNegativeFloat = knob(
        10000.0, "a token this many times as likely after a batch stops the run; not with loss.prox=behaviour; 0: off"
    )
    stop_above_mismatch: NonNegativeFloat = knob(
        0.25,
        "a larger mean difference of engine's and learner's log-probs of the same weights stops the run, or keeps the engine out of "
        "service; a tenth of it where both use float32; 0: off",
        "nats",
    )
    activation_checkpointing: bool = knob(False, "recompute activations in the backward pass to save memory")
    attention: str = knob("sdpa", "attention implementation of the Hugging Face model (packing=flat or padded; tree has its own)")
    max_restarts: NonNegativeInt = knob(
        3, "restarts of the group between two checkpoints after a rank died; one more ends the run"
    )
    start_timeout_s: PositiveFloat = knob(1800.0, "time for the group to load the model")
    step_timeout_s: PositiveFloat = knob(3600.0, "time for one training batch")
    ds_config: dict[str, Any] = knob({}, "further DeepSpeed settings, by DeepSpeed's own names; they win over ours")

    def __post_init__(self) -> None:
        require_some("learner", self, self.gpus)
        require(
            self.tree_attention != "flex" or self.gpus > 0,
            "learner.tree_attention=flex with learner.gpus=0: FlexAttention has no backward pass on CPU; set auto or blocks",
        )
        require(len(self.betas) == 2, f"learner.betas must be two numbers, got {self.betas}")
        check_ds_config(
            self.ds_config,
            zero_stage=self.zero_stage,
            dtype=self.dtype,
            warmup_steps=self.warmup_steps,
            lr_schedule=self.lr_schedule,
        )

    @property
    def optimiser_steps(self) -> int:
        """Optimiser steps of one batch: epochs · minibatches. With 1 the ratio is 1 everywhere and Clip-Higher never acts."""
        return self.epochs * self.minibatches


@settings("weights")
class WeightsConfig:
    transfer: Literal["auto", "object_store", "collective"] = knob(
        "auto",
        "object_store: weights go to one engine at a time; collective: by vLLM's own transfer (NCCL between GPUs, gloo between CPUs) to "
        "all, one GPU each, while the learner waits; auto: object_store, until collective has been measured on GPUs",
    )
    update: Literal["in_flight", "wait_idle", "abort_retry"] = knob(
        "in_flight",
        "when an engine takes new weights; in_flight: between two tokens; wait_idle: after its rollouts, it gets no others; "
        "abort_retry: at once, its rollouts begin again",
    )
    idle_timeout_s: PositiveFloat = knob(300.0, "time to become idle before rollouts begin again (weights.update=wait_idle)")
    ack_timeout_s: PositiveFloat = knob(120.0, "time for an engine to acknowledge new weights before it is replaced")
    bucket_mib: PositiveInt = knob(256, "weights that are gathered, sent and fetched at once; unchanged ones are not sent")
