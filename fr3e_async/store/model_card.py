"""The model card of an exported model: what it was made from, how, and how well it does. Text from facts; nothing is measured.

Knows nothing of weights. The licence is the base model's, which this program cannot know.
"""

import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fr3e_async.evaluation.estimators import Estimate
from fr3e_async.files.durable import reading
from fr3e_async.store.summary import Summary

FILE = "README.md"
LIBRARIES = ("torch", "transformers", "deepspeed", "vllm", "ray", "math-verify")
METHOD = ("algorithm.*", "budget.*", "sampling.*", "loss.*", "flow.groups_per_step", "flow.max_staleness", "engine.entropy")
LEARNER = (
    "lr",
    "lr_schedule",
    "lr_min_ratio",
    "warmup_steps",
    "betas",
    "weight_decay",
    "grad_clip",
    "minibatches",
    "epochs",
    "ds_config.*",
)
DATA = ("data.train", "data.heldout", "data.system", "data.template", "data.max_prompt", "reward", "rewards*")
NUMBERS = {
    "steps": "training batches",
    "optimiser_steps": "optimiser steps",
    "tokens_generated": "tokens generated",
    "tokens_trained": "trained tokens",
    "staleness_mean": "mean age of trained tokens (versions)",
    "staleness_max": "age of the oldest trained token (versions)",
    "wall_s": "wall time (s)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """The facts for a model card. Unknown ones are empty, and the card omits them."""

    model: str  # path or hub id of the base model
    revision: str = ""
    version: int  # of the weights: training batches that made them
    dtype: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # by dotted path
    numbers: Mapping[str, float | None] = field(default_factory=dict)  # by the keys of ``NUMBERS``
    evaluations: Sequence[Mapping[str, Any]] = ()  # as in the summary


def run_settings(run: Path) -> dict[str, Any]:
    """The lasting settings of a run directory, by dotted path; empty if it is none. Raises ``StorageError``."""
    path = run / "run.json"
    with reading(path):
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["settings"] if path.exists() else {}
    return settings


def summary_facts(summary: Summary, settings: Mapping[str, Any], *, dtype: str) -> CardFacts:
    """The facts of a model card for the final model of a run, from its summary."""
    return CardFacts(
        model=str(settings.get("model.path", "")),
        revision=str(settings.get("model.revision", "")),
        version=summary.version,
        dtype=dtype,
        settings=settings,
        numbers={key: getattr(summary, key) for key in NUMBERS},
        evaluations=summary.evaluations,
    )


def model_card(facts: CardFacts) -> str:
    """Write the card as Markdown, with the YAML header that model hubs read."""
    base = facts.model or "unknown"
    hub = f"base_model: {base}\n" if base.count("/") == 1 and not base.startswith((".", "/", "~")) else ""
    strategy = facts.settings.get("algorithm.strategy")
    return "\n".join(
        [
            f"---\n{hub}library_name: transformers\npipeline_tag: text-generation\ntags: [reinforcement-learning]\n---\n",
            f"# {Path(base).name} after {facts.version} steps of {strategy or 'reinforcement learning'}\n",
            f"Base model: `{base}`" + (f", revision `{facts.revision}`" if facts.revision else "") + ".",
            f"Trained with fr3e_async (asynchronous reinforcement learning with verified answers); weights in {facts.dtype}.",
            "The licence is that of the base model.\n",
            *_section("Method", _chosen(facts.settings, METHOD)),
            *_section("Optimiser", _chosen(facts.settings, [f"learner.{name}" for name in LEARNER])),
            *_section("Data", _chosen(facts.settings, DATA)),
            *_section("Training", {label: facts.numbers.get(key) for key, label in NUMBERS.items()}),
            *_evaluations(facts.evaluations),
            "## Use\n",
            "    vllm serve THIS_FOLDER\n",
            "or `AutoModelForCausalLM.from_pretrained(THIS_FOLDER)` with transformers.\n",
            *_section("Made with", {name: _installed(name) for name in LIBRARIES}),
        ]
    )


def _chosen(settings: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    return {path: settings[path] for path in sorted(settings) if any(fnmatch.fnmatch(path, p) for p in patterns)}


def _section(title: str, rows: Mapping[str, Any]) -> list[str]:
    """Format the known values as a table; nothing if none is known."""
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items() if value is not None and value != ""]
    return [f"## {title}\n", "| | |", "| --- | --- |", *lines, ""] if lines else []


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _evaluations(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    if not evaluations:
        return []
    rows = [
        f"| {_cell(e['label'])} | {100 * e['accuracy']:.1f} % | {100 * e['low']:.1f} to {100 * e['high']:.1f} % | "
        f"{Estimate(**e['reward']) if 'reward' in e else ''} |"
        for e in evaluations
    ]
    head = ["| held-out | accuracy | 95 % interval | mean reward |", "| --- | --- | --- | --- |"]
    return ["## Evaluation\n", *head, *rows, ""]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
