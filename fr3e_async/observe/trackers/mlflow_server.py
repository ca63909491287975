"""A run in MLflow, on a server or in files. The only module that imports mlflow; its small client (mlflow-skinny) is enough.

A metric in MLflow is a list of points that only grows. Steps that a resume makes again have two points, the later one by its time
being the run's.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fr3e_async.config import Config
from fr3e_async.observe.trackers.feed import Ending, Identity, Row, Samples, flat_settings, read_identity

STATUS: dict[Ending, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
PARAM_CHARS = 500  # of a parameter: what servers of every age take; the artifact config.yaml has all of it
PARAMS_AT_ONCE = 100  # the most that MLflow takes in a call
TAKE = "take"


class MlflowTracker:
    """Sends a run's metrics to an MLflow server; ``feed.Tracker`` describes the methods."""

    def __init__(self, config: Config, folder: Path, *, settings: Mapping[str, Any]) -> None:
        """Open the run, the one of before if there was one. ``folder``: RUN/trackers. ``settings``: all of the run's."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # its own usage reports go over the network, offline too
        if config.observe.mlflow == "offline":
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no other store without a server
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        self.remark = ""
        self._entities: Any = entities
        self._run_folder, self._file = folder.parent, folder / "mlflow.json"
        self._client: Any = MlflowClient(tracking_uri=store_of(config, folder))
        known = read_identity(self._file)
        self._identity = (known.again() if known else Identity(id=self._create(config))).write(self._file)
        self._last = Row(step=0, time_s=0.0, values={})
        if known:
            self._client.update_run(self._identity.id, status="RUNNING")
        self._say_settings(flat_settings(settings))

    def _create(self, config: Config) -> str:
        observe = config.observe
        experiment = self._client.get_experiment_by_name(observe.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(observe.project)
        tags = {"group": observe.group} if observe.group else {}
        run = self._client.create_run(number, run_name=config.run.name, tags={**tags, **dict.fromkeys(observe.tags, "true")})
        return str(run.info.run_id)

    def _say_settings(self, settings: Mapping[str, str]) -> None:
        """Log settings as parameters. MLflow cannot change one, so a setting that a resume has changed becomes a tag ``changed.<setting>``."""
        id, said = self._identity.id, self._client.get_run(self._identity.id).data.params
        short = {path: text[:PARAM_CHARS] for path, text in settings.items()}
        new = [self._entities.Param(path, text) for path, text in short.items() if path not in said]
        tags = [self._entities.RunTag(f"changed.{path}", text) for path, text in short.items() if said.get(path, text) != text]
        for start in range(0, len(new), PARAMS_AT_ONCE):
            self._client.log_batch(id, params=new[start : start + PARAMS_AT_ONCE])
        self._client.log_batch(id, tags=[*tags[: PARAMS_AT_ONCE - 1], self._entities.RunTag(TAKE, str(self._identity.take))])
        if (resolved := self._run_folder / "config.yaml").is_file():
            self._client.log_artifact(id, str(resolved))

    def write(self, row: Row) -> None:
        self._last = row
        at = int(row.time_s * 1000)
        values = {TAKE: float(self._identity.take), **row.values}
        metrics = [self._entities.Metric(name, value, at, row.step) for name, value in values.items()]
        self._client.log_batch(self._identity.id, metrics=metrics)

    def show(self, samples: Samples) -> None:
        head, *rows = samples.rows
        table = {name: [row[column] for row in rows] for column, name in enumerate(head)}
        self._client.log_dict(self._identity.id, table, f"samples/{samples.name}-{samples.step}.json")

    def back_to(self, step: int) -> None:
        self._identity = self._identity.again().write(self._file)
        self._client.set_tag(self._identity.id, TAKE, str(self._identity.take))

    def close(self, ending: Ending, summary: Mapping[str, float], *, reason: str) -> None:
        id = self._identity.id
        if summary:
            self.write(Row(step=self._last.step, time_s=self._last.time_s, values=summary))
        if reason:
            self._client.set_tag(id, "exit_reason", reason)
        if summary and (result := self._run_folder / "summary.json").is_file():
            self._client.log_artifact(id, str(result))
        self._client.set_terminated(id, STATUS[ending])


def store_of(config: Config, folder: Path) -> str:
    """The address of the server, or of the folder that holds MLflow's files."""
    observe = config.observe
    if observe.mlflow_uri:
        return observe.mlflow_uri
    return (folder / "mlflow").absolute().as_uri() if observe.mlflow == "offline" else os.environ["MLFLOW_TRACKING_URI"]
