"""``fr3e evaluate``: scores a model on benchmarks and writes the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fr3e_async.cli.words import SETTINGS, options_of, show, takes_words, texts
from fr3e_async.errors import ConfigError

if TYPE_CHECKING:
    from fr3e_async.run.benchmarking import EvaluationRequest


@click.command(context_settings=SETTINGS)
@click.option(
    "--dry-run", is_flag=True, help="Check model, data, prompts and reward; print benchmarks and placement; start nothing."
)
@takes_words("model=MODEL suite=NAME[,NAME ...] [out=DIR] [config=FILE[,FILE ...]] [key=value ...]")
@click.pass_context
def evaluate(context: click.Context, words: tuple[str, ...], dry_run: bool) -> int:
    """Evaluate a model on benchmarks.

    Engines and verifiers are those of a run; there is no learner.

    \b
    model=MODEL  a model folder, a hub id, or a run directory (its final model; fr3e export makes one of a checkpoint)
    suite=NAMES  benchmarks (docs/evaluation.md), 'paper', 'all', and 'heldout' for data.heldout; empty: heldout
    out=DIR      where the results go; empty: evaluations/<model>-<time>
    config=FILE  settings as of a run; without it those of the run that the model is of, else eval/gpu or eval/cpu
    key=value    any setting, e.g. evaluation.temperature=0.6 generators.count=4 evaluation.paths.aime24=FILE

    Finished problems are kept: the same command with the same out=DIR samples only what is missing, also after exit codes 1 and 130.
    """
    asked = understood(words, options=options_of(context))
    from fr3e_async.files.scratch import scratch
    from fr3e_async.run.benchmarking import check, evaluate

    with scratch():
        if dry_run:
            show(check(asked).text)
            return 0
        return evaluate(asked)


def understood(words: Sequence[str], *, options: Sequence[str] = ("--help", "--dry-run")) -> EvaluationRequest:
    """Raises ``ConfigError``. ``model``, ``suite`` and ``out`` are words of this command; all others are settings."""
    from fr3e_async.evaluation.suite import HELDOUT
    from fr3e_async.run.benchmarking import EvaluationRequest, model_of
    from fr3e_async.settings.loader import load_config

    own, rest = texts(words, {"model": "", "suite": "", "out": ""})
    configured = any(word.startswith("config=") for word in rest)
    names = [name.strip() for name in own["suite"].strip("[]").split(",") if name.strip()]
    if not own["model"] and not configured:
        raise ConfigError("model: no model given; model=FOLDER, a hub id or a run directory, see --help")
    model, settings = model_of(own["model"])
    if not configured:
        rest.insert(0, f"config={settings or machine_config()}")
    if model:
        rest.append(f"model.path={model}")
    if names:
        rest.append(f"evaluation.suite=[{', '.join(name for name in names if name != HELDOUT)}]")
    loaded = load_config(rest, options=options)
    heldout = HELDOUT in names or not loaded.config.evaluation.suite
    if heldout and not loaded.config.data.heldout:
        raise ConfigError("suite: name benchmarks (suite=gsm8k,aime24, or paper, or all), or set data.heldout")
    return EvaluationRequest(loaded=loaded, name=own["model"] or loaded.config.model.path, out=own["out"], heldout=heldout)


def machine_config() -> str:
    """The shipped config for a machine with, or without, an NVIDIA GPU."""
    return "eval/gpu" if Path("/proc/driver/nvidia/gpus").is_dir() else "eval/cpu"
