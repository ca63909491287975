"""Every command that the documentation gives, and how each is known to work. Knows pages and patterns; tests/test_docs_commands.py acts.

A command is a line of a fenced ``bash`` block (continued lines and here-documents are one command), or a ``$ `` line of a ``console``
block. ``RULES`` says, first match wins, what makes sure of it:

    here        it is run by the test, as it stands but for words put behind it, and ends with code 0
    shell       the same, by bash
    settings    its words are loaded as the command, or a script that hands them on, would load them; nothing is looked up on the hub
    elsewhere   another test does it: that test exists and its source has the essential words
    parsed      it needs a cluster or a program that is not here: its files exist, options of our own are known
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "cluster" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*) *$")
COMMENT = re.compile(r"(?:^|\s+)# .*$|^#.*$")
HERE_DOCUMENT = re.compile(r"<<-?'?(\w+)'?")
PROGRAMS = (
    "fr3e", "python", "make", "ray", "kubectl", "helm", "sbatch", "docker", "prometheus", "rsync", "jq", "bash", "pip", "export", "eval",
    "source", "cat", "sed", "cluster/local.sh", "curl", "git",
)  # fmt: skip
Kind = Literal["here", "shell", "settings", "elsewhere", "parsed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """*Example*: ``Command(page="docs/start.md", line=12, text="make demo")``. ``text``: without comments, on one line but for here-documents."""

    page: str
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """``pattern`` matches the whole text. ``plus``: words put behind it. ``test``, ``words``: for ``elsewhere``, and may stand beside others."""

    pattern: str
    kind: Kind
    plus: tuple[str, ...] = ()
    test: str = ""
    words: tuple[str, ...] = ()


def blocks(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """(line number of the first line, language, lines) of every fenced block."""
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        if opened := FENCE.match(lines[index]):
            start = index = index + 1
            while not lines[index].strip().startswith("```"):
                index += 1
            indent = len(opened["indent"])
            yield start + 1, opened["language"], [line[indent:] for line in lines[start:index]]
        index += 1


def commands(text: str, page: str) -> Iterator[Command]:
    for first, language, lines in blocks(text):
        if language in ("bash", "sh"):
            yield from script(lines, page, first)
        elif language == "console":
            told = ((first + index, line[2:]) for index, line in enumerate(lines) if line.startswith("$ "))
            yield from (Command(page=page, line=number, text=COMMENT.sub("", line).strip()) for number, line in told)


def script(lines: list[str], page: str, first: int) -> Iterator[Command]:
    """The commands of a block of shell."""
    index = 0
    while index < len(lines):
        number, text = first + index, COMMENT.sub("", lines[index]).rstrip()
        while text.endswith("\\"):
            index += 1
            text = text[:-1].rstrip() + " " + COMMENT.sub("", lines[index]).strip()
        if document := HERE_DOCUMENT.search(text):
            while lines[index] != document[1]:
                index += 1
                text += "\n" + lines[index]
        if text.strip():
            yield Command(page=page, line=number, text=text.strip())
        index += 1


def stray(text: str) -> list[int]:
    """Line numbers of lines that look like a command in a block that names no language, where nothing would collect them."""
    words = "|".join(map(re.escape, PROGRAMS))
    looks = re.compile(rf"\s*(?:\$ )?(?:{words}) [\w./-]")
    return [
        first + i for first, language, lines in blocks(text) if not language for i, line in enumerate(lines) if looks.match(line)
    ]


def every_command() -> list[Command]:
    return [found for page in PAGES for found in commands(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))]


def rule_for(command: Command) -> Rule | None:
    return next((rule for rule in RULES if re.fullmatch(rule.pattern, command.text, flags=re.DOTALL)), None)


MAIN = "fr3e train"
END_TO_END = "tests/test_end_to_end.py::finished"
RESUMED = "tests/test_end_to_end.py::test_the_final_model_starts_another_run_with_two_zero_ranks_and_resumes"
JOB = "tests/test_ray_job.py::test_stop_writes_a_checkpoint_and_a_second_job_resumes"
LOCAL_HEAD = "tests/test_cluster_local.py::test_start_submit_stop"

RULES = (
    # ---- a run: what it is told is loaded here; that such a run trains, resumes and stops is what the end-to-end tests do
    Rule(pattern=rf"{MAIN} --help", kind="here"),
    Rule(pattern=rf"{MAIN} .*--dry-run.*", kind="here"),
    Rule(pattern=rf"{MAIN} .*resume=auto.*", kind="here", plus=("--dry-run",), test=RESUMED, words=("resume=auto", "run.dir=")),
    Rule(pattern=rf"{MAIN} .*observe\.(wandb|mlflow)=offline.*", kind="here", plus=("--dry-run",),
         test="tests/test_observe_trackers.py::test_offline_asks_nobody", words=("offline",)),
    Rule(pattern=rf"{MAIN} .*", kind="here", plus=("--dry-run",), test=END_TO_END, words=("run.steps=", "run.dir=")),
    # ---- what is asked of a run that is there
    Rule(pattern="fr3e (audit|replay|report) .*", kind="here"),
    Rule(pattern="fr3e export .*", kind="elsewhere", test="tests/test_export.py::test_a_run_becomes_a_model_folder",
         words=('fr3e(["export"',)),
    Rule(pattern=r"fr3e evaluate model=\w+/\S*[A-Z]\S* .*", kind="settings"),  # a hub id
    Rule(pattern="fr3e evaluate .*", kind="here", plus=("--dry-run",),
         test="tests/test_evaluation_alone.py::test_an_evaluation_alone_writes_results", words=("evaluate",)),
    # ---- sizing
    Rule(pattern="fr3e plan .*", kind="here", plus=("steps=1", "tries=1", "flow.groups_per_step=4")),
    Rule(pattern="fr3e simulate calibrate .*", kind="here"),
    Rule(pattern="fr3e simulate run .*", kind="here", plus=("steps=2", "flow.groups_per_step=4")),
    Rule(pattern=r"python benchmarks/simulator\.py RUN .*", kind="elsewhere", words=("simulator.py", "--quick"),
         test="tests/test_simulate_calibrate.py::test_the_benchmark_puts_prediction_and_measurement_side_by_side"),
    Rule(pattern=r"python benchmarks/scale\.py.*", kind="elsewhere", test="tests/test_bench_scale.py::test_scale_as_a_user_starts_it",
         words=("bench-scale", "--quick")),
    Rule(pattern=r"python benchmarks/compare\.py --(quick|table|alone).*", kind="elsewhere", words=("quick",),
         test="tests/test_compare.py::test_a_short_comparison_and_one_that_resumes"),
    # ---- make: targets exist; what they call is called by tests
    Rule(pattern=r"make demo", kind="elsewhere", test=END_TO_END, words=('make("demo"',)),
    Rule(pattern=r"make .*", kind="parsed"),
    Rule(pattern=r"(cat > cases\.jsonl <<'END'\n.*|fr3e verify cases\.jsonl .*)", kind="elsewhere", words=("```bash",),
         test="tests/test_rewards.py::test_the_commands_of_the_page_print_what_it_says"),
    # ---- small scripts of a page, run as they stand
    Rule(pattern=r"python - <<'END'\n.*", kind="shell"),
    Rule(pattern=r"cat > [\w./-]+ <<'END'\n.*", kind="shell"),
    Rule(pattern=r"jq .*", kind="parsed"),
    Rule(pattern=r"rsync .*", kind="parsed"),
    # ---- Ray jobs and clusters
    Rule(pattern=r"cluster/local\.sh (start|stop)", kind="elsewhere", test=LOCAL_HEAD, words=('call("start")', 'call("stop")')),
    Rule(pattern=r"cluster/local\.sh ray job stop ID|ray job stop ID", kind="elsewhere", test=JOB, words=('"ray", "job", "stop"',)),
    Rule(pattern=r"cluster/local\.sh submit .*", kind="settings", test=JOB, words=("head.submit",)),
    Rule(pattern=r"ray job submit .*fr3e_async\.main .*", kind="settings", test=JOB, words=("head.submit",)),
    Rule(pattern=r"sbatch .*cluster/slurm\.sbatch .*", kind="settings", words=("allocation",),
         test="tests/test_cluster_files_slurm.py::test_one_head_workers_beside_it_then_the_run"),
    Rule(pattern=r"ray job submit -- python -c .*", kind="parsed"),
    Rule(pattern=r"ray (up|rsync-up|dashboard|get-auth-token) .*", kind="parsed"),
    Rule(pattern=r"kubectl .*|HEAD=\$\(kubectl .*\)|\(umask 077; kubectl .*\)|helm install .*", kind="parsed"),
    Rule(pattern=r"docker build .*|sed -i .* cluster/kuberay-\*\.yaml", kind="parsed"),
    Rule(pattern=r"prometheus --config\.file=.*", kind="elsewhere",
         test="tests/test_monitoring.py::test_prometheus_reads_the_alerts_and_keeps_our_metrics", words=("prometheus",)),
    Rule(pattern=r"source \.venv/bin/activate|export [A-Z_]+=.*|eval \"\$\(cluster/local\.sh env\)\"", kind="parsed"),
    Rule(pattern=r"pip install .*", kind="parsed"),
)  # fmt: skip
