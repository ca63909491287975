"""``python -m fr3e_async.export CHECKPOINT_OR_RUN OUT``: a checkpoint as a folder for transformers and vLLM.

One process without Ray, DeepSpeed or vLLM; reads only the checkpoint, file by file. Exit codes: 0; 2 for bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fr3e_async.errors import StorageError, UserError
from fr3e_async.files.scratch import scratch
from fr3e_async.settings.arguments import CommandParser
from fr3e_async.store.checkpoints import MANIFEST, CheckpointStore, checkpoint_name
from fr3e_async.store.model_card import FILE, CardFacts, model_card, run_settings, summary_facts
from fr3e_async.store.summary import Summary

LEARNER = Path("learner") / "state"  # where a whole checkpoint keeps the learner's part


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Every error that a person can mend is one line on stderr."""
    try:
        arguments = parser().parse_args(argv)
        source, out = Path(arguments.source).expanduser(), Path(arguments.out).expanduser().absolute()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise StorageError(f"{out} is there already; choose a new folder")
        checkpoint = find(source, step=arguments.step)
        with scratch():
            print(export(checkpoint, out, dtype=arguments.dtype, trust_remote_code=arguments.trust_remote_code))
    except UserError as error:
        print("error:", " ".join(str(error).split("\n")), file=sys.stderr)
        return error.exit_code
    return 0


def parser() -> CommandParser:
    made = CommandParser(prog="python -m fr3e_async.export", description="Write a checkpoint as a Hugging Face model folder.")
    made.add_argument("source", metavar="CHECKPOINT_OR_RUN", help="a checkpoint, or a run directory for its newest one")
    made.add_argument("out", metavar="OUT", help="the folder to make")
    made.add_argument("--dtype", choices=("bfloat16", "float32"), help="type of the weights (default: that of training)")
    made.add_argument("--step", type=int, help="which checkpoint of a run directory (default: the newest)")
    made.add_argument("--trust-remote-code", action="store_true", help="run Python code that came with the model, as the run did")
    return made


def find(source: Path, *, step: int | None = None) -> Path:
    """The checkpoint that is meant. Raises ``StorageError``."""
    root = source / "checkpoints"
    if (source / "run.json").is_file() and not CheckpointStore(root).steps():
        raise StorageError(f"{source} has no checkpoint yet: the run ended, or is, before its first one")
    if not root.is_dir():
        if step is not None:
            raise StorageError(f"--step is for a run directory, and {source} has no checkpoints folder")
        if not (source / MANIFEST).is_file() and not (source / "learner.json").is_file():
            raise StorageError(f"{source} is neither a checkpoint nor a run directory")
        return source
    if step is None:
        from fr3e_async.learner.checkpoint import damage  # torch takes seconds, and bad input should not

        found = CheckpointStore(root).latest(lambda folder: damage(folder / LEARNER))
        if found is None:
            raise StorageError(f"{source} has no checkpoint")
        return found
    if not (root / checkpoint_name(step)).is_dir():
        there = ", ".join(str(number) for number in sorted(CheckpointStore(root).steps()))
        raise StorageError(f"{source} has no checkpoint of step {step}; there are: {there or 'none'}")
    return root / checkpoint_name(step)


def export(checkpoint: Path, out: Path, *, dtype: str | None = None, trust_remote_code: bool = False) -> str:
    """Write ``out``; what was done, in a line. Raises ``StorageError``, and ``ConfigError`` for code that is not trusted."""
    # Imported here: torch takes seconds, and bad input should not.
    from fr3e_async.learner.checkpoint import BASE, Manifest
    from fr3e_async.learner.export import checkpoint_buffers, checkpoint_weights, write_model

    whole = (checkpoint / MANIFEST).is_file()
    folder = checkpoint / LEARNER if whole else checkpoint
    manifest = Manifest.read(folder)
    kind = dtype or manifest.dtype
    facts = CardFacts(model=manifest.model, revision=manifest.revision, version=manifest.version, dtype=kind)
    write_model(
        out,
        checkpoint_weights(folder, manifest),
        dtype=kind,
        base=folder / BASE,
        buffers=checkpoint_buffers(folder, manifest),
        texts={FILE: model_card(checkpoint_facts(checkpoint, facts) if whole else facts)},
        trust_remote_code=trust_remote_code,
    )
    return f"{out}: {len(manifest.shapes)} weights of version {manifest.version} in {kind}"


def checkpoint_facts(checkpoint: Path, facts: CardFacts) -> CardFacts:
    """With what a whole checkpoint, and the run directory around it, tell of the training so far."""
    from fr3e_async.control.progress import load_control_state

    state = load_control_state(checkpoint)
    run = checkpoint.absolute().parent.parent
    progress, evaluations = state.progress, list(state.progress.evaluations)
    if (run / "summary.json").is_file():
        summary = Summary.from_json((run / "summary.json").read_text(encoding="utf-8"))
        evaluations = summary.evaluations if summary.version == facts.version else evaluations
    return CardFacts(
        model=facts.model,
        revision=facts.revision,
        version=facts.version,
        dtype=facts.dtype,
        settings=run_settings(run),
        numbers={
            "steps": state.ledger.version,
            "optimiser_steps": progress.optimiser_steps,
            "tokens_generated": progress.tokens_generated,
            "tokens_trained": progress.tokens_trained,
            "staleness_mean": progress.staleness_mean,
            "staleness_max": progress.staleness_max,
            "wall_s": progress.wall_before_s,
        },
        evaluations=evaluations,
    )


def write_run_card(run: Path, *, dtype: str) -> None:
    """The card of a run's final model, from what the run directory holds. Raises ``StorageError``."""
    from fr3e_async.files.durable import storage_errors, write_atomically

    with storage_errors(run):
        summary = Summary.from_json((run / "summary.json").read_text(encoding="utf-8"))
        text = model_card(summary_facts(summary, run_settings(run), dtype=dtype))
        write_atomically(run / "model" / FILE, text)


def cli() -> None:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
