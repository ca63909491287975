"""``fr3e plan`` and ``fr3e simulate``: which actor ratios suit a cluster, and what a run would do there. No such run takes place."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fr3e_async.cli.words import SETTINGS, number, numbers, options_of, show, takes_words, texts
from fr3e_async.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from fr3e_async.config import Config
    from fr3e_async.simulate.calibrate import Fit
    from fr3e_async.simulate.service import SystemModel

MEAN_SHARE, SIGMA_SHARE = 0.25, 0.6  # of sampling.max_response, and of the mean, where neither a run nor numbers are given
SPEEDS = {"run": "", "model": "", "device": ""}  # where service times and prompts come from; one of them is given, else DEVICE
DEVICE = "H100"
FORECAST_STEPS = 6  # batches of a dry run's simulation: under a second
IDLE_LEARNER = 0.4  # share from which on a dry run warns
PROMPTS = {"length": 0.0, "sigma": 0.0, "accuracy": 0.5, "cores": 0.0}


@click.command(context_settings=SETTINGS)
@takes_words("config=FILE[,FILE ...] gpus=N [cpus=N] [key=value ...]")
@click.pass_context
def plan(context: click.Context, words: tuple[str, ...]) -> int:
    """Propose actor counts for a cluster, by simulation.

    \b
    gpus=64 cpus=512        the cluster; cpus alone where no role uses a GPU; without cpus there are enough
    run=RUN                 speeds and prompts as measured in a finished run (its journal/)
    model=FILE              the same, from a file of fr3e simulate calibrate
    device=H100             speeds from a data sheet: A100, H100 (default), H200, CPU
    length=2000 sigma=1500  tokens of a response, mean and standard deviation (with device; default: a quarter of
                            sampling.max_response, and 0.6 of the mean)
    accuracy=0.5            mean chance that an answer is correct (with device)
    cores=2                 with run=: the run's actors shared so many cores of one machine
    steps=4 tries=60        batches of each simulation, simulations at most
    flow.groups_per_step=64 any setting of a run
    """
    from fr3e_async.simulate.propose import Cluster, Search, mean_length, render

    speeds, rest = texts(words, SPEEDS)
    given, settings = numbers(rest, PROMPTS | {"gpus": 0.0, "cpus": 0.0, "steps": 4.0, "tries": 60.0})
    steps, tries = (at_least_one(name, given[name]) for name in ("steps", "tries"))
    config = config_of(settings, context)
    model = model_of(speeds, given, config)
    search = Search(config, model, Cluster(gpus=int(given["gpus"]), cpus=given["cpus"]), steps=steps, most=tries)
    show(f"speeds: {model.source}; a response has {mean_length(model):.0f} tokens on average")
    patience = (lambda line: print(line, file=sys.stderr)) if sys.stderr.isatty() else (lambda line: None)
    show(render(search.best(progress=patience)))
    show(f"{len(search.tried)} splits were simulated; no such run took place")
    return 0


@click.group(no_args_is_help=False)
def simulate() -> None:
    """Simulate a run on a cluster that one does not have."""


@simulate.command(context_settings=SETTINGS)
@takes_words("RUN [cores=N] [out=FILE]")
def calibrate(words: tuple[str, ...]) -> int:
    """Measure service times and prompts of a finished run.

    Reads the journal of RUN, which may be written run=RUN.

    \b
    cores=N   all processes shared N cores of one machine; 0 (default): each has a device of its own
    out=FILE  a file to use as model=FILE
    """
    said, rest = texts(words, {"run": "", "out": ""})
    given, bare = numbers(rest, {"cores": 0.0})
    runs = [*filter(None, [said["run"]]), *bare]
    if wrong := next((word for word in runs if "=" in word or word.startswith("-")), ""):
        raise ConfigError(f"{wrong}: calibrate takes run=, cores= and out=")
    if len(runs) != 1:
        raise ConfigError("run=RUN is missing: the folder of a finished run" if not runs else f"{runs[1]}: one run is measured")
    fit = fit_of(Path(runs[0]).expanduser(), cores=given["cores"])
    show(fit.render())
    if said["out"]:
        out = Path(said["out"]).expanduser()
        try:
            fit.model.save(out)
        except OSError as error:
            raise StorageError(f"out={out}: cannot be written ({error.strerror})") from error
    return 0


@simulate.command(context_settings=SETTINGS)
@takes_words("config=FILE[,FILE ...] (run=RUN | model=FILE | device=H100) [key=value ...]")
@click.pass_context
def run(context: click.Context, words: tuple[str, ...]) -> int:
    """Simulate a run of a config.

    \b
    steps=20 seed=0 warmup=1         batches, seed, batches that the averages leave out
    cores=N                          all processes share N cores of one machine; 0 (default): each has a device of its own
    length= sigma= accuracy=         as in fr3e plan --help
    flow.groups_per_step=64          any setting of a run
    """
    from fr3e_async.simulate.world import simulate as simulated

    speeds, rest = texts(words, SPEEDS)
    said, rest = texts(rest, {"steps": ""})
    given, settings = numbers(rest, PROMPTS | {"seed": 0.0, "warmup": 1.0})
    config = config_of(settings, context)
    steps = at_least_one("steps", number("steps", said["steps"])) if said["steps"] else config.run.steps
    found = simulated(
        config, model_of(speeds, given, config), steps=steps, seed=int(given["seed"]), cores=given["cores"],
        warmup=int(given["warmup"]),
    )  # fmt: skip
    show(found.render())
    return 0


def at_least_one(name: str, value: float) -> int:
    if value < 1:
        raise ConfigError(f"{name} must be a number of at least 1, got {value:g}")
    return int(value)


def config_of(settings: Sequence[str], context: click.Context) -> Config:
    from fr3e_async.settings.loader import load_config

    if not any(word.startswith("config=") for word in settings):
        raise ConfigError("config=FILE is missing (config=toy is the embedded one); --help says more")
    return load_config(settings, options=options_of(context)).config


def model_of(speeds: Mapping[str, str], given: Mapping[str, float], config: Config) -> SystemModel:
    """Service times and prompts of a run, of a file, or of a data sheet. Raises ``UserError`` kinds."""
    from fr3e_async.learner.memory import model_shape
    from fr3e_async.simulate.roofline import device_of, roofline
    from fr3e_async.simulate.service import SystemModel
    from fr3e_async.simulate.workload import LogNormalWorkload

    sources = [name for name, text in speeds.items() if text]
    if len(sources) > 1:
        raise ConfigError(f"{' and '.join(sources)}: give one of them")
    if speeds["run"]:
        return fit_of(Path(speeds["run"]).expanduser(), cores=given["cores"]).model
    if speeds["model"]:
        return SystemModel.load(Path(speeds["model"]).expanduser())
    shape = model_shape(config)
    if shape is None:
        raise ConfigError(f"model.path={config.model.path} is not on this disk; set model.parameters, or give run= or model=")
    device = device_of(speeds["device"] or DEVICE)
    mean, accuracy = given["length"] or MEAN_SHARE * config.sampling.max_response, given["accuracy"]
    if not 0 < accuracy < 1:
        raise ConfigError(f"accuracy must be in (0, 1), got {accuracy:g}")
    workload = LogNormalWorkload(
        mean=mean, sigma=given["sigma"] or SIGMA_SHARE * mean, prompt=max(1, config.data.max_prompt // 4),
        correct_alpha=1.2 * accuracy, correct_beta=1.2 * (1 - accuracy),
    )  # fmt: skip
    return roofline(config, shape, device, workload, name=speeds["device"] or DEVICE)


def forecast(config: Config) -> str:
    """What the simulator expects of a run on ``DEVICE``: time of a batch and idle shares, with a warning for a learner that waits."""
    from fr3e_async.simulate.world import simulate as simulated

    model = model_of(SPEEDS, PROMPTS, config)
    found = simulated(config, model, steps=FORECAST_STEPS, warmup=2)
    idle = ", ".join(f"{role} {share:.0%}" for role, share in found.idle.items())
    lines = [f"  by {model.source}: {found.step_s:.0f} s a batch; idle: {idle}"]
    if found.idle["learner"] > IDLE_LEARNER:
        lines.append(
            f"  warning: the learner waits {found.idle['learner']:.0%} of its time; flow.max_staleness={config.flow.max_staleness} could be "
            f"raised, learner.ranks={config.learner.ranks} lowered; `fr3e plan` finds a split"
        )
    return "\n".join(lines)


def fit_of(run: Path, *, cores: float) -> Fit:
    """The model that fits a recorded run's journal, with how well it fits. Raises ``StorageError``."""
    from fr3e_async.simulate.calibrate import calibrate, pause_of
    from fr3e_async.simulate.recording import read_recording

    try:
        recording, _ = read_recording(run)
    except OSError as error:
        raise StorageError(f"run={run}: cannot be read ({error.strerror})") from error
    return calibrate(recording, source=str(run), cores=cores, pause_s=pause_of(run) if run.is_dir() else None)
