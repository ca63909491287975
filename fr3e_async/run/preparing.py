"""Check everything that a run needs (vLLM, model, cluster, data, prompts, run directory) and make its ``Session``. Bad input leaves nothing behind.

A run may begin with a checkpoint of another one (``run.branch_from``): its weights become the model that the run is given.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fr3e_async.clock import RunClock, steady, wall
from fr3e_async.config import Config
from fr3e_async.data.model import check_context, check_model, load_tokenizer, read_json, resolve_model, transformers_config
from fr3e_async.data.prompts import Datasets, load_datasets
from fr3e_async.data.rows import read_rows
from fr3e_async.data.tokenizer import endless_turns, speller
from fr3e_async.errors import ConfigError, UserError
from fr3e_async.evaluation.suite import TestSet, left_out, make_sets, read_suite
from fr3e_async.files.process_logs import quiet_driver
from fr3e_async.learner.packing import check_config
from fr3e_async.observe.console import say
from fr3e_async.observe.events import EventKind
from fr3e_async.observe.trackers import check_trackers
from fr3e_async.rollout import check_installed
from fr3e_async.rollout.door import make_questions
from fr3e_async.run.export import LEARNER, export, find
from fr3e_async.run.resume import check_resume, nothing_left
from fr3e_async.run.session import Session
from fr3e_async.settings.loader import LoadedConfig
from fr3e_async.store.checkpoints import step_of
from fr3e_async.store.run_dir import RunDir, default_path, newest_path
from fr3e_async.verify.references import screen_references
from fr3e_async.verify.rewards import check_reward_functions
from fr3e_async.wiring import PolicyFiles, check_cluster


def prepare(loaded: LoadedConfig, *, trial: bool = False) -> Session:
    """A session that is ready to connect, or has nothing to do (``Session.done``). Raises ``UserError`` kinds.

    ``trial``: for ``Session.found`` alone. Leaves no file, builds no model, and notes what only this machine lacks (vLLM, GPUs).
    """
    began = steady() - process_age()
    config, doubts = loaded.config, list[str]()
    for check in (lambda: check_installed(config.engine.entropy), lambda: check_trackers(config), lambda: check_cluster(config)):
        try:
            check()
        except UserError as error:
            if not trial:
                raise
            doubts.append(str(error))
    check_model(config)
    suite = read_suite(config, announce=say(config))
    rows = read_rows(config, suite.rows, announce=say(config))
    check_context(config)
    check_reward_functions(config)
    screened = screen_references(rows, config, announce=say(config))
    tokenizer = load_tokenizer(config)
    check_trainable(config)
    datasets = load_datasets(config, tokenizer, screened.rows)
    benchmarks = make_sets(suite, tokenizer, config)
    run_dir = RunDir.open(run_path(config), config=config, config_yaml=loaded.yaml, trial=trial)
    with ExitStack() as undo:  # the toy model is built last: a minute's work, which an error or Ctrl-C may end
        undo.callback(run_dir.discard)
        if not trial:
            quiet_driver(run_dir.logs / "driver.log", verbose=config.observe.verbose)
        resume_from = check_resume(config, datasets, run_dir)
        branched = source_of(config) if config.run.branch_from and resume_from is None else None
        model = PolicyFiles(path="" if trial else _model_path(config, run_dir, branched), end_token_ids=datasets.ends)
        if branched is not None and config.run.branch_optimizer:
            model = replace(model, optimizer_from=str(branched))
        undo.pop_all()
    notes: list[tuple[EventKind, str]] = [
        ("data_dropped" if config.data.on_string_gold == "drop" else "note", screened.note),
        *rows.notes,
        *datasets.notes,
        ("model_doubt", endless_turns(config, tokenizer)),
        *(("data_dropped", text) for text in left_out(suite, benchmarks)),
        *(("checkpoint_skipped", text) for text in run_dir.checkpoints.skipped),
        ("note", run_dir.changed),
    ]
    spell, age = speller(tokenizer), steady() - began
    clock = RunClock(after=run_dir.last_stamp() + age)
    done = nothing_left(config, run_dir, resume_from)
    found = [
        *_found(config, datasets, benchmarks, model),
        f"run directory: {run_dir.path}, which takes data; the run {_begins(resume_from, branched)}",
        *filter(None, [done, *(note for _, note in notes)]),
        *(f"a start on this machine would be refused: {doubt}" for doubt in doubts),
    ]
    return Session(
        config, model, datasets, run_dir, benchmarks=benchmarks, resume_from=resume_from, done=done, found=found,
        clock=clock, started_at=clock() - age, spell=spell, notes=notes,
        questions=make_questions(tokenizer, room=config.context_length - 1),
    )  # fmt: skip


def _model_path(config: Config, run_dir: RunDir, branched: Path | None) -> str:
    """Return the folder or hub id of the first weights. Raises ``UserError`` kinds."""
    if config.run.branch_from:
        return str(branched_model(config, run_dir.path, branched))
    return str(resolve_model(config, say(config)))


def _found(config: Config, data: Datasets, benchmarks: Sequence[TestSet], model: PolicyFiles) -> list[str]:
    """List what the checks found in data and model, one line each."""
    longest = max(prompt.token_ids.size for prompt in (*data.train, *data.heldout))
    return [
        f"data: {len(data.train):,} training problems, {len(data.heldout):,} held out, "
        f"{sum(len(one.problems) for one in benchmarks):,} of benchmarks; the longest prompt has {longest} tokens",
        *([f"{data.dropped:,} prompts are longer than data.max_prompt and would be dropped"] if data.dropped else []),
        f"model: {config.model.path}, end tokens {', '.join(map(str, model.end_token_ids))}",
        f"reward: {' + '.join(f'{term.weight:g} x {term.function}' for term in config.reward_terms)}",
    ]


def _begins(resumed: Path | None, branched: Path | None) -> str:
    if resumed is not None:
        return f"resumes from step {step_of(resumed)}"
    return f"begins at step 0, with the weights of {branched}" if branched else "begins at step 0"


def run_path(config: Config) -> Path:
    """Where the run lies: ``run.dir``; without one, for ``resume=auto``, the newest run of ``run.name`` below ``runs/``, if there is one."""
    if config.run.dir:
        return Path(os.path.expanduser(config.run.dir))
    if config.resume == "auto" and (newest := newest_path(config.run.name)) is not None:
        say(config)(
            f"resume=auto without run.dir: the newest run of the name {config.run.name} is {newest}; run.dir=NEW begins another one"
        )
        return newest
    return default_path(config.run.name, wall())


def check_trainable(config: Config) -> None:
    """Refuse a model whose config tells that ``learner.packing`` or ``learner.attention`` do not fit it. ``ModelError``."""
    learner = config.learner
    if (found := transformers_config(config)) is not None:
        check_config(found, packing=learner.packing, attention=learner.attention, longest=config.context_length)


def process_age() -> float:
    """Seconds since this process was started: imports are part of a run's start-up."""
    import psutil

    return max(0.0, wall() - psutil.Process().create_time())  # of the wall clock as it stands now, both


START = "start"  # in the run directory: the model that the run began with
SAME = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")


def source_of(config: Config) -> Path:
    """The learner's part of the checkpoint that ``run.branch_from`` means. Raises ``StorageError``, and ``ConfigError`` for another model."""
    checkpoint = find(Path(config.run.branch_from).expanduser().absolute())
    learner = checkpoint / LEARNER if (checkpoint / LEARNER).is_dir() else checkpoint
    there, ours = read_json(learner / "base" / "config.json", "run.branch_from"), transformers_config(config)
    for name in SAME:
        if ours is not None and there.get(name) != getattr(ours, name, None):
            raise ConfigError(
                f"run.branch_from: {checkpoint} is of another model than model.path={config.model.path}: its {name} is {there.get(name)}, "
                f"not {getattr(ours, name, None)}"
            )
    return learner


def branched_model(config: Config, run: Path, learner: Path | None) -> Path:
    """The model folder of a branched run, made from ``learner`` if it is not there. Raises ``UserError`` kinds."""
    folder = run / START
    if not folder.is_dir():
        export(learner or source_of(config), folder, trust_remote_code=config.model.trust_remote_code)
    return folder
