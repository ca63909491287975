"""``load_run``: the numbers of a run directory as rows, for notebooks and scripts. pandas takes each list as it is.

    from fr3e_async.notebook import load_run
    run = load_run("runs/first")
    pandas.DataFrame(run.metrics).plot(x="step", y="reward/accuracy")

Reads files and starts nothing. What the keys mean: docs/outputs.md.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from fr3e_async.report.rows import read_rows
from fr3e_async.report.runs import METRICS, check_run_folder
from fr3e_async.report.trees import TREES

Row = dict[str, Any]


class RecordedRun:
    """A run directory. Each file is read when its rows are first asked for, and once.

    The run may be over, killed, or still going: a file that is missing has no rows, and a last line that was cut off is left out. Reading
    raises ``StorageError`` for a file that is damaged elsewhere.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def metrics(self) -> list[Row]:
        """A row per training batch. Example: ``{"step": 1, "time_s": 1760000015.0, "reward/accuracy": 0.45, …}``."""
        return self._rows(METRICS)

    @cached_property
    def groups(self) -> list[Row]:
        """A row per settled prompt group. Example: ``{"group": "task/7@0", "outcome": "trained", "tokens": {"generated": 250, …}, …}``."""
        return self._rows("groups.jsonl")

    @cached_property
    def trees(self) -> list[Row]:
        """A row per kept tree: ``group``, ``step``, ``outcome``, ``prompt``, and the lists ``states`` and ``rollouts``.

        A row per rollout: ``pandas.json_normalize(run.trees, "rollouts", ["group", "step", "outcome"], record_prefix="rollout.")``.
        """
        return self._rows(TREES)

    def _rows(self, name: str) -> list[Row]:
        return [row for _, row in read_rows(self.path / name)]


def load_run(path: str | os.PathLike[str]) -> RecordedRun:
    """Open the run in a directory. Raises ``StorageError`` if the directory holds no run."""
    folder = Path(path).expanduser()
    check_run_folder(folder)
    return RecordedRun(folder)
