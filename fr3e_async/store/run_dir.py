"""The run directory: made, opened again, refused. Where things lie in it is said here only.

    run.json       fingerprint and lasting settings       config.yaml    the resolved config of the latest session
    metrics.jsonl  one row a step                         summary.json   the result
    groups.jsonl   one row a settled prompt group: its outcome, its states with V and alpha, its tokens
    ledger.jsonl   the history of every prompt group over all sessions, for the audit      sessions   how many there were
    journal/       every event and decision of the control loop, one file a session
    checkpoints/   see ``checkpoints``                    model/         the final model, for transformers and vLLM; models/ others
    tensorboard/   events                                 logs/          third-party output, one file an actor
    evaluations.jsonl, evaluations/    see ``summary`` and ``evaluation_dir``
    trackers/      see ``trackers``

Does not know what is in config.yaml beyond the ``Config`` it comes from, or what the other files mean.
"""

import json
import re
import time
from pathlib import Path
from typing import Self

from fr3e_async.config import Config
from fr3e_async.config.deepspeed import owns_lr
from fr3e_async.errors import ConfigError, StorageError
from fr3e_async.files import jsonl
from fr3e_async.files.durable import ClaimedFolder, identity_in, storage_errors, write_atomically
from fr3e_async.store.checkpoints import CheckpointStore
from fr3e_async.store.fingerprint import differences, fingerprint, lasting, shortened

FORMAT = 1
LOCK = "run.lock"


def default_path(name: str, now: float) -> Path:
    """``runs/<name>-<local date and time>``, for an empty ``run.dir``."""
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}"


def newest_path(name: str) -> Path | None:
    """The newest run among those that ``default_path`` named."""
    made = re.compile(re.escape(name) + r"-\d{8}-\d{6}")
    runs = (path for path in Path("runs").glob("*") if made.fullmatch(path.name) and (path / "run.json").is_file())
    return max(runs, key=lambda path: path.name, default=None)


class RunDir(ClaimedFolder):
    """An open run directory. It is locked against a second process until ``close`` or the end of this one."""

    def __init__(self, path: Path, *, config: Config, config_yaml: str, trial: bool, resumed: bool, changed: str) -> None:
        """Create or reopen the directory. Callers use ``open``, which checks first what is there."""
        files = {} if resumed or trial else {"run.json": _identity(config)}
        files |= {} if trial else {"config.yaml": config_yaml}
        super().__init__(path, lock=LOCK, files=files, folders=() if trial else ("logs",), resumed=resumed)
        self.resumed = resumed  # it held a run of this config already
        self.changed = changed  # the one change that the user has allowed; "" for none
        self.checkpoints = CheckpointStore(path / "checkpoints", keep=config.run.keep_checkpoints)
        self.logs, self.model, self.tensorboard = path / "logs", path / "model", path / "tensorboard"
        self.journal = path / "journal"  # a folder with a file for each session
        self.dumps = path / "dumps"  # optimiser steps that were refused; made by the learner when there is one
        self.metrics, self.groups, self.trees = (path / f"{name}.jsonl" for name in ("metrics", "groups", "trees"))
        self.ledger_log, self.summary = path / "ledger.jsonl", path / "summary.json"

    @classmethod
    def open(cls, path: Path, *, config: Config, config_yaml: str, trial: bool = False) -> Self:
        """Make the directory, or with ``resume=auto`` open it again. ``trial``: writes no settings; for a look that ends in ``discard``.

        Raises ``StorageError`` in one line, leaving nothing behind: it holds a run and ``resume`` is never, or a run of
        another config, or something else; it is in use; the disk is full, read-only or otherwise refuses.
        """
        path = path.absolute()
        resumed, changed = _check_reuse(path, config)
        return cls(path, config=config, config_yaml=config_yaml, trial=trial, resumed=resumed, changed=changed)

    def renew(self, config: Config) -> None:
        """Record the config that the run continues with; ``changed``: its settings that differ from before. Raises ``StorageError``."""
        if self.changed:
            with storage_errors(self.path):
                write_atomically(self.path / "run.json", _identity(config))

    def next_session(self) -> int:
        """A number that no earlier session of this run had. Raises ``StorageError``."""
        path = self.path / "sessions"
        with storage_errors(path):
            number = int(path.read_text()) + 1 if path.is_file() else 0
            write_atomically(path, f"{number}\n")
        return number

    def last_stamp(self) -> float:
        """The newest time that earlier sessions left here, in seconds since the epoch; 0 without one. Raises ``StorageError``."""
        files = [self.logs / "events.jsonl", self.metrics, *sorted(self.journal.glob("*.jsonl"))[-1:]]
        stamps = (row.get("time_s", row.get("t")) for row in map(jsonl.last_row, files))
        return max((stamp for stamp in stamps if isinstance(stamp, int | float)), default=0.0)

    def go_back(self, step: int, settled: int) -> None:
        """Drop what was recorded after the checkpoint that the run resumes from: ``step`` batches, ``settled`` groups."""
        jsonl.cut_after(self.metrics, step)
        jsonl.keep_first(self.groups, settled)
        jsonl.cut_after(self.trees, settled, key="settled")

    def thin_trees(self, stride: int) -> int:
        """Keep the trees of every ``stride``-th step only; return the size of the file in bytes."""
        jsonl.keep_rows(self.trees, lambda row: row.get("step", 0) % stride == 0)
        return self.trees.stat().st_size

    def write_summary(self, text: str) -> None:
        """Write ``summary.json``; a reader sees the old or the new file in full. Raises ``StorageError``."""
        with storage_errors(self.path):
            write_atomically(self.summary, text)


def _check_reuse(path: Path, config: Config) -> tuple[bool, str]:
    """(Whether the directory holds a run that this config may continue with, or is new; the change of the learning rate). Else ``StorageError``."""
    identity = identity_in(path, "run.json", lock=LOCK, setting="run.dir", work="run")
    if not identity:
        return False, ""
    if config.resume == "never":
        raise StorageError(f"run.dir: {path} holds a run already; continue with it by resume=auto, or choose another run.dir")
    changed = differences(identity["settings"], json.loads(json.dumps(lasting(config))))
    rate = next((its for its in changed if its.startswith("learner.lr: ")), "")
    if rate and config.run.change_lr:
        if not owns_lr(config.learner.ds_config):
            raise ConfigError(f"run.change_lr: {rate} would do nothing, since learner.ds_config sets the learning rate")
        changed.remove(rate)
    if changed:
        raise StorageError(
            f"run.dir: {path} holds a run of another config: {shortened(changed)}; "
            "use the same settings, or another run.dir (with run.branch_from it begins with these weights)"
            + ("; run.change_lr=true continues with the new learning rate" if rate in changed[:1] and len(changed) == 1 else "")
        )
    return True, rate and f"from here on {rate}"


def _identity(config: Config) -> str:
    settings = lasting(config)
    return json.dumps({"format": FORMAT, "fingerprint": fingerprint(settings), "settings": settings}, indent=1)
