"""A run in Weights & Biases, online or as files for ``wandb sync``. The only module that imports wandb.

W&B's own step only grows, and a row for an earlier one is dropped. So that step is the number of the row over all sessions, and the
charts' axis is the metric ``step``. Rows after the checkpoint that a resume goes back to stay; ``take`` tells them from the later ones.
"""

import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fr3e_async.config import Config
from fr3e_async.observe.trackers.feed import Ending, Identity, Row, Samples, read_identity

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"  # of W&B's run ids
STEP, TAKE = "step", "take"
OPEN_S = 30.0  # for the service to answer at the beginning; a program that ends sooner waits for this, whatever it wants


class WandbTracker:
    """Sends a run's metrics to Weights & Biases; ``feed.Tracker`` describes the methods."""

    def __init__(self, config: Config, folder: Path, *, settings: Mapping[str, Any]) -> None:
        """Open the run, the one of before if there was one. ``folder``: RUN/trackers. ``settings``: all of the run's."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports go over the network, offline too
        os.environ.setdefault("WANDB_SILENT", "true")  # the console is the run's
        import wandb

        observe = config.observe
        self.remark = ""
        self._file = folder / "wandb.json"
        known = read_identity(self._file)
        new = Identity(id="".join(secrets.choice(ALPHABET) for _ in range(8)))
        self._identity = (known.again() if known else new).write(self._file)
        said = self._said(config, folder) | {"config": dict(settings)}
        try:
            self._run: Any = wandb.init(mode=observe.wandb if observe.wandb != "off" else "disabled", **said)
        except wandb.errors.CommError as error:
            wandb.teardown()  # which still holds the id
            self._run = wandb.init(mode="offline", **said)
            cause = str(error).splitlines()[0]
            self.remark = f"cannot be reached ({cause}); its rows go to {folder / 'wandb'}, for `wandb sync`"
        self._run.define_metric("*", step_metric=STEP)

    def _said(self, config: Config, folder: Path) -> dict[str, Any]:
        """Return the arguments of ``wandb.init`` besides mode and settings."""
        import wandb

        observe = config.observe
        quiet = {"console": "off", "silent": True, "disable_git": True, "save_code": False, "disable_job_creation": True}
        return {
            "id": self._identity.id,
            "resume": "allow",
            "project": observe.project,
            "entity": observe.entity or None,
            "group": observe.group or None,
            "tags": list(observe.tags) or None,
            "name": config.run.name,
            "dir": str(folder),
            "allow_val_change": True,  # a resume may change run.steps, say
            "settings": wandb.Settings(**quiet, init_timeout=OPEN_S, finish_timeout=observe.tracker_close_s),
        }

    def write(self, row: Row) -> None:
        self._log(row.step, {"time_s": row.time_s, **row.values})

    def show(self, samples: Samples) -> None:
        import wandb

        head, *rows = map(list, samples.rows)
        self._log(samples.step, {f"samples/{samples.name}": wandb.Table(columns=head, data=rows)})

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        number = self._identity.rows
        self._identity = replace(self._identity, rows=number + 1).write(
            self._file
        )  # first: a number that was skipped is nothing, one that comes twice is a lost row
        self._run.log({STEP: step, TAKE: self._identity.take, **values}, step=number)

    def back_to(self, step: int) -> None:
        self._identity = self._identity.again().write(self._file)

    def close(self, ending: Ending, summary: Mapping[str, float], *, reason: str) -> None:
        self._run.summary.update({**summary, "summary/ending": ending, "summary/exit_reason": reason})
        self._run.finish(exit_code=int(ending == "failed"))
