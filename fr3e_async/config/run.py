"""Settings of a run and of what surrounds it: model, watchdog, cluster."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from fr3e_async.config.knobs import Part, PartOr0, knob, require, settings
from fr3e_async.config.secrets import refuse_keys


@settings("run")
class RunConfig:
    name: str = knob("fr3e", "name of the run; part of the default run directory")
    dir: str = knob(
        "", "run directory, on storage of all nodes; empty: runs/<name>-<time>, the newest one with resume=auto", "path"
    )
    seed: NonNegativeInt = knob(0, "seed of prompt order, samplers, toy task and toy model")
    steps: PositiveInt = knob(100, "training steps, one batch each, counted over resumes", "steps")
    max_wall_s: NonNegativeFloat = knob(0.0, "stop with a checkpoint after this long; 0: no limit")
    checkpoint_every: NonNegativeInt = knob(
        20, "steps between checkpoints, besides those by time (after 5 min or more) and at the end; 0: no others", "steps"
    )
    keep_checkpoints: PositiveInt = knob(2, "newest checkpoints to keep; older ones go when a newer one is durable")
    keep_best: bool = knob(
        False,
        "write a checkpoint for each evaluation, and keep the one of the best accuracy on data.heldout: checkpoints/best names it",
    )
    export_every: NonNegativeInt = knob(
        0, "steps between model folders for transformers and vLLM, models/step-<n>; 0: the last weights only, in model/", "steps"
    )
    stop_grace_s: PositiveFloat = knob(
        25.0, "time for step and checkpoint after SIGTERM or SIGHUP; Ctrl-C waits as long as it takes"
    )
    branch_from: str = knob(
        "", "checkpoint, or run directory, whose weights a new run begins with; model.path stays that run's", "path"
    )
    branch_optimizer: bool = knob(
        True, "with run.branch_from: also take its optimiser state and warm-up steps; learner.lr_schedule starts over"
    )
    change_lr: bool = knob(False, "let a resumed run change learner.lr; otherwise a different one is refused")

    def __post_init__(self) -> None:
        require(bool(self.name) and "/" not in self.name, f"run.name must be a plain word, got {self.name!r}")


@settings("model")
class ModelConfig:
    path: str = knob("toy", "'toy' (built and cached), a local Hugging Face folder, or a hub id", "path or id")
    revision: str = knob("", "hub revision; empty: the default branch")
    trust_remote_code: bool = knob(False, "run Python code that ships with the model; only for sources you trust")
    parameters: int = knob(0, "number of weights, for the memory estimate when the model is not on this disk; 0: read its config")


@settings("watchdog")
class WatchdogConfig:
    timeout_s: PositiveFloat = knob(600.0, "no progress of any kind for this long ends the run with a diagnosis")
    stuck_s: PositiveFloat = knob(300.0, "replace an actor that neither answers nor makes progress with its work for this long")


@settings("ray")
class RayConfig:
    address: str = knob(
        "", "cluster to join; empty: that of `ray job submit` or RAY_ADDRESS, else a local one; 'local': always local"
    )
    autoscaling: bool = knob(False, "the cluster grows on demand: actors wait for nodes where they would be refused otherwise")
    request: bool = knob(
        True, "tell the autoscaler at once of all actors; false where runs share a cluster: the newest request is the only one"
    )
    room_timeout_s: PositiveFloat = knob(1800.0, "time for the cluster to find room for a start's actors, new nodes included")
    num_cpus: NonNegativeInt = knob(0, "CPUs that a local cluster offers; 0: as many as the actors need, at least the machine's")
    object_store_gib: Annotated[float, Field(ge=0.075)] = knob(0.5, "shared memory of a local cluster")


# ---- Settings of the embedded tasks and their model ----


@settings("toy")
class ToyConfig:
    task: Literal["steps", "forks"] = knob("steps", "steps: arithmetic with slips; forks: arithmetic that needs rare tokens")
    train_problems: PositiveInt = knob(4096, "distinct training problems", "problems")
    heldout_problems: PositiveInt = knob(1024, "distinct held-out problems", "problems")
    steps_min: PositiveInt = knob(3, "fewest arithmetic steps of a problem")
    steps_max: int = knob(4, "most arithmetic steps of a problem")
    slip_rate: Part = knob(0.26, "steps: part of the warm start's steps that go wrong")
    forks_min: int = knob(2, "forks: fewest forks of a problem")
    forks_max: int = knob(3, "forks: most forks of a problem")
    turn_rate: Part = knob(0.25, "forks: part of the warm start's turns that are the rare one")
    style_rate: PartOr0 = knob(0.04, "forks: part of the warm start's lines with an extra space")
    warm_start_steps: PositiveInt = knob(180, "optimiser steps of the supervised warm start", "optimiser steps")
    cache_dir: str = knob("", "where the built model is kept; empty: ~/.cache/fr3e_async", "path")

    def __post_init__(self) -> None:
        require(self.steps_max >= self.steps_min, f"toy.steps_max ({self.steps_max}) is below toy.steps_min ({self.steps_min})")
        require(
            1 <= self.forks_min <= self.forks_max <= 4,
            f"toy.forks_min ({self.forks_min}) and toy.forks_max ({self.forks_max}) must be in 1..4, in this order",
        )
        require(
            self.task == "steps" or self.forks_max <= self.steps_min,
            f"toy.forks_max ({self.forks_max}) is above toy.steps_min ({self.steps_min})",
        )


# ---- Settings of what a run shows and keeps of itself ----


@settings("observe")
class ObserveConfig:
    console: Literal["auto", "live", "plain", "off"] = knob("auto", "progress view; auto: live on a terminal, else plain lines")
    tensorboard: bool = knob(True, "write TensorBoard events into the run directory")
    wandb: Literal["off", "online", "offline"] = knob(
        "off", "Weights & Biases; online: WANDB_API_KEY from the environment; offline: files below trackers/, for `wandb sync`"
    )
    mlflow: Literal["off", "online", "offline"] = knob(
        "off", "MLflow; online: a server, its secrets from the environment; offline: files below trackers/, or at mlflow_uri"
    )
    mlflow_uri: str = knob(
        "", "MLflow's server, or a file: address if offline; empty: MLFLOW_TRACKING_URI, or trackers/mlflow", "URI"
    )
    project: str = knob("fr3e-async", "project in Weights & Biases, experiment in MLflow")
    entity: str = knob("", "team or user in Weights & Biases; empty: the account's own")
    group: str = knob("", "runs that belong together: group in Weights & Biases, tag `group` in MLflow")
    tags: list[str] = knob([], "tags of the run in both trackers")
    tracker_close_s: PositiveFloat = knob(15.0, "how long the end of a run waits for the trackers' last rows, all together")
    prometheus: bool = knob(True, "hand metrics to Ray, on whose nodes Prometheus may read them (docs/operations.md)")
    heartbeat_s: PositiveFloat = knob(2.0, "how often actors are asked for their state")
    journal: bool = knob(True, "write every event and decision of the control loop into journal/, for replay and simulation")
    trees_per_step: NonNegativeInt = knob(
        2, "trained groups of a step, and as many others, to keep for the tree viewer; 0: none", "groups"
    )
    trees_mib: PositiveInt = knob(128, "largest size of trees.jsonl; a full file drops the trees of every second step")
    verbose: bool = knob(False, "let the logs of Ray, vLLM and DeepSpeed through to the console as well as to files")

    def __post_init__(self) -> None:
        for name in ("project", "entity", "group", "mlflow_uri"):
            refuse_keys(f"observe.{name}", getattr(self, name))
        for tag in self.tags:
            refuse_keys("observe.tags", tag)
            require(bool(tag.strip()), "observe.tags: a tag is empty")
        require(bool(self.project.strip()), "observe.project must not be empty")
        local = self.mlflow_uri.startswith(("file:", "sqlite:"))
        require(
            self.mlflow != "offline" or not self.mlflow_uri or local,
            f"observe.mlflow=offline with observe.mlflow_uri={self.mlflow_uri}: that is a server; set a file: address, or observe.mlflow=online",
        )
