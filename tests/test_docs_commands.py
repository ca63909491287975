"""The commands of the documentation: each is covered by a rule of tests/docs_commands.py, and what the rule says is done here.

Commands run in a folder that holds what pages call RUN, mine.yaml and so on: a run of fakes with a real ledger log, journal and checkpoint.
"""

from __future__ import annotations

import ast
import os
import random
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import pytest
import yaml
from cli_support import make_model
from docs_commands import PAGES, ROOT, RULES, Command, Rule, commands, every_command, rule_for, stray
from loop_support import World
from report_support import metrics_row, write_rows, write_trees

from fr3e_async.cli.evaluate import understood
from fr3e_async.cli.main import fr3e as program
from fr3e_async.cli.main import run as fr3e
from fr3e_async.data.rows import read_rows
from fr3e_async.settings.loader import load_config
from fr3e_async.testing.fakes import FakeActor

COMMANDS = every_command()
COMMAND_NAMES = set(program.commands)
MADE = ("RUN", "OTHER_RUN", "runs/first", "runs/random")  # folders that pages call by these names


def of_kind(kind: str) -> list[object]:
    """Parameters (command, rule); a command that stands in several places is there once, by its first place."""
    found = {command.text: (command, rule) for command in reversed(COMMANDS) if (rule := rule_for(command)) and rule.kind == kind}
    return [pytest.param(command, rule, id=f"{command.place} {command.text[:50]}") for command, rule in reversed(found.values())]


# ---- the law ----


def test_every_command_is_covered() -> None:
    assert [f"{command.place}: no rule for {command.text!r}" for command in COMMANDS if rule_for(command) is None] == []


def test_no_command_stands_where_nobody_looks() -> None:
    strays = {str(page.relative_to(ROOT)): stray(page.read_text(encoding="utf-8")) for page in PAGES}
    assert {page: lines for page, lines in strays.items() if lines} == {}, "mark these blocks as bash"


def test_every_rule_is_needed() -> None:
    used = {rule_for(command) for command in COMMANDS}
    assert [rule.pattern for rule in RULES if rule not in used] == []


def test_commands_are_found() -> None:
    text = "a\n\n```bash\nmake demo   # quick\npython x.py a='#1' \\\n    b  # no\n# only a comment\ncat > f <<'END'\n# kept\nEND\n```\n"
    text += "```\nmake test\n```\n  ```console\n  $ ls a/b\n  c\n  ```\n"
    assert [(found.line, found.text) for found in commands(text, "p")] == [
        (4, "make demo"),
        (5, "python x.py a='#1' b"),
        (8, "cat > f <<'END'\n# kept\nEND"),
        (16, "ls a/b"),
    ]
    assert stray(text) == [13]
    assert rule_for(Command(page="p", line=1, text="rm -rf /")) is None


# ---- run here ----


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the pages have what they name."""
    folder = tmp_path_factory.mktemp("workshop")
    recorded = make_run(folder / "RUN")
    for name in MADE[1:]:
        (folder / name).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", str(recorded), str(folder / name)], check=True)
    assert fr3e(["simulate", "calibrate", str(recorded), f"out={folder}/times.json"]) == 0
    (folder / "mine.yaml").write_text("base: toy\ngenerators.gpus: 1\nexplorers.gpus: 1\nlearner.gpus: 1\n")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def make_run(folder: Path) -> Path:
    """A run of fakes: 8 batches with ledger log, journal, checkpoint; the rest of its files as a run writes them."""
    world = World(folder, run={"checkpoint_every": 4}, judge_s=0.001)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeActor, "call", uneven())
        world.run()
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(asdict(world.config))))
    (folder / "run.json").write_text("{}")
    (folder / "logs").mkdir()
    write_rows(folder / "groups.jsonl", world.notes.groups)
    write_rows(folder / "metrics.jsonl", [metrics_row(step) for step in world.notes.steps])
    write_trees(folder / "trees.jsonl", 4)
    make_model(folder / "model", max_position_embeddings=4096)
    return folder


def uneven() -> Callable[..., Awaitable[None]]:
    """Calls of fakes that take one to two times as long as they say: the simulator cannot be calibrated by calls that are all alike."""
    call, chance = FakeActor.call, random.Random(0)
    shortest: dict[int, float] = {}

    async def longer(actor: FakeActor, name: str, *, parts: int = 4) -> None:
        actor.delay_s = shortest.setdefault(id(actor), actor.delay_s) * chance.uniform(1, 2)
        await call(actor, name, parts=parts)

    return longer


def plain(value: object) -> object:
    """Tuples as lists: what YAML can say."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def run_here(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """``fr3e …`` or ``python -m MODULE …`` in this process. Exit code 0."""
    code = fr3e(words[1:]) if words[0] == "fr3e" else started(words)
    out, err = capsys.readouterr()
    assert code == 0, err or out
    assert not err.startswith("error"), err


def started(words: list[str]) -> object:
    """The exit code of ``python -m MODULE …``."""
    assert words[:2] == ["python", "-m"], words
    with mock.patch.object(sys, "argv", words[2:]), pytest.raises(SystemExit) as ended:
        runpy.run_module(words[2], run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("main", "train"), ("evaluate", "evaluate"), ("plan", "plan"), ("simulate", "simulate"), ("audit", "audit"), ("replay", "replay"),
        ("learner", "replay_step"), ("export", "export"), ("report", "report"), ("verify", "verify"),
    ],
)  # fmt: skip
def test_a_module_starts_its_command(module: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert started(["python", "-m", f"fr3e_async.{module}", "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: fr3e {command} ")


@pytest.mark.parametrize(("command", "rule"), of_kind("here"))
def test_it_runs(
    command: Command, rule: Rule, workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    monkeypatch.setattr("fr3e_async.cli.train.check", lambda _: [])  # of a dry run: their data and models are elsewhere
    said = re.sub(r" \[[^\]]*\]", "", command.text)  # [what may be left out]
    run_here([*shlex.split(said), *rule.plus], capsys)


def test_the_scripts_of_the_start_make_data_that_a_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The here-documents of a page in their order, then what is read before anything starts."""
    for command in COMMANDS:
        if (rule := rule_for(command)) and rule.kind == "shell":
            path = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            done = subprocess.run(["bash", "-e", "-c", command.text], cwd=tmp_path, env=path, capture_output=True, text=True)
            assert done.returncode == 0, f"{command.place}: {done.stderr}"
    monkeypatch.chdir(tmp_path)
    config = load_config(["config=mine.yaml"]).config
    read = read_rows(config)
    assert len(read.train) > 100
    assert len(read.heldout) == 40
    assert config.run.name == "mine"


# ---- settings that a script or a cluster hands on ----


@pytest.mark.parametrize(("command", "rule"), of_kind("settings"))
def test_its_settings_are_those_of_a_run(command: Command, rule: Rule, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    words = shlex.split(command.text)
    if words[:2] == ["fr3e", "evaluate"]:
        assert understood(words[2:]).config.run.steps > 0
        return
    first = next(index for index, word in enumerate(words) if word.startswith("config="))
    assert load_config(words[first:]).config.run.steps > 0
    assert missing_files(words[:first]) == []


# ---- done by other tests ----


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.test], ids=lambda rule: rule.pattern[:60])
def test_the_test_that_does_it_is_there(rule: Rule) -> None:
    file, _, name = rule.test.partition("::")
    source = (ROOT / file).read_text(encoding="utf-8")
    assert name in {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    assert [word for word in rule.words if word not in source] == []
    assert rule.words


def test_only_rules_that_need_it_name_a_test() -> None:
    assert all(rule.test for rule in RULES if rule.kind == "elsewhere")


# ---- what cannot run here ----


def missing_files(words: list[str]) -> list[str]:
    """Words that name a file of the repository and are none. Patterns must match something."""
    named = [word.partition("=")[2] or word for word in words]
    folders = "cluster|configs|docs|scripts|benchmarks|requirements"
    return [name for name in named if re.fullmatch(rf"(?:{folders})/[\w./*-]+", name) and not list(ROOT.glob(name))]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize(("command", "rule"), of_kind("parsed"))
def test_it_names_what_there_is(command: Command, rule: Rule) -> None:
    words = shlex.split(re.sub(r"[()&;|<>$]", " ", command.text))
    assert missing_files(words) == []
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= targets()
    if words[0] == "pip" and (extra := re.search(r"fr3e-async\[(\w+)\]", command.text)):
        assert re.search(rf"^{extra[1]} = ", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_bash_understands_the_blocks(page: Path) -> None:
    text = "\n".join(command.text for command in commands(page.read_text(encoding="utf-8"), page.name))
    done = subprocess.run(["bash", "-n"], input=text + "\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SPAN = re.compile(r"`([^`\n]+)`")


def unknown_programs(text: str) -> list[str]:
    """Commands within sentences: modules, scripts and make targets that are not there."""
    unknown = []
    for span in SPAN.findall(text):
        if found := re.match(r"python -m (fr3e_async\.\w+)", span):
            path = ROOT / found[1].replace(".", "/")
            unknown += [] if path.with_suffix(".py").is_file() or (path / "__main__.py").is_file() else [span]
        elif found := re.match(r"fr3e (\w+)(?!=)\b", span):
            unknown += [] if found[1] in COMMAND_NAMES else [span]
        elif found := re.match(r"(?:python|bash) ((?:benchmarks|scripts|tests|cluster)/[\w./]+)", span):
            unknown += [] if (ROOT / found[1]).is_file() else [span]
        elif found := re.match(r"make ([a-z-]+)", span):
            unknown += [] if found[1] in targets() else [span]
    return unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_within_sentences_exist(page: Path) -> None:
    assert unknown_programs(page.read_text(encoding="utf-8")) == []


def test_programs_that_do_not_exist_are_found() -> None:
    text = "`make demo`, `make tea`, `fr3e audit RUN`, `fr3e adit RUN`, `python -m fr3e_async.main x`, `python -m fr3e_async.mane`, `python scripts/lock.py`, `bash scripts/x.sh`"
    assert unknown_programs(text) == ["make tea", "fr3e adit RUN", "python -m fr3e_async.mane", "bash scripts/x.sh"]
    assert missing_files(["cluster/aws.yaml", "--file=cluster/nowhere.yaml", "cluster/kuberay-*.yaml", "data/x"]) == [
        "cluster/nowhere.yaml"
    ]
