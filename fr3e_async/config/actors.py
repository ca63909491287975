"""Settings of the actors: engines, verifiers, the learner group, and the weights between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fr3e_async.config.deepspeed import check_ds_config
from fr3e_async.config.knobs import knob, require, require_at_least_0, require_positive
from fr3e_async.config.vllm_options import check_options


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "type of weights and activations in the engines")
    eager: bool = knob(True, "no torch.compile and no CUDA graphs: quick start, right for CPU and small models")
    kv_cache_gib: float = knob(0.0, "key-value cache of one engine; on CPU it must be set; 0: by gpu_memory_utilization", "GiB")
    gpu_memory_utilization: float = knob(0.9, "part of a GPU that an engine may use")
    block_size: int = knob(0, "tokens of a key-value block; 0: the engine's own default", "tokens")
    max_running: int = knob(256, "sequences that an engine decodes at once", "sequences")
    threads: int = knob(1, "CPU threads of one engine (CPU only)")
    prefix_caching: bool = knob(True, "share key-value blocks between rollouts of one prompt or trunk")
    clear_cache_on_update: bool = knob(
        True, "recompute the cache of running requests after new weights, so that one policy made it"
    )
    entropy: Literal["engine", "topk", "learner"] = knob(
        "engine",
        "where token entropies come from: exact, inside the engine's sampler; certified bounds from the likeliest tokens; "
        "exact, re-scored by the learner with its weights before a trunk is branched",
    )
    entropy_top_k: int = knob(20, "likeliest tokens that the bounds are made of (engine.entropy=topk)", "tokens")
    start_timeout_s: float = knob(600.0, "time for an engine to load its model", "s")
    options: dict[str, Any] = knob(
        {},
        "further vLLM engine arguments for scheduling, memory and speed, by vLLM's own names; hf_overrides of "
        "max_position_embeddings and rope_parameters, which the learner and exports follow",
    )

    def __post_init__(self) -> None:
        check_options(self.options)
        require_positive(
            "engine", max_running=self.max_running, threads=self.threads, start_timeout_s=self.start_timeout_s,
            entropy_top_k=self.entropy_top_k,
        )  # fmt: skip
        require_at_least_0("engine", kv_cache_gib=self.kv_cache_gib, block_size=self.block_size)
        require(
            0 < self.gpu_memory_utilization <= 1,
            f"engine.gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}",
        )


def require_some(path: str, cpus: float, gpus: int, resources: dict[str, float]) -> None:
    """A placement group of nothing is none."""
    require(
        any(amount > 0 for amount in (cpus, gpus, *resources.values())),
        f"{path}.cpus, {path}.gpus and {path}.resources are all 0: an actor must take some of a node to be placed on one",
    )


class Elastic:
    """What pools of actors that come and go have in common."""

    count: int
    min: int
    max: int

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
        require_at_least_0(path, count=self.count, min=self.min, max=self.max)
        require(
            self.least <= self.count <= self.most,
            f"{path}.count must be from {path}.min to {path}.max, got {self.count} with min {self.min} and max {self.max} (0: as count)",
        )


@dataclass(frozen=True, kw_only=True)
class EnginePoolConfig(Elastic):
    count: int = knob(1, "actors (engines) of this role that a run asks for when it begins")
    min: int = knob(0, "actors that a run waits for before it begins, and keeps; 0: count")
    max: int = knob(0, "actors that the pool may grow to while tasks wait for one; 0: count")
    cpus: float = knob(1.0, "Ray CPUs of one actor")
    gpus: int = knob(0, "GPUs of one actor; also its tensor-parallel size")
    resources: dict[str, float] = knob({}, "custom Ray resources of one actor, to place the role on certain nodes")
    labels: dict[str, str] = knob({}, "labels of the nodes that the role may be placed on, such as ray.io/market-type: spot")
    rollouts_in_flight: int = knob(256, "rollouts given to one actor at once; more wait in the control loop", "rollouts")

    def check(self, path: str) -> None:
        self.check_bounds(path)
        require_at_least_0(path, cpus=self.cpus, gpus=self.gpus)
        require_positive(path, rollouts_in_flight=self.rollouts_in_flight)
        require_some(path, self.cpus, self.gpus, self.resources)


@dataclass(frozen=True, kw_only=True)
class PoolsConfig:
    flexible_roles: bool = knob(
        False,
        "idle generators take branches and idle explorers take bases; a branch goes to the engine that made its trunk if it can",
    )
    kv_high: float = knob(
        0.95,
        "part of an engine's key-value cache above which it is given half as many rollouts at once; also when it had to evict",
    )
    kv_low: float = knob(0.85, "part below which it is given a few more again, up to rollouts_in_flight")
    least_in_flight: int = knob(4, "rollouts that an engine is given at once whatever its cache says", "rollouts")
    grow_after_s: float = knob(
        10.0,
        "tasks must have waited for an actor all this time before their pool grows (or gets actors that another one can spare)",
        "s",
    )
    shrink_after_s: float = knob(300.0, "a pool must have had actors to spare all this time before it gives some up", "s")
    busy_target: float = knob(
        0.8, "part of the time that actors are to be at work: a pool gives up what it does not need for that"
    )
    drain_timeout_s: float = knob(
        300.0,
        "time for an actor that leaves to end its tasks; others get what is left. At most half of the notice that a node gives",
        "s",
    )
    max_deaths_in_a_row: int = knob(5, "workers of a role that may die one after another without finishing a task")
    replace_backoff_s: float = knob(
        1.0, "wait before a worker is replaced that had done nothing; doubled for each further one", "s"
    )

    def __post_init__(self) -> None:
        require_positive(
            "pools", kv_low=self.kv_low, least_in_flight=self.least_in_flight, max_deaths_in_a_row=self.max_deaths_in_a_row,
            shrink_after_s=self.shrink_after_s, drain_timeout_s=self.drain_timeout_s,
        )  # fmt: skip
        require_at_least_0("pools", replace_backoff_s=self.replace_backoff_s, grow_after_s=self.grow_after_s)
        require(0 < self.busy_target <= 1, f"pools.busy_target must be in (0, 1], got {self.busy_target}")
        require(
            self.kv_low < self.kv_high <= 1,
            f"pools.kv_high must be in (pools.kv_low, 1], got {self.kv_high} with kv_low {self.kv_low}",
        )


@dataclass(frozen=True, kw_only=True)
class VerifierPoolConfig(Elastic):
    count: int = knob(1, "verifier actors that a run asks for when it begins")
    min: int = knob(0, "actors that a run waits for before it begins, and keeps; 0: count")
    max: int = knob(0, "actors that the pool may grow to while tasks wait for one; 0: count")
    cpus: float = knob(1.0, "Ray CPUs of one actor")
    resources: dict[str, float] = knob({}, "custom Ray resources of one actor")
    labels: dict[str, str] = knob({}, "labels of the nodes that the role may be placed on")
    workers: int = knob(2, "killable processes of one actor", "processes")
    cpu_limit_s: float = knob(2.0, "CPU time for one answer; beyond it the verdict is unknown", "s")
    wall_limit_s: float = knob(10.0, "wall time for one answer; beyond it the process is killed", "s")
    memory_gib: float = knob(4.0, "address space of one process", "GiB")
    exact_integers: bool = knob(True, "compare plain integers at once and exactly, without a process")
    max_answer_chars: int = knob(2000, "longest answer that is parsed; a longer one is unknown", "characters")
    unfinished: Literal["wrong", "right"] = knob(
        "wrong", "an answer that leaves the computing to the reader, such as 17\\cdot 23 where the gold is 391"
    )
    units: Literal["checked", "ignored"] = knob(
        "checked", "are 12 m and 12 cm different? A unit missing on one side is fine either way"
    )
    percent: Literal["optional", "exact"] = knob("optional", "may the sign % be missing on one side (42 for 42 %)?")
    decimal_digits: int = knob(4, "significant digits from which a rounded decimal stands for an exact value", "digits")
    on_unknown: Literal["retry", "drop", "zero"] = knob(
        "drop",
        "an answer that cannot be judged: judge it once more and then leave the rollout out; leave it out; count it as wrong",
    )

    def __post_init__(self) -> None:
        require_positive(
            "verifiers", count=self.count, workers=self.workers, cpu_limit_s=self.cpu_limit_s,
            wall_limit_s=self.wall_limit_s, memory_gib=self.memory_gib, max_answer_chars=self.max_answer_chars,
            decimal_digits=self.decimal_digits,
        )  # fmt: skip
        self.check_bounds("verifiers")
        require_at_least_0("verifiers", cpus=self.cpus)


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    ranks: int = knob(1, "data-parallel ranks; each is a Ray actor")
    cpus: float = knob(1.0, "Ray CPUs of one rank")
    gpus: int = knob(0, "GPUs of one rank: 0 (gloo) or 1 (NCCL)")
    resources: dict[str, float] = knob({}, "custom Ray resources of one rank")
    labels: dict[str, str] = knob({}, "labels of the nodes that ranks may be placed on, such as ray.io/market-type: on-demand")
    placement: Literal["pack", "strict_pack", "spread", "strict_spread"] = knob(
        "pack", "ranks on as few nodes as possible; on one; on as many as possible; each on another one"
    )
    threads: int = knob(1, "CPU threads of one rank (CPU only)")
    zero_stage: int = knob(0, "DeepSpeed ZeRO stage, 0 to 3")
    dtype: Literal["float32", "bfloat16"] = knob("float32", "training precision")
    lr: float = knob(1e-6, "AdamW learning rate, constant after the warm-up")
    warmup_steps: int = knob(0, "optimiser steps of linear warm-up", "optimiser steps")
    betas: list[float] = knob([0.9, 0.95], "AdamW betas")
    weight_decay: float = knob(0.0, "AdamW weight decay")
    grad_clip: float = knob(1.0, "largest global gradient norm; 0: off")
    minibatches: int = knob(2, "parts of a batch, one optimiser step each")
    epochs: int = knob(1, "passes over a batch")
    micro_batch_tokens: int = knob(16384, "places (tokens and padding) in one forward and backward pass", "tokens")
    packing: Literal["tree", "flat", "padded"] = knob(
        "tree",
        "how samples share a pass: tree: each shared prefix once; flat: one after another, for models whose attention "
        "cannot follow a tree; padded: a row each, for any model",
    )
    tree_attention: Literal["auto", "flex", "blocks"] = knob(
        "auto",
        "kernel of learner.packing=tree: FlexAttention, stacked blocks of plain attention; auto: flex on CUDA, else blocks",
    )
    logits_mib: float = knob(
        256.0, "logits that a pass may keep for its backward pass; above it they are made again, a slice at a time", "MiB"
    )
    stop_above_grad_norm: float = knob(
        1000.0, "a gradient norm above it, before clipping, stops the run with a dump of the step; 0: only one that is not finite"
    )
    stop_above_ratio: float = knob(
        10000.0,
        "a token that became so many times as likely within one batch stops the run with a dump of the step; 0: off "
        "(loss.prox=recompute: with behaviour, ratios hold staleness too and are not judged)",
    )
    stop_above_mismatch: float = knob(
        0.25,
        "engines' and learner's log-probs of the same weights that differ by more on average stop the run, with a dump of the "
        "step, and keep an engine out of service; a tenth of it where both compute in float32; 0: off, nothing is compared",
        "nats",
    )
    activation_checkpointing: bool = knob(False, "recompute activations in the backward pass to save memory")
    attention: str = knob(
        "sdpa", "attention implementation of the Hugging Face model (learner.packing flat or padded; tree has its own)"
    )
    max_restarts: int = knob(
        3, "times in a row, without a new checkpoint between, that the group is restarted when a rank dies; then the run ends"
    )
    start_timeout_s: float = knob(1800.0, "time for the group to load the model", "s")
    step_timeout_s: float = knob(3600.0, "time for one training batch", "s")
    ds_config: dict[str, Any] = knob({}, "further DeepSpeed settings, by DeepSpeed's own names; they win over ours")

    def __post_init__(self) -> None:
        require_positive(
            "learner", ranks=self.ranks, lr=self.lr, minibatches=self.minibatches, epochs=self.epochs, threads=self.threads,
            micro_batch_tokens=self.micro_batch_tokens, start_timeout_s=self.start_timeout_s, step_timeout_s=self.step_timeout_s,
        )  # fmt: skip
        require_at_least_0(
            "learner",
            cpus=self.cpus,
            warmup_steps=self.warmup_steps,
            max_restarts=self.max_restarts,
            grad_clip=self.grad_clip,
            logits_mib=self.logits_mib,
            stop_above_grad_norm=self.stop_above_grad_norm,
            stop_above_ratio=self.stop_above_ratio,
            stop_above_mismatch=self.stop_above_mismatch,
        )
        require_some("learner", self.cpus, self.gpus, self.resources)
        require(self.gpus in (0, 1), f"learner.gpus must be 0 or 1 (add ranks for more), got {self.gpus}")
        require(0 <= self.zero_stage <= 3, f"learner.zero_stage must be 0, 1, 2 or 3, got {self.zero_stage}")
        require(
            self.tree_attention != "flex" or self.gpus > 0,
            "learner.tree_attention=flex with learner.gpus=0: FlexAttention has no backward pass on CPU; set auto or blocks",
        )
        require(len(self.betas) == 2, f"learner.betas must be two numbers, got {self.betas}")
        check_ds_config(self.ds_config, zero_stage=self.zero_stage, dtype=self.dtype, warmup_steps=self.warmup_steps)

    @property
    def optimiser_steps(self) -> int:
        """Optimiser steps of one batch: epochs · minibatches. With 1 the ratio is 1 everywhere and Clip-Higher never acts."""
        return self.epochs * self.minibatches


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    transfer: Literal["auto", "object_store", "native"] = knob(
        "auto",
        "how weights reach the engines: through the object store, an engine at a time; native: by vLLM's own transfer in one "
        "group (NCCL between GPUs, gloo between CPUs; one GPU an engine), and the learner waits until they are sent; auto: object_store, "
        "until native has been measured on GPUs",
    )
    update: Literal["in_flight", "wait_idle", "abort_retry"] = knob(
        "in_flight",
        "how an engine changes to new weights: between two tokens of its rollouts, which continue; when all its rollouts have ended, "
        "while it gets no new ones; at once, and its rollouts are begun again",
    )
    idle_timeout_s: float = knob(
        300.0, "time for an engine to become idle before its rollouts are begun again (weights.update=wait_idle)", "s"
    )
    ack_timeout_s: float = knob(120.0, "time for an engine to acknowledge new weights before it is replaced", "s")
    bucket_mib: int = knob(
        256, "weights gathered, sent and fetched at once; one in which nothing changed is not sent again", "MiB"
    )

    def __post_init__(self) -> None:
        require_positive(
            "weights", ack_timeout_s=self.ack_timeout_s, idle_timeout_s=self.idle_timeout_s, bucket_mib=self.bucket_mib
        )  # fmt: skip
