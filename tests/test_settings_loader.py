"""The command line and YAML files become a config; every mistake is one line that names the setting."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fr3e_async.algorithm.strategies import REGISTRY, unread
from fr3e_async.config import AlgorithmConfig, Config, EngineConfig
from fr3e_async.config.idle import ASKS_NOTHING, idle_settings
from fr3e_async.errors import ConfigError
from fr3e_async.settings.help import knobs, sections
from fr3e_async.settings.loader import PACKAGED, config_from, load_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: shipped configs must still be found from it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def message(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(argv)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["toy", "toy.yaml", "configs/toy", "configs/toy.yaml"])
def test_shipped_configs_are_found_from_an_empty_folder(folder: Path, name: str) -> None:
    loaded = load_config([f"config={name}"])
    assert loaded.config.run.name == "toy"
    assert [Path(source).name for source in loaded.sources] == ["toy.yaml"]


def test_a_file_in_the_working_directory_wins_over_a_shipped_one(folder: Path) -> None:
    write(folder, "configs/toy.yaml", "run: {name: mine}\nengine: {kv_cache_gib: 1}\n")
    loaded = load_config(["config=configs/toy.yaml"])
    assert (loaded.config.run.name, loaded.sources) == ("mine", ("configs/toy.yaml",))


def test_later_files_and_then_overrides_win(folder: Path) -> None:
    write(folder, "a.yaml", "base: toy\nrun: {steps: 1, seed: 1, name: a}\n")
    write(folder, "b.yaml", "run: {steps: 2, seed: 2}\n")
    loaded = load_config(["run.steps=3", "config=a.yaml,b.yaml", "learner.lr=5e-4", "learner.lr=6e-4"])
    run = loaded.config.run
    assert (run.steps, run.seed, run.name, loaded.config.learner.lr) == (3, 2, "a", 6e-4)
    assert [Path(s).name for s in loaded.sources[:3]] == ["toy.yaml", "a.yaml", "b.yaml"]
    assert loaded.sources[3:] == ("run.steps=3", "learner.lr=5e-4", "learner.lr=6e-4")


def test_bases_are_relative_to_their_file_and_laid_once(folder: Path) -> None:
    write(folder, "deep/root.yaml", "base: toy\nrun: {seed: 1, steps: 1}\n")
    write(folder, "deep/left.yaml", "base: root.yaml\nrun: {seed: 2}\n")
    write(folder, "right.yaml", "base: [deep/root.yaml]\nrun: {name: right}\n")
    loaded = load_config(["config=deep/left.yaml,right.yaml"])
    assert (loaded.config.run.seed, loaded.config.run.name) == (2, "right")  # root is not laid over left a second time
    assert [Path(s).name for s in loaded.sources] == ["toy.yaml", "root.yaml", "left.yaml", "right.yaml"]


def test_mappings_and_lists_are_replaced_and_a_dotted_key_adds(folder: Path) -> None:
    write(
        folder,
        "a.yaml",
        "base: toy\nengine: {options: {stream_interval: 1, compilation_config: {z: 2}}}\nlearner: {betas: [0.5, 0.6]}\n",
    )
    write(folder, "b.yaml", "engine: {options: {log_level: 3}}\n")
    assert load_config(["config=a.yaml,b.yaml"]).config.engine.options == {"log_level": 3}
    added = load_config(["config=a.yaml", "engine.options.compilation_config.q=true", "learner.betas=[0.7, 0.8]"]).config
    assert added.engine.options == {"stream_interval": 1, "compilation_config": {"z": 2, "q": True}}
    assert added.learner.betas == [0.7, 0.8]
    assert load_config(["config=a.yaml", "engine.options="]).config.engine.options == {}
    assert load_config(["config=a.yaml", "engine.options={}"]).config.engine.options == {}


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("learner.lr=1e-6", "learner.lr", 1e-6),
        ("data.heldout=", "data.heldout", ""),
        ("data.template=Q: {problem}", "data.template", "Q: {problem}"),
        ("data.template={problem}", "data.template", "{problem}"),
        ("model.revision=0123", "model.revision", "0123"),
        ('run.name="two words"', "run.name", "two words"),
        ("data.system=a = b", "data.system", "a = b"),
        ("loss.importance=off", "loss.importance", "off"),
        ("algorithm.alpha=false", "algorithm.alpha", False),
        ("generators.resources={engine: 1}", "generators.resources", {"engine": 1.0}),
        ("run={steps: 7}", "run.steps", 7),
        ("resume=auto", "resume", "auto"),
    ],
)
def test_override_values(folder: Path, override: str, path: str, expected: object) -> None:
    value: object = load_config(["config=toy", override]).config
    for name in path.split("."):
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)


def test_yaml_words_and_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FR3E_TEST_DIR", "/scratch")
    write(folder, "a.yaml", "base: toy\nloss: {importance: off}\nrun.dir: ${oc.env:FR3E_TEST_DIR}/x\nobserve:\n")
    config = load_config(["config=a.yaml"]).config
    assert (config.loss.importance, config.run.dir) == ("off", "/scratch/x")


def test_the_resolved_yaml_loads_again_to_the_same_config(folder: Path) -> None:
    first = load_config(
        ["config=paper/qwen2.5-32b", "loss.importance=off", "engine.options={compilation_config: [1, {b: 1e-6}]}", "run.seed=3"]
    )
    write(folder, "saved.yaml", first.yaml)
    again = load_config(["config=saved.yaml"])
    assert again.config == first.config
    assert again.yaml == first.yaml
    assert all(f"{path.rpartition('.')[2]}:" in first.yaml for path in knobs())


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("run.stepss=3", ["run.stepss=3: unknown setting run.stepss", "did you mean run.steps?"]),
        ("lr=3", ["unknown setting lr", "did you mean critic.lr or learner.lr?"]),
        ("learner.groups_per_step=3", ["did you mean flow.groups_per_step?"]),
        ("generator.counts=3", ["did you mean generators.count?"]),
        ("zzz.qqq=3", ["unknown setting zzz.qqq; --help"]),
        ("run.steps.more=3", ["unknown setting run.steps.more", "did you mean run.steps?"]),
        ("run.steps=many", ["run.steps must be a whole number, got 'many'"]),
        ("run.steps=1.5", ["run.steps must be a whole number, got 1.5"]),
        ("run.steps=", ["run.steps must be a whole number, got ''"]),
        ("run.steps=null", ["run.steps must be a whole number, got None"]),
        ("learner.lr=true", ["learner.lr must be a number, got True"]),
        ("algorithm.alpha=maybe", ["algorithm.alpha must be true or false, got 'maybe'"]),
        ("learner.betas=[0.9, x]", ["learner.betas[1] must be a number, got 'x'"]),
        ("learner.betas=0.9", ["learner.betas must be a list of numbers, got 0.9"]),
        ("generators.resources={a: b}", ["generators.resources.a must be a number, got 'b'"]),
        ("engine.options=[1]", ["engine.options must be a mapping, got [1]"]),
        (
            "algorithm.strategy=grop",
            ["must be one of fr3e, grpo, grpo_pp, ppo, rloo, tree_credit, vapo, vineppo, got 'grop'", "did you mean grpo?"],
        ),
        ("engine.options={logprobs_mode: raw_logprobs}", ["engine.options must not set logprobs_mode: the system sets it"]),
        ("budget.tokens_per_prompt=3", ["budget.tokens_per_prompt is 3, but a group has at least 4 rollouts"]),
        ("run=3", ["run is a section, not a value; set for example run.name"]),
        ("run.dir=${nope}", ["run.dir", "Interpolation key 'nope' not found"]),
        ("run.steps=${run.name}", ["run.steps=${run.name}: run.steps must be a whole number, got 'toy'"]),
        ("run.dir=${", ["run.dir"]),
        ("model.path=???", ["model.path has no value yet; give it as model.path=…"]),
        ("learner.betas=[0.9", ["learner.betas=[0.9: the value is not YAML"]),
        ("run.steps", ["run.steps: an argument is written key=value"]),
        ("mine.yaml", ["perhaps config=mine.yaml"]),
        ("--dryrun", ["unknown option --dryrun"]),
        ("config=toyy", ["config=toyy: no such file (did you mean toy?); shipped configs: eval/cpu,"]),
        ("algorithm.bases=1", ["algorithm.bases must be at least 2"]),
        ("sampling.top_p=0.9", ["sampling.top_p=0.9", "loss.importance"]),
        ("learner.micro_batch_tokens=64", ["learner.micro_batch_tokens (64) cannot hold one trajectory"]),
    ],
)
def test_bad_arguments(folder: Path, argument: str, parts: list[str]) -> None:
    text = message("config=toy", argument)
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("run:\n  steps: 3\n  stepz: 4\n", ["bad.yaml:3: unknown setting run.stepz (did you mean run.steps?)"]),
        ("run:\n\n  steps: x\n", ["bad.yaml:3: run.steps must be a whole number, got 'x'"]),
        ("run: 3\n", ["bad.yaml:1: run is a section"]),
        ("run:\n  steps: [1\nflow: 3\n", ["bad.yaml:3: not YAML"]),
        ("run:\n  steps: 1\n  steps: 2\n", ["bad.yaml:3: not YAML: found duplicate key steps"]),
        ("- 1\n", ["must hold settings"]),
        ("3\n", ["must hold settings"]),
        ("run:\n  name: 5\n", ["bad.yaml:2: run.name must be text, got 5; put it in quotes"]),
        ("base: nowhere.yaml\n", ["bad.yaml: base: nowhere.yaml: no such file"]),
        ("base: {a: 1}\n", ["base must be a file name or a list of them"]),
        ("base: bad.yaml\n", ["goes in a circle: bad.yaml → bad.yaml"]),
        ("data:\n  train: ???\n", ["bad.yaml:2: data.train has no value yet"]),
    ],
)
def test_bad_files(folder: Path, text: str, parts: list[str]) -> None:
    write(folder, "bad.yaml", text)
    found = message("config=toy,bad.yaml")
    for part in parts:
        assert part in found


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["config=toy_ppo", "loss.objective=gspo"],
            ["loss.objective=gspo with algorithm.strategy=ppo", "loss.objective=clip only"],
        ),
        (["config=toy_vapo", "loss.mean=sequence"], ["loss.mean=sequence with algorithm.strategy=vapo", "loss.mean=token only"]),
        (["config=toy_vapo", "critic.length_alpha=0"], ["critic.length_alpha=0 with algorithm.strategy=vapo leaves no lambda"]),
        (["config=toy_ppo", "learner.ds_config.scheduler.type=WarmupLR"], ["learner.ds_config has an optimizer or scheduler"]),
    ],
)
def test_what_no_strategy_with_a_critic_is_used_with_is_refused(folder: Path, arguments: list[str], parts: list[str]) -> None:
    text = message(*arguments)
    for part in parts:
        assert part in text


def test_a_later_value_heals_an_earlier_blank(folder: Path) -> None:
    write(folder, "a.yaml", "base: toy\nmodel:\n  path: ???\n")
    assert load_config(["config=a.yaml", "model.path=toy"]).config.model.path == "toy"


@pytest.mark.parametrize("argv", [[], ["run.steps=3"], ["config="]])
def test_without_a_file_it_says_how_to_begin(argv: list[str]) -> None:
    assert "config=toy" in message(*argv)


def test_unreadable_file(folder: Path) -> None:
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml: cannot be read" in message("config=binary.yaml")


def outcome(*argv: str) -> str:
    """The config's YAML, or the message; any other exception fails the test."""
    try:
        return load_config(argv).yaml
    except ConfigError as error:
        return str(error)


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_arguments_give_a_config_or_a_message(argv: list[str]) -> None:
    assert outcome("config=toy", *argv)


@settings(deadline=None)
@given(st.sampled_from(sorted(knobs())), st.text(max_size=20))
def test_any_value_of_any_knob_gives_a_config_or_a_message_that_names_it(path: str, value: str) -> None:
    assert path.rpartition(".")[2] in outcome("config=toy", f"{path}={value}")


def test_an_old_name_works_and_is_answered_with_the_new_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "mine.yaml", "base: toy\nweights:\n  transfer: native\n")
    loaded = load_config(["config=mine.yaml"])
    assert loaded.config.weights.transfer == "collective"
    assert "transfer: collective" in loaded.yaml
    assert capsys.readouterr().err == "note: mine.yaml:3: weights.transfer=native is called weights.transfer=collective now\n"
    load_config(["config=mine.yaml", "weights.transfer=collective"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("setting", "old", "new"),
    [("algorithm.trunk", "one_right_one_wrong", "one_correct_one_wrong"), ("verifiers.unfinished", "right", "correct")],
)
def test_every_old_word_still_works(setting: str, old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_config(["config=toy", f"{setting}={old}"])
    assert f"{setting.partition('.')[2]}: {new}" in loaded.yaml
    assert capsys.readouterr().err == f"note: {setting}={old} is called {setting}={new} now\n"


def test_a_journal_with_an_old_name_is_read() -> None:
    recorded = asdict(load_config(["config=toy", "run.seed=3"]).config)
    recorded["weights"]["transfer"] = "native"
    again = config_from(json.loads(json.dumps(recorded)))
    assert again == load_config(["config=toy", "run.seed=3", "weights.transfer=collective"]).config


def test_a_journal_of_another_version_is_refused_in_one_line() -> None:
    recorded = asdict(load_config(["config=toy"]).config)
    recorded["run"]["stepz"] = 3
    with pytest.raises(ConfigError, match=r"^the recorded settings do not fit this version: journal: unknown setting run\.stepz"):
        config_from(recorded)


def test_a_rule_between_settings_names_where_the_first_of_them_was_given(folder: Path) -> None:
    write(folder, "mine.yaml", "base: toy\nlearner:\n  minibatches: 64\n")
    assert message("config=mine.yaml").startswith("mine.yaml:3: learner.minibatches (64) is above flow.groups_per_step (32)")


def test_a_setting_survives_a_pickle_and_is_checked_when_it_is_replaced() -> None:
    config = load_config(["config=toy"]).config
    assert pickle.loads(pickle.dumps(config)) == config
    assert replace(config.run, steps=7).steps == 7
    with pytest.raises(ConfigError, match=r"^run\.steps must be positive, got 0$"):
        replace(config.run, steps=0)


def test_numbers_from_the_environment_are_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FR3E_TEST_LR", "2e-6")
    config = load_config(
        ["config=toy", "learner.lr=${oc.env:FR3E_TEST_LR}", "learner.betas=['${oc.env:FR3E_TEST_LR}', 0.5]"]
    ).config
    assert (config.learner.lr, config.learner.betas) == (2e-6, [2e-6, 0.5])


@pytest.mark.parametrize("argument", ["learner.betas=[true, 0.9]", "generators.resources={a: true}", "run.seed=true"])
def test_true_is_no_number(folder: Path, argument: str) -> None:
    assert " must be a " in message("config=toy", argument)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, fr3e_async.settings.loader, fr3e_async.settings.help, fr3e_async.plan.placement, fr3e_async.config\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'ray', 'vllm', 'deepspeed', 'torch', 'transformers'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ---- settings that do nothing ----

IDLE = [  # settings, and what is named: what does nothing, and why
    ("algorithm.strategy=vineppo algorithm.include_trunk=true", "algorithm.include_trunk", "algorithm.strategy=vineppo"),
    ("algorithm.strategy=vineppo algorithm.train_bases=false", "algorithm.train_bases", "algorithm.strategy=vineppo"),
    ("algorithm.strategy=vineppo algorithm.train_bases=true", "algorithm.train_bases", "algorithm.strategy=vineppo"),
    ("algorithm.strategy=vineppo algorithm.std_normalise=true", "algorithm.std_normalise", "algorithm.strategy=vineppo"),
    ("algorithm.strategy=vineppo algorithm.alpha=true", "algorithm.alpha", "algorithm.strategy=vineppo"),
    ("algorithm.strategy=vineppo algorithm.entropy_of=raw", "algorithm.entropy_of", "the rule newline"),
    ("algorithm.strategy=rloo algorithm.std_normalise=true", "algorithm.std_normalise", "algorithm.strategy=rloo"),
    ("algorithm.strategy=rloo algorithm.alpha_shrink=true", "algorithm.alpha_shrink", "algorithm.strategy=rloo"),
    ("algorithm.strategy=rloo algorithm.include_trunk=true", "algorithm.include_trunk", "algorithm.strategy=rloo"),
    ("algorithm.strategy=grpo algorithm.anchors=5", "algorithm.anchors", "algorithm.strategy=grpo"),
    ("algorithm.strategy=grpo algorithm.adaptive_first=2", "algorithm.adaptive_first", "algorithm.strategy=grpo"),
    ("algorithm.strategy=grpo_pp algorithm.branches=8", "algorithm.branches", "algorithm.strategy=grpo_pp"),
    ("algorithm.strategy=grpo_pp algorithm.anchor_rule=random", "algorithm.anchor_rule", "algorithm.strategy=grpo_pp"),
    ("algorithm.strategy=grpo_pp algorithm.min_gap=5", "algorithm.min_gap", "algorithm.strategy=grpo_pp"),
    ("algorithm.anchors=0 algorithm.trunk=all", "algorithm.trunk", "algorithm.anchors=0"),
    ("algorithm.anchor_rule=uniform algorithm.entropy_of=raw", "algorithm.entropy_of", "the rule uniform"),
    ("algorithm.alpha=false algorithm.alpha_shrink=true", "algorithm.alpha_shrink", "algorithm.alpha=false"),
    ("critic.lr=1e-3", "critic.lr", "algorithm.strategy=fr3e"),
    ("algorithm.strategy=ppo critic.positive_coef=0.1", "critic.positive_coef", "algorithm.strategy=ppo"),
    ("algorithm.strategy=ppo critic.length_alpha=0.1", "critic.length_alpha", "algorithm.strategy=ppo"),
    ("algorithm.strategy=vapo critic.policy_lambda=0.9", "critic.policy_lambda", "algorithm.strategy=vapo"),
    ("loss.mean_length=48", "loss.mean_length", "loss.mean=token"),
    ("loss.reference_kl=k1", "loss.reference_kl", "loss.reference_coef=0"),
    ("learner.lr_min_ratio=0.1", "learner.lr_min_ratio", "learner.lr_schedule=constant"),
    ("run.keep_best=true", "run.keep_best", "evaluation.every=0 and evaluation.every_tokens=0"),
    ("data.heldout= run.keep_best=true", "run.keep_best", "an empty data.heldout"),
    ("algorithm.strategy=vineppo algorithm.overlong_cache=8", "algorithm.overlong_cache", "algorithm.strategy=vineppo"),
    ("loss.objective=cispo loss.dual_clip=3", "loss.dual_clip", "loss.objective=cispo"),
    ("loss.importance=off loss.importance_cap=2.0", "loss.importance_cap", "loss.importance=off"),
    ("loss.importance_cap=3 loss.prox=behaviour", "loss.importance_cap", "loss.prox=behaviour"),
    ("loss.importance=mask loss.prox=behaviour", "loss.importance", "loss.prox=behaviour"),
    ("engine.entropy_top_k=5", "engine.entropy_top_k", "engine.entropy=engine"),
    ("weights.idle_timeout_s=5", "weights.idle_timeout_s", "weights.update=in_flight"),
    ("learner.packing=flat learner.tree_attention=blocks", "learner.tree_attention", "learner.packing=flat"),
    ("learner.attention=eager", "learner.attention", "learner.packing=tree"),
    ("pools.grow_after_s=2", "pools.grow_after_s", "pools whose min and max are their count"),
    ("reward=mine:reward verifiers.units=ignored", "verifiers.units", "reward=mine:reward"),
    ("evaluation.suite_problems=8", "evaluation.suite_problems", "an empty evaluation.suite"),
    ("data.heldout= evaluation.suite=[amc23] evaluation.samples=4", "evaluation.samples", "an empty data.heldout"),
    ("data.heldout= evaluation.every=2", "evaluation.every", "an empty data.heldout and evaluation.suite"),
    ("data.heldout= evaluation.temperature=0.5", "evaluation.temperature", "an empty data.heldout and evaluation.suite"),
    ("data.on_near_copy=off data.near_copy_words=8", "data.near_copy_words", "data.on_near_copy=off"),
    ("data.problem_field=question", "data.problem_field", "data.train=toy and data.heldout=toy"),
    ("data.train=mine.jsonl data.train_sources=[{path: a.jsonl}]", "data.train_sources", "data.train=mine.jsonl"),
    ("data.train=a.jsonl data.heldout= model.path=m toy.steps_max=3", "toy.steps_max", "none of which is toy"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "path", "why"), IDLE, ids=[settings for settings, *_ in IDLE])
def test_a_setting_that_would_do_nothing_is_refused(folder: Path, settings: str, path: str, why: str) -> None:
    words = re.split(r" (?=[a-z]+\.[a-z_]+=)", settings)
    text = message("config=toy", *words)
    given = next(word for word in words if word.startswith(path + "="))
    assert text.startswith(f"{given}: {path} does nothing with ")
    assert why in text
    assert "\n" not in text
    others = [word for word in words if word is not given]
    load_config(["config=toy", *others])  # it is this setting that is refused, no other


def test_an_unchanged_copy_of_a_shipped_file_counts_as_shipped(folder: Path) -> None:
    """As `ray job submit --working-dir .` lays it out; a changed copy is one's own."""
    (folder / "configs").mkdir()
    copy = folder / "configs" / "toy.yaml"
    copy.write_bytes((PACKAGED / "toy.yaml").read_bytes())
    grpo = ["config=configs/toy.yaml", "algorithm.strategy=grpo"]
    assert load_config(grpo).config.algorithm.strategy == "grpo"
    copy.write_text(copy.read_text() + "# mine\n")
    with pytest.raises(ConfigError, match=r"algorithm\.\w+ does nothing with algorithm\.strategy=grpo"):
        load_config(grpo)


def test_a_setting_of_ones_own_file_is_given_and_one_of_a_shipped_file_is_not(folder: Path) -> None:
    """toy.yaml has anchors, branches and min_gap; presets/paper.yaml all switches of fr3e."""
    for strategy in ("grpo", "grpo_pp", "rloo", "vineppo"):
        load_config(["config=toy,presets/paper", f"algorithm.strategy={strategy}", "loss.importance=off"])
    write(folder, "mine.yaml", "base: toy\nalgorithm:\n  strategy: rloo\n  alpha_shrink: true\n")
    assert message("config=mine.yaml") == (
        "mine.yaml:4: algorithm.alpha_shrink does nothing with algorithm.strategy=rloo; leave it out"
    )


@pytest.mark.parametrize("value", ["include_trunk=false", "alpha=false", "alpha_shrink=false", "std_normalise=auto",
                                   "std_normalise=false", "anchors=0", "anchor_rule=auto", "adaptive_first=0"])  # fmt: skip
def test_a_value_that_asks_for_nothing_is_true_anywhere(folder: Path, value: str) -> None:
    load_config(["config=toy", "algorithm.strategy=rloo", f"algorithm.{value}"])


def test_the_settings_that_a_run_wrote_down_are_nobodys_choice(folder: Path) -> None:
    first = load_config(["config=toy", "algorithm.strategy=vineppo", "loss.importance=off"])
    write(folder, "saved.yaml", first.yaml)
    assert load_config(["config=saved.yaml"]).config == first.config
    text = message("config=saved.yaml", "algorithm.train_bases=false")
    assert text.startswith("algorithm.train_bases=false: algorithm.train_bases does nothing")


def test_every_idle_setting_is_a_setting() -> None:
    """Of the rules and of what each strategy says that it reads."""
    known = {*knobs(), *(f"{name}." for name in sections())}
    for name in REGISTRY:
        config = Config(engine=EngineConfig(kv_cache_gib=1), algorithm=AlgorithmConfig(strategy=name))
        assert {path for path, _ in (*idle_settings(config), *unread(config.algorithm))} <= known
        assert {f"algorithm.{word}" for word in getattr(REGISTRY[name], "reads")} <= known  # noqa: B009
    assert set(ASKS_NOTHING) <= known


@pytest.mark.parametrize(("text", "expected"), [("true", "true"), ("false", "false"), ("auto", "auto"), ("'true'", "true")])
def test_a_choice_among_auto_true_and_false_is_written_as_yaml_writes_it(folder: Path, text: str, expected: str) -> None:
    write(folder, "mine.yaml", f"base: toy\nalgorithm: {{std_normalise: {text}}}\n")
    assert load_config(["config=mine.yaml"]).config.algorithm.std_normalise == expected
    assert load_config(["config=toy", f"algorithm.std_normalise={text}"]).config.algorithm.std_normalise == expected
