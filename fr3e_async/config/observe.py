"""Settings of what a run shows and keeps of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fr3e_async.config.knobs import knob, require_at_least_0, require_positive


@dataclass(frozen=True, kw_only=True)
class ObserveConfig:
    console: Literal["auto", "live", "plain", "off"] = knob(
        "auto", "progress view; auto: live on a terminal, plain lines elsewhere"
    )
    tensorboard: bool = knob(True, "write TensorBoard events into the run directory")
    prometheus: bool = knob(True, "hand metrics to Ray, on whose nodes Prometheus may read them (docs/operations.md)")
    heartbeat_s: float = knob(2.0, "how often actors are asked for their state", "s")
    journal: bool = knob(True, "write every event and decision of the control loop into journal/, for replay and simulation")
    trees_per_step: int = knob(
        2,
        "trained groups, and as many others, of each batch that are kept whole in trees.jsonl, for the tree viewer; 0: none",
        "groups",
    )
    trees_mib: int = knob(128, "no more trees are kept once trees.jsonl is as large", "MiB")
    verbose: bool = knob(False, "let the logs of Ray, vLLM and DeepSpeed through to the console as well as to files")

    def __post_init__(self) -> None:
        require_positive("observe", heartbeat_s=self.heartbeat_s, trees_mib=self.trees_mib)
        require_at_least_0("observe", trees_per_step=self.trees_per_step)
