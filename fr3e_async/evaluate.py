"""``python -m fr3e_async.evaluate model=MODEL suite=NAME[,NAME …] [out=DIR] [config=FILE] [key=value …]``: a model on benchmarks.

Engines and verifiers as in a run, and no learner. A problem that is finished is kept; the same command with the same ``out``
samples only what is missing. Exit codes: 0 all is evaluated; 1 it failed after it had started; 2 bad input, and nothing was
started or written; 130 it was interrupted (Ctrl-C, SIGTERM). After 1 and 130 the same command goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fr3e_async.clock import RunClock
from fr3e_async.config import Config
from fr3e_async.data.model import check_context, check_model, load_tokenizer, resolve_model
from fr3e_async.data.prompts import make_prompts
from fr3e_async.data.row import DataRow
from fr3e_async.data.rows import read_heldout
from fr3e_async.data.tokenizer import end_tokens, endless_turns
from fr3e_async.errors import ConfigError, ModelError, RunFailed, UserError
from fr3e_async.evaluation.suite import HELDOUT, Suite, TestSet, heldout_set, left_out, make_sets, pick, read_suite, samples_of
from fr3e_async.files.process_logs import quiet_driver, quiet_environment, stderr_in
from fr3e_async.files.scratch import scratch
from fr3e_async.plan.placement import render_placement
from fr3e_async.settings.loader import LoadedConfig, load_config
from fr3e_async.store.evaluation_dir import EvaluationDir
from fr3e_async.verify.rewards import check_reward_functions

if TYPE_CHECKING:
    from fr3e_async.run.evaluation import EvaluationJob
    from fr3e_async.wiring import PolicyFiles

USAGE = """\
usage: python -m fr3e_async.evaluate model=MODEL suite=NAME[,NAME ...] [out=DIR] [config=FILE[,FILE ...]] [key=value ...] [--dry-run]

  model=MODEL    a model folder, a hub id, or a run directory (its final model; fr3e_async.export makes one of a checkpoint)
  suite=NAMES    benchmarks (docs/evaluation.md), 'paper', 'all', and 'heldout' for data.heldout; empty: heldout
  out=DIR        where the results go; the same command with the same DIR goes on; empty: evaluations/<model>-<time>
  config=FILE    settings as of a run; without it those of the run that the model is of, else eval/gpu or eval/cpu
  key=value      any setting, e.g. evaluation.temperature=0.6 generators.count=4 evaluation.paths.aime24=FILE
  --dry-run      check model, data, prompts and reward; print benchmarks and placement; start nothing
"""
OPTIONS = ("--help", "-h", "--dry-run")
FORMAT = 1
PROBE_BYTES = 1 << 20  # read at each of four places of a file of weights
JUDGE = (  # of verifiers
    "cpu_limit_s", "wall_limit_s", "memory_gib", "exact_integers", "max_answer_chars", "unfinished", "units", "percent",
    "decimal_digits", "on_unknown",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationArguments:
    """The command line, understood."""

    loaded: LoadedConfig
    name: str  # of the model, as it was given
    out: str  # empty: by name and time
    heldout: bool
    dry_run: bool

    @property
    def config(self) -> Config:
        return self.loaded.config


def main(argv: Sequence[str]) -> int:
    """Do what the arguments ask for; returns the exit code. Every error that a person can mend is one line on stderr."""
    if "--help" in argv or "-h" in argv:
        print(USAGE, end="")
        return 0
    try:
        asked = understood(argv)
        with scratch():
            return evaluate(asked)
    except (UserError, RunFailed) as error:
        print("error:", " ".join(str(error).split("\n")), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def understood(argv: Sequence[str]) -> EvaluationArguments:
    """Raises ``ConfigError``. ``model``, ``suite`` and ``out`` are words of this command; all others are settings."""
    own = {"model": "", "suite": "", "out": ""}
    rest = []
    for word in argv:
        key, equals, value = word.partition("=")
        if equals and key in own:
            own[key] = value.strip()
        elif word not in OPTIONS:
            rest.append(word)
    names = [name.strip() for name in own["suite"].strip("[]").split(",") if name.strip()]
    benchmarks = [name for name in names if name != HELDOUT]
    if not own["model"] and not any(word.startswith("config=") for word in rest):
        raise ConfigError("model: no model given; model=FOLDER, a hub id or a run directory, see --help")
    model, settings = model_of(own["model"])
    if not any(word.startswith("config=") for word in rest):
        rest.insert(0, f"config={settings or machine_config()}")
    if model:
        rest.append(f"model.path={model}")
    if names:
        rest.append(f"evaluation.suite=[{', '.join(benchmarks)}]")
    loaded = load_config(rest)
    heldout = HELDOUT in names or not loaded.config.evaluation.suite
    if heldout and not loaded.config.data.heldout:
        raise ConfigError("suite: name benchmarks (suite=gsm8k,aime24, or paper, or all), or set data.heldout")
    return EvaluationArguments(
        loaded=loaded,
        name=own["model"] or loaded.config.model.path,
        out=own["out"],
        heldout=heldout,
        dry_run="--dry-run" in argv,
    )


def model_of(path: str) -> tuple[str, str]:
    """(model.path, the settings of the run that the model is of or nothing). Raises ``ModelError`` for a run without a model."""
    folder = Path(os.path.expanduser(path)).absolute()
    if not path or not folder.is_dir():
        return path, ""
    run = folder.parent if folder.name == "model" else folder
    settings = str(run / "config.yaml") if (run / "run.json").is_file() and (run / "config.yaml").is_file() else ""
    if (folder / "config.json").is_file():
        return str(folder), settings
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model"), settings
    if settings or (folder / "learner").is_dir():
        raise ModelError(
            f"model: {path} holds no model yet; python -m fr3e_async.export {path} FOLDER makes one of a checkpoint, then model=FOLDER"
        )
    return str(folder), ""


def machine_config() -> str:
    """Shipped settings that suit this machine."""
    return "eval/gpu" if Path("/proc/driver/nvidia/gpus").is_dir() else "eval/cpu"


# --- before anything is started ----------------------------------------------------------------------------------------


def evaluate(asked: EvaluationArguments) -> int:
    """Check everything, then start engines. Raises ``UserError`` kinds before, ``RunFailed`` after."""
    clock, config = RunClock(), asked.config
    started_at = clock()
    check_model(config)
    check_context(config)
    check_reward_functions(config)

    def announce(text: str) -> None:
        if config.observe.console != "off":
            print(text, flush=True)

    suite = read_suite(config, announce=announce)
    heldout = pick(read_heldout(config, announce), config.evaluation.problems, seed=config.run.seed) if asked.heldout else []
    os.environ.update(quiet_environment(verbose=config.observe.verbose))  # libraries read it when they are imported
    tokenizer = load_tokenizer(config)
    sets = make_sets(suite, tokenizer, config)
    if heldout:
        sets.insert(0, heldout_set(make_prompts(heldout, tokenizer, config.data), samples=config.evaluation.samples))
    if asked.dry_run:
        print(plan_text(config, suite, heldout))
        return 0
    # Imported here: Ray takes a second, and neither --help nor a misspelling needs it.
    from fr3e_async.rollout import check_installed
    from fr3e_async.run.evaluation import EvaluationJob
    from fr3e_async.wiring import PolicyFiles, check_cluster

    check_installed(config.engine.entropy)
    check_cluster(config, training=False)
    model = PolicyFiles(path=str(resolve_model(config)), end_token_ids=end_tokens(config, tokenizer))
    identity = identity_of(config, model, sets)
    out = Path(os.path.expanduser(asked.out)) if asked.out else default_out(asked.name, started_at)
    with EvaluationDir.open(out, identity=identity, config_yaml=asked.loaded.yaml) as folder:
        quiet_driver(folder.logs / "driver.log", verbose=config.observe.verbose)
        job = EvaluationJob(
            config, model, sets, folder, facts_of(suite, asked.name, folder.identity), clock=clock, started_at=started_at
        )
        for line in (*left_out(suite, sets), *filter(None, [endless_turns(config, tokenizer)])):
            job.say(line)
        return start(job, folder, config)


def start(job: EvaluationJob, folder: EvaluationDir, config: Config) -> int:
    """Join or start a cluster, if anything is to be sampled, and do it; the exit code."""
    from fr3e_async.wiring import connect, disconnect

    try:
        if job.missing:
            with nullcontext() if config.observe.verbose else stderr_in(folder.logs / "driver.log"):
                connect(config, training=False)
    except (UserError, KeyboardInterrupt):
        disconnect()
        folder.discard()
        raise
    try:
        return asyncio.run(job.run())
    finally:
        disconnect()


def default_out(model: str, now: float) -> Path:
    """``evaluations/<last part of the model's name>-<local date and time>``."""
    name = Path(model).name or "model"
    return Path("evaluations") / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}"


def plan_text(config: Config, suite: Suite, heldout: Sequence[DataRow]) -> str:
    """The output of ``--dry-run``."""
    counts = {name: (len(items), samples_of(config.evaluation, name)) for name, items in suite.items.items()}
    if heldout:
        counts = {HELDOUT: (len(heldout), config.evaluation.samples), **counts}
    lines = [f"  {name}: {problems} problems x {samples} samples" for name, (problems, samples) in counts.items()]
    place = render_placement(config, training=False)
    return "\n".join(["benchmarks", *lines, "", place, "", "dry run: nothing was started or written"])


def identity_of(config: Config, model: PolicyFiles, sets: Sequence[TestSet]) -> dict[str, Any]:
    """What makes an evaluation what it is: samples of two that agree in it may stand side by side.

    ``prompts`` stands for all that makes tokens of a problem: the template's text, the tokenizer, its own chat template.
    """
    data, sampling, evaluation = config.data, config.sampling, config.evaluation
    folder = Path(model.path)
    weights = weights_digest(folder) if folder.is_dir() else commit_of(model.path, config.model.revision)
    return {
        "format": FORMAT,
        "model": {"path": model.path, "revision": config.model.revision, "weights": weights},
        "end_tokens": list(model.end_token_ids),
        "temperature": evaluation.temperature,
        "top_p": evaluation.top_p,
        "max_response": sampling.max_response,
        "stop": sampling.stop,
        "max_prompt": data.max_prompt,
        "template": data.template,
        "chat": data.chat,
        "system": data.system,
        "template_args": data.template_args,
        "thoughts": list(data.thoughts),
        "dtype": config.engine.dtype,
        "engine_options": config.engine.options,
        "reward": config.reward,
        "rewards": [asdict(term) for term in config.rewards],
        "columns": data.columns,
        "judge": {name: getattr(config.verifiers, name) for name in JUDGE},
        "benchmarks": {
            one.name: {"k": one.samples, "problems": len(one.problems), "digest": one.digest, "prompts": prompts_digest(one)}
            for one in sets
        },
    }


def prompts_digest(test_set: TestSet) -> str:
    """Of the tokens of all prompts, in order."""
    sha = hashlib.sha256()
    for prompt in test_set.problems:
        sha.update(f"{prompt.token_ids.size} ".encode() + prompt.token_ids.astype("<i4").tobytes())
    return sha.hexdigest()[:16]


def commit_of(hub_id: str, revision: str) -> str:
    """The commit that a hub id and its revision stand for now, which is known once config.json is in the cache; "" where it is not."""
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    try:
        file = cached_file(hub_id, "config.json", revision=revision or None)
    except OSError as error:
        raise ModelError(f"model.path: no config.json could be loaded from {hub_id}: {error}") from error
    return extract_commit_hash(file, None) or ""


def weights_digest(folder: Path) -> str:
    """Of a local model: sizes and some of the bytes of its files of weights, since all of them would take minutes."""
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        sha.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            for place in (0, size // 3, size * 2 // 3, max(size - PROBE_BYTES, 0)):
                file.seek(place)
                sha.update(file.read(PROBE_BYTES))
    return sha.hexdigest()[:16]


def facts_of(suite: Suite, name: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json says besides the scores."""
    return {
        "format": FORMAT,
        "model": name,
        "asked": dict(identity),
        "benchmarks": {name: suite.facts(name) for name in suite.items},
    }


def cli() -> None:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
