"""A run's reports through the real recorder into both trackers, offline: ``python tracker_session.py RUN``. For test_observe_trackers.

Two sessions in one process: steps 1 to 3 with two evaluations, then on from step 2 to the end. Prints as JSON what went towards a
network: connections asked for in Python, and packets for which the kernel found no route (with an empty network name space, all);
and what MLflow's client reads back.
"""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from test_observe_metrics import example_summary

from fr3e_async.clock import RunClock
from fr3e_async.config import Config, EngineConfig, ObserveConfig, RunConfig
from fr3e_async.observe.console import ConsoleView, make_console
from fr3e_async.observe.recorder import Recorder
from fr3e_async.observe.trackers import make_trackers
from fr3e_async.store.run_dir import RunDir

SAID = ObserveConfig(wandb="offline", mlflow="offline", project="forks", group="pairs", tags=["paper"], tracker_close_s=60.0)
CONFIG = Config(engine=EngineConfig(kv_cache_gib=0.25), run=RunConfig(name="one", steps=3), observe=SAID)


def evaluation(label: str, version: int, accuracy: float) -> dict[str, Any]:
    return {"label": label, "version": version, "accuracy": accuracy, "low": 0.1, "high": 0.9, "problems": 10}


def session(path: Path, config: Config, *, resumed_from: int) -> tuple[Recorder, RunDir]:
    run_dir = RunDir.open(path, config=config, config_yaml=f"run: {{steps: {config.run.steps}}}\n")
    mode, console = make_console("off")
    view = ConsoleView(mode=mode, console=console, name="one", steps=4)
    trackers = make_trackers(config, run_dir.path)
    return Recorder(
        run_dir, config=config.observe, view=view, clock=RunClock(), resumed_from=resumed_from, trackers=trackers,
        settings=asdict(config),
    ), run_dir  # fmt: skip


def main(path: Path) -> None:
    asked = watch_connections()
    first, run_dir = session(path, CONFIG, resumed_from=0)
    first.note("measured", "evaluation", version=0, measured=evaluation("before", 0, 0.25))
    for step in (1, 2, 3):
        first.step(step, {"train/loss": step / 8, "groups/trained": 4})
    first.event("it broke", "run_failed")
    first.close()
    run_dir.close()

    longer = replace(CONFIG, resume="auto", run=replace(CONFIG.run, steps=4))
    second, run_dir = session(path, longer, resumed_from=2)
    for step in (3, 4):
        second.step(step, {"train/loss": -step / 8})
    second.note("measured", "evaluation", version=4, measured=evaluation("after", 4, 0.75))
    second.samples("heldout", [["2+3=?", "5", "so 5\nit is", "right", "1"]], version=4)
    second.finish(example_summary())
    second.close()
    run_dir.close()
    print(json.dumps({"asked": asked, "unroutable": unroutable(), "mlflow": read_back(path / "trackers" / "mlflow")}))


def read_back(store: Path) -> dict[str, Any]:
    """The only run of MLflow's store, by its own client. Here, since that client takes seconds to import."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store.as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("forks").experiment_id])
    names = ("train/loss", "eval/accuracy", "take")
    return {
        "id": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "tags": run.data.tags,
        "metrics": run.data.metrics,
        "points": {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in names},
        "artifacts": sorted(item.path for item in client.list_artifacts(run.info.run_id)),
    }


def watch_connections() -> list[str]:
    """From now on, every address that Python code wants to connect to or look up, but for sockets in the file system."""
    asked: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and arguments[0].family != socket.AF_UNIX and str(arguments[1][0]) != "127.0.0.1":
            asked.append(str(arguments[1]))
        elif event == "socket.getaddrinfo" and arguments[0] not in ("localhost", "127.0.0.1"):
            asked.append(str(arguments[0]))

    sys.addaudithook(audit)
    return asked


def unroutable() -> int:
    """Packets and connections of this network name space, of child processes too, that had no way out."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Ip:"))
    six = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return int(dict(zip(names, values, strict=True))["OutNoRoutes"]) + int(six["Ip6OutNoRoutes"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
