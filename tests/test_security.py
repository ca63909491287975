"""What comes from outside cannot do more than say something: laws of the source, hostile rows, answers, terminals; and secrets.

``docs/security.md`` has the threat model. Models and checkpoints: ``test_security_files.py``; Ray's ports: ``test_security_ray.py``.
"""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator
from pathlib import Path

import loop_support
import pytest
from builders import prompt
from cli_support import TOY, Cli, guarded_cli, make_model, write_rows
from hypothesis import given
from hypothesis import strategies as st
from loop_support import World, audited

from fr3e_async.cli.main import run as fr3e
from fr3e_async.config import DataConfig, VerifierPoolConfig
from fr3e_async.data import tables
from fr3e_async.data.sources import read_path
from fr3e_async.errors import DataError, RunFailed, UserError, printable
from fr3e_async.files.process_logs import QUIET_ENVIRONMENT, quiet_environment
from fr3e_async.learner.spec import LearnerSpec, rank_environment
from fr3e_async.observe.console import ConsoleView, make_console
from fr3e_async.outcomes import Outcome
from fr3e_async.rollout import EngineSpec, engine_environment
from fr3e_async.settings.loader import load_config
from fr3e_async.store.run_dir import RunDir
from fr3e_async.verify.pool import VerifierPool

PACKAGE = Path(__file__).parent.parent / "fr3e_async"

# Moves the cursor, clears the screen, renames the window, rings; a right-to-left override; the 8-bit form of an escape.
ESCAPES = "\x1b[2J\x1b]0;owned\x07\r\x08\u202e\x9b31m"
SECRETS = {"HF_TOKEN": "hf_0123456789abcdef", "WANDB_API_KEY": "wandb-0123456789", "RAY_AUTH_TOKEN": "ray-token-0123456789"}

# ---- laws of the source ----

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "torch.load", "torch.jit.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "os.system",
    "os.popen", "subprocess.getoutput", "pandas.read_pickle", "sympy.sympify", "sympy.parse_expr",
}  # fmt: skip
FORBIDDEN_ARGUMENTS = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False}


def dangers(source: str) -> Iterator[str]:
    """What in a module could run what a file or a message holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"{node.lineno}: import {name}" for name in names if name.partition(".")[0] in FORBIDDEN_IMPORTS)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given_here = {word.arg: word.value for word in node.keywords}
            if name in FORBIDDEN_CALLS or (name in ("np.load", "numpy.load") and "allow_pickle" not in given_here):
                yield f"{node.lineno}: {name}()"
            for argument, value in FORBIDDEN_ARGUMENTS.items():
                if isinstance(given := given_here.get(argument), ast.Constant) and given.value is value:
                    yield f"{node.lineno}: {argument}={value}"


def test_no_module_runs_what_a_file_holds() -> None:
    found = {str(path.relative_to(PACKAGE)): list(dangers(path.read_text(encoding="utf-8"))) for path in PACKAGE.rglob("*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert len(found) > 100


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import pickle", "1: import pickle"),
        ("from dill import loads", "1: import dill"),
        ("x = eval('1')", "1: eval()"),
        ("def f():\n    return torch.load(p, map_location='cpu')", "2: torch.load()"),
        ("np.load(path)", "1: np.load()"),
        ("np.load(path, allow_pickle=True)", "1: allow_pickle=True"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "1: trust_remote_code=True"),
        ("subprocess.run(x, shell=True)", "1: shell=True"),
        ("yaml.load(text)", "1: yaml.load()"),
    ],
)
def test_the_law_finds_each_danger(source: str, says: str) -> None:
    assert list(dangers(source)) == [says]


# ---- a model's answers ----


def attacks(canary: Path) -> list[str]:
    """Answers that would make the file, were any of their text run."""
    call = f"__import__('os').system('touch {canary}')"
    return [
        call, f"1+{call}", f"(1)*({call})", f"\\text{{{call}}}", f"\\mathrm{{{call}}}", f"2^{{{call}}}", f"\\frac{{{call}}}{{1}}",
        f"1/2 {call}", f"x = {call}", f"\\{{{call}, 1\\}}", f"$({call})$", f"\\write18{{touch {canary}}}", f"\\input{{|touch {canary}}}",
        f"lambda: {call}", f"1 if {call} else 2", f"0*{call}", f"\\sqrt[{call}]{{4}}", f"\\int_0^{{{call}}} x dx", f"[{call} for x in (1,)]",
    ]  # fmt: skip


def test_no_answer_is_run_as_code(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with VerifierPool(VerifierPoolConfig(workers=1, wall_limit_s=240.0)) as pool:
        for answer in attacks(canary):
            for gold in ("5", "\\frac{1}{2}"):
                assert pool.judge(f"\\boxed{{{answer}}}", gold).outcome is not Outcome.CORRECT
        assert pool.judge("\\boxed{2/4}", "\\frac{1}{2}").outcome is Outcome.CORRECT  # the processes did their work
    assert not canary.exists()


@given(
    text=st.text(st.sampled_from("0123456789+-*/^(). ,=$%abcxyz_'\"[]{}\\\n"), max_size=60) | st.sampled_from(attacks(Path("/x")))
)
def test_what_sympy_evaluates_is_digits_and_operators(text: str) -> None:
    """Numbers come to sympy as text, and its ``parse_expr`` is Python's ``eval``: no letter may get there."""
    from sympy.parsing import sympy_parser

    from fr3e_async.verify import symbolic, tokens

    given_to_sympy, stringify = list[str](), sympy_parser.stringify_expr

    def spy(expression: str, *rest: object) -> str:
        given_to_sympy.append(expression)
        return stringify(expression, *rest)

    symbolic.reading.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sympy_parser, "stringify_expr", spy)
        symbolic.reading(tokens.tokenise(f"1+{text}"))
    for expression in given_to_sympy:
        assert not any(character.isalpha() or character in "_'\"[]{}\\" for character in expression)


# ---- a dataset ----


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"problem": "1?", "answer": ' + "9" * 5000 + "}", "a number of 5,000 digits"),
        ('{"a": ' * 50_000 + "1" + "}" * 50_000, "not JSON"),
        (r'{"problem": "\ud800", "answer": "1"}', "column 'problem' holds half of a surrogate pair"),
        (r'{"problem": "1?", "answer": "\udfff"}', "column 'answer' holds half of a surrogate pair"),
        (json.dumps({"problem": "1?", "answer": "1", "id": ESCAPES}), "has control characters in it; see data.id_field"),
        (json.dumps({"problem": "1?", "answer": "1", "id": "a\nb"}), r"id 'a\nb' is longer than 512 characters or has control"),
        (json.dumps({"problem": "1?", "answer": "1", "id": "i" * 513}), "is longer than 512 characters"),
        (json.dumps({"problem": "1?", "answer": "1", "pad": "x" * 2000}), "the line is longer than 0 MiB"),
    ],
)
def test_a_hostile_row_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, says: str) -> None:
    if "pad" in row:
        monkeypatch.setattr(tables, "MAX_LINE_BYTES", 1000)
    path = write_rows(tmp_path / "rows.jsonl", '{"problem": "0?", "answer": "0"}', row)
    with pytest.raises(DataError) as raised:
        list(read_path(str(path), DataConfig()))
    assert str(raised.value).startswith(f"{path}:2: ")
    assert says in str(raised.value)
    assert printable(str(raised.value)) == str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_without_line_ends_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "sparse.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of zeros that takes no disk
    with pytest.raises(DataError, match=r"sparse\.jsonl:1: the line is longer than 1 MiB"):
        list(read_path(str(path), DataConfig()))


def test_an_id_is_never_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep" / "run"
    folder.parent.mkdir()
    monkeypatch.setattr(loop_support, "prompt", lambda uid: prompt(f"../../{uid}/../{tmp_path}/{uid}"))
    world = World(folder, run={"steps": 2, "checkpoint_every": 1})
    assert world.run() == "finished"
    assert audited(folder, world.config).counts["trained"] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


# ---- terminals ----


@pytest.mark.parametrize("mode", ["plain", "live"])
def test_a_note_cannot_write_to_the_terminal(mode: str) -> None:
    streams = []
    for text in (f"group {ESCAPES} failed", "group failed"):
        stream = io.StringIO()
        used, console = make_console(mode, stream)  # type: ignore[arg-type]
        console.width, console.height = 200, 50
        view = ConsoleView(mode=used, console=console, name="toy", steps=2)
        view.start()
        view.note(text)
        view.stop()
        streams.append(stream.getvalue())
    hostile, harmless = streams
    assert r"group \x1b[2J\x1b]0;owned\x07\r\x08\u202e\x9b31m failed" in hostile
    for character in ("\x1b[2J", "\x1b]0;", "\x07", "\x08", "\u202e", "\x9b"):
        assert hostile.count(character) == harmless.count(character)


def test_an_error_cannot_write_to_the_terminal() -> None:
    for kind in (UserError, DataError, RunFailed):
        printed = str(kind(f"a{ESCAPES}\tb\nc \ud800"))
        assert printed == "a\\x1b[2J\\x1b]0;owned\\x07\\r\\x08\\u202e\\x9b31m\tb\nc \\ud800"
        printed.encode()
    assert printable("Grüße, 你好, Привет, ∑ x² \u00a0") == "Grüße, 你好, Привет, ∑ x² \u00a0"


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with guarded_cli(tmp_path, monkeypatch, capsys) as guarded:
        yield guarded


def test_the_commands_do_not_pass_on_what_files_say(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(cli.folder / "model")
    index = {"weight_map": {"a": f"{ESCAPES}.safetensors"}}
    (cli.folder / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    cli.refused(*TOY, "model.path=model", says=["lacks weights: \\x1b[2J"])
    write_rows(cli.folder / "cases.jsonl", json.dumps({"gold": "1", "prediction": "1", "source": ESCAPES, "kind": "bare"}))
    assert fr3e(["verify", "cases.jsonl", "--workers=1"]) == 0
    world = World(cli.folder / "run", run={"steps": 1})
    world.run()
    (cli.folder / "run" / "config.yaml").write_text("flow: {groups_per_step: 4, max_staleness: 1}\n")
    row = {"group": f"{ESCAPES}@0", "outcome": "trained"}
    (cli.folder / "run" / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*world.notes.groups, row]))
    assert fr3e(["audit", "run"]) == 1
    printed = capsys.readouterr().out
    assert printed.count(r"\x1b[2J\x1b]0;owned") == 2
    assert printable(printed) == printed


# ---- secrets ----


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run.name=${oc.env:HF_TOKEN}"], "run.name: it holds the value of HF_TOKEN"),
        (["data.system=key ${oc.env:WANDB_API_KEY}!"], "data.system: it holds the value of WANDB_API_KEY"),
        (["engine.options={x: [{y: '${oc.env:HF_TOKEN}'}]}"], "engine.options.x"),
        (["run.name=ray-token-0123456789"], "run.name: it holds the value of RAY_AUTH_TOKEN"),
        (["engine.options.hf_token=abc"], "engine.options.hf_token: settings are written to files"),
    ],
)
def test_a_secret_in_a_setting_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    printed = cli.refused(*TOY, *arguments, says=[says])
    assert not any(value in printed for value in SECRETS.values())


def test_secrets_of_the_environment_are_in_no_file_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    loaded = load_config(["config=toy", "model.path=m"])
    RunDir.open(run, config=loaded.config, config_yaml=loaded.yaml).close()
    world = World(run, run={"steps": 3, "checkpoint_every": 1}, evaluate=True)
    assert world.run() == "finished"
    (run / "notes.json").write_text(json.dumps([world.notes.lines, world.notes.groups, world.notes.steps]))
    assert fr3e(["train", "--dry-run", "config=toy", "model.path=toy"]) == 0
    printed = capsys.readouterr()
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"config.yaml", "run.json", "ledger.jsonl", "control.json", "notes.json"} <= {path.name for path in files}
    assert any(path.parent.name == "journal" for path in files)
    for value in SECRETS.values():
        assert [path for path in files if value.encode() in path.read_bytes()] == []
        assert value not in printed.out + printed.err


def test_actors_are_told_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray keeps a runtime environment in its logs and shows it on its dashboard."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for name in QUIET_ENVIRONMENT:  # a test before this one may have had them set
        monkeypatch.delenv(name, raising=False)
    config = load_config(["config=toy"]).config
    spec = LearnerSpec(path="m", learner=config.learner, loss=config.loss, temperature=1.0)
    environments = [
        engine_environment(EngineSpec(model="m", end_token_ids=(1,), max_model_len=8)), rank_environment(spec),
        quiet_environment(verbose=False),
    ]  # fmt: skip
    for variables in environments:
        assert variables
        assert not set(SECRETS) & set(variables)
        assert not set(SECRETS.values()) & set(variables.values())


def test_the_whole_environment_is_only_handed_to_child_processes() -> None:
    """``os.environ`` as a whole is read in one function, whose result goes to ``Popen``; elsewhere names are looked up."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            whole = isinstance(node, ast.Dict) and any(
                key is None and ast.unparse(value) == "os.environ" for key, value in zip(node.keys, node.values, strict=True)
            )
            copied = isinstance(node, ast.Call) and ast.unparse(node) in (
                "dict(os.environ)",
                "os.environ.copy()",
                "os.environ.items()",
            )
            if whole or copied:
                found.append(str(path.relative_to(PACKAGE)))
    assert found == ["verify/rewards.py"]
