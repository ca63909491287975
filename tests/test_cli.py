"""The command line from a user's view: help, dry run, first steps, exit codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from cli_support import ROWS, TOY, Cli, assert_one_line, everything_below, guarded_cli, make_model, process, write_rows

from fr3e_async.config import Config
from fr3e_async.errors import RunFailed, StorageError
from fr3e_async.run.session import Session
from fr3e_async.settings.help import as_text, knobs
from fr3e_async.settings.loader import load_config
from fr3e_async.store.run_dir import RunDir


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with guarded_cli(tmp_path, monkeypatch, capsys) as guarded:
        yield guarded


@pytest.fixture
def ready(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run that passes every check; it ends where the cluster would be started."""
    monkeypatch.setattr("fr3e_async.run.session.connect", lambda _: None)
    model = make_model(tmp_path / "model")
    return [*TOY, f"model.path={model}", "run.dir=run"]


# ---- help ----


def test_help_from_an_empty_folder_lists_every_setting(tmp_path: Path) -> None:
    done = process("--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: fr3e train [OPTIONS] config=FILE")
    first_words = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert [path for path in knobs() if path not in first_words] == []
    text = " ".join(done.stdout.split())
    for row in knobs().values():
        assert row.meaning in text
        default = f"default {as_text(row.default)}]"
        assert (f"{row.unit}; {default}" if row.unit else default) in text
    assert everything_below(tmp_path) == {}


@pytest.mark.parametrize("argv", [["-h"], ["config=toy", "--help"], ["--dry-run", "--help"], ["--all", "--help"]])
def test_help_wins_over_everything_else(cli: Cli, argv: list[str]) -> None:
    code, out, err = cli(*argv)
    assert (code, err, out.splitlines()[0].partition(" ")[0]) == (0, "", "Usage:")


@pytest.mark.parametrize("argv", [["--help"], ["--dry-run", "config=toy"]])
def test_a_reader_that_stops_early_is_no_error(tmp_path: Path, argv: list[str]) -> None:
    command = [sys.executable, "-m", "fr3e_async.main", *argv]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    with running.stderr:
        assert running.stderr.read() == b""
    assert running.wait(timeout=600) == 0


# ---- dry run ----


def test_a_dry_run_shows_what_differs_placement_and_memory_checks_and_leaves_nothing(cli: Cli) -> None:
    code, out, err = cli("--dry-run", "config=toy", "generators.count=3", "run.dir=run", "learner.lr=5e-4")
    assert (code, err) == (0, "")
    blocks = out.split("\n\n")
    titles = ["settings that differ from the defaults", "placement", "batch", "memory", "checked"]
    assert [block.splitlines()[0] for block in blocks[:-1]] == titles
    rows = {line.split()[0]: line.split()[1:4] for line in blocks[1].splitlines()[2:]}
    assert rows["generators"] == ["3", "0.5", "0"]
    assert rows["together"] == ["6", "2.75", "0"]
    assert "GiB" in blocks[3]
    assert blocks[4].splitlines()[1:] == [
        "  data: 4,096 training problems, 1,024 held out, 0 of benchmarks; the longest prompt has 14 tokens",
        "  model: toy, end tokens 256",
        "  reward: 1 x math",
        f"  run directory: {cli.folder}/run, which takes data; the run begins at step 0",
    ]
    assert blocks[-1] == "dry run: nothing was started or kept\n"
    assert everything_below(cli.folder) == everything_below(cli.home) == {}
    assert "\n    lr: 0.0005\n" in cli("--dry-run", "config=toy", "learner.lr=5e-4", "--all")[1]


def test_help_and_version_load_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from fr3e_async.cli.main import run; run(['train', '--help', 'learner.lr']); run(['--version']);"
        "print({m.partition('.')[0] for m in sys.modules} & {'ray', 'vllm', 'deepspeed', 'torch', 'transformers'})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "learner: the DeepSpeed group"
    assert lines[1].split()[:2] == ["learner.lr", "AdamW"]
    assert lines[-2:] == [f"fr3e_async {version('fr3e-async')}", "set()"]
    assert done.stderr == ""


def test_help_of_a_section_lists_its_settings_alone(cli: Cli) -> None:
    code, out, err = cli("--help", "weights", "grad_clip")
    words = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line[2] != " "]
    assert (code, err) == (0, "")
    assert words == [*(path for path in knobs() if path.startswith("weights.")), "critic.grad_clip", "learner.grad_clip"]
    cli.refused("--help", "weigths", says=["error: weigths: neither a section nor a setting (did you mean weights?)"])


class Refusal(NamedTuple):
    """Words of a start that is refused, and what it says."""

    words: tuple[str, ...]
    says: str


REFUSALS = (
    Refusal(("data.train=nosuch.jsonl", "data.heldout="), "nosuch.jsonl"),
    Refusal(("data.train=rows.jsonl", "data.heldout="), "rows.jsonl:2"),
    Refusal(("data.max_prompt=8",), "data.max_prompt is 8"),
    Refusal(("data.max_prompt=4000", "sampling.max_response=1000", "learner.micro_batch_tokens=5000"), "4096 positions"),
    Refusal(("model.path=/no/such/model",), "model.path: there is no folder"),
    Refusal(("reward=no_such_module:function",), "no module named no_such_module"),
    Refusal(("run.dir=rows.jsonl/run",), "a part of the path is a file"),
    Refusal(("run.dir=full",), "is not empty and holds no run"),
    Refusal(("run.dir=earlier",), "continue with it by resume=auto"),
    Refusal(("run.dir=earlier", "resume=auto", "run.seed=7"), "run.seed"),
)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: " ".join(refusal.words))
def test_a_dry_run_refuses_what_a_start_refuses_in_the_same_words(cli: Cli, refusal: Refusal) -> None:
    write_rows(cli.folder / "rows.jsonl", ROWS[0], "{")
    (cli.folder / "full").mkdir()
    (cli.folder / "full" / "thing").touch()
    loaded = load_config(["config=toy"])
    RunDir.open(cli.folder / "earlier", config=loaded.config, config_yaml=loaded.yaml).close()
    before = everything_below(cli.folder)
    started = cli("config=toy", *refusal.words)
    code, out, err = cli("config=toy", *refusal.words, "--dry-run")
    assert_one_line(err, [refusal.says])
    assert (code, err) == (started[0], started[2])
    assert out.startswith("settings that differ")
    assert "nothing was started" not in out
    assert everything_below(cli.folder) == before
    assert everything_below(cli.home) == {}


def test_a_dry_run_may_be_for_another_machine(cli: Cli) -> None:
    code, out, err = cli("config=toy", "--dry-run", "learner.gpus=1", "learner.ranks=4")
    assert (code, err) == (0, "")
    assert "a start on this machine would be refused: more actors than resources: 4 GPUs needed" in out


def test_a_dry_run_leaves_a_run_that_can_be_resumed_as_it_is(cli: Cli) -> None:
    loaded = load_config(["config=toy"])
    RunDir.open(cli.folder / "run", config=loaded.config, config_yaml=loaded.yaml).close()
    before = everything_below(cli.folder)
    code, out, _ = cli("config=toy", "--dry-run", "run.dir=run", "resume=auto", "run.steps=99")
    assert (code, everything_below(cli.folder)) == (0, before)
    assert "the run begins at step 0" in out


def test_a_dry_run_finds_settings_that_cannot_work(cli: Cli) -> None:
    cli.refused("--dry-run", "config=toy", "sampling.top_p=0.9", says=["sampling.top_p=0.9", "loss.importance"])


# ---- first steps of a newcomer ----


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], ["config: no file given", "config=toy", "--help"]),
        (["config="], ["config: no file given", "config=toy"]),
        (["run.steps=3"], ["config: no file given", "config=toy"]),
        (["confg=toy"], ["unknown setting confg (did you mean config?)"]),
        (["config=nosuch"], ["config=nosuch: no such file; shipped configs: ", "toy"]),
        (["config=tyo"], ["config=tyo: no such file (did you mean toy?)"]),
        (["config=" + "x" * 300], ["no such file"]),
        (["toy"], ["perhaps config=toy"]),
        (["mine.yaml"], ["perhaps config=mine.yaml"]),
        (["help"], ["perhaps --help"]),
        (["-x"], ["unknown option -x; the options are --help, --dry-run, --all and --version, settings"]),
        (["--dryrun", "config=toy"], ["unknown option --dryrun (did you mean --dry-run?)"]),
        (["config=toy", "--run.steps=3"], ["--run.steps=3: settings are written without dashes: run.steps=3\n"]),
        (["--config", "toy"], ["--config: settings are written without dashes: config=toy\n"]),
        (["--config=toy"], ["without dashes: config=toy\n"]),
        (["config=toy", "--learning-rate", "1e-5"], ["without dashes: learner.lr=1e-5\n"]),
        (["config=toy", "--engine.options.seed", "1"], ["without dashes: engine.options.seed=1\n"]),
        (["config=toy", "--beta", "0"], ["--beta: settings are written without dashes: loss.reference_coef=0"]),
        (["config=toy", "learner.lr", "1e-5"], ["perhaps learner.lr=1e-5\n"]),
        (["config=toy", "learner.lr", "run.steps=1"], ["perhaps learner.lr=VALUE\n"]),
        (["config=toy", "learner.learning_rate=1"], ["unknown setting learner.learning_rate (did you mean learner.lr?)"]),
        (["config=toy", "actor_rollout_ref.rollout.n=8"], ["(did you mean algorithm.bases?)"]),
        (["config=toy", "clip_ratio=0.2"], ["(did you mean loss.clip_low or loss.clip_high?)"]),
        (["config=toy", "lora_rank=8"], ["unknown setting lora_rank (all weights are trained, there is no LoRA)"]),
        (["config=toy", "--all"], ["--all: it makes --dry-run print every setting"]),
    ],
)
def test_first_steps_that_go_wrong(cli: Cli, argv: list[str], says: list[str]) -> None:
    cli.refused(*argv, says=says)


def test_without_arguments_the_real_process_says_how_to_begin(tmp_path: Path) -> None:
    done = process(folder=tmp_path)
    assert_one_line(done.stderr, ["config=toy", "--help"])
    assert (done.returncode, done.stdout) == (2, "")
    assert everything_below(tmp_path) == {}


def test_a_config_file_in_the_home_folder_is_found(cli: Cli) -> None:
    (cli.home / "mine.yaml").write_text("base: toy\nrun: {name: mine}\n")
    code, out, _ = cli("--dry-run", "config=~/mine.yaml")
    assert (code, out.splitlines()[1].split()) == (0, ["run.name", "mine", "default", "fr3e", "mine.yaml:2"])


# ---- exit codes of a session ----


STARTING = "starting Ray on this machine\n"


def test_a_session_returns_what_its_run_returns(cli: Cli, ready: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def finished(_: Session) -> int:
        return 0

    monkeypatch.setattr(Session, "go", finished)
    assert cli(*ready) == (0, STARTING, "")
    assert {"run.json", "config.yaml", "logs"} <= {path.name for path in (cli.folder / "run").iterdir()}


@pytest.mark.parametrize(
    "error", [RunFailed("generator-0 died\nand took its words along"), StorageError("run.dir: the disk is full (ENOSPC)")]
)
def test_a_failure_after_the_start_is_exit_code_1_and_keeps_the_run_directory(
    cli: Cli, ready: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def failing(_: Session) -> int:
        raise error

    monkeypatch.setattr(Session, "go", failing)
    assert cli(*ready) == (1, STARTING, f"error: {error}\n")
    assert (cli.folder / "run" / "config.yaml").is_file()


def test_ctrl_c_before_the_start_leaves_nothing(cli: Cli, ready: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Path:
        assert (cli.folder / "run").is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr("fr3e_async.run.preparing.resolve_model", interrupted)
    assert cli(*ready) == (130, "", "interrupted\n")
    assert everything_below(cli.folder) == {}


def test_a_defect_keeps_its_traceback_and_still_leaves_nothing(
    cli: Cli, ready: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def defective(_: Config) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("fr3e_async.run.session.connect", defective)
    with pytest.raises(ZeroDivisionError, match="ours"):
        cli(*ready)
    assert everything_below(cli.folder) == {}


def test_the_toy_model_is_announced_before_it_is_built(cli: Cli, ready: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fr3e_async.data.toy.cache.build", mock.Mock(side_effect=KeyboardInterrupt))
    code, out, _ = cli(*ready, "model.path=toy")
    assert code == 130
    assert out.startswith(f"building the toy model in {cli.home}")
    assert cli(*ready, "model.path=toy", "observe.console=off")[1] == ""
