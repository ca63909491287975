"""From a metric to the code that computes it: the functions by name, and where they stand, with their text.

Places are looked up in the package's own files, by their syntax and without importing them, so that a page can be made where
torch is not installed. A test holds the table against the declared metrics and against the code.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

PACKAGE = Path(__file__).parent.parent

# Pattern of names | the function that gives the value its name | functions that it takes it from. The first pattern that fits counts.
_TABLE = """
groups/*                         | machine/tally.py:Tally.take | machine/ledger.py:Ledger._settle, machine/ledger.py:Ledger._close
states/interval_width            | machine/tally.py:Tally.take | machine/group.py:Group._states, algorithm/values.py:wilson
states/*                         | machine/tally.py:Tally.take | machine/group.py:Group._states
verify/*                         | machine/tally.py:Tally.take | machine/group.py:Group.retire, machine/group.py:Group.judge
tokens/generated                 | machine/tally.py:Tally.take | machine/group.py:Group._tokens
tokens/rate_per_s                | control/heartbeat.py:Teller.step | machine/tally.py:Tally.take
reward/*                         | machine/tally.py:Tally.take | machine/group.py:Group.retire, machine/group.py:Group.judge
rollout/length_tokens            | machine/tally.py:Tally.take | machine/group.py:Group._response
rollout/*                        | machine/tally.py:Tally.take | machine/group.py:Group.retire
prompt/all_*                     | machine/tally.py:Tally.take | machine/tally.py:Tally.add, machine/group.py:Group.retire
prompt/*                         | machine/tally.py:Tally.take | machine/group.py:Group._tokens, machine/group.py:_useful
queue/*                          | control/heartbeat.py:Teller.step | machine/machine.py:Machine
time/step_s                      | control/heartbeat.py:Teller.step |
time/train_s                     | control/learning.py:Learning._train |
time/export_s                    | control/learning.py:Learning._train |
time/sync_s                      | control/progress.py:Progress.synced | control/publisher.py:Publisher.sync
time/pause_s                     | control/progress.py:Progress.synced | control/publisher.py:Sync.pause_s
time/pause_max_s                 | control/publisher.py:Sync.metrics |
time/copy_s                      | control/publisher.py:Sync.metrics |
weights/*                        | control/publisher.py:Sync.metrics | control/publisher.py:Publisher.sync
time/checkpoint_s                | control/checkpointing.py:CheckpointWriter._save |
checkpoint/*                     | control/checkpointing.py:CheckpointWriter._save |
idle/*                           | control/watchdog.py:Watchdog.utilisation | observe/intervals.py:idle_share
overlap/*                        | control/watchdog.py:Watchdog.utilisation | control/watchdog.py:Watchdog._overlap, observe/intervals.py:intersection
cache/*                          | control/watchdog.py:Watchdog.utilisation | control/watchdog.py:Watchdog._measured
actors/replaced                  | control/watchdog.py:Watchdog.utilisation | control/watchdog.py:Watchdog.replaced
train/tokens                     | learner/metrics.py:step_metrics | learner/metrics.py:token_ages
train/lr                         | learner/metrics.py:step_metrics | learner/update.py:BatchUpdate.run
train/grad_norm*                 | learner/metrics.py:step_metrics | learner/update.py:BatchUpdate._optimise
train/padding_fraction           | learner/metrics.py:step_metrics | learner/update.py:BatchUpdate._schedule
train/shared_fraction            | learner/metrics.py:step_metrics | learner/update.py:BatchUpdate._schedule
train/mismatch*                  | learner/metrics.py:loss_metrics | algorithm/losses.py:_columns, algorithm/losses.py:k3
train/loss                       | learner/metrics.py:loss_metrics | algorithm/losses.py:policy_loss, algorithm/losses.py:_token_losses
train/dual_clip_fraction         | learner/metrics.py:loss_metrics | algorithm/losses.py:_columns, algorithm/losses.py:clipped_surrogate
train/importance_capped_fraction | learner/metrics.py:loss_metrics | algorithm/losses.py:_columns, algorithm/losses.py:_capped
train/sequence_masked_fraction   | learner/metrics.py:loss_metrics | algorithm/losses.py:_columns, algorithm/losses.py:kept_completions
train/offpolicy_signed_nats      | learner/metrics.py:loss_metrics | algorithm/losses.py:_columns
train/kl_nats                    | learner/metrics.py:loss_metrics | algorithm/losses.py:_columns, algorithm/losses.py:k3
train/entropy_nats               | learner/metrics.py:loss_metrics | algorithm/losses.py:_columns
train/ess_fraction               | learner/metrics.py:loss_metrics | learner/metrics.py:_means, learner/metrics.py:_ess_fraction, algorithm/losses.py:_columns
train/*                          | learner/metrics.py:loss_metrics | learner/metrics.py:_means, algorithm/losses.py:_columns
lag/*                            | learner/metrics.py:step_metrics | learner/metrics.py:token_ages
staleness/*_tokens_fraction      | learner/metrics.py:age_metrics | algorithm/batching.py:age_bucket
staleness/*_ess_fraction         | learner/metrics.py:age_metrics | learner/metrics.py:_means, learner/metrics.py:_ess_fraction, algorithm/losses.py:_sum_by_age
staleness/*                      | learner/metrics.py:age_metrics | learner/metrics.py:_means, algorithm/losses.py:_columns, algorithm/losses.py:_sum_by_age
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A function or class of the package. *Example*: ``machine/tally.py``, ``Tally.take``, line 51 and its text."""

    file: str  # from the package's folder
    name: str
    line: int  # from 1
    source: str

    @property
    def key(self) -> str:
        return f"{self.file}:{self.name}"


@functools.cache
def patterns() -> dict[str, tuple[str, ...]]:
    """Pattern of metric names → places as ``file:function``, the one that names the value first."""
    table = {}
    for line in _TABLE.strip().splitlines():
        pattern, first, further = (cell.strip() for cell in line.split("|"))
        table[pattern] = (first, *(place.strip() for place in further.split(",") if place.strip()))
    return table


def places_of(metric: str) -> tuple[str, ...]:
    """Where a metric is computed, as ``file:function``; nothing for a name that no pattern fits."""
    return next((found for pattern, found in patterns().items() if fnmatchcase(metric, pattern)), ())


@functools.cache
def locate(place: str) -> Place:
    """Raises ``LookupError``: the package has no such file or function."""
    file, _, name = place.partition(":")
    if not (PACKAGE / file).is_file():
        raise LookupError(f"{place}: there is no such file in the package")
    text, node = _parsed(file)
    for part in name.split("."):
        node = _inside(node, part, place)
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])  # type: ignore[attr-defined]
    last = node.end_lineno  # type: ignore[attr-defined]
    return Place(file=file, name=name, line=first, source="\n".join(text.split("\n")[first - 1 : last]))


@functools.cache
def _parsed(file: str) -> tuple[str, ast.AST]:
    text = (PACKAGE / file).read_text(encoding="utf-8")
    return text, ast.parse(text)


def _inside(node: ast.AST, name: str, place: str) -> ast.AST:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [child for child in ast.iter_child_nodes(node) if isinstance(child, kinds) and child.name == name]
    if not found:
        raise LookupError(f"{place}: there is no {name} in it")
    return found[0]


def code_of(metrics: Iterable[str]) -> dict[str, Place]:
    """Every place that computes one of these metrics, by its key."""
    return {place: locate(place) for metric in metrics for place in places_of(metric)}
