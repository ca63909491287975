"""Evaluate a model on benchmarks: check everything, then start engines and verifiers, without a learner (``fr3e evaluate``).

``check`` makes an ``EvaluationPlan`` of an ``EvaluationRequest`` or raises a ``UserError``; ``evaluate`` carries it out, and raises
``RunFailed`` once it has started. A finished problem is kept, so the same request samples only what is missing.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
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
from fr3e_async.data.rows import read_heldout
from fr3e_async.data.tokenizer import end_tokens, endless_turns
from fr3e_async.errors import ModelError, UserError
from fr3e_async.evaluation.suite import Suite, TestSet, heldout_set, left_out, make_sets, pick, read_suite
from fr3e_async.files.process_logs import quiet_driver, quiet_environment, stderr_in
from fr3e_async.observe.console import say
from fr3e_async.plan.placement import render_placement
from fr3e_async.settings.loader import LoadedConfig
from fr3e_async.store.evaluation_dir import EvaluationDir
from fr3e_async.verify.rewards import check_reward_functions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fr3e_async.run.evaluation import EvaluationJob
    from fr3e_async.wiring import PolicyFiles

FORMAT = 1
PROBE_BYTES = 1 << 20  # read at each of four offsets of a file of weights
JUDGE = (  # the settings of ``verifiers`` that can change a verdict
    "cpu_limit_s", "wall_limit_s", "memory_gib", "exact_integers", "max_answer_chars", "unfinished", "units", "percent",
    "decimal_digits", "on_unknown",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """What the command line asks for. Example: ``EvaluationRequest(loaded=…, name="runs/first", out="", heldout=True)``."""

    loaded: LoadedConfig
    name: str  # of the model, as it was given
    out: str  # folder of the results; empty: by the model's name and the time
    heldout: bool  # data.heldout, beside the benchmarks of evaluation.suite

    @property
    def config(self) -> Config:
        return self.loaded.config


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """The request with everything read that it needs: problems as prompts, and the tokenizer."""

    config: Config
    tokenizer: PreTrainedTokenizerBase
    suite: Suite
    sets: list[TestSet]  # data.heldout first, if it is asked for

    @property
    def text(self) -> str:
        """What ``--dry-run`` prints: problems and samples of each set, and the actors."""
        lines = [f"  {one.name}: {len(one.problems)} problems x {one.samples} samples" for one in self.sets]
        placement = render_placement(self.config, training=False)
        return "\n".join(["benchmarks", *lines, "", placement, "", "dry run: nothing was started or written"])


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
            f"model: {path} holds no model yet; fr3e export {path} FOLDER makes one of a checkpoint, then model=FOLDER"
        )
    return str(folder), ""


def check(asked: EvaluationRequest) -> EvaluationPlan:
    """Check model, data, prompts and reward, and read the problems. Nothing is started or written. Raises ``UserError`` kinds."""
    config = asked.config
    check_model(config)
    check_context(config)
    check_reward_functions(config)
    suite = read_suite(config, announce=say(config))
    heldout = pick(read_heldout(config, say(config)), config.evaluation.problems, seed=config.run.seed) if asked.heldout else []
    os.environ.update(quiet_environment(verbose=config.observe.verbose))  # libraries read it when they are imported
    tokenizer = load_tokenizer(config)
    sets = make_sets(suite, tokenizer, config)
    if heldout:
        sets.insert(0, heldout_set(make_prompts(heldout, tokenizer, config.data), samples=config.evaluation.samples))
    return EvaluationPlan(config=config, tokenizer=tokenizer, suite=suite, sets=sets)


def evaluate(asked: EvaluationRequest) -> int:
    """Check everything, then start engines; the exit code. Raises ``UserError`` kinds before, ``RunFailed`` after."""
    clock = RunClock()
    started_at = clock()
    plan, config = check(asked), asked.config
    # Imported here: Ray takes a second, and neither --help nor a misspelling needs it.
    from fr3e_async.rollout import check_installed
    from fr3e_async.run.evaluation import EvaluationJob
    from fr3e_async.wiring import PolicyFiles, check_cluster

    check_installed(config.engine.entropy)
    check_cluster(config, training=False)
    model = PolicyFiles(path=str(resolve_model(config)), end_token_ids=end_tokens(config, plan.tokenizer))
    identity = identity_of(config, model, plan.sets)
    out = Path(os.path.expanduser(asked.out)) if asked.out else default_out(asked.name, started_at)
    with EvaluationDir.open(out, identity=identity, config_yaml=asked.loaded.yaml) as folder:
        quiet_driver(folder.logs / "driver.log", verbose=config.observe.verbose)
        facts = facts_of(plan.suite, asked.name, folder.identity)
        job = EvaluationJob(config, model, plan.sets, folder, facts, clock=clock, started_at=started_at)
        for line in (*left_out(plan.suite, plan.sets), *filter(None, [endless_turns(config, plan.tokenizer)])):
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


# ---- what tells two evaluations apart ----


def identity_of(config: Config, model: PolicyFiles, sets: Sequence[TestSet]) -> dict[str, Any]:
    """Return what identifies an evaluation: results may be compared, and resumed, only if it is equal.

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
    """16 hex digits of the tokens of all prompts, in order."""
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
    """16 hex digits of a local model: sizes and some bytes of its weight files, since reading all of them would take minutes."""
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        sha.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            for offset in (0, size // 3, size * 2 // 3, max(size - PROBE_BYTES, 0)):
                file.seek(offset)
                sha.update(file.read(PROBE_BYTES))
    return sha.hexdigest()[:16]


def facts_of(suite: Suite, name: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of results.json besides the scores: format, model, what was asked, a mapping for each benchmark."""
    return {
        "format": FORMAT,
        "model": name,
        "asked": dict(identity),
        "benchmarks": {name: suite.facts(name) for name in suite.items},
    }
