"""A head with a token, as ``cluster/local.sh`` starts it: who has no token, or another, gets nothing done; and who may knock at all.

The head has ports, a folder and a home of its own; see ``test_ray_job.py`` for what a person with the token does.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = Path(__file__).parent.parent / "cluster" / "local.sh"
OFFSET = 960
GCS, CLIENT, DASHBOARD, METRICS, AGENT = (port + OFFSET for port in (6601, 20601, 8301, 9601, 52601))
URL = f"http://127.0.0.1:{DASHBOARD}"
WRONG = "0" * 64


class Head:
    """A running head; its token; and the environment of somebody who has another token, or none."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_USAGE_STATS_ENABLED": "0"}
        own = {"HOME": str(home), "FR3E_PORT_OFFSET": str(OFFSET), "FR3E_HEAD_DIR": str(folder), "FR3E_HEAD_CPUS": "1"}
        self.environment, self.folder = self.clean | own, folder
        self.token_file = home / ".ray" / "auth_token"

    def call(self, *words: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *words], env=self.environment, capture_output=True, text=True, timeout=timeout
        )

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(int((self.folder / "head.pid").read_text()))
        return [root, *root.children(recursive=True)]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="fr3e-", dir="/tmp"))  # Ray makes sockets in it: the path must be short
    head = Head(tmp_path_factory.mktemp("home"), folder)
    started = head.call("start")
    assert started.returncode == 0, started.stdout + started.stderr
    yield head
    head.call("stop")
    shutil.rmtree(folder, ignore_errors=True)


STRANGERS = {
    "no token": {},
    "wrong token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG},
    "authentication switched off": {"RAY_AUTH_MODE": "disabled"},
}


def all_at_once(commands: dict[str, tuple[list[str], dict[str, str]]]) -> dict[str, tuple[int, str]]:
    """(exit code, what was said) of commands with environments of their own, side by side: each waits for Ray most of the time."""
    started = {
        name: subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name, (words, environment) in commands.items()
    }
    outputs = {name: process.communicate(timeout=250)[0] for name, process in started.items()}
    return {name: (started[name].returncode, text) for name, text in outputs.items()}


def ask(path: str, *, token: str = "", body: object = None, url: str = URL) -> tuple[int, str]:
    """(status, text) of a plain HTTP request: GET, or POST if there is a body."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data=data, headers=headers), timeout=30) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_job_of_a_stranger_is_refused(head: Head, tmp_path: Path) -> None:
    """Of somebody with a home of their own, and another token or none."""
    ray, canary = str(Path(sys.executable).parent / "ray"), tmp_path / "canary"
    command = [ray, "job", "submit", "--address", URL, "--", "touch", str(canary)]
    tried = all_at_once({name: (command, head.clean | {"HOME": str(tmp_path)} | own) for name, own in STRANGERS.items()})
    for name, (code, reply) in tried.items():
        assert code != 0, name
        assert "Authentication" in reply, name
    assert not canary.exists()


@pytest.mark.parametrize(("token", "status"), [("", 401), (WRONG, 403), ("Bearer", 403)])
def test_plain_http_without_the_token_is_refused(head: Head, tmp_path: Path, token: str, status: int) -> None:
    job = {"entrypoint": f"touch {tmp_path / 'canary'}"}
    assert ask("/api/jobs/", token=token, body=job)[0] == status
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary", "/api/cluster_status"):
        assert ask(path, token=token)[0] == status, path
    code, reply = ask("/api/jobs/", token=head.token)
    assert (code, [entry for entry in json.loads(reply) if entry["type"] == "SUBMISSION"]) == (200, [])
    assert not (tmp_path / "canary").exists()


def test_the_token_opens_the_same_doors(head: Head, tmp_path: Path) -> None:
    """Else the tests around this one could pass because nothing works."""
    code, reply = ask("/api/version", token=head.token)
    assert (code, json.loads(reply)["ray_version"]) == (200, "2.60.0")
    submitted = head.call("ray", "job", "submit", "--", "touch", str(tmp_path / "canary"))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert (tmp_path / "canary").exists()
    assert head.token not in submitted.stdout + submitted.stderr


def test_a_stranger_cannot_join_the_cluster(head: Head, tmp_path: Path) -> None:
    """Neither as a driver nor as a client of Ray's client server."""
    commands = {}
    for address in (f"127.0.0.1:{GCS}", f"ray://127.0.0.1:{CLIENT}"):
        code = (
            f"import os, ray; ray.init({address!r}, logging_level='ERROR'); "
            f"print('joined', ray.get(ray.remote(os.mkdir).remote({str(tmp_path / 'canary')!r})))"
        )
        for name, own in STRANGERS.items():
            commands[f"{name}, {address}"] = ([sys.executable, "-c", code], head.clean | {"HOME": str(tmp_path)} | own)
    for name, (status, reply) in all_at_once(commands).items():
        assert status != 0, name
        assert "joined" not in reply, name
    assert not (tmp_path / "canary").exists()


# Processes of Ray whose ports other machines can reach: they are for the nodes of a cluster, and ask for the token.
FOR_OTHER_NODES = {"gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE", "python3", "python"}


def test_the_dashboard_and_its_job_port_listen_on_loopback_only(head: Head) -> None:
    """Which others do not is said in docs/security.md."""
    open_to_others: dict[int, str] = {}
    loopback: set[int] = set()
    for process in head.processes():
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                if is_loopback(connection.laddr.ip):
                    loopback.add(connection.laddr.port)
                else:
                    open_to_others[connection.laddr.port] = process.name()
    assert DASHBOARD in loopback
    assert DASHBOARD not in open_to_others
    assert set(open_to_others.values()) <= FOR_OTHER_NODES


def is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def test_the_agents_port_asks_for_the_token_and_the_metrics_port_does_not(head: Head) -> None:
    """The agent runs jobs as well, and other nodes can reach it; metrics are for Prometheus, which has no token."""
    agent, metrics = f"http://127.0.0.1:{AGENT}", f"http://127.0.0.1:{METRICS}"
    assert ask("/api/job_agent/jobs/", body={"entrypoint": "true"}, url=agent)[0] == 401
    assert ask("/api/job_agent/jobs/", body={"entrypoint": "true"}, url=agent, token=WRONG)[0] == 403
    status, reply = ask("/metrics", url=metrics)
    assert status == 200
    assert head.token not in reply
