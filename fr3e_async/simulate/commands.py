"""The commands of the simulator: words of the command line to values, files to models. One line for every mistake."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fr3e_async.config import Config
from fr3e_async.errors import ConfigError, RunFailed, UserError
from fr3e_async.learner.memory import model_shape
from fr3e_async.settings.loader import load_config
from fr3e_async.simulate.calibrate import Fit, calibrate, pause_of
from fr3e_async.simulate.propose import Cluster, Search, mean_length, render
from fr3e_async.simulate.recording import read_recording
from fr3e_async.simulate.roofline import device_of, roofline
from fr3e_async.simulate.service import SystemModel
from fr3e_async.simulate.simulation import simulate
from fr3e_async.simulate.workload import LogNormalWorkload

MEAN_SHARE, SIGMA_SHARE = 0.25, 0.6  # of sampling.max_response, and of the mean, where neither a run nor numbers are given

PLAN_USAGE = """\
usage: python -m fr3e_async.plan config=FILE[,FILE ...] gpus=N [cpus=N] [key=value ...]

Proposes how many generators, explorers, verifiers and learner ranks a cluster should have, by simulation.

  gpus=64 cpus=512        the cluster; cpus alone where no role uses a GPU; without cpus there are enough
  run=RUN                 speeds and prompts as measured in a finished run (its journal/)
  model=FILE              the same, from a file of `python -m fr3e_async.simulate calibrate`
  device=H100             speeds from a data sheet: A100, H100 (default), H200, CPU
  length=2000 sigma=1500  tokens of a response, mean and standard deviation (with device; default: a quarter of
                          sampling.max_response, and 0.6 of the mean)
  accuracy=0.5            mean chance that an answer is right (with device)
  cores=2                 with run=: the run's actors shared so many cores of one machine
  steps=4 tries=60        batches of each simulation, simulations at most
  flow.groups_per_step=64 any setting of a run
"""

SIMULATE_USAGE = """\
usage: python -m fr3e_async.simulate calibrate run=RUN [cores=N] [out=FILE]
       python -m fr3e_async.simulate run config=FILE[,FILE ...] (run=RUN | model=FILE | device=H100) [key=value ...]

calibrate   measures service times and prompts in a finished run's journal; out: a file to use as model=
run         simulates a config with them: steps=20 seed=0 cores=0 warmup=1 gpus=…, and any setting of a run

cores=N: all processes share N cores of one machine; 0 (default): everyone has a device of his own.
"""

NUMBERS = {"gpus": 0.0, "cpus": 0.0, "cores": 0.0, "steps": 4.0, "tries": 60.0, "length": 0.0, "sigma": 0.0, "accuracy": 0.5,
           "seed": 0.0, "warmup": 1.0}  # fmt: skip
TEXTS = {"run": "", "model": "", "device": "H100", "out": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A command line, taken apart. ``settings``: what is for the config."""

    numbers: Mapping[str, float]
    texts: Mapping[str, str]
    settings: Sequence[str]
    given: frozenset[str]


def split_words(argv: Sequence[str]) -> Words:
    """Raises ``ConfigError`` that names the word."""
    numbers, texts, settings, given = dict(NUMBERS), dict(TEXTS), [], set()
    for word in argv:
        key, equals, value = word.partition("=")
        if equals and key in NUMBERS:
            numbers[key] = _number(key, value)
        elif equals and key in TEXTS:
            texts[key] = value
        else:
            settings.append(word)
            continue
        given.add(key)
    return Words(numbers=numbers, texts=texts, settings=settings, given=frozenset(given))


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    least = 1 if key in ("steps", "tries") else 0
    if not least <= value < float("inf"):
        raise ConfigError(f"{key} must be a number of at least {least}, got {text!r}")
    return value


def model_of(words: Words, config: Config) -> SystemModel:
    """Of a run, of a file, or of a data sheet. Raises ``UserError`` kinds."""
    sources = [name for name in ("run", "model", "device") if name in words.given]
    if len(sources) > 1:
        raise ConfigError(f"{' and '.join(sources)}: give one of them")
    if words.texts["run"]:
        return fit_of(Path(words.texts["run"]), cores=words.numbers["cores"]).model
    if words.texts["model"]:
        return SystemModel.load(Path(words.texts["model"]))
    shape = model_shape(config)
    if shape is None:
        raise ConfigError(f"model.path={config.model.path} is not on this disk; set model.parameters, or give run= or model=")
    device = device_of(words.texts["device"])
    mean = words.numbers["length"] or MEAN_SHARE * config.sampling.max_response
    sigma = words.numbers["sigma"] or SIGMA_SHARE * mean
    accuracy = words.numbers["accuracy"]
    if not 0 < accuracy < 1:
        raise ConfigError(f"accuracy must be in (0, 1), got {accuracy:g}")
    prompt = max(1, config.data.max_prompt // 4)
    workload = LogNormalWorkload(
        mean=mean, sigma=sigma, prompt=prompt, right_alpha=1.2 * accuracy, right_beta=1.2 * (1 - accuracy)
    )  # fmt: skip
    return roofline(config, shape, device, workload, name=words.texts["device"])


def fit_of(run: Path, *, cores: float) -> Fit:
    recording, _ = read_recording(run)
    return calibrate(recording, source=str(run), cores=cores, pause_s=pause_of(run) if run.is_dir() else None)


def config_for(words: Words) -> Config:
    if not any(word.startswith("config=") for word in words.settings):
        raise ConfigError("config=FILE is missing (config=toy is the embedded one); --help says more")
    return load_config(list(words.settings)).config


def plan(argv: Sequence[str]) -> int:
    """``python -m fr3e_async.plan``."""
    words = split_words(argv)
    config = config_for(words)
    model = model_of(words, config)
    cluster = Cluster(gpus=int(words.numbers["gpus"]), cpus=words.numbers["cpus"])
    search = Search(config, model, cluster, steps=int(words.numbers["steps"]), most=int(words.numbers["tries"]))
    print(f"speeds: {model.source}; a response has {mean_length(model):.0f} tokens on average")
    patience = (lambda line: print(line, file=sys.stderr)) if sys.stderr.isatty() else (lambda line: None)
    print(render(search.best(progress=patience)))
    print(f"{len(search.tried)} splits were simulated; no such run took place")
    return 0


def run(argv: Sequence[str]) -> int:
    words = split_words(argv)
    config = config_for(words)
    steps = int(words.numbers["steps"]) if "steps" in words.given else config.run.steps
    report = simulate(
        config,
        model_of(words, config),
        steps=steps,
        seed=int(words.numbers["seed"]),
        cores=words.numbers["cores"],
        warmup=int(words.numbers["warmup"]),
    )
    print(report.render())
    return 0


def measure(argv: Sequence[str]) -> int:
    bare = [word for word in argv if "=" not in word]
    words = split_words([f"run={word}" if word in bare else word for word in argv])
    if words.settings:
        raise ConfigError(f"{words.settings[0]}: calibrate takes run=, cores= and out=")
    if not words.texts["run"]:
        raise ConfigError("run=RUN is missing: the folder of a finished run")
    fit = fit_of(Path(words.texts["run"]), cores=words.numbers["cores"])
    print(fit.render())
    if words.texts["out"]:
        fit.model.save(Path(words.texts["out"]))
    return 0


def guarded(argv: Sequence[str], usage: str, command: Callable[[Sequence[str]], int]) -> int:
    """Exit code: 0; 1 where the simulated run fails as a real one would; 2 for bad input, in one line."""
    if "--help" in argv or "-h" in argv:
        print(usage)
        return 0
    try:
        code = command(argv)
        sys.stdout.flush()
        return code
    except (UserError, RunFailed) as error:
        print("error:", " ".join(str(error).split("\n")), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits
        return 0
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
