"""Export a checkpoint as a model folder for transformers and vLLM; and the card of a run's final model.

One process without Ray, DeepSpeed or vLLM; reads the checkpoint file by file.
"""

from dataclasses import replace
from pathlib import Path

from fr3e_async.errors import StorageError
from fr3e_async.store.checkpoints import MANIFEST, CheckpointStore, checkpoint_name
from fr3e_async.store.model_card import FILE, CardFacts, model_card, run_settings, summary_facts
from fr3e_async.store.summary import Summary

LEARNER = Path("learner") / "state"  # where a whole checkpoint keeps the learner's part


def export_to(
    out: Path, source: Path, *, step: int | None = None, dtype: str | None = None, trust_remote_code: bool = False
) -> str:  # fmt: skip
    """Find the checkpoint that ``source`` means and write it to ``out``, which must be new or empty; what was done, in a line."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out} is there already; choose a new folder")
    return export(find(source, step=step), out, dtype=dtype, trust_remote_code=trust_remote_code)


def find(source: Path, *, step: int | None = None) -> Path:
    """The checkpoint ``source``, or the one of the run directory ``source`` (``step``; default: the newest). Raises ``StorageError``."""
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
    """Write ``out``; returns a one-line report. Raises ``StorageError``, and ``ConfigError`` for code that is not trusted."""
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
    """``facts`` with settings, numbers and evaluations of a whole checkpoint and the run directory around it."""
    from fr3e_async.control.progress import load_control_state

    state = load_control_state(checkpoint)
    run = checkpoint.absolute().parent.parent
    progress, evaluations = state.progress, list(state.progress.evaluations)
    if (run / "summary.json").is_file():
        summary = Summary.from_json((run / "summary.json").read_text(encoding="utf-8"))
        evaluations = summary.evaluations if summary.version == facts.version else evaluations
    return replace(
        facts,
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
    """Write the card of a run's final model from summary.json and config.yaml. Raises ``StorageError``."""
    from fr3e_async.files.durable import storage_errors, write_atomically

    with storage_errors(run):
        summary = Summary.from_json((run / "summary.json").read_text(encoding="utf-8"))
        text = model_card(summary_facts(summary, run_settings(run), dtype=dtype))
        write_atomically(run / "model" / FILE, text)
