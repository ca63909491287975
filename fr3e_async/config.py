"""Every knob of the system: frozen dataclasses with meaning, unit and default, checked alone and against each other.

Knows nothing of YAML, files or the command line (that is ``loader``) and nothing of Ray, vLLM or DeepSpeed.
Derived sizes are properties; nothing is ever written back into a config.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fr3e_async.errors import ConfigError


def knob(default: Any, meaning: str, unit: str = "") -> Any:
    """A field with its ``--help`` text. A list or dict default is copied for each instance."""
    metadata = {"help": meaning, "unit": unit}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type, meaning: str) -> Any:
    return field(default_factory=cls, metadata={"help": meaning, "unit": ""})


def require(condition: bool, message: str) -> None:
    """Raise ``ConfigError(message)`` unless the condition holds. The message starts with the setting's path."""
    if not condition:
        raise ConfigError(message)


def require_positive(path: str, **values: float) -> None:
    for name, value in values.items():
        require(value > 0, f"{path}.{name} must be positive, got {value}")


def require_at_least_0(path: str, **values: float) -> None:
    for name, value in values.items():
        require(value >= 0, f"{path}.{name} must not be negative, got {value}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str = knob("fr3e", "name of the run; part of the default run directory")
    dir: str = knob(
        "", "run directory; empty: runs/<name>-<time>. On a cluster it must be on storage that all nodes share", "path"
    )
    seed: int = knob(0, "seed of prompt order, samplers, toy task and toy model")
    steps: int = knob(100, "training batches to consume, counted over resumes", "batches")
    max_wall_s: float = knob(0.0, "stop with a checkpoint after this long; 0: no limit", "s")
    checkpoint_every: int = knob(
        20, "batches between checkpoints; one is always written at the end; 0: only at the end", "batches"
    )
    keep_checkpoints: int = knob(2, "newest checkpoints kept; older ones are removed after a newer one is durable")
    stop_grace_s: float = knob(25.0, "time to write a checkpoint after SIGTERM or Ctrl-C", "s")

    def __post_init__(self) -> None:
        require_positive("run", steps=self.steps, keep_checkpoints=self.keep_checkpoints, stop_grace_s=self.stop_grace_s)
        require_at_least_0("run", max_wall_s=self.max_wall_s, checkpoint_every=self.checkpoint_every, seed=self.seed)
        require(bool(self.name) and "/" not in self.name, f"run.name must be a plain word, got {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str = knob("toy", "'toy' (built and cached), a local Hugging Face folder, or a hub id", "path or id")
    revision: str = knob("", "hub revision; empty: the default branch")
    trust_remote_code: bool = knob(False, "run Python code that ships with the model; only for sources you trust")
    parameters: int = knob(0, "number of weights, for the memory estimate when the model is not on this disk; 0: read its config")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: str = knob("toy", "'toy' or a JSONL file of training problems", "path")
    heldout: str = knob("toy", "'toy' or a JSONL file for evaluation, disjoint from train; empty: no evaluation", "path")
    problem_field: str = knob("problem", "column with the question")
    answer_field: str = knob("answer", "column with the reference answer; a GSM8K '#### N' ending is understood")
    id_field: str = knob("id", "column with a unique id; rows without it are named by file and line")
    system: str = knob("", "system message put before every problem; empty: none")
    template: str = knob("{problem}", "user message; {problem} is replaced by the question")
    max_prompt: int = knob(1024, "longest prompt after the chat template", "tokens")
    on_long_prompt: Literal["error", "drop"] = knob("error", "what to do with a longer prompt: stop, or drop and count it")

    def __post_init__(self) -> None:
        require_positive("data", max_prompt=self.max_prompt)
        require("{problem}" in self.template, f"data.template must contain {{problem}}, got {self.template!r}")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    temperature: float = knob(1.0, "softmax temperature of training rollouts")
    top_p: float = knob(1.0, "nucleus mass; below 1 the importance correction must be off")
    top_k: int = knob(0, "keep only the k likeliest tokens; 0: off; otherwise the importance correction must be off")
    max_response: int = knob(1024, "longest response, and prefix + continuation of a branch", "tokens")

    def __post_init__(self) -> None:
        require_positive("sampling", temperature=self.temperature, max_response=self.max_response)
        require(0 < self.top_p <= 1, f"sampling.top_p must be in (0, 1], got {self.top_p}")
        require_at_least_0("sampling", top_k=self.top_k)

    @property
    def filtered(self) -> bool:
        """True if the sampler renormalises a truncated distribution, which biases importance ratios."""
        return self.top_p < 1 or self.top_k > 0


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    strategy: Literal["fr3e", "grpo", "grpo_pp", "rloo"] = knob("fr3e", "how groups are built and credited")
    bases: int = knob(4, "N: base trajectories of a prompt; for the flat strategies the whole group (G)")
    anchors: int = knob(3, "K: anchors on the trunk (fr3e only)")
    branches: int = knob(4, "M: continuations of each anchor (fr3e only)")
    anchor_rule: Literal["entropy", "surprisal", "random", "uniform", "newline"] = knob("entropy", "what picks the anchors")
    min_gap: int = knob(8, "least distance between two anchors", "tokens")
    trunk: Literal["first", "random"] = knob("first", "which base is the trunk; never chosen by its reward, which would bias V")
    include_trunk: bool = knob(False, "count the trunk's own continuation as a member of each anchor's group")
    alpha: bool = knob(True, "scale advantages by alpha_j = exp(-(V(S_j) - V(S_j-1)))")
    alpha_shrink: bool = knob(False, "shrink V(S_j) - V(S_j-1) by its standard error before alpha")
    std_normalise: bool = knob(False, "divide advantages by the group's standard deviation + 1e-6")

    def __post_init__(self) -> None:
        require(self.bases >= 2, f"algorithm.bases must be at least 2 (one rollout has no advantage), got {self.bases}")
        require_at_least_0("algorithm", anchors=self.anchors)
        require_positive("algorithm", min_gap=self.min_gap)
        least = 1 if self.include_trunk else 2
        require(self.branches >= least, f"algorithm.branches must be at least {least}, got {self.branches}")

    @property
    def branching(self) -> bool:
        return self.strategy == "fr3e" and self.anchors > 0

    @property
    def rollouts_per_group(self) -> int:
        """N + K·M for fr3e, N for the flat strategies."""
        return self.bases + (self.anchors * self.branches if self.branching else 0)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    clip_low: float = knob(0.22, "epsilon_low of Clip-Higher")
    clip_high: float = knob(0.28, "epsilon_high of Clip-Higher")
    dual_clip: float = knob(0.0, "c of dual clip, for negative advantages; 0: off")
    prox: Literal["recompute", "behaviour"] = knob(
        "recompute", "proximal policy: recomputed before the update, or the sampler's own log-probs"
    )
    importance: Literal["truncate", "mask", "off"] = knob(
        "truncate", "weight exp(log prox - log behaviour): cut at importance_cap, zeroed above it, or 1"
    )
    importance_cap: float = knob(2.0, "c_is: largest importance weight")
    kl_coef: float = knob(0.0, "weight of the k3 estimate of KL(current || proximal) per token")
    entropy_coef: float = knob(0.0, "weight of the entropy bonus per token")

    def __post_init__(self) -> None:
        require(0 < self.clip_low < 1, f"loss.clip_low must be in (0, 1), got {self.clip_low}")
        require_positive("loss", clip_high=self.clip_high, importance_cap=self.importance_cap)
        require(self.dual_clip == 0 or self.dual_clip > 1, f"loss.dual_clip must be 0 (off) or above 1, got {self.dual_clip}")
        require_at_least_0("loss", kl_coef=self.kl_coef, entropy_coef=self.entropy_coef)


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    groups_per_step: int = knob(32, "prompt groups in one training batch", "groups")
    max_staleness: int = knob(1, "most weight versions that a token may be old when trained; 0: synchronous", "versions")
    lease_s: float = knob(120.0, "time an actor has for one task before it is given to another", "s")
    max_attempts: int = knob(3, "attempts at one rollout before it is given up and counted as failed")
    max_rejected_in_a_row: int = knob(1000, "degenerate groups in a row before the run stops as starved", "groups")

    def __post_init__(self) -> None:
        require_positive(
            "flow", groups_per_step=self.groups_per_step, lease_s=self.lease_s,
            max_attempts=self.max_attempts, max_rejected_in_a_row=self.max_rejected_in_a_row,
        )  # fmt: skip
        require_at_least_0("flow", max_staleness=self.max_staleness)

    @property
    def capacity(self) -> int:
        """(max_staleness + 1) · groups_per_step: groups alive at once so that no token is older than the bound when trained."""
        return (self.max_staleness + 1) * self.groups_per_step


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
    start_timeout_s: float = knob(600.0, "time for an engine to load its model", "s")
    options: dict[str, Any] = knob({}, "further vLLM engine arguments, by vLLM's own names")

    def __post_init__(self) -> None:
        require_positive("engine", max_running=self.max_running, threads=self.threads, start_timeout_s=self.start_timeout_s)
        require_at_least_0("engine", kv_cache_gib=self.kv_cache_gib, block_size=self.block_size)
        require(
            0 < self.gpu_memory_utilization <= 1,
            f"engine.gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}",
        )


@dataclass(frozen=True, kw_only=True)
class EnginePoolConfig:
    count: int = knob(1, "actors (engines) of this role")
    cpus: float = knob(1.0, "Ray CPUs of one actor")
    gpus: int = knob(0, "GPUs of one actor; also its tensor-parallel size")
    resources: dict[str, float] = knob({}, "custom Ray resources of one actor, to place the role on certain nodes")
    rollouts_in_flight: int = knob(256, "rollouts given to one actor at once; more wait in the control loop", "rollouts")

    def check(self, path: str) -> None:
        require_at_least_0(path, count=self.count, cpus=self.cpus, gpus=self.gpus)
        require_positive(path, rollouts_in_flight=self.rollouts_in_flight)


@dataclass(frozen=True, kw_only=True)
class VerifierPoolConfig:
    count: int = knob(1, "verifier actors")
    cpus: float = knob(1.0, "Ray CPUs of one actor")
    resources: dict[str, float] = knob({}, "custom Ray resources of one actor")
    workers: int = knob(2, "killable math-verify processes of one actor", "processes")
    cpu_limit_s: float = knob(2.0, "CPU time for one answer; beyond it the verdict is unknown", "s")
    wall_limit_s: float = knob(10.0, "wall time for one answer; beyond it the process is killed", "s")
    memory_gib: float = knob(4.0, "address space of one process", "GiB")
    exact_integers: bool = knob(True, "compare plain integers at once and exactly, without math-verify")
    max_answer_chars: int = knob(2000, "longest answer that is parsed; a longer one is unknown", "characters")
    on_unknown: Literal["drop", "zero"] = knob(
        "drop", "an answer that cannot be judged: leave the rollout out, or count it as wrong"
    )

    def __post_init__(self) -> None:
        require_positive(
            "verifiers", count=self.count, workers=self.workers, cpu_limit_s=self.cpu_limit_s,
            wall_limit_s=self.wall_limit_s, memory_gib=self.memory_gib, max_answer_chars=self.max_answer_chars,
        )  # fmt: skip
        require_at_least_0("verifiers", cpus=self.cpus)


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    ranks: int = knob(1, "data-parallel ranks; each is a Ray actor")
    cpus: float = knob(1.0, "Ray CPUs of one rank")
    gpus: int = knob(0, "GPUs of one rank: 0 (gloo) or 1 (NCCL)")
    resources: dict[str, float] = knob({}, "custom Ray resources of one rank")
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
    micro_batch_tokens: int = knob(16384, "padded tokens in one forward and backward pass", "tokens")
    activation_checkpointing: bool = knob(False, "recompute activations in the backward pass to save memory")
    attention: str = knob("sdpa", "attention implementation of the Hugging Face model")
    start_timeout_s: float = knob(1800.0, "time for the group to load the model", "s")
    step_timeout_s: float = knob(3600.0, "time for one training batch", "s")
    ds_config: dict[str, Any] = knob({}, "further DeepSpeed settings, by DeepSpeed's own names; they win over ours")

    def __post_init__(self) -> None:
        require_positive(
            "learner", ranks=self.ranks, lr=self.lr, minibatches=self.minibatches, epochs=self.epochs, threads=self.threads,
            micro_batch_tokens=self.micro_batch_tokens, start_timeout_s=self.start_timeout_s, step_timeout_s=self.step_timeout_s,
        )  # fmt: skip
        require_at_least_0("learner", cpus=self.cpus, warmup_steps=self.warmup_steps, grad_clip=self.grad_clip)
        require(self.gpus in (0, 1), f"learner.gpus must be 0 or 1 (add ranks for more), got {self.gpus}")
        require(0 <= self.zero_stage <= 3, f"learner.zero_stage must be 0, 1, 2 or 3, got {self.zero_stage}")
        require(len(self.betas) == 2, f"learner.betas must be two numbers, got {self.betas}")

    @property
    def optimiser_steps(self) -> int:
        """Optimiser steps of one batch: epochs · minibatches. With 1 the ratio is 1 everywhere and Clip-Higher never acts."""
        return self.epochs * self.minibatches


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    ack_timeout_s: float = knob(120.0, "time for an engine to acknowledge new weights before it is replaced", "s")

    def __post_init__(self) -> None:
        require_positive("weights", ack_timeout_s=self.ack_timeout_s)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    problems: int = knob(256, "held-out problems of one evaluation, the same ones each time; 0: all", "problems")
    samples: int = knob(1, "samples for each problem (avg@k)")
    every: int = knob(0, "batches between evaluations besides the first and the last; 0: none", "batches")
    temperature: float = knob(1.0, "softmax temperature; 0: greedy")
    top_p: float = knob(1.0, "nucleus mass")

    def __post_init__(self) -> None:
        require_positive("evaluation", samples=self.samples)
        require_at_least_0("evaluation", problems=self.problems, every=self.every, temperature=self.temperature)
        require(0 < self.top_p <= 1, f"evaluation.top_p must be in (0, 1], got {self.top_p}")


@dataclass(frozen=True, kw_only=True)
class ObserveConfig:
    console: Literal["auto", "live", "plain", "off"] = knob(
        "auto", "progress view; auto: live on a terminal, plain lines elsewhere"
    )
    tensorboard: bool = knob(True, "write TensorBoard events into the run directory")
    heartbeat_s: float = knob(2.0, "how often actors are asked for their state", "s")
    verbose: bool = knob(False, "let the logs of Ray, vLLM and DeepSpeed through to the console as well as to files")

    def __post_init__(self) -> None:
        require_positive("observe", heartbeat_s=self.heartbeat_s)


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    timeout_s: float = knob(600.0, "no progress of any kind for this long ends the run with a diagnosis", "s")

    def __post_init__(self) -> None:
        require_positive("watchdog", timeout_s=self.timeout_s)


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    address: str = knob(
        "",
        "cluster to join; empty: the one of `ray job submit` or RAY_ADDRESS if there is one, else a local one; 'local': always a local one",
    )
    autoscaling: bool = knob(
        False, "the cluster grows on demand: actors may wait for nodes instead of being refused for lack of resources"
    )
    num_cpus: int = knob(0, "CPUs that a local cluster offers; 0: as many as the actors need, at least the machine's")
    object_store_gib: float = knob(0.5, "shared memory of a local cluster", "GiB")

    def __post_init__(self) -> None:
        require_at_least_0("ray", num_cpus=self.num_cpus)
        require(self.object_store_gib >= 0.075, f"ray.object_store_gib must be at least 0.075, got {self.object_store_gib}")


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    train_problems: int = knob(4096, "distinct training problems", "problems")
    heldout_problems: int = knob(1024, "distinct held-out problems", "problems")
    steps_min: int = knob(3, "fewest arithmetic steps of a problem")
    steps_max: int = knob(4, "most arithmetic steps of a problem")
    slip_rate: float = knob(0.26, "part of the warm start's steps that go a wrong way")
    warm_start_steps: int = knob(180, "optimiser steps of the supervised warm start", "optimiser steps")
    cache_dir: str = knob("", "where the built model is kept; empty: ~/.cache/fr3e_async", "path")

    def __post_init__(self) -> None:
        require_positive(
            "toy", train_problems=self.train_problems, heldout_problems=self.heldout_problems,
            steps_min=self.steps_min, warm_start_steps=self.warm_start_steps,
        )  # fmt: skip
        require(self.steps_max >= self.steps_min, f"toy.steps_max ({self.steps_max}) is below toy.steps_min ({self.steps_min})")
        require(0 < self.slip_rate < 1, f"toy.slip_rate must be in (0, 1), got {self.slip_rate}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole of a run's settings. Cross-field rules live here; each message names the settings it is about."""

    resume: Literal["never", "auto"] = knob(
        "never", "auto: go on from run.dir's newest whole checkpoint if there is one; never: run.dir must be new"
    )
    run: RunConfig = section(RunConfig, "the run as a whole")
    model: ModelConfig = section(ModelConfig, "the policy")
    data: DataConfig = section(DataConfig, "problems and how they become prompts")
    sampling: SamplingConfig = section(SamplingConfig, "how training rollouts are drawn")
    algorithm: AlgorithmConfig = section(AlgorithmConfig, "groups, anchors and advantages")
    loss: LossConfig = section(LossConfig, "the off-policy Clip-Higher objective")
    flow: FlowConfig = section(FlowConfig, "admission, staleness, leases")
    engine: EngineConfig = section(EngineConfig, "vLLM settings shared by generators and explorers")
    generators: EnginePoolConfig = section(EnginePoolConfig, "actors that sample base trajectories")
    explorers: EnginePoolConfig = section(EnginePoolConfig, "actors that branch from anchors")
    verifiers: VerifierPoolConfig = section(VerifierPoolConfig, "actors that judge answers with math-verify")
    learner: LearnerConfig = section(LearnerConfig, "the DeepSpeed group")
    weights: WeightsConfig = section(WeightsConfig, "hand-over of new weights to the engines")
    evaluation: EvaluationConfig = section(EvaluationConfig, "accuracy on held-out problems")
    observe: ObserveConfig = section(ObserveConfig, "console, metrics, logs")
    watchdog: WatchdogConfig = section(WatchdogConfig, "what a stall leads to")
    ray: RayConfig = section(RayConfig, "where the cluster comes from")
    toy: ToyConfig = section(ToyConfig, "the embedded default task and model")

    def __post_init__(self) -> None:
        self.generators.check("generators")
        self.explorers.check("explorers")
        require(self.generators.count > 0, "generators.count must be at least 1")
        require(
            not self.algorithm.branching or self.explorers.count > 0,
            "explorers.count must be at least 1 with algorithm.strategy=fr3e and algorithm.anchors > 0",
        )
        require(
            not (self.sampling.filtered and (self.loss.importance != "off" or self.loss.prox == "behaviour")),
            f"sampling.top_p={self.sampling.top_p} / sampling.top_k={self.sampling.top_k} with loss.importance={self.loss.importance} and "
            f"loss.prox={self.loss.prox}: log-probs of a truncated distribution bias the ratio; set top_p=1 and top_k=0, or "
            "loss.importance=off with loss.prox=recompute",
        )
        require(
            self.flow.groups_per_step >= self.learner.minibatches,
            f"learner.minibatches ({self.learner.minibatches}) is above flow.groups_per_step ({self.flow.groups_per_step})",
        )
        require(
            self.learner.micro_batch_tokens >= self.context_length,
            f"learner.micro_batch_tokens ({self.learner.micro_batch_tokens}) cannot hold one trajectory of data.max_prompt + "
            f"sampling.max_response = {self.context_length} tokens",
        )
        for pool, path in ((self.generators, "generators"), (self.explorers, "explorers")):
            require(
                pool.gpus > 0 or self.engine.kv_cache_gib > 0 or pool.count == 0,
                f"engine.kv_cache_gib must be set when {path}.gpus is 0 (a CPU engine would take most of the memory)",
            )
        require(
            not (self.learner.gpus == 0 and self.learner.dtype == "bfloat16"),
            "learner.dtype=bfloat16 needs learner.gpus=1 (on CPU it is slower and less exact); use float32",
        )

    @property
    def context_length(self) -> int:
        """Longest sequence in tokens: data.max_prompt + sampling.max_response."""
        return self.data.max_prompt + self.sampling.max_response

    @property
    def explorer_count(self) -> int:
        """Explorers that are started: none where the strategy does not branch."""
        return self.explorers.count if self.algorithm.branching else 0

    @property
    def uses_toy(self) -> bool:
        return "toy" in (self.model.path, self.data.train, self.data.heldout)
