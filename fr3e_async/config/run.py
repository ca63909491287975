"""Settings of a run and of what surrounds it: model, data, evaluation, observation, cluster, the embedded toy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fr3e_async.config.knobs import knob, require, require_at_least_0, require_positive


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

    on_string_gold: Literal["flag", "drop", "error"] = knob(
        "flag",
        "a reference answer that can only be matched as text (reward=math): say so once; leave the problem out and count it; stop",
    )

    def __post_init__(self) -> None:
        require_positive("data", max_prompt=self.max_prompt)
        require("{problem}" in self.template, f"data.template must contain {{problem}}, got {self.template!r}")


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
    prometheus: bool = knob(True, "hand metrics to Ray, on whose nodes Prometheus may read them (docs/operations.md)")
    heartbeat_s: float = knob(2.0, "how often actors are asked for their state", "s")
    journal: bool = knob(True, "write every event and decision of the control loop into journal/, for replay and simulation")
    verbose: bool = knob(False, "let the logs of Ray, vLLM and DeepSpeed through to the console as well as to files")

    def __post_init__(self) -> None:
        require_positive("observe", heartbeat_s=self.heartbeat_s)


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    timeout_s: float = knob(600.0, "no progress of any kind for this long ends the run with a diagnosis", "s")
    stuck_s: float = knob(
        300.0,
        "an actor that does not answer, or that has work and makes no token, verdict, micro-batch or file for this long, is replaced; "
        "its stacks go into the events",
        "s",
    )

    def __post_init__(self) -> None:
        require_positive("watchdog", timeout_s=self.timeout_s, stuck_s=self.stuck_s)


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    address: str = knob(
        "",
        "cluster to join; empty: the one of `ray job submit` or RAY_ADDRESS if there is one, else a local one; 'local': always a local one",
    )
    autoscaling: bool = knob(
        False, "the cluster grows on demand: actors may wait for nodes instead of being refused for lack of resources"
    )
    request: bool = knob(
        True,
        "tell the autoscaler at once of all actors that are wanted (ray.autoscaling); false where several runs share a cluster, "
        "since each such request takes the place of the one before",
    )
    room_timeout_s: float = knob(
        1800.0,
        "time for the cluster to find room for the actors that a run waits for before it begins, nodes that come up included",
        "s",
    )
    num_cpus: int = knob(0, "CPUs that a local cluster offers; 0: as many as the actors need, at least the machine's")
    object_store_gib: float = knob(0.5, "shared memory of a local cluster", "GiB")

    def __post_init__(self) -> None:
        require_at_least_0("ray", num_cpus=self.num_cpus)
        require_positive("ray", room_timeout_s=self.room_timeout_s)
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
