"""The Slurm launcher, run for real by bash: only Slurm, Ray and Python are scripts that write down how they were called."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fr3e_async.plan.placement import check_resources
from fr3e_async.settings.loader import load_config

SCRIPT = Path(__file__).parent.parent / "cluster" / "slurm.sbatch"
SIGNAL_S = 300  # Slurm's notice before the time limit

STUBS = {
    # A step lives until it is ended, as `ray start --block` does.
    "srun": 'case "$*" in *" rm -rf "*) note clean "$@"; exit;; esac; note srun "$@"; note env "$RAY_AUTH_MODE" "$RAY_AUTH_TOKEN_PATH" "${RAY_AUTH_TOKEN:-none}"; exec sleep 100',
    "scontrol": 'if [ "$1" = show ]; then printf "%s\\n" $NODES; else note scontrol "$@"; fi',
    "getent": "echo '127.0.1.1 STREAM n0'; echo '10.0.0.1 STREAM'; echo '10.0.0.2 STREAM'",
    "python": """
if [ "$1" = - ]; then cat >/dev/null; note nodes "$@"; eval "${ON_NODES:-true}"; exit; fi
note python "$@"; note driver "$RAY_ADDRESS" "$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" "$(wc -c <"$RAY_AUTH_TOKEN_PATH")"
eval "${ON_DRIVER:-true}"
""",
}
LIVES_UNTIL_TERM = "trap 'note checkpoint; exit 0' TERM; note running; while true; do sleep 0.05; done"


class Allocation:
    """A folder with the stubs, and the environment that Slurm would set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = folder / "notes"
        (folder / "bin").mkdir()
        for name, body in STUBS.items():
            file = folder / "bin" / name
            file.write_text(
                f'#!/bin/bash\nnote() {{ (flock 9; printf "%q " "$@"; echo) 9>>"{folder}/lock" >>"{self.notes}"; }}\n{body}\n'
            )
            file.chmod(0o755)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FR3E_", "SLURM_", "RAY_"))}
        self.environment = inherited | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": "77",
            "SLURM_JOB_NODELIST": "n[0-2]",
            "SLURM_CPUS_ON_NODE": "96",
            "SLURM_GPUS_ON_NODE": "8",
            "NODES": "n0 n1 n2",
            "RAY_AUTH_TOKEN": "somebody-elses",
        }

    def start(self, *words: str, **settings: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(SCRIPT), *words],
            env=self.environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, **settings: str) -> tuple[int, str]:
        process = self.start(*words, **settings)
        out, _ = process.communicate(timeout=600)
        return process.returncode, out

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call of this name, in order."""
        lines = [shlex.split(line) for line in self.notes.read_text().splitlines()] if self.notes.exists() else []
        return [words[1:] for words in lines if words[0] == name]

    def order(self) -> list[str]:
        return [line.split()[0] for line in self.notes.read_text().splitlines()]

    def until(self, note: str) -> None:
        end = time.monotonic() + 240
        while not self.calls(note):
            assert time.monotonic() < end, f"no {note}"
            time.sleep(0.02)

    def ports(self) -> dict[str, int]:
        """Option of `ray start` → port."""
        words = [word for call in self.calls("srun") for word in call]
        return {match[1]: int(match[2]) for word in words if (match := re.fullmatch(r"--([a-z-]*port)=(\d+)", word))}

    def resources(self) -> dict[str, dict[str, int]]:
        """Node → what its `ray start` offers."""
        found = {}
        for call in self.calls("srun"):
            (node,) = (word.partition("=")[2] for word in call if word.startswith("--nodelist="))
            (offer,) = (word.partition("=")[2] for word in call if word.startswith("--resources="))
            found[node] = json.loads(offer)
        return found


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    allocation = Allocation(tmp_path)
    yield allocation
    for pid in steps_that_live(allocation):
        os.kill(int(pid), signal.SIGKILL)


def steps_that_live(allocation: Allocation) -> list[str]:
    """Processes that still carry this allocation's token file in their environment."""
    wanted = f"RAY_AUTH_TOKEN_PATH={allocation.folder}".encode()
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in file.read_bytes():
                found.append(file.parent.name)
        except OSError:
            continue
    return found


def test_one_head_workers_beside_it_then_the_run(allocation: Allocation) -> None:
    code, out = allocation.run("config=paper/qwen2.5-7b", "data.template={problem} a b")
    assert code == 0, out
    order = allocation.order()
    assert order.index("nodes") < order.index("python")
    head, *workers = [call for call in allocation.calls("srun") if "--head" in call] + [
        call for call in allocation.calls("srun") if "--head" not in call
    ]
    assert "--nodelist=n0" in head
    assert {"--node-ip-address=10.0.0.1", "--dashboard-host=127.0.0.1", "--block", "--num-cpus=92", "--num-gpus=8"} <= set(head)
    assert [[w for w in call if w.startswith("--nodelist")] for call in sorted(workers)] == [["--nodelist=n1"], ["--nodelist=n2"]]
    for call in workers:
        assert {"ray", "start", "--address=10.0.0.1:6601", "--block", "--num-cpus=96", "--num-gpus=8"} <= set(call)
    for call in allocation.calls("srun"):
        assert {"--overlap", "--nodes=1", "--ntasks=1", "--cpus-per-task=96"} <= set(call)
    assert allocation.calls("nodes") == [["-", "10.0.0.1:6601", "3", "600"]]
    (driver,) = allocation.calls("python")
    assert driver[:4] == ["-m", "fr3e_async.main", "ray.autoscaling=false", "resume=auto"]
    assert driver[4:] == ["config=paper/qwen2.5-7b", "data.template={problem} a b"]
    assert allocation.calls("scontrol") == []
    assert steps_that_live(allocation) == []
    assert [call[-3:] for call in allocation.calls("clean")] == [["rm", "-rf", "/tmp/fr3e-77"]]
    assert f"--temp-dir={allocation.calls('clean')[0][-1]}" in head


def test_the_token_is_in_a_private_file_while_the_job_runs_and_on_no_command_line(allocation: Allocation) -> None:
    seen = 'cp "$RAY_AUTH_TOKEN_PATH" seen'
    code, out = allocation.run("config=toy", ON_DRIVER=seen)
    assert code == 0, out
    token = (allocation.folder / "seen").read_text()
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert token not in allocation.notes.read_text() + out
    assert allocation.calls("driver") == [["10.0.0.1:6601", "600", "64"]]
    path = str(allocation.folder / "runs" / "slurm" / "token-77")
    assert allocation.calls("env") == [["token", path, "none"]] * 3
    assert not Path(path).exists()


def test_every_port_is_outside_of_rays_worker_range_and_moves_with_the_offset(allocation: Allocation) -> None:
    allocation.run("config=toy")
    plain = allocation.ports()
    assert len(plain) == 7
    assert all(not 10002 <= port <= 19999 for port in plain.values())
    allocation.notes.unlink()
    allocation.run("config=toy", FR3E_PORT_OFFSET="30")
    assert allocation.ports() == {name: port + 30 for name, port in plain.items()}


@pytest.mark.parametrize(
    ("nodes", "settings", "learners", "engines"),
    [
        ("n0 n1 n2", {}, ["n2"], ["n0", "n1"]),
        ("n0 n1 n2 n3", {"FR3E_LEARNER_NODES": "2"}, ["n2", "n3"], ["n0", "n1"]),
        ("n0", {}, ["n0"], ["n0"]),
    ],
)
def test_roles_follow_a_simple_rule(
    allocation: Allocation, nodes: str, settings: dict[str, str], learners: list[str], engines: list[str]
) -> None:
    code, out = allocation.run("config=toy", NODES=nodes, **settings)
    assert code == 0, out
    offers = allocation.resources()
    assert sorted(n for n, offer in offers.items() if offer.get("learner")) == learners
    assert sorted(n for n, offer in offers.items() if offer.get("engine")) == engines
    assert all(offer["verifier"] == 4 for offer in offers.values())
    assert {amount for offer in offers.values() for name, amount in offer.items() if name != "verifier"} == {8}


def test_the_papers_run_fits_the_allocation_that_the_file_asks_for(allocation: Allocation) -> None:
    allocation.run("config=toy")
    offers = allocation.resources()
    total = {"CPU": 92.0 + 2 * 96, "GPU": 24.0}
    for offer in offers.values():
        for name, amount in offer.items():
            total[name] = total.get(name, 0.0) + amount
    check_resources(load_config(["config=paper/qwen2.5-7b", "ray.autoscaling=false"]).config, total)


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_gives_the_run_time_for_its_checkpoint(allocation: Allocation, number: int, requeued: bool) -> None:
    job = allocation.start("config=toy", ON_DRIVER=LIVES_UNTIL_TERM)
    allocation.until("running")
    os.kill(job.pid, number)
    out, _ = job.communicate(timeout=600)
    assert job.returncode == 0, out
    assert allocation.calls("checkpoint") == [[]]
    assert allocation.calls("scontrol") == ([["requeue", "77"]] if requeued else [])
    assert steps_that_live(allocation) == []


def test_a_signal_ends_the_wait_for_nodes(allocation: Allocation) -> None:
    job = allocation.start("config=toy", ON_NODES="exec sleep 100")
    allocation.until("nodes")
    os.kill(job.pid, signal.SIGTERM)
    out, _ = job.communicate(timeout=600)
    assert job.returncode == 128 + signal.SIGTERM, out
    assert allocation.calls("python") == []
    assert steps_that_live(allocation) == []


def test_a_failed_run_is_not_begun_again(allocation: Allocation) -> None:
    code, _ = allocation.run("config=toy", ON_DRIVER="exit 3")
    assert code == 3
    assert allocation.calls("scontrol") == []
    assert allocation.calls("clean") == []  # Ray's logs say why


def test_nodes_that_do_not_come_end_the_job(allocation: Allocation) -> None:
    code, _ = allocation.run("config=toy", ON_NODES="exit 1")
    assert code == 1
    assert allocation.calls("python") == []
    assert steps_that_live(allocation) == []


def test_engines_must_have_a_node(allocation: Allocation) -> None:
    code, out = allocation.run("config=toy", FR3E_LEARNER_NODES="3")
    assert code == 2
    assert "FR3E_LEARNER_NODES=3 leaves no node of 3 to the engines" in out
    assert allocation.calls("srun") == []


def test_what_the_script_asks_slurm_for() -> None:
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SCRIPT.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert options["signal"] == f"B:USR1@{SIGNAL_S}"
    assert {"requeue", "exclusive"} <= set(options)
    assert options["open-mode"] == "append"  # a second life must not wipe the log of the first
    assert load_config(["config=paper/qwen2.5-7b"]).config.run.stop_grace_s < SIGNAL_S
