"""Settings of what a run shows and keeps of itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fr3e_async.config.knobs import knob, require, require_at_least_0, require_positive

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
