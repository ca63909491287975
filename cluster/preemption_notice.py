#!/usr/bin/env python3
"""Tells Ray that this node will be taken away: a process of its own on each node, started by the files of cluster/.

    preemption_notice.py aws        wait for EC2's notice (spot interruption; with --rebalance the earlier warning too)
    preemption_notice.py gcp        wait for Compute Engine's (preemption, or maintenance that ends the machine)
    preemption_notice.py now        the node goes now: what a Kubernetes preStop hook calls

The notice becomes `ray drain-node`: Ray gives the node no new actors, and the run hands the node's work to others before the node is
gone. It needs the standard library and the `ray` command, and knows the node's own raylet by its command line in /proc, as Ray itself
does: the dashboard may be out of reach, and connecting a driver takes seconds that are not there. It refuses to know what runs on
the node, and ends no process and no machine.

Exit codes: 0 drained, 1 not drained (no raylet here, or Ray refused), 2 no metadata service: the wrong cloud.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

PROC = Path("/proc")
REQUEST_TIMEOUT_S = 2.0
DRAIN_TIMEOUT_S = 15.0
DRAIN_TRIES = 3
START_LIMIT_S = 60.0  # a metadata service that has never answered for so long is not there
TOKEN_LIFE_S = 21600  # the longest that EC2 gives
REBALANCE_S = 120  # the warning names no time: the node may get its two minutes at any moment
GCP_PREEMPTED_S = 30  # Compute Engine's time between the notice and the end
GCP_MAINTENANCE_S = 60  # the least it gives; machines with GPUs get an hour
AGENTS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")  # processes that hold no work
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine's own metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    reason: str
    seconds: int  # until the node is gone, as far as the cloud says


@dataclass(frozen=True, slots=True, kw_only=True)
class Raylet:
    node_id: str  # hex
    gcs: str  # host:port


def say(text: str) -> None:
    print(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}", flush=True)


# --- the clouds -------------------------------------------------------------------------------------------------------


class Metadata(Protocol):
    """A cloud's metadata service. Both calls raise OSError when it does not answer."""

    def notice(self) -> Notice | None: ...


def fetch(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """The body, or None for 404. OSError (urllib's errors are some) for everything else."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with DIRECT.open(request, timeout=REQUEST_TIMEOUT_S) as answer:
            return answer.read().decode("utf-8")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def seconds_left(text: str) -> int:
    """Until the time in EC2's spot/instance-action; 0 if it says none that can be read: the node goes either way."""
    try:
        ends = datetime.fromisoformat(json.loads(text)["time"].replace("Z", "+00:00"))
    except (ValueError, KeyError):
        return 0
    return max(0, math.floor((ends - datetime.now(UTC)).total_seconds()))


class Aws:
    """EC2's instance metadata, version 2: every question carries a token that is asked for before."""

    default_url = "http://169.254.169.254"

    def __init__(self, url: str, *, rebalance: bool) -> None:
        self._url = url
        self._rebalance = rebalance
        self._token = ""

    def notice(self) -> Notice | None:
        if text := self._ask("spot/instance-action"):
            return Notice(reason=f"EC2 spot: {text.strip()}", seconds=seconds_left(text))
        if self._rebalance and self._ask("events/recommendations/rebalance"):
            return Notice(reason="EC2 spot: rebalance recommendation", seconds=REBALANCE_S)
        return None

    def _ask(self, path: str) -> str | None:
        try:
            return self._with_token(path)
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
            self._token = ""  # it has run out
            return self._with_token(path)

    def _with_token(self, path: str) -> str | None:
        if not self._token:
            life = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFE_S)}
            self._token = fetch(f"{self._url}/latest/api/token", life, "PUT") or ""
        return fetch(f"{self._url}/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})


class Gcp:
    """Compute Engine's metadata. Spot machines say `preempted`; maintenance also ends machines with GPUs."""

    default_url = "http://metadata.google.internal"

    def __init__(self, url: str) -> None:
        self._url = url

    def notice(self) -> Notice | None:
        if self._ask("preempted") == "TRUE":
            return Notice(reason="Compute Engine: preempted", seconds=GCP_PREEMPTED_S)
        event = self._ask("maintenance-event")
        if event.startswith("TERMINATE"):
            return Notice(reason=f"Compute Engine: {event}", seconds=GCP_MAINTENANCE_S)
        return None

    def _ask(self, name: str) -> str:
        headers = {"Metadata-Flavor": "Google"}
        return (fetch(f"{self._url}/computeMetadata/v1/instance/{name}", headers) or "").strip()


def wait_for_notice(metadata: Metadata, *, poll_s: float, start_limit_s: float = START_LIMIT_S) -> Notice:
    """Blocks until the cloud says that the node goes. OSError if the service has not answered once within ``start_limit_s``;
    later silence is said once and waited out, since a notice can still come."""
    began, answered, silent = time.monotonic(), False, False
    while True:
        try:
            notice = metadata.notice()
        except OSError as error:
            if not answered and time.monotonic() - began >= start_limit_s:
                raise
            if not silent:
                say(f"no answer from the metadata service: {error}")
            silent = True
        else:
            if silent:
                say("the metadata service answers again")
            answered, silent = True, False
            if notice is not None:
                return notice
        time.sleep(poll_s)


# --- this node --------------------------------------------------------------------------------------------------------


def command_lines(proc: Path = PROC) -> list[list[str]]:
    """The words of every process's command line. Processes that end meanwhile are left out."""
    lines = []
    for file in proc.glob("[0-9]*/cmdline"):
        try:
            raw = file.read_bytes()
        except OSError:
            continue
        if raw:
            lines.append([word.decode("utf-8", "replace") for word in raw.rstrip(b"\0").split(b"\0")])
    return lines


def raylets(proc: Path = PROC) -> list[Raylet]:
    """Every Ray node that runs here. On a machine of a cluster it is one; all of them go with the machine."""
    found = []
    for words in command_lines(proc):
        if Path(words[0]).name != "raylet":
            continue
        flags = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        if flags.get("--node_id") and flags.get("--gcs-address"):
            found.append(Raylet(node_id=flags["--node_id"], gcs=flags["--gcs-address"]))
    return found


def has_work(proc: Path = PROC) -> bool:
    """Is an actor or a task alive on this node? Ray's workers carry it in their title."""
    return any(words[0].startswith("ray::") and not words[0].startswith(AGENTS) for words in command_lines(proc))


def drain(raylet: Raylet, notice: Notice, *, ray: str) -> bool:
    """Tells Ray. True once it has accepted."""
    command = [ray, "drain-node", "--address", raylet.gcs, "--node-id", raylet.node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", notice.reason]
    command += ["--deadline-remaining-seconds", str(notice.seconds)]
    for _ in range(DRAIN_TRIES):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DRAIN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            say(f"ray drain-node did not end within {DRAIN_TIMEOUT_S:g} s")
            continue
        if done.returncode == 0:
            say(f"draining node {raylet.node_id}: {notice.reason}; {notice.seconds} s left")
            return True
        say(f"ray drain-node: exit code {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return False


def drain_all(notice: Notice, *, ray: str, node_id: str) -> bool:
    """Drains the Ray nodes of this machine, or only ``node_id``. False if there is none or one was refused."""
    here = [raylet for raylet in raylets() if node_id in ("", raylet.node_id)]
    if not here:
        say(f"no Ray node runs here: nothing to drain ({notice.reason})")
    accepted = [drain(raylet, notice, ray=ray) for raylet in here]  # each is told, whatever the others answered
    return bool(here) and all(accepted)


def wait_until_idle(limit_s: float, busy: Callable[[], bool] = has_work) -> None:
    """Blocks while work is on the node, at most ``limit_s``: after a preStop hook the container is ended."""
    end = time.monotonic() + limit_s
    while busy() and time.monotonic() < end:
        time.sleep(1.0)


# --- the command ------------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", choices=("aws", "gcp", "now"))
    parser.add_argument("--poll-s", type=float, default=5.0, help="time between two questions (5, as EC2 recommends)")
    parser.add_argument("--rebalance", action="store_true", help="aws: drain at the early warning, which many nodes outlive")
    parser.add_argument("--deadline-s", type=int, default=100, help="now: seconds until the node is gone")
    parser.add_argument("--wait", action="store_true", help="now: return when the node holds no work, or the time is up")
    parser.add_argument("--node-id", default="", help="drain only this Ray node of the machine")
    parser.add_argument("--metadata-url", default="", help="another metadata service than the cloud's own")
    parser.add_argument("--start-limit-s", type=float, default=START_LIMIT_S, help="give up if none has answered by then")
    parser.add_argument("--ray", default="ray", help="the ray command")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    if args.source == "now":
        notice = Notice(reason="the pod is being ended", seconds=args.deadline_s)
    else:
        cloud = Aws if args.source == "aws" else Gcp
        url = args.metadata_url or cloud.default_url
        metadata = Aws(url, rebalance=args.rebalance) if args.source == "aws" else Gcp(url)
        say(f"waiting for a notice of {args.source}")
        try:
            notice = wait_for_notice(metadata, poll_s=args.poll_s, start_limit_s=args.start_limit_s)
        except OSError as error:
            say(f"no metadata service at {url}: {error}; is this a node of {args.source}?")
            return 2
    drained = drain_all(notice, ray=args.ray, node_id=args.node_id)
    if args.source == "now" and args.wait and drained:
        wait_until_idle(args.deadline_s)
    return 0 if drained else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
