"""Weights & Biases and MLflow: with the real libraries offline, read back by their own means; and trackers that hang or break."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_observe_metrics import example_summary, scalars

from fr3e_async.config import Config, EngineConfig, ObserveConfig
from fr3e_async.config.secrets import refuse_secrets
from fr3e_async.errors import ConfigError
from fr3e_async.observe.trackers import Ending, Feed, Trackers, check_trackers, flat_settings, make_trackers, measured_values
from fr3e_async.observe.trackers.feed import Row, Tracker, summary_values

TESTS = Path(__file__).parent
SECRETS = {name: f"s3cr3t-{name}" for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN")}
SETTING = "observe.tracker_close_s: 1 s"


def row(step: int) -> Row:
    return Row(step=step, time_s=100.0 + step, values={"train/loss": step / 8})


# ---- offline, with the real libraries ----


@dataclass(frozen=True)
class Told:
    """What a run of two sessions left (tracker_session.py)."""

    path: Path
    printed: dict[str, Any]

    @property
    def wandb_files(self) -> list[Path]:
        return sorted((self.path / "trackers" / "wandb").glob("offline-run-*/run-*.wandb"))


def away_from_the_network(command: list[str]) -> list[str]:
    """The command in an empty network name space, where the kernel allows one."""
    unshare = shutil.which("unshare")
    wrapped = [unshare, "--net"] if unshare else []
    possible = wrapped and subprocess.run([*wrapped, "true"], capture_output=True, check=False).returncode == 0
    return [*wrapped, *command] if possible else command


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    path = tmp_path_factory.mktemp("trackers") / "run"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    command = away_from_the_network([sys.executable, str(TESTS / "tracker_session.py"), str(path)])
    done = subprocess.run(command, env=clean | SECRETS, cwd=TESTS, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return Told(path, json.loads(done.stdout.splitlines()[-1]))


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of W&B's file: protobuf messages in LevelDB's log format, 32 KiB blocks behind a head of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768


def history(path: Path) -> list[dict[str, Any]]:
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(path)
        if record.HasField("history")
    ]


def test_offline_asks_nobody(told: Told) -> None:
    """Neither in Python, nor, as the kernel counts it, in W&B's own process."""
    assert told.printed["asked"] == []
    assert told.printed["unroutable"] == 0


def test_no_file_holds_a_secret_of_the_environment(told: Told) -> None:
    files = [path for path in told.path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files for secret in SECRETS.values() if secret.encode() in path.read_bytes()] == []


def test_wandb_has_every_row_of_both_sessions_in_one_run(told: Told) -> None:
    first, second = told.wandb_files
    rows = history(first) + history(second)
    assert [(r["step"], r["take"], r["_step"], r.get("train/loss")) for r in rows] == [
        (0, 1, 0, None), (1, 1, 1, 0.125), (2, 1, 2, 0.25), (3, 1, 3, 0.375), (3, 2, 4, -0.375), (4, 2, 5, -0.5), (4, 2, 6, None), (4, 2, 7, None),
    ]  # fmt: skip
    assert [(r["step"], r["eval/accuracy"], r["eval/low"]) for r in rows if "eval/accuracy" in r] == [
        (0, 0.25, 0.1),
        (4, 0.75, 0.1),
    ]
    assert rows[1]["groups/trained"] == 4.0
    runs = [next(record.run for record in wandb_records(path) if record.HasField("run")) for path in (first, second)]
    assert {run.run_id for run in runs} == {json.loads((told.path / "trackers" / "wandb.json").read_text())["id"]}
    assert {(run.display_name, run.project, run.run_group, tuple(run.tags)) for run in runs} == {
        ("one", "forks", "pairs", ("paper",))
    }


def test_wandb_has_the_whole_config_the_summary_and_how_it_ended(told: Told) -> None:
    first, second = told.wandb_files
    run = next(record.run for record in wandb_records(second) if record.HasField("run"))
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["run"]["steps"] == 4
    assert config["learner"]["lr"] == Config(engine=EngineConfig(kv_cache_gib=0.25)).learner.lr
    updates = [item for record in wandb_records(second) if record.HasField("summary") for item in record.summary.update]
    summary = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
    assert summary["summary/wall_s"] == example_summary().wall_s
    assert summary["summary/ending"] == "finished"
    codes = [record.exit.exit_code for path in (first, second) for record in wandb_records(path) if record.HasField("exit")]
    assert codes == [1, 0]


def test_mlflow_has_every_row_of_both_sessions_in_one_run(told: Told) -> None:
    found = told.printed["mlflow"]
    assert found["id"] == json.loads((told.path / "trackers" / "mlflow.json").read_text())["id"]
    assert found["points"]["train/loss"] == [[1, 0.125], [2, 0.25], [3, 0.375], [3, -0.375], [4, -0.5]]
    assert found["points"]["eval/accuracy"] == [[0, 0.25], [4, 0.75]]
    assert [take for _, take in found["points"]["take"]][:7] == [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]


def test_mlflow_has_the_config_the_summary_and_how_it_ended(told: Told) -> None:
    found = told.printed["mlflow"]
    assert (found["name"], found["status"]) == ("one", "FINISHED")
    assert found["params"]["run.steps"] == "3"  # parameters stay as they were first said
    assert found["tags"]["changed.run.steps"] == "4"
    assert {"group": "pairs", "paper": "true", "take": "2", "exit_reason": "finished"}.items() <= found["tags"].items()
    assert found["metrics"]["summary/wall_s"] == example_summary().wall_s
    assert found["artifacts"] == ["config.yaml", "samples", "summary.json"]


def test_tensorboard_has_the_evaluations_too(told: Told) -> None:
    assert scalars(told.path / "tensorboard", "eval/accuracy") == [(0, 0.25), (4, 0.75)]
    assert scalars(told.path / "tensorboard", "train/loss")[-2:] == [(3, -0.375), (4, -0.5)]


SHOWN = [["problem", "gold", "response", "verdict", "reward"], ["2+3=?", "5", "so 5\nit is", "right", "1"]]


def test_samples_and_settings_can_be_read_where_people_follow_the_run(told: Told) -> None:
    (table,) = (told.path / "trackers" / "wandb").rglob("media/table/samples/heldout*.table.json")
    assert json.loads(table.read_text())["columns"] == SHOWN[0]
    assert json.loads(table.read_text())["data"] == SHOWN[1:]
    (kept,) = (told.path / "trackers" / "mlflow").rglob("artifacts/samples/heldout-4.json")
    assert json.loads(kept.read_text()) == {name: [value] for name, value in zip(*SHOWN, strict=True)}
    events = EventAccumulator(str(told.path / "tensorboard"))
    events.Reload()
    cells = [
        (one.step, one.tensor_proto.tensor_shape.dim[0].size, [cell.decode() for cell in one.tensor_proto.string_val])
        for one in events.Tensors("samples/heldout")
    ]
    assert cells == [(4, 2, [*SHOWN[0], *(f"```\n{cell}\n```" for cell in SHOWN[1])])]
    assert events.summary_metadata["samples/heldout"].plugin_data.plugin_name == "text"
    shown = [list(one.tensor_proto.string_val) for one in events.Tensors("settings")]
    assert [texts[texts.index(b"run.steps") + 1] for texts in shown] == [b"3", b"4"]


ONLINE = """
import dataclasses, sys, time
from pathlib import Path
import tracker_session
from fr3e_async.observe.trackers import weights_and_biases
weights_and_biases.OPEN_S = 1.0
nobody = dict(wandb="online", mlflow="online", mlflow_uri="http://127.0.0.1:9", tracker_close_s=3.0)
config = dataclasses.replace(tracker_session.CONFIG, observe=dataclasses.replace(tracker_session.SAID, **nobody))
recorder, run_dir = tracker_session.session(Path(sys.argv[1]), config, resumed_from=0)
began = time.monotonic()
for step in range(1, 200):
    recorder.step(step, {"train/loss": 1.0})
print(time.monotonic() - began)
feed = recorder._trackers._feeds["wandb"]
while feed._written < 199 and time.monotonic() < began + 60:
    time.sleep(0.1)  # a run that continues: W&B gives up on the service and writes files
recorder.close()
"""


@pytest.mark.slow
def test_a_network_that_is_down_costs_a_run_nothing_but_the_limit_at_its_end(tmp_path: Path) -> None:
    environment = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    command = [sys.executable, "-c", ONLINE, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, cwd=TESTS, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 60.0, "no row waits for the network"
    events = [json.loads(line) for line in (tmp_path / "run" / "logs" / "events.jsonl").read_text().splitlines()]
    texts = [event["text"] for event in events if event["event"] == "tracker_failed"]
    assert any(text.startswith("Weights & Biases cannot be reached") and "wandb sync" in text for text in texts)
    assert any(text.startswith("MLflow was not done in time (observe.tracker_close_s: 3 s)") for text in texts)
    assert "MLflow: 199 of 199 rows were not written" in texts
    (kept,) = (tmp_path / "run" / "trackers" / "wandb").glob("offline-run-*/run-*.wandb")
    assert [r["step"] for r in history(kept)] == list(range(1, 200))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 199


# ---- trackers that misbehave ----


class Fake:
    """Keeps what it was given; ``held``: writes wait for it. ``broken``: steps whose row it refuses."""

    def __init__(self, *, held: threading.Event | None = None, broken: frozenset[int] = frozenset(), remark: str = "") -> None:
        self.held, self.broken, self.remark = held, broken, remark
        self.steps: list[int] = []
        self.closed: tuple[Ending, Mapping[str, float], str] | None = None

    def write(self, row: Row) -> None:
        if self.held is not None:
            self.held.wait()
        if row.step in self.broken:
            raise ConnectionResetError("the line\nwent dead")
        self.steps.append(row.step)

    def back_to(self, step: int) -> None:
        self.steps.append(-step)

    def close(self, ending: Ending, summary: Mapping[str, float], *, reason: str) -> None:
        self.closed = (ending, summary, reason)


def ended(feed: Feed, within_s: float = 60.0) -> list[str]:
    feed.end("finished", {}, reason="")
    return feed.join(time.monotonic() + within_s, setting=SETTING)


def test_rows_arrive_in_order_and_then_the_end() -> None:
    fake = Fake()
    trackers = Trackers({"fake": Feed("Fake", lambda: fake)}, close_s=60.0)
    trackers.write(1, {"train/loss": 1.0}, time_s=0.0)
    trackers.back_to(1)
    trackers.measured({"label": "step 2", "version": 2, "accuracy": 0.5}, time_s=0.0)
    trackers.summarised({"steps": 2, "name": "x"})
    trackers.ended("stopped", reason="SIGTERM")
    assert trackers.close() == []
    assert fake.steps == [1, -1, 2]
    assert fake.closed == ("stopped", {"summary/steps": 2.0}, "SIGTERM")
    assert trackers.close() == []


def test_a_run_that_nobody_ended_has_failed() -> None:
    fake = Fake()
    Trackers({"fake": Feed("Fake", lambda: fake)}, close_s=60.0).close()
    assert fake.closed == ("failed", {}, "")


def test_a_tracker_that_hangs_neither_holds_up_the_run_nor_its_end() -> None:
    held = threading.Event()
    feed = Feed("Fake", lambda: Fake(held=held), capacity=10)
    for step in range(1000):
        feed.write(row(step))
    assert feed.news() == ["Fake does not take everything: it is slow, 10 rows wait already; the run continues"]
    assert feed.news() == []
    assert ended(feed, within_s=0.2) == [
        f"Fake was not done in time ({SETTING}) and is left behind",
        "Fake: 1000 of 1000 rows were not written",
    ]
    held.set()


def test_what_waited_is_written_when_a_slow_tracker_wakes_up() -> None:
    held, fake = threading.Event(), Fake()
    fake.held = held
    feed = Feed("Fake", lambda: fake, capacity=3)
    for step in range(20):
        feed.write(row(step))
    threading.Timer(0.1, held.set).start()
    news = ended(feed)
    assert fake.steps == sorted(fake.steps)
    assert 2 <= len(fake.steps) <= 4  # the queue, less one that gave way to the end, and one in hand
    assert news[-1] == f"Fake: {20 - len(fake.steps)} of 20 rows were not written"
    assert fake.closed == ("finished", {}, "")


def test_one_that_hangs_does_not_cost_another_its_end() -> None:
    held, good = threading.Event(), Fake()
    feeds = {"bad": Feed("Bad", lambda: Fake(held=held), capacity=1), "good": Feed("Good", lambda: good)}
    trackers = Trackers(feeds, close_s=1.0)
    for step in (1, 2, 3):
        trackers.write(step, {}, time_s=0.0)
    news = trackers.close()
    assert good.steps == [1, 2, 3]
    assert good.closed is not None
    assert [text for text in news if text.startswith("Good")] == []
    held.set()


def test_one_that_cannot_open_is_told_once_and_left_out() -> None:
    def refuse() -> Tracker:
        raise PermissionError("no such project")

    feed = Feed("Fake", refuse)
    feed.thread.join(5.0)
    for step in (1, 2):
        feed.write(row(step))
    assert feed.news() == ["Fake is off: PermissionError: no such project; the run continues without it"]
    assert ended(feed) == ["Fake: 2 of 2 rows were not written"]


def test_a_row_that_fails_is_counted_and_the_next_one_is_tried() -> None:
    fake = Fake(broken=frozenset({2, 4}), remark="is in another mood")
    feed = Feed("Fake", lambda: fake)
    for step in (1, 2, 3, 4, 5):
        feed.write(row(step))
    assert ended(feed) == [
        "Fake is in another mood",
        "Fake does not take everything: ConnectionResetError: the line went dead; the run continues",
        "Fake: 2 of 5 rows were not written",
    ]
    assert fake.steps == [1, 3, 5]


# ---- settings ----


def config(**observe: Any) -> Config:
    return Config(engine=EngineConfig(kv_cache_gib=0.25), observe=ObserveConfig(**observe))


def test_without_a_tracker_there_is_none(tmp_path: Path) -> None:
    check_trackers(config(), {})
    none = make_trackers(config(), tmp_path)
    none.write(1, {"train/loss": 0.5}, time_s=0.0)
    assert none.close() == []
    assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_reading_the_settings_loads_no_tracker() -> None:
    code = "import sys, fr3e_async.observe.recorder; sys.exit(bool({'wandb', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        ({"wandb": "online"}, "observe.wandb=online: no account; set WANDB_API_KEY"),
        ({"mlflow": "online"}, "observe.mlflow=online: no server; set observe.mlflow_uri or MLFLOW_TRACKING_URI"),
    ],
)
def test_online_without_an_account_or_a_server_is_refused(observe: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check_trackers(config(**observe), {"NETRC": str(tmp_path / "none")})


def test_an_account_is_found_where_the_library_looks(tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine wandb.example.org login user password secret\n")
    check_trackers(config(wandb="online"), {"WANDB_API_KEY": "x", "NETRC": "/nowhere"})
    check_trackers(config(wandb="online"), {"NETRC": str(file), "WANDB_BASE_URL": "https://wandb.example.org"})
    with pytest.raises(ConfigError):
        check_trackers(config(wandb="online"), {"NETRC": str(file)})
    check_trackers(config(mlflow="online"), {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"})


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"observe\.{name}: the package {package} is not installed"):
        check_trackers(config(**{name: "offline"}), {})


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        ({"entity": "0123456789abcdef" * 2 + "01234567"}, "observe.entity looks like an account's key"),
        ({"tags": ["a", "wandb_v1_" + "x" * 30]}, "observe.tags looks like an account's key"),
        ({"mlflow_uri": "https://me:pw@mlflow.example.org"}, "observe.mlflow_uri holds a name or password"),
        ({"mlflow": "offline", "mlflow_uri": "http://127.0.0.1:5000"}, "observe.mlflow=offline with observe.mlflow_uri"),
        ({"project": " "}, "observe.project must not be empty"),
        ({"tags": [""]}, "observe.tags: a tag is empty"),
        ({"tracker_close_s": 0.0}, "observe.tracker_close_s must be positive"),
    ],
)
def test_settings_that_are_refused(observe: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(**observe)
    assert "pw@" not in str(caught.value)
    assert "0123456789abcdef" not in str(caught.value)


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD"])
def test_a_secret_of_the_environment_is_not_taken_over(name: str) -> None:
    with pytest.raises(ConfigError, match=f"observe.group: it holds the value of {name}"):
        refuse_secrets(config(group="s3cr3t-value"), {name: "s3cr3t-value"})


# ---- values ----


def test_settings_are_flat_texts() -> None:
    nested = {"resume": "never", "run": {"seed": 0, "dir": ""}, "learner": {"betas": [0.9, 0.95], "ds_config": {"b": 1, "a": {}}}}
    assert flat_settings(nested) == {
        "resume": "never", "run.seed": "0", "run.dir": '""', "learner.betas": "[0.9, 0.95]", "learner.ds_config": '{"a": {}, "b": 1}',
    }  # fmt: skip


def test_an_evaluation_becomes_metrics() -> None:
    record = {
        "label": "after",
        "version": 8,
        "accuracy": 0.5,
        "maj": {"value": 0.6, "low": 0.4},
        "length_correct": None,
        "problems": 3,
    }
    expected = {"accuracy": 0.5, "maj": 0.6, "maj/low": 0.4, "problems": 3.0}
    assert measured_values(record) == {f"eval/{name}": value for name, value in expected.items()}
    assert measured_values({**record, "benchmark": "aime24"}) == {f"eval/aime24/{n}": value for n, value in expected.items()}


def test_a_result_becomes_numbers() -> None:
    values = summary_values({"name": "toy", "steps": 24, "groups": {"trained": 7}, "evaluations": [{"low": 1}], "sync_s": None})
    assert values == {"summary/steps": 24.0, "summary/groups/trained": 7.0}
