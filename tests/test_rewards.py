"""A user's reward function: the names that are refused, what its return values mean, and that the limits hold for it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_support import TOY, Cli, guarded_cli, make_model

from fr3e_async.config import Config, DataConfig, EngineConfig, RewardConfig, VerifierPoolConfig
from fr3e_async.config.reward import range_of
from fr3e_async.errors import ConfigError, RunFailed
from fr3e_async.outcomes import Outcome
from fr3e_async.settings.loader import load_config
from fr3e_async.types import Verdict
from fr3e_async.verify import rewards
from fr3e_async.verify.pool import RESPONSE_TOO_LONG, Question, VerifierPool

MODULE = '''
import os, subprocess, sys, time
import numpy as np

print("imported")
number = 3

def length(response, gold, prompt):
    return min(len(response) / 10, 1.0)

def says(response, gold, prompt):
    """What the response asks for."""
    return eval(response, {"np": np, "os": os, "sys": sys, "time": time})

def told(response, gold, prompt):
    assert (response, gold, prompt) == ("r" * 5000, "g", "p"), (response, gold, prompt)
    return True

def starts_a_child(response, gold, prompt):
    child = subprocess.Popen(["sleep", "600"])
    open(gold, "w").write(str(child.pid))
    while True:
        time.sleep(1)

def two(response, gold):
    return 1

async def later(response, gold, prompt, level):
    import asyncio
    await asyncio.sleep(float(response))
    return level

def between(response, gold, prompt):
    return float(response)

def given(response, gold, prompt, *, exact, length, finish, level=7, **more):
    return (response, exact, length, finish, level, more) == ("12", "1<|pad|>2", 9, "length", {"a": [1]}, {"tests": None})

def few(response, gold, prompt, length, level=None):
    return length if level is None else level

def misses(response, gold, prompt, tests):
    return 1

def many(responses, golds, prompts, level, finish="none"):
    """What each response asks for, and how many it was judged with."""
    if "die" in responses:
        os._exit(3)
    if "raise" in responses:
        raise ValueError("all of them")
    if "short" in responses:
        return [1]
    return np.array([float(r) if r else len(responses) / 10 for r in responses])

class Group:
    @staticmethod
    def inner(response, gold, prompt, strict=False):
        return 1
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an importable module that is not imported here."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "my_rewards.py").write_text(MODULE)
    (folder / "broken.py").write_text("import not_there\n")
    (folder / "raising.py").write_text("raise ValueError('bad\\nluck')\n")
    (folder / "leaving.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.syspath_prepend(str(folder))
    return "my_rewards"


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with guarded_cli(tmp_path, monkeypatch, capsys) as guarded:
        yield guarded


# ---- names ----


@pytest.mark.parametrize("function", ["length", "Group.inner"])
def test_a_function_that_can_be_called_passes_and_is_not_imported_here(module: str, function: str) -> None:
    rewards.check_reward(f"{module}:{function}")
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("maths", "reward must be 'math' or package.module:function, got 'maths'"),
        ("my_rewards.length", "reward must be 'math' or package.module:function"),
        ("my_rewards:", "reward must be 'math' or package.module:function"),
        ("my rewards:length", "reward must be 'math' or package.module:function"),
        ("", "reward must be 'math' or package.module:function"),
        ("nowhere.at_all:length", "reward=nowhere.at_all:length: no module named nowhere "),
        ("my_rewards.inner:length", "no module named my_rewards.inner "),
        ("my_rewards:width", "my_rewards has no width"),
        ("my_rewards:number", "number is not callable, it is int"),
        ("my_rewards:two", "two must take (response, gold, prompt): too many positional arguments"),
        (
            "my_rewards:misses",
            "misses must take (response, gold, prompt): missing a required argument: 'tests'; is it a column for",
        ),
        ("my_rewards:many", "many takes lists of responses; say how many in rewards: {function: …, batch: 32}"),
        ("broken:f", "importing broken failed: no module named not_there"),
        ("raising:f", "importing raising failed: ValueError: bad luck"),
        ("leaving:f", "importing its module ended the process (exit status 3)"),
    ],
)
def test_a_bad_name_is_refused_in_one_line(module: str, name: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        rewards.check_reward(name)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_import_that_hangs_is_refused(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules" / "sleeping.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(rewards, "IMPORT_LIMIT_S", 0.5)
    with pytest.raises(ConfigError, match=r"takes more than 0\.5 s"):
        rewards.check_reward("sleeping:f")


def test_the_command_line_refuses_a_bad_name_before_anything_starts(cli: Cli) -> None:
    model = make_model(cli.folder / "model")
    cli.refused(*TOY, f"model.path={model}", "reward=nowhere:f", says=["reward=nowhere:f: no module named nowhere"])


# ---- verdicts ----


def verdict_on(response: str, reward: str, **changes: float | str) -> Verdict:
    patient = {"cpu_limit_s": 20.0, "wall_limit_s": 120.0}  # the machine may have others to serve
    with VerifierPool(VerifierPoolConfig(workers=1, **{**patient, **changes}), reward) as pool:  # type: ignore[arg-type]
        return pool.judge(response, "g", "p")


def test_what_it_returns_is_the_reward(module: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = {
        "1": ("correct", "reward", 1.0), "True": ("correct", "reward", 1.0), "1.0": ("correct", "reward", 1.0),
        "0": ("wrong", "reward", 0.0), "False": ("wrong", "reward", 0.0), "0.25": ("wrong", "reward", 0.25),
        "np.float32(0.5)": ("wrong", "reward", 0.5), "np.bool_(True)": ("correct", "reward", 1.0),
        "None": ("unknown", "reward said unknown", None),
        "'1'": ("unknown", "reward returned str", None), "[1]": ("unknown", "reward returned list", None),
        "1.01": ("unknown", "reward outside [0, 1]", None), "-1": ("unknown", "reward outside [0, 1]", None),
        "float('nan')": ("unknown", "reward outside [0, 1]", None),
        "1/0": ("unknown", "reward raised ZeroDivisionError", None),
        "np.zeros(2)": ("unknown", "reward raised ValueError", None),
        "bytearray(1 << 40)": ("unknown", "memory limit", None),
        "sys.exit(3)": ("unknown", "reward raised SystemExit", None),
        "os._exit(3)": ("unknown", "worker ended with status 3", None),
        "0.75": ("wrong", "reward", 0.75),  # and the pool continues
    }  # fmt: skip
    with VerifierPool(VerifierPoolConfig(), f"{module}:says") as pool:
        verdicts = asyncio.run(pool.judge_many([Question(response, "g") for response in expected]))
    assert {r: (v.outcome, v.reason, v.score) for r, v in zip(expected, verdicts, strict=True)} == expected
    assert {r: v.reward for r, v in zip(expected, verdicts, strict=True)} == {r: score for r, (_, _, score) in expected.items()}


def test_its_first_error_of_each_kind_is_logged_with_the_traceback_and_told_with_the_verdict(
    module: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), VerifierPool(VerifierPoolConfig(workers=1), f"{module}:says") as pool:
        complaints = [pool.judge(response, "g").complaint for response in ("1", "1/0", "2/0", "unheard_of", "'text'")]
    assert complaints == [
        "", "ZeroDivisionError: division by zero (<string>, line 1, in <module>)", "",
        "NameError: name 'unheard_of' is not defined (<string>, line 1, in <module>)", "it returned 'text'",
    ]  # fmt: skip
    record, _, _ = caplog.records
    assert "reward=my_rewards:says" in record.getMessage()
    assert "ZeroDivisionError: division by zero" in record.getMessage()
    assert "my_rewards.py" in record.getMessage()


def test_it_sees_the_whole_response_the_gold_and_the_prompt(module: str) -> None:
    """No box is looked for, no integer is compared at once, and verifiers.max_answer_chars is about answers only."""
    assert verdict_on("r" * 5000, f"{module}:told", max_answer_chars=10).score == 1.0


def test_a_response_beyond_a_million_characters_is_unknown(module: str) -> None:
    verdict = verdict_on("r" * 1_000_001, f"{module}:length")
    assert verdict == Verdict(outcome=Outcome.UNKNOWN, reason=RESPONSE_TOO_LONG)
    assert verdict_on("r" * 1_000_000, f"{module}:length").score == 1.0


def test_equal_responses_are_all_put_to_it(module: str, tmp_path: Path) -> None:
    with VerifierPool(VerifierPoolConfig(), f"{module}:says") as pool:
        counting = f"os.write(os.open({str(tmp_path / 'calls')!r}, os.O_CREAT | os.O_APPEND | os.O_WRONLY), b'x') - 1"
        verdicts = asyncio.run(pool.judge_many([Question(counting, "g")] * 20))
    assert [verdict.score for verdict in verdicts] == [0.0] * 20
    assert len((tmp_path / "calls").read_text()) == 20


def test_its_cpu_and_wall_time_are_limited(module: str) -> None:
    assert verdict_on("9**9**9 > 1", f"{module}:says", cpu_limit_s=0.3).reason == "cpu limit"
    assert verdict_on("time.sleep(60)", f"{module}:says", wall_limit_s=0.5).reason == "wall limit"


def test_with_retry_it_is_called_again_in_a_fresh_process(module: str, tmp_path: Path) -> None:
    """A response that kills the process the first time only."""
    flag = tmp_path / "flag"
    once = f"0.5 if os.path.exists({str(flag)!r}) else (os.mkdir({str(flag)!r}), os.kill(os.getpid(), 9))"
    verdict = verdict_on(once, f"{module}:says", on_unknown="retry")
    assert verdict == Verdict(outcome=Outcome.WRONG, reason="reward", score=0.5, attempts=2)


def test_the_processes_that_it_starts_end_with_it(module: str, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with VerifierPool(VerifierPoolConfig(workers=1, wall_limit_s=3.0), f"{module}:starts_a_child") as pool:
        assert pool.judge("", str(pid_file)).reason == "wall limit"
        pid = int(pid_file.read_text())
        stat = Path(f"/proc/{pid}/stat")
        deadline = time.monotonic() + 60
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline, "the child still runs"
            time.sleep(0.02)


def test_a_module_that_is_missing_where_the_pool_runs_is_reported() -> None:
    with VerifierPool(VerifierPoolConfig(workers=1), "nowhere:f") as pool, pytest.raises(RunFailed, match="reward=nowhere:f"):
        pool.judge("a", "b")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The text of docs/rewards.md; its functions can be imported as ``rewards`` from the working directory."""
    text = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "rewards.py").write_text("\n\n".join(blocks))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return text


def test_the_functions_of_the_page_work(page: str) -> None:
    rewards.check_reward("rewards:in_few_words")
    with VerifierPool(VerifierPoolConfig(workers=1), "rewards:in_few_words") as pool:
        scores = [pool.judge(response, "7").reward for response in ("it is 7", "it is 8", " ", "7 " * 51)]
    assert scores == [1.0, 0.0, None, 0.5]
    assert rewards.check_reward("rewards:passes", columns=["tests"]) == {"tests"}
    passing = [Question("a b", "", columns={"tests": ["a", "c"]}, finish=finish) for finish in ("stop", "length")]
    assert [v.score for v in judged([RewardConfig(function="rewards:passes")], passing)] == [0.5, 0.0]
    batch = RewardConfig(function="rewards:by_length", batch=16, wall_limit_s=60)
    rewards.check_reward(batch.function, batch=16)
    assert [v.score for v in judged([batch], [Question("", "", length=n) for n in (1, 4, 3)])] == [0.75, 0.0, 0.25]
    for size in (0, 16):
        rewards.check_reward("rewards:asked", batch=size)
        found = judged([RewardConfig(function="rewards:asked", batch=size)], [Question("7", "7"), Question("8", "7")])
        assert [v.score for v in found] == [1.0, 0.0]


def test_the_several_functions_of_the_page_add_up(page: str) -> None:
    """Right, in form, 500 tokens: 1 + 0.2 - 0.25. The bounds are the page's."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    (Path.cwd() / "mine.yaml").write_text("base: toy\n" + block)
    terms = load_config(["config=mine.yaml"]).config.reward_terms
    assert range_of(terms) == pytest.approx((-0.7, 1.2))
    thought = "<think>so</think>\\boxed{5}"
    (right, wrong) = judged(terms, [Question(thought, "5", length=500), Question("5", "5", length=2000)])
    assert (right.outcome, right.score) == (Outcome.CORRECT, pytest.approx(0.95))
    assert (wrong.outcome, wrong.score) == (Outcome.WRONG, pytest.approx(-0.7))


def test_the_commands_of_the_page_print_what_it_says(page: str, tmp_path: Path) -> None:
    (script,) = re.findall(r"^```bash\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    (printed,) = re.findall(r"^```text\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    program = tmp_path / "bin" / "fr3e"  # as pip writes it, elsewhere than the modules of the page
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom fr3e_async.cli.main import entry\nentry()\n")
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": path}
    done = subprocess.run(["bash", "-ec", script], env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(printed)
    assert "mean reward: 0.25, of 3 that are known\n" in done.stdout  # 0.5, 0.25 and 0: for math there is no box
    assert len(json.loads(Path("verdicts.json").read_text())) == 3


# ---- more than one response, one number, one function ----


def pool_of(*terms: RewardConfig, **changes: float | str) -> VerifierPool:
    patient = {"cpu_limit_s": 20.0, "wall_limit_s": 120.0}
    return VerifierPool(VerifierPoolConfig(workers=1, **{**patient, **changes}), terms)  # type: ignore[arg-type]


def judged(terms: Sequence[RewardConfig], questions: Sequence[Question], **changes: float | str) -> list[Verdict]:
    with pool_of(*terms, **changes) as pool:
        return asyncio.run(pool.judge_many(questions))


def test_what_it_asks_for_by_name_it_gets(module: str) -> None:
    """Length, finish reason, the exact text and columns of the row; ``**`` takes all of them, and none is given unasked."""
    columns = {"level": {"a": [1]}, "tests": None}
    question = Question("1<|pad|>2", "g", "p", "12", length=9, finish="length", columns=columns)
    assert [v.score for v in judged([RewardConfig(function=f"{module}:given")], [question])] == [1.0]
    plain = [Question("", "g", length=1, columns={"tests": "x"}), Question("", "g", length=1, columns={"level": 0})]
    assert [v.score for v in judged([RewardConfig(function=f"{module}:few")], plain)] == [1.0, 0.0]
    verdict = judged([RewardConfig(function=f"{module}:misses")], plain)[1]
    assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, "reward raised TypeError")


@pytest.mark.parametrize(
    ("function", "batch", "columns", "says"),
    [
        ("few", 0, ["level"], {"level"}),
        ("given", 0, ["level", "tests"], {"level", "tests"}),
        ("misses", 0, ["tests", "level"], {"tests"}),
        ("later", 4, ["level"], {"level"}),
        ("many", 4, ["level"], {"level"}),
        ("many", 4, [], "missing a required argument: 'level'; is it a column for data.columns?"),
        (
            "few",
            4,
            [],
            "few is called with one response at a time; batch is for a function of (responses, golds, prompts), or an",
        ),
    ],
)
def test_columns_and_batches_are_checked_before_the_start(
    module: str, function: str, batch: int, columns: list[str], says: set[str] | str
) -> None:
    if isinstance(says, set):
        assert rewards.check_reward(f"{module}:{function}", batch=batch, columns=columns) == says
        return
    with pytest.raises(ConfigError) as error:
        rewards.check_reward(f"{module}:{function}", batch=batch, columns=columns)
    assert says in str(error.value)


def test_a_column_that_no_function_takes_is_refused(module: str) -> None:
    data = DataConfig(train="t.jsonl", heldout="", columns=["level", "tests"])
    terms = [RewardConfig(function=f"{module}:{name}") for name in ("few", "length")]
    config = Config(data=data, rewards=terms, engine=EngineConfig(kv_cache_gib=1.0))
    with pytest.raises(ConfigError, match=r"data\.columns: tests: no function of reward has a parameter of this name"):
        rewards.check_reward_functions(config)
    rewards.check_reward_functions(replace(config, rewards=[*terms, RewardConfig(function=f"{module}:misses")]))


def test_a_range_is_declared_and_its_highest_number_is_correct(module: str) -> None:
    term = RewardConfig(function=f"{module}:between", range=[-2.0, 0.5])
    found = judged([term], [Question(text, "g") for text in ("-2", "0", "0.5", "0.51", "-2.01", "nan", "inf")])
    assert [(v.outcome.value, v.score) for v in found[:3]] == [("wrong", -2.0), ("wrong", 0.0), ("correct", 0.5)]
    assert {v.reason for v in found[3:]} == {"reward outside [-2, 0.5]"}


def test_several_rewards_are_added_by_weight(module: str) -> None:
    """math 1, 0.5 x in [-1, 1], -0.25 x in [0, 2]: from -1 to 1.5. The first says what is right; one unknown makes all unknown."""
    terms = [
        RewardConfig(function="math"),
        RewardConfig(function=f"{module}:few", weight=0.5, range=[-1, 1]),
        RewardConfig(function=f"{module}:between", weight=-0.25, range=[0, 2]),
    ]
    assert range_of(terms) == (-1.0, 1.5)
    five, six = Question("\\boxed{5}", "5", "", "2", length=1), Question("\\boxed{6}", "5", "", "1", length=-1)
    odd = Question("\\boxed{5}", "5", "", "3", length=1)
    right, wrong, unknown = judged(terms, [five, six, odd])
    assert (right.outcome, right.score) == (Outcome.CORRECT, 1 + 0.5 - 0.5)
    assert (wrong.outcome, wrong.score) == (Outcome.WRONG, 0 - 0.5 - 0.25)
    assert (unknown.outcome, unknown.reason) == (Outcome.UNKNOWN, f"{module}:between: reward outside [0, 2]")
    assert judged([replace(terms[1], weight=-2.0)], [five])[0].score == -2.0


def test_a_function_of_lists_is_called_once_for_a_batch(module: str) -> None:
    term = RewardConfig(function=f"{module}:many", batch=3, range=[0, 2])
    found = judged([term], [Question(text, "g", columns={"level": 0}) for text in ("2", "", "0.5", "", "3")])
    assert [v.score for v in found] == [2.0, 0.3, 0.5, 0.2, None]
    assert [v.outcome.value for v in found] == ["correct", "wrong", "wrong", "wrong", "unknown"]
    with pool_of(term) as pool:
        assert pool.judge("", "g", columns={"level": 0}).score == 0.1


@pytest.mark.parametrize(
    ("culprit", "reason"),
    [
        ("die", "worker ended with status 3"),
        ("raise", "reward raised ValueError"),
        ("short", "reward returned 1 values for 2 responses"),
    ],
)
def test_a_batch_that_fails_is_unknown_and_with_retry_asked_one_by_one(module: str, culprit: str, reason: str) -> None:
    term = RewardConfig(function=f"{module}:many", batch=2)
    questions = [Question(text, "g", columns={"level": 0}) for text in ("0.5", culprit, "1")]
    assert [v.reason for v in judged([term], questions)] == [reason, reason, "reward"]
    again = judged([term], questions, on_unknown="retry")
    alone = (None, "reward") if culprit == "short" else (None, reason)  # a batch of one that returns [1] is no error
    assert [(v.score, v.attempts) for v in again[::2]] == [(0.5, 2), (1.0, 1)]
    assert again[1].reason == alone[1]


def test_an_async_function_is_awaited_and_a_batch_of_it_side_by_side(module: str) -> None:
    """Six waits of 0.4 s are over in less than 2.4, and each response has its own verdict."""
    questions = [Question(text, "g", columns={"level": 0.5}) for text in (*["0.4"] * 6, "x")]
    for batch in (0, 7):
        term = RewardConfig(function=f"{module}:later", batch=batch, wall_limit_s=2.0 if batch else 0.0)
        found = judged([term], questions)
        assert [v.score for v in found] == [0.5] * 6 + [None]
        assert found[6].reason == "reward raised ValueError"


def test_a_batch_has_limits_of_its_own(module: str) -> None:
    sleepy = [Question("2", "g", columns={"level": 0.5})]
    limited = RewardConfig(function=f"{module}:later", batch=4, wall_limit_s=0.5)
    assert judged([limited], sleepy)[0].reason == "wall limit"
    assert judged([RewardConfig(function=f"{module}:later")], sleepy, wall_limit_s=0.5)[0].reason == "wall limit"
    assert judged([replace(limited, wall_limit_s=60.0)], sleepy, wall_limit_s=0.5)[0].score == 0.5
    busy = RewardConfig(function=f"{module}:says", cpu_limit_s=0.3)
    assert judged([busy], [Question("9**9**9 > 1", "g")])[0].reason == "cpu limit"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"reward": "m:f", "rewards": [RewardConfig(function="m:g")]}, "reward=m:f and rewards are both given"),
        ({"rewards": [RewardConfig()]}, "rewards[0].function has no value"),
        ({"rewards": [RewardConfig(function="m:f", weight=0.0)]}, "rewards[0].weight must be a number but 0, got 0.0"),
        (
            {"rewards": [RewardConfig(function="m:f", range=[1.0, 1.0])]},
            "rewards[0].range must be [lowest, highest], got [1.0, 1.0]",
        ),
        ({"rewards": [RewardConfig(function="m:f", range=[0.0, float("inf")])]}, "rewards[0].range must be [lowest, highest]"),
        ({"rewards": [{"function": "m:f", "batch": -1}]}, "rewards[0].batch must be at least 0, got -1"),
        ({"rewards": [RewardConfig(function="math", batch=2)]}, "rewards[0]: math gives 0 or 1"),
        ({"rewards": [RewardConfig(function="m:f")] * 2}, "rewards[1] and rewards[0] are both m:f"),
    ],
)
def test_settings_of_rewards_that_make_no_sense_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config(engine=EngineConfig(kv_cache_gib=1.0), **settings)
    assert says in str(error.value)


# ---- the actor ----


ACTOR = """
from pathlib import Path
import numpy as np
import ray
from cli_support import make_model
from fr3e_async.actors.verifier import Problem, VerifierActor
from fr3e_async.config import RewardConfig, VerifierPoolConfig
from fr3e_async.types import Completion, Finish, RolloutBatch, RolloutId

floats, versions = np.zeros(2, np.float32), np.zeros(2, np.int32)
completion = Completion(
    tokens=np.array([5, 0], np.int32), logprobs=floats, entropies=floats, entropy_errors=floats, versions=versions, finish=Finish.STOP
)
batch = RolloutBatch.build(  # "1" behind the prompt, then "3" and the end token; this tokenizer writes "1 3"
    ids=[RolloutId("g", 0, 0)], contexts=[np.array([3, 3], np.int32)], prompt_lens=[1], context_of=[0], completions=[completion]
)
model = str(make_model(Path("model").absolute()))
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100_000_000)
actor = ray.remote(VerifierActor).remote(VerifierPoolConfig(workers=1), model, "", False, str(Path("log").absolute()), [RewardConfig(function="beside:echo")])
ray.get(actor.start.remote())
asked = [actor.judge.remote(batch, [0], [Problem("gold", *text)]) for text in (["what?"], ())]
print([verdict.score for (verdict,) in ray.get(asked)])
"""


@pytest.mark.ray
def test_an_actor_finds_it_in_the_working_directory_and_gives_it_decoded_text_and_prompts(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(
        "def echo(*texts):\n    print('heard', texts)\n    return texts == ('1 3', 'gold', 'what?')\n"
    )
    (tmp_path / "program.py").write_text(ACTOR)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": paths}
    command = [sys.executable, "-m", "program"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines()[-1:] == ["[1.0, 0.0]"], done.stderr
    assert "heard ('1 3', 'gold', 'what?')" in (tmp_path / "log").read_text()
