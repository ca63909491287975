"""The folder of an evaluation that runs alone: made, opened again to continue, refused. Where things lie in it is said here only.

    evaluation.json   what was asked: model, sampling, prompts, problems    config.yaml   the resolved settings
    problems/         one file a benchmark, one row a finished problem      results.json  the scores, once all is done
    logs/             third-party output, one file an actor

Rows are written when a problem is finished, so that an evaluation that was cut short samples none of them again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from fr3e_async.errors import StorageError
from fr3e_async.evaluation.accuracy import ScoredSample
from fr3e_async.evaluation.scores import Scores, problem_row, samples_of
from fr3e_async.files.durable import ClaimedFolder, identity_in, storage_errors, write_atomically
from fr3e_async.files.jsonl import JsonlWriter
from fr3e_async.store.fingerprint import differences, shortened

IDENTITY, LOCK = "evaluation.json", "lock"


class EvaluationDir(ClaimedFolder):
    """An evaluation's folder, locked against a second process until ``close``. A context manager."""

    def __init__(self, path: Path, *, identity: Mapping[str, Any], config_yaml: str, resumed: bool) -> None:
        """Create or reopen the folder. Callers use ``open``, which checks first what is there."""
        files = {IDENTITY: json.dumps(identity, indent=1) + "\n", "config.yaml": config_yaml}
        super().__init__(path, lock=LOCK, files=files, folders=("logs", "problems"), resumed=resumed, setting="out")
        self.identity = identity  # of all that the folder holds, from before too
        self.logs, self.results = path / "logs", path / "results.json"
        self.dumps = path / "dumps"  # for a learner, of which there is none
        self._writers: dict[str, JsonlWriter] = {}

    @classmethod
    def open(cls, path: Path, *, identity: Mapping[str, Any], config_yaml: str) -> Self:
        """Make the folder, or continue in one that holds the same evaluation; further benchmarks may have come to it.

        Raises ``StorageError``: it holds something else, another evaluation, or is in use; the disk refuses.
        """
        path = path.absolute()
        merged = _merged(path, json.loads(json.dumps(identity)))
        return cls(path, identity=merged, config_yaml=config_yaml, resumed=(path / IDENTITY).exists())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()
        self.close()

    def finished(self, benchmark: str, *, samples: int) -> dict[str, list[ScoredSample]]:
        """Read the finished problems, each with its ``samples`` samples; skip a line that was cut off and any other that does not fit."""
        found: dict[str, list[ScoredSample]] = {}
        path = self._problems(benchmark)
        if not path.is_file():
            return found
        with storage_errors(path, "out"):
            content = path.read_bytes()
        if content and not content.endswith(b"\n"):  # or the next row would stand behind it
            with storage_errors(path, "out"):
                os.truncate(path, content.rfind(b"\n") + 1)  # in one step: nothing that is whole is written again
        for line in content.splitlines():
            try:
                judgements = samples_of(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue
            if len(judgements) == samples:
                found[judgements[0].problem] = judgements
        return found

    def keep(self, benchmark: str, problem: str, samples: Sequence[ScoredSample]) -> None:
        """Write the samples of a problem that is done. Raises ``StorageError``."""
        if benchmark not in self._writers:
            self._writers[benchmark] = JsonlWriter(self._problems(benchmark))
        self._writers[benchmark].write(problem_row(problem, samples))

    def earlier(self) -> dict[str, dict[str, Any]]:
        """Read the results of an earlier evaluation: rows by benchmark. Raises ``StorageError`` for a file of another format."""
        try:
            rows: dict[str, dict[str, Any]] = json.loads(self.results.read_text(encoding="utf-8"))["benchmarks"]
            for row in rows.values():
                Scores.from_record(row)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"out: {self.results} holds no results ({error}); move it away") from error
        return rows

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``; a reader sees the old or the new file in full. Raises ``StorageError``."""
        with storage_errors(self.results, "out"):
            write_atomically(self.results, json.dumps(results, indent=1, allow_nan=False) + "\n")

    def _problems(self, benchmark: str) -> Path:
        return self.path / "problems" / f"{benchmark}.jsonl"


def _merged(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What the folder will say that it holds: the benchmarks of before and of now. Raises ``StorageError`` if the rest differs."""
    old = identity_in(path, IDENTITY, lock=LOCK, setting="out", work="evaluation")
    if not old:
        return identity
    common = set(old.get("benchmarks", {})) & set(identity["benchmarks"])
    flat_old = _flat(old, common)
    changed = differences(flat_old, _flat(identity, common))
    if changed:
        raise StorageError(
            f"out: {path} holds another evaluation: {shortened(changed)}; ask for the same or choose another folder"
        )
    return {**identity, "benchmarks": {**old["benchmarks"], **identity["benchmarks"]}}


def _flat(identity: Mapping[str, Any], benchmarks: set[str]) -> dict[str, Any]:
    flat = {name: value for name, value in identity.items() if name != "benchmarks"}
    return flat | {f"benchmarks.{name}": identity["benchmarks"][name] for name in benchmarks}
