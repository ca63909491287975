"""The notice of preemption: both clouds' metadata services played by a server here, `ray` by a script that writes down its arguments."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

PROGRAM = Path(__file__).parent.parent / "cluster" / "preemption_notice.py"
NODE = "ab" * 28
AWS_TOKEN = "the-token"  # what the server gives; no secret
AWS = "/latest/meta-data/"
GCP = "/computeMetadata/v1/instance/"


@pytest.fixture(scope="module")
def notice() -> ModuleType:
    spec = importlib.util.spec_from_file_location("preemption_notice", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Cloud(ThreadingHTTPServer):
    """EC2's and Compute Engine's metadata in one: paths in ``answers`` say something, all others are 404."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, str] = {}
        self.asked: list[str] = []
        self.tokens = 0  # given so far; only the newest counts
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Cloud

    def do_PUT(self) -> None:
        life = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "0")
        if self.path == "/latest/api/token" and 0 < int(life) <= 21600:
            self.server.tokens += 1
            return self._say(200, f"{AWS_TOKEN}-{self.server.tokens}")
        return self._say(400, "")

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.broken:
            return self._say(503, "")
        if self.path.startswith(AWS) and self.headers.get("X-aws-ec2-metadata-token") != f"{AWS_TOKEN}-{self.server.tokens}":
            return self._say(401, "")
        if self.path.startswith(GCP) and self.headers.get("Metadata-Flavor") != "Google":
            return self._say(403, "")
        text = self.server.answers.get(self.path)
        return self._say(404, "") if text is None else self._say(200, text)

    def _say(self, code: int, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    server = Cloud()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def spot_action(seconds: float) -> str:
    ends = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": ends.strftime("%Y-%m-%dT%H:%M:%SZ")})


# --- the clouds -------------------------------------------------------------------------------------------------------


def test_ec2_is_silent_until_it_takes_the_machine(notice: ModuleType, cloud: Cloud) -> None:
    metadata = notice.Aws(cloud.url, rebalance=False)
    assert metadata.notice() is None
    cloud.answers[AWS + "events/recommendations/rebalance"] = '{"noticeTime": "2026-01-01T00:00:00Z"}'
    assert metadata.notice() is None  # a warning, which many machines outlive
    cloud.answers[AWS + "spot/instance-action"] = spot_action(120)
    answer = metadata.notice()
    assert 60 <= answer.seconds <= 120
    assert "terminate" in answer.reason
    assert cloud.tokens == 1  # asked for once, then used again


def test_ec2s_early_warning_counts_if_it_is_wanted(notice: ModuleType, cloud: Cloud) -> None:
    metadata = notice.Aws(cloud.url, rebalance=True)
    assert metadata.notice() is None
    cloud.answers[AWS + "events/recommendations/rebalance"] = '{"noticeTime": "2026-01-01T00:00:00Z"}'
    assert metadata.notice() == notice.Notice(reason="EC2 spot: rebalance recommendation", seconds=120)


def test_a_token_that_has_run_out_is_asked_for_again(notice: ModuleType, cloud: Cloud) -> None:
    metadata = notice.Aws(cloud.url, rebalance=False)
    metadata.notice()
    cloud.tokens += 1  # what the program holds is not the newest any more
    cloud.answers[AWS + "spot/instance-action"] = spot_action(60)
    assert 1 <= metadata.notice().seconds <= 60


def test_a_notice_whose_time_is_over_means_now(notice: ModuleType, cloud: Cloud) -> None:
    cloud.answers[AWS + "spot/instance-action"] = spot_action(-30)
    assert notice.Aws(cloud.url, rebalance=False).notice().seconds == 0


@pytest.mark.parametrize("text", ['{"action": "hibernate"}', "<html>"])
def test_a_notice_without_a_time_means_now(notice: ModuleType, cloud: Cloud, text: str) -> None:
    cloud.answers[AWS + "spot/instance-action"] = text
    assert notice.Aws(cloud.url, rebalance=False).notice().seconds == 0


@pytest.mark.parametrize(
    ("preempted", "event", "seconds"),
    [
        ("FALSE", "NONE", None),
        ("TRUE", "NONE", 30),
        ("FALSE", "MIGRATE_ON_HOST_MAINTENANCE", None),  # the machine lives on, elsewhere
        ("FALSE", "TERMINATE_ON_HOST_MAINTENANCE", 60),
        ("TRUE", "TERMINATE_ON_HOST_MAINTENANCE", 30),
    ],
)
def test_compute_engines_notices(notice: ModuleType, cloud: Cloud, preempted: str, event: str, seconds: int | None) -> None:
    cloud.answers = {GCP + "preempted": preempted + "\n", GCP + "maintenance-event": event}
    answer = notice.Gcp(cloud.url).notice()
    assert (answer.seconds if answer else None) == seconds


def test_a_service_that_falls_silent_is_waited_for(notice: ModuleType, cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.answers = {GCP + "preempted": "FALSE"}
    notices: list[Any] = []
    waiting = threading.Thread(
        target=lambda: notices.append(notice.wait_for_notice(notice.Gcp(cloud.url), poll_s=0.01, start_limit_s=0.0)), daemon=True
    )
    waiting.start()
    until(lambda: len(cloud.asked) > 4)
    cloud.broken = True
    asked = len(cloud.asked)
    until(lambda: len(cloud.asked) > asked + 4)
    cloud.answers[GCP + "preempted"] = "TRUE"
    cloud.broken = False
    waiting.join(timeout=600)
    assert [item.seconds for item in notices] == [30]
    out = capsys.readouterr().out
    assert out.count("no answer from the metadata service") == 1
    assert out.count("answers again") == 1


def until(condition: Any, limit_s: float = 120.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


# --- this node --------------------------------------------------------------------------------------------------------


def fake_proc(folder: Path, *lines: list[str]) -> Path:
    for number, words in enumerate(lines):
        (folder / str(100 + number)).mkdir(parents=True)
        (folder / str(100 + number) / "cmdline").write_bytes(b"\0".join(word.encode() for word in words) + b"\0")
    (folder / "self").mkdir()
    (folder / "777").mkdir()  # a process that has ended meanwhile
    (folder / "778").mkdir()
    (folder / "778" / "cmdline").write_bytes(b"")  # a thread of the kernel
    return folder


def test_the_nodes_own_raylet_is_found_by_its_command_line(notice: ModuleType, tmp_path: Path) -> None:
    proc = fake_proc(
        tmp_path,
        [
            "/site-packages/ray/core/src/ray/raylet/raylet",
            "--head",
            f"--node_id={NODE}",
            "--gcs-address=10.0.0.1:6379",
            "--x=a=b",
        ],
        ["python", "agent.py", "--node-id=" + "cd" * 28, "--gcs-address=10.0.0.1:6379"],
        ["vim", "raylet", "--node_id=1", "--gcs-address=2"],
        ["raylet", "--node_id="],
    )
    assert notice.raylets(proc) == [notice.Raylet(node_id=NODE, gcs="10.0.0.1:6379")]


@pytest.mark.parametrize(
    ("titles", "busy"),
    [
        ([], False),
        (["ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE_SpillWorker", "python"], False),
        (["ray::IDLE", "ray::EngineActor"], True),
        (["ray::EngineActor.generate()"], True),
    ],
)
def test_work_is_told_from_idle_processes_by_their_titles(
    notice: ModuleType, tmp_path: Path, titles: list[str], busy: bool
) -> None:
    assert notice.has_work(fake_proc(tmp_path, *[[title] for title in titles])) is busy


def test_rays_own_process_titles_are_known(notice: ModuleType) -> None:
    from ray._private import ray_constants

    idle = {ray_constants.WORKER_PROCESS_TYPE_IDLE_WORKER, *ray_constants.AGENT_PROCESS_LIST}
    assert idle == set(notice.AGENTS)


def test_the_wait_ends_with_the_work_or_with_the_time(notice: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(notice, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    answers = iter([True, True, False])
    notice.wait_until_idle(1000.0, busy=lambda: next(answers))
    assert len(slept) == 2
    slept.clear()
    notice.wait_until_idle(4.5, busy=lambda: True)
    assert len(slept) == 5


# --- the whole program ------------------------------------------------------------------------------------------------


class Node:
    """A process that looks like a raylet, and a `ray` that writes its arguments down."""

    def __init__(self, folder: Path) -> None:
        self.calls_file = folder / "calls"
        self.ray = folder / "ray"
        self.set_ray("exit 0")
        self.id = secrets.token_hex(28)  # tests that run beside this one have such processes, too
        flags = [f"--node_id={self.id}", "--gcs-address=127.0.0.1:1"]
        self.raylet = subprocess.Popen(["raylet", "-c", "sleep 100; :", *flags], executable="/bin/bash")

    def set_ray(self, ending: str) -> None:
        self.ray.write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >>"{self.calls_file}"\n{ending}\n')
        self.ray.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(PROGRAM), *words, "--node-id", self.id]
        environment = os.environ | {"PATH": f"{self.ray.parent}:{os.environ['PATH']}", "http_proxy": "http://127.0.0.1:1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        out, _ = process.communicate(timeout=600)
        return process.returncode, out


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.raylet.kill()
    node.raylet.wait()


def expected(node: Node, reason: str, seconds: int) -> str:
    return (
        f"drain-node --address 127.0.0.1:1 --node-id {node.id} --reason DRAIN_NODE_REASON_PREEMPTION "
        f"--reason-message {reason} --deadline-remaining-seconds {seconds}"
    )


def test_a_notice_drains_the_node(node: Node, cloud: Cloud) -> None:
    cloud.answers = {GCP + "preempted": "FALSE", GCP + "maintenance-event": "NONE"}
    process = node.start("gcp", "--metadata-url", cloud.url, "--poll-s", "0.05")
    until(lambda: len(cloud.asked) > 6)
    assert node.calls == []
    assert process.poll() is None
    cloud.answers[GCP + "preempted"] = "TRUE"
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    assert node.calls == [expected(node, "Compute Engine: preempted", 30)]


def test_ec2s_notice_drains_the_node_with_its_time(node: Node, cloud: Cloud) -> None:
    cloud.answers[AWS + "spot/instance-action"] = spot_action(120)
    code, out = node.run("aws", "--metadata-url", cloud.url)
    assert code == 0, out
    (call,) = node.calls
    assert 30 <= int(call.rpartition(" ")[2]) <= 120


def test_a_prestop_hook_drains_and_waits_for_the_work(node: Node) -> None:
    worker = subprocess.Popen(["ray::EngineActor", "-c", "sleep 1.5; :"], executable="/bin/bash")
    code, out = node.run("now", "--deadline-s", "10", "--wait")  # others may work here: until then at most
    assert code == 0, out
    assert node.calls == [expected(node, "the pod is being ended", 10)]
    assert worker.poll() == 0


def test_ray_is_asked_again_before_giving_up(node: Node) -> None:
    node.set_ray("echo 'The drain request is not accepted' >&2; exit 1")
    code, out = node.run("now")
    assert code == 1
    assert len(node.calls) == 3
    assert "The drain request is not accepted" in out


def test_a_node_without_ray_has_nothing_to_drain(node: Node) -> None:
    node.raylet.kill()
    node.raylet.wait()
    code, out = node.run("now")
    assert (code, node.calls) == (1, [])
    assert "no Ray node runs here" in out


def test_the_wrong_cloud_is_said(node: Node) -> None:
    code, out = node.run("aws", "--metadata-url", "http://127.0.0.1:1", "--poll-s", "0.01", "--start-limit-s", "0.1")
    assert code == 2
    assert "no metadata service at http://127.0.0.1:1" in out
    assert "is this a node of aws?" in out


def test_it_needs_the_standard_library_alone() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", str(PROGRAM), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--rebalance" in done.stdout
