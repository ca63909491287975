"""Prompts of the known families as hand-written texts, what ends their turns, and prompts in which something is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_support import FAMILIES, WANTS_PARTS, Family, make_tokenizer
from cli_support import TOY, guarded_cli, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from fr3e_async.algorithm.answer_span import THINK
from fr3e_async.config import Config, DataConfig, EngineConfig, ModelConfig
from fr3e_async.data.prompts import encode_prompt, load_datasets, make_prompts
from fr3e_async.data.row import BadRows, DataRow
from fr3e_async.data.rows import Rows
from fr3e_async.data.stream import PromptStream
from fr3e_async.data.tokenizer import closing_token, end_tokens, endless_turns
from fr3e_async.errors import ConfigError, DataError, ModelError
from fr3e_async.run.preparing import prepare
from fr3e_async.settings.loader import load_config

EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def row(problem: str, line: int = 1) -> DataRow:
    return DataRow(uid=f"f:{line}", problem=problem, answer="5", source=f"f.jsonl:{line}")


def config(path: Path | str = "toy", **data: Any) -> Config:
    return Config(model=ModelConfig(path=str(path)), data=DataConfig(**data), engine=EngineConfig(kv_cache_gib=0.1))


def text(problem: str, tokenizer: Any, **data: Any) -> str:
    return str(tokenizer.decode(encode_prompt(problem, tokenizer, DataConfig(**data)), clean_up_tokenization_spaces=False))


def model(folder: Path, tokenizer: Any, **files: Any) -> Path:
    """A model folder without weights; ``files``: contents of its JSON files."""
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"")
    for name, content in {"config": {"model_type": "qwen2"}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


# --- the families ------------------------------------------------------------------------------------------------------


@EACH
def test_the_prompt_of_a_family(family: Family) -> None:
    tokenizer = family.tokenizer()
    assert text("2+3=?", tokenizer) == family.prompt
    assert len(make_prompts([row("2+3=?")], tokenizer, DataConfig())) == 1


@EACH
def test_the_token_that_closes_a_turn_of_a_family_ends_a_response(family: Family) -> None:
    tokenizer = family.tokenizer()
    assert closing_token(tokenizer, {}) == family.closes
    ids = tokenizer.convert_tokens_to_ids([family.eos, family.closes])
    assert end_tokens(config(), tokenizer) == tuple(dict.fromkeys(ids))
    assert endless_turns(config(), tokenizer) == ""


@EACH
def test_which_families_open_a_thought(family: Family) -> None:
    assert THINK.after(family.prompt).opened is family.prompt.endswith("<think>\n")


def test_variables_of_the_template() -> None:
    tokenizer = FAMILIES["qwen3"].tokenizer()
    without = text("2+3=?", tokenizer, template_args={"enable_thinking": False})
    assert without == FAMILIES["qwen3"].prompt + "<think>\n\n</think>\n\n"
    assert not THINK.after(without).opened
    assert "Today Date: 1 Jan 2000" in text("p", FAMILIES["llama3"].tokenizer(), template_args={"date_string": "1 Jan 2000"})


def test_variables_that_would_do_nothing_are_refused() -> None:
    qwen, base = FAMILIES["qwen3"].tokenizer(), make_tokenizer()
    for tokenizer, data, message in (
        (qwen, {"template_args": {"enable_thinkin": False}}, r"data\.template_args: enable_thinkin: .*no such variable"),
        (base, {"template_args": {"enable_thinking": False}}, r"data\.template_args is given, but no chat template is used"),
        (qwen, {"template_args": {"enable_thinking": False}, "template": "question-answer"}, "no chat template is used"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_prompts([row("p")], tokenizer, DataConfig(**data))
    with pytest.raises(ConfigError, match=r"data\.template_args: messages is given by fr3e_async itself"):
        DataConfig(template_args={"messages": []})


def test_a_changed_template_or_tokenizer_changes_what_a_resume_compares() -> None:
    rows, family = Rows(train=(row("2+3=?"),), heldout=()), FAMILIES["chatml"]
    before, again, other = (
        load_datasets(config(), tokenizer, rows)
        for tokenizer in (family.tokenizer(), family.tokenizer(), FAMILIES["phi3"].tokenizer())
    )
    assert before.template == again.template != other.template
    state = PromptStream(before.train, 0, template=before.template).state()
    assert PromptStream(again.train, 0, state, template=again.template).state() == state
    with pytest.raises(ModelError, match="its chat template is not that of the checkpoint"):
        PromptStream(other.train, 0, state, template=other.template)
    moved = load_datasets(config(), make_tokenizer(eos=family.eos, special=family.special[::-1], template=family.template), rows)
    with pytest.raises(ModelError, match="its tokenizer is not that of the checkpoint"):
        PromptStream(moved.train, 0, state, template=moved.template)
    del state["tokens"], state["template"]  # as earlier versions wrote it
    PromptStream(other.train, 0, state, template=other.template)


# --- end tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config": {"eos_token_id": 7}}, (7,)),
        ({"config": {"eos_token_id": [7, 8]}}, (7, 8)),
        ({"config": {"eos_token_id": [7, 8]}, "generation_config": {"max_length": 20}}, (7, 8)),
        ({"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": [9, 7]}}, (9, 7)),
        ({"config": {"text_config": {"eos_token_id": 7}, "eos_token_id": None}}, (7,)),
        ({"config": {}}, ()),
    ],
)
def test_end_tokens_are_those_of_every_file(tmp_path: Path, files: dict[str, Any], expected: tuple[int, ...]) -> None:
    tokenizer = make_tokenizer()
    assert end_tokens(config(model(tmp_path, tokenizer, **files)), tokenizer) == (tokenizer.eos_token_id, *expected)


@pytest.mark.parametrize(("revision", "asked"), [("", None), ("abc", "abc")])
def test_end_tokens_of_a_model_on_the_hub_are_of_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str, asked: str | None
) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')

    def cached_file(path: str, name: str, *, revision: str | None) -> str | None:
        assert (path, revision) == ("org/model", asked)
        return str(tmp_path / name) if name == "config.json" else None

    monkeypatch.setattr("transformers.utils.cached_file", cached_file)
    tokenizer, on_hub = make_tokenizer(), config("org/model")
    on_hub = replace(on_hub, model=replace(on_hub.model, revision=revision))
    assert end_tokens(on_hub, tokenizer) == (tokenizer.eos_token_id, 7)


def test_a_folder_that_is_called_like_the_toy_is_not_its(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    (tmp_path / "toy").mkdir()
    model(tmp_path / "toy", tokenizer, config={"eos_token_id": 7})
    monkeypatch.chdir(tmp_path)
    assert end_tokens(config("toy"), tokenizer) == (tokenizer.eos_token_id,)


def test_an_end_token_that_is_none_is_named_with_its_file(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    folder = model(tmp_path, tokenizer, config={"eos_token_id": ["</s>"]})
    with pytest.raises(ModelError, match=r"^model\.path: eos_token_id in the config\.json of .* must be token ids"):
        end_tokens(config(folder), tokenizer)


def test_turns_that_could_not_end_are_warned_of() -> None:
    lines = make_tokenizer(template="{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}")
    assert closing_token(lines, {}) == ""
    assert "may not end" in endless_turns(config(), lines)
    assert endless_turns(config(chat="off"), lines) == ""
    assert "closes turns with <|im_end|>, which is no token" in endless_turns(config(template="qwen-boxed"), lines)
    assert endless_turns(config(template="qwen-boxed"), FAMILIES["chatml"].tokenizer()) == ""


def test_a_run_says_so_once_it_has_a_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with guarded_cli(tmp_path, monkeypatch, capsys) as cli:
        folder = make_model(cli.folder / "model")
        (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
        with prepare(load_config([*TOY, f"model.path={folder}"])) as session:
            ((kind, note),) = session.notes
    assert kind == "model_doubt"
    assert "may not end" in note


# --- a base model's prompt ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("around", "expected"),
    [("", "2+3=?\n"), ("<s> $A", "<s>2+3=?\n"), ("<s> $A </s>", "<s>2+3=?\n"), ("$A </s> </s>", "2+3=?\n")],
)
def test_no_end_token_stands_at_the_end_of_a_base_models_prompt(around: str, expected: str) -> None:
    assert text("2+3=?", make_tokenizer(bos="<s>", around=around)) == expected


def test_an_end_token_of_a_template_of_ones_own_is_kept() -> None:
    tokenizer = make_tokenizer(bos="<s>", around="<s> $A </s>")
    assert text("2+3=?", tokenizer, template="{problem}</s>", chat="off") == "<s>2+3=?</s>"


# --- what is missing ---------------------------------------------------------------------------------------------------


def test_a_template_that_leaves_the_problem_out_is_refused_at_the_row() -> None:
    with pytest.raises(DataError, match=r"^f\.jsonl:1: the problem is not in the prompt: the chat template of model\.path"):
        make_prompts([row("2+3=?")], make_tokenizer(template=WANTS_PARTS), DataConfig())


def test_a_template_that_leaves_the_system_message_out_is_refused() -> None:
    deaf = make_tokenizer(
        template="{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}{% endif %}{% endfor %}"
    )
    assert make_prompts([row("p")], deaf, DataConfig())
    with pytest.raises(DataError, match=r"data\.system is not in the prompt: the chat template"):
        make_prompts([row("p")], deaf, DataConfig(system="Be brief."))


class Deaf:
    """A tokenizer without a token for the letter x."""

    def __init__(self) -> None:
        self.tokenizer, self.chat_template = make_tokenizer(), None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        return self.tokenizer(text.replace("x", ""), add_special_tokens=add_special_tokens)

    def decode(self, ids: Any, **options: Any) -> str:
        return str(self.tokenizer.decode(ids, **options))


def test_a_problem_that_the_tokenizer_cannot_write_is_refused_or_left_out_and_counted() -> None:
    deaf: Any = Deaf()
    with pytest.raises(DataError, match=r"^f\.jsonl:2: the problem is not in the prompt: the tokenizer of model\.path"):
        make_prompts([row("2+3"), row("2x", line=2)], deaf, DataConfig())
    bad = BadRows(drop=True)
    assert [prompt.text for prompt in make_prompts([row("2+3"), row("2x", line=2)], deaf, DataConfig(), bad)] == ["2+3"]
    assert bad.count == 1
    rows = Rows(train=(row("2+3"), row("2x", line=2)), heldout=())
    datasets = load_datasets(config(on_bad_row="drop"), deaf, rows)
    assert (len(datasets.train), datasets.dropped) == (1, 0)
    assert [
        (kind, text.startswith("1 rows left out (data.on_bad_row=drop), the first: f.jsonl:2:")) for kind, text in datasets.notes
    ] == [("data_dropped", True)]
    with pytest.raises(DataError, match=r"^f\.jsonl:2: the problem is not in the prompt"):
        load_datasets(config(on_bad_row="drop"), deaf, Rows(train=rows.train[1:], heldout=()))


def test_forms_of_a_character_that_a_tokenizer_changes_are_the_same() -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\u200b", "")])
    (prompt,) = make_prompts([row("ﬁnd  ½ ＋\u200b３")], tokenizer, DataConfig())
    assert tokenizer.decode(prompt.token_ids) == "find  1⁄2 +3\n"


@settings(max_examples=60, deadline=None)
@given(problem=st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(str.strip))
def test_any_problem_is_found_in_the_prompt_of_a_template_that_writes_it(problem: str) -> None:
    for name in ("chatml", "gemma", "mistral"):
        assert make_prompts([row(problem)], FAMILIES[name].tokenizer(), DataConfig(max_prompt=10_000))
