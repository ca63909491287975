"""Settings of a run and of what surrounds it: model, watchdog, cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fr3e_async.config.knobs import knob, require, require_at_least_0, require_positive


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str = knob("fr3e", "name of the run; part of the default run directory")
    dir: str = knob(
        "",
        "run directory; empty: runs/<name>-<time>, or with resume=auto the newest such one. On a cluster it must be on storage that all nodes share",
        "path",
    )
    seed: int = knob(0, "seed of prompt order, samplers, toy task and toy model")
    steps: int = knob(100, "training batches to consume, counted over resumes", "batches")
    max_wall_s: float = knob(0.0, "stop with a checkpoint after this long; 0: no limit", "s")
    checkpoint_every: int = knob(
        20,
        "batches between checkpoints; one is also written after 5 min, or 20 times as long as the last one took to write, and at the end; "
        "0: by time and at the end only",
        "batches",
    )
    keep_checkpoints: int = knob(2, "newest checkpoints kept; older ones are removed after a newer one is durable")
    stop_grace_s: float = knob(
        25.0,
        "time for the batch in training and the checkpoint after SIGTERM or SIGHUP; Ctrl-C waits for as long as it takes",
        "s",
    )
    branch_from: str = knob(
        "",
        "begin a new run with the weights of this checkpoint, or of the newest one of this run directory; model.path stays that run's",
        "path",
    )
    branch_optimizer: bool = knob(True, "with run.branch_from: also take on the optimiser's state and the steps of its schedule")
    change_lr: bool = knob(False, "on a resume: learner.lr may differ from what it was so far; without it another one is refused")

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


# ---- Settings of the embedded tasks and their model ----


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    task: Literal["steps", "forks"] = knob(
        "steps", "steps: arithmetic with slips; forks: arithmetic that needs a rarely taken turn at a few tokens"
    )
    train_problems: int = knob(4096, "distinct training problems", "problems")
    heldout_problems: int = knob(1024, "distinct held-out problems", "problems")
    steps_min: int = knob(3, "fewest arithmetic steps of a problem")
    steps_max: int = knob(4, "most arithmetic steps of a problem")
    slip_rate: float = knob(0.26, "steps: part of the warm start's steps that go a wrong way")
    forks_min: int = knob(2, "forks: fewest forks of a problem")
    forks_max: int = knob(3, "forks: most forks of a problem")
    turn_rate: float = knob(0.25, "forks: part of the warm start's turns at forks that are the rare one")
    style_rate: float = knob(0.04, "forks: part of the warm start's lines with a space that decides nothing")
    warm_start_steps: int = knob(180, "optimiser steps of the supervised warm start", "optimiser steps")
    cache_dir: str = knob("", "where the built model is kept; empty: ~/.cache/fr3e_async", "path")

    def __post_init__(self) -> None:
        require_positive(
            "toy", train_problems=self.train_problems, heldout_problems=self.heldout_problems,
            steps_min=self.steps_min, warm_start_steps=self.warm_start_steps,
        )  # fmt: skip
        require(self.steps_max >= self.steps_min, f"toy.steps_max ({self.steps_max}) is below toy.steps_min ({self.steps_min})")
        require(
            1 <= self.forks_min <= self.forks_max <= 4,
            f"toy.forks_min ({self.forks_min}) and toy.forks_max ({self.forks_max}) must be in 1..4, in this order",
        )
        require(
            self.task == "steps" or self.forks_max <= self.steps_min,
            f"toy.forks_max ({self.forks_max}) is above toy.steps_min ({self.steps_min})",
        )
        require(0 < self.turn_rate < 1, f"toy.turn_rate must be in (0, 1), got {self.turn_rate}")
        require(0 <= self.style_rate < 1, f"toy.style_rate must be in [0, 1), got {self.style_rate}")
        require(0 < self.slip_rate < 1, f"toy.slip_rate must be in (0, 1), got {self.slip_rate}")


# ---- Settings of what a run shows and keeps of itself ----

# What accounts' keys look like (Weights & Biases: 40 hexadecimal digits, or its newer form), and a password within an address.
KEY = re.compile(r"\b[0-9a-f]{40}\b|\bwandb_v\d+_\w{20,}", re.IGNORECASE)
PASSWORD = re.compile(r"//[^/@\s]*@")


@dataclass(frozen=True, kw_only=True)
class ObserveConfig:
    console: Literal["auto", "live", "plain", "off"] = knob(
        "auto", "progress view; auto: live on a terminal, plain lines elsewhere"
    )
    tensorboard: bool = knob(True, "write TensorBoard events into the run directory")
    wandb: Literal["off", "online", "offline"] = knob(
        "off", "Weights & Biases; online: WANDB_API_KEY from the environment; offline: files below trackers/, for `wandb sync`"
    )
    mlflow: Literal["off", "online", "offline"] = knob(
        "off",
        "MLflow; online: a server, its secrets from the environment; offline: files below trackers/, or at observe.mlflow_uri",
    )
    mlflow_uri: str = knob(
        "",
        "MLflow's server, or with observe.mlflow=offline a file: address; empty: MLFLOW_TRACKING_URI, or trackers/mlflow",
        "URI",
    )
    project: str = knob("fr3e-async", "project in Weights & Biases, experiment in MLflow")
    entity: str = knob("", "team or user in Weights & Biases; empty: the account's own")
    group: str = knob("", "runs that belong together: group in Weights & Biases, tag `group` in MLflow")
    tags: list[str] = knob([], "tags of the run in both trackers")
    tracker_close_s: float = knob(15.0, "how long the end of a run waits for the trackers' last rows, all together", "s")
    prometheus: bool = knob(True, "hand metrics to Ray, on whose nodes Prometheus may read them (docs/operations.md)")
    heartbeat_s: float = knob(2.0, "how often actors are asked for their state", "s")
    journal: bool = knob(True, "write every event and decision of the control loop into journal/, for replay and simulation")
    trees_per_step: int = knob(
        2,
        "trained groups, and as many others, of each batch that are kept whole in trees.jsonl, for the tree viewer; 0: none",
        "groups",
    )
    trees_mib: int = knob(128, "largest size of trees.jsonl: when it is reached, the trees of every second step go", "MiB")
    verbose: bool = knob(False, "let the logs of Ray, vLLM and DeepSpeed through to the console as well as to files")

    def __post_init__(self) -> None:
        for name in ("project", "entity", "group", "mlflow_uri"):
            _refuse_keys(f"observe.{name}", getattr(self, name))
        for tag in self.tags:
            _refuse_keys("observe.tags", tag)
            require(bool(tag.strip()), "observe.tags: a tag is empty")
        require(bool(self.project.strip()), "observe.project must not be empty")
        local = self.mlflow_uri.startswith(("file:", "sqlite:"))
        require(
            self.mlflow != "offline" or not self.mlflow_uri or local,
            f"observe.mlflow=offline with observe.mlflow_uri={self.mlflow_uri}: that is a server; set a file: address, or observe.mlflow=online",
        )
        require_positive("observe", tracker_close_s=self.tracker_close_s)
        require_positive("observe", heartbeat_s=self.heartbeat_s, trees_mib=self.trees_mib)
        require_at_least_0("observe", trees_per_step=self.trees_per_step)


def _refuse_keys(path: str, text: str) -> None:
    """Raise ``ConfigError``, which does not repeat it, for what looks like an account's key or holds a password."""
    require(
        not KEY.search(text), f"{path} looks like an account's key; settings are written to files, so set WANDB_API_KEY instead"
    )
    require(
        not PASSWORD.search(text),
        f"{path} holds a name or password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    )
