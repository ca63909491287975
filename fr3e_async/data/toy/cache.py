"""The cached toy model: built once for each toy configuration and seed, whole or not at all.

Knows how to lock folders and move them into place; ``warm_start`` makes what is in them.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fr3e_async.config import Config
from fr3e_async.data.toy.task import toy_task
from fr3e_async.errors import StorageError
from fr3e_async.files.durable import fsync_tree

BUILDER_VERSION = 5  # raise it with any change of task, tokenizer, model or warm start: old caches are then left alone


def toy_path(config: Config) -> Path:
    """Where ``ensure_toy`` keeps the model of this configuration, built or not."""
    root = Path(os.path.expanduser(config.toy.cache_dir or "~/.cache/fr3e_async"))
    parts = {key: value for key, value in asdict(config.toy).items() if key != "cache_dir"}
    identity = json.dumps([BUILDER_VERSION, config.run.seed, parts], sort_keys=True)
    return root / f"toy-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def ensure_toy(config: Config, say: Callable[[str], None] = lambda text: None) -> Path:
    """Return the folder of the toy model (config, float32 safetensors, tokenizer); build it first if it is not there.

    ``say`` is called with lines about the progress. Several processes may call it: one builds, the others wait. A killed build
    leaves no model. ``StorageError`` when the cache cannot be written.
    """
    target = toy_path(config)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock"), say):
            if not target.is_dir():
                say(f"building the toy model in {target} (once, up to a minute)")
                build(config, target, say)
    except OSError as error:
        raise StorageError(f"toy.cache_dir: the toy model cannot be kept in {target.parent}: {error}") from error
    return target


@contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; the kernel drops it when the process dies."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that builds the toy model")
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build(config: Config, target: Path, say: Callable[[str], None]) -> None:
    # Here, so that torch and transformers are imported only when there is something to build.
    from fr3e_async.data.toy.warm_start import save_model, warm_start

    unfinished = target.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a build that was killed; we hold the lock
    unfinished.mkdir()
    try:
        _, heldout = toy_task(config.toy, config.run.seed)
        model, tokenizer = warm_start(config.toy, seed=config.run.seed, heldout=heldout, say=say)
        save_model(model, tokenizer, unfinished)
        fsync_tree(unfinished)  # the files must be on disk before the move is
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
