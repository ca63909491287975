"""Settings of a run and of what surrounds it: model, watchdog, cluster."""

from __future__ import annotations

from dataclasses import dataclass

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
