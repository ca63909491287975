"""Which settings make a run what it is: two configs may share a run directory if those agree. Pure."""

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fr3e_async.config import Config
from fr3e_async.config.knobs import RENAMED

SHOWN = 3  # differing settings in an error message
# Settings that may change from one resume to the next: how long, how many actors, where, what is shown; not what is learned.
CHANGEABLE = (
    "resume",
    "run.dir",
    "run.name",
    "run.steps",
    "run.max_wall_s",
    "run.stop_grace_s",
    "run.keep_checkpoints",
    "run.keep_best",
    "run.export_every",
    "run.checkpoint_every",
    "run.change_lr",
    "budget.tokens",
    "flow.max_rejected_in_a_row",
    "flow.max_attempts",
    "observe.*",
    "ray.*",
    "watchdog.*",
    "evaluation.*",
    "generators.*",
    "explorers.*",
    "pools.*",
    "verifiers.count",
    "verifiers.min",
    "verifiers.max",
    "verifiers.labels",
    "learner.labels",
    "learner.placement",
    "verifiers.cpus",
    "verifiers.resources",
    "verifiers.workers",
    "verifiers.wall_limit_s",
    "learner.ranks",  # a learner's checkpoint is loaded by any number of ranks, in any stage and precision
    "learner.zero_stage",
    "learner.dtype",
    "learner.ds_config.zero_optimization",
    "learner.gpus",
    "learner.threads",
    "learner.micro_batch_tokens",
    "learner.activation_checkpointing",
    "learner.packing",  # the same update in another layout
    "learner.tree_attention",
    "learner.attention",
    "learner.logits_mib",
    "learner.stop_above_grad_norm",
    "learner.stop_above_ratio",
    "learner.stop_above_mismatch",
    "learner.cpus",
    "learner.resources",
    "learner.step_timeout_s",
    "learner.max_restarts",
    "*.start_timeout_s",
    "weights.*",
    "flow.lease_s",
    "flow.retry_backoff_s",
    "toy.cache_dir",
)


def flat(config: Config) -> dict[str, Any]:
    """Settings by dotted path; lists and free-form mappings are one value, but DeepSpeed's are told apart by their first key,
    and a list of sections (``data.train_sources``) by position and name."""
    settings: dict[str, Any] = {}
    for name, value in asdict(config).items():
        if isinstance(value, dict):
            for key, item in value.items():
                settings |= _entries(f"{name}.{key}", item)
        else:
            settings |= _entries(name, value)
    settings |= {f"learner.ds_config.{key}": value for key, value in settings.pop("learner.ds_config").items()}
    return settings


def _entries(path: str, value: Any) -> dict[str, Any]:
    if not (isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value)):
        return {path: value}
    return {f"{path}[{index}].{key}": item for index, entry in enumerate(value) for key, item in entry.items()}


def lasting(config: Config) -> dict[str, Any]:
    """The settings that must not change over resumes."""
    return {path: value for path, value in flat(config).items() if not any(fnmatch.fnmatch(path, p) for p in CHANGEABLE)}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hex digits of the settings, whatever their order."""
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``path: old -> new`` for each setting that differs, by path. A setting that one side lacks counts as differing.

    ``old`` may have words that were renamed since.
    """
    old = {path: RENAMED[path].get(value, value) if path in RENAMED else value for path, value in old.items()}
    paths = sorted(old.keys() | new.keys())
    missing = "(none)"
    return [
        f"{p}: {old.get(p, missing)!r} -> {new.get(p, missing)!r}" for p in paths if old.get(p, missing) != new.get(p, missing)
    ]


def shortened(changed: Sequence[str]) -> str:
    """The first ``SHOWN`` differences for an error message: ``a; b; c and 4 more``."""
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return "; ".join(changed[:SHOWN]) + more
