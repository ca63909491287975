"""Settings of problems: where they come from, what is kept of them, and how they become prompts.

A template is what stands around a problem, and what besides the end token ends a response: plain text, no tokenizer. One with ``chat`` is a
user message for the tokenizer's own chat template, one without is the whole prompt as it is written.
"""

import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from fr3e_async.config.knobs import Share, did_you_mean, knob, require, settings
from fr3e_async.config.reward import OURS as REWARD_GIVEN

SOURCES = "sources"  # value of data.train and data.heldout that selects their list of sources
NAME = re.compile(r"[\w.-]+")
OURS = {  # names that rendering a chat template already uses
    "messages", "conversation", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize", "tools", "documents",
    "return_dict", "return_tensors", "return_assistant_tokens_mask", "tokenizer_kwargs", "padding", "truncation", "max_length",
}  # fmt: skip
Policy = Literal["flag", "drop", "error"]

PROBLEM = "{problem}"
SYSTEM = "{system}"
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
CHATML = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """*Example*: ``Template(text="Question: {problem}\\nAnswer:", chat=False)``."""

    text: str  # {problem} is replaced by the question, and where chat is false {system} by the system message
    chat: bool  # goes through the tokenizer's chat template, if it has one
    system: str = ""  # the system message unless data.system names another
    ends: tuple[str, ...] = ()  # special tokens that end a response besides the tokenizer's end token


TEMPLATES: Mapping[str, Template] = {
    # For any model that was taught its chat template.
    "boxed": Template(text=f"{PROBLEM}\n{BOXED}", chat=True),
    # Base models of the Qwen2.5 family, as SimpleRL-Zoo prompts them ("qwen-boxed"): the turns are written out, since their
    # tokenizers' own templates differ in the system message; the turn's end is no end token of a base model, so it is named.
    "qwen-boxed": Template(
        text=CHATML % f"{PROBLEM}\n{BOXED}", chat=False, system="You are a helpful assistant.", ends=("<|im_end|>",)
    ),
    # Qwen2.5-Math: the instruction is the system message, as in that family's own chat template.
    "qwen-math": Template(text=CHATML % PROBLEM, chat=False, system=BOXED, ends=("<|im_end|>",)),
    # Base models that know no turns at all; SimpleRL-Zoo uses such a form ("abel") for weaker ones.
    "question-answer": Template(text=f"Question:\n{PROBLEM}\nAnswer:\nLet's think step by step.\n", chat=False),
}


def template_of(name_or_text: str, *, chat: bool) -> Template:
    """Return the template of that name, else one made of the text itself; ``chat`` then says how to use it."""
    known = TEMPLATES.get(name_or_text)
    return known if known is not None else Template(text=name_or_text, chat=chat)


@settings()
class SourceConfig:
    """One set of problems and where its columns are. *Example*: ``SourceConfig(path="gsm8k.jsonl", problem_field="question")``."""

    path: str = knob("", "JSONL or Parquet file, pattern of files (data/*.parquet), folder, or Hugging Face id (owner/name)")
    name: str = knob("", "what it is called in ids and messages; empty: the last part of the path")
    kind: Literal["auto", "jsonl", "parquet", "saved", "hub"] = knob(
        "auto", "saved: a folder of save_to_disk; hub: an id or a folder for load_dataset; auto: by what the path is"
    )
    config: str = knob("", "hub: the dataset's configuration, if it has several")
    files: str = knob("", "hub: only this file of the dataset, or a pattern of them")
    split: str = knob("train", "hub, saved: the split")
    revision: str = knob("", "hub: a commit, tag or branch; empty: the newest")
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = knob(
        1.0, "times that an epoch draws each problem, on average; only for training"
    )
    problem_field: str = knob("problem", "column with the question; a.b and a.0 lead into structures and lists")
    answer_field: str = knob("answer", "column with the reference answer; a GSM8K '#### N' ending is understood")
    id_field: str = knob("id", "column with a unique id; rows without it are named by file and row")
    level_field: str = knob("level", "column with the difficulty, a number or text with one in it (Level 5)")
    levels: list[float] = knob([], "[lowest, highest] difficulty that is kept, both included; empty: all, also those without one")
    max_answer: NonNegativeInt = knob(0, "longest reference answer that is kept; 0: any", "characters")

    @property
    def label(self) -> str:
        """Its name, or the last part of its path without the ending."""
        return self.name or PurePath(self.path).stem

    def check(self, path: str) -> None:
        """``ConfigError`` about the source that stands at the setting ``path``. Example: ``data.train_sources[0]``."""
        require(bool(self.path), f"{path}.path has no value")
        require(
            NAME.fullmatch(self.label) is not None,
            f"{path}.name must be letters, digits, '_', '-' and '.', got {self.label!r}" + ("" if self.name else " by its path"),
        )
        require(bool(self.problem_field), f"{path}.problem_field has no value")
        require(
            not self.levels or (len(self.levels) == 2 and self.levels[0] <= self.levels[1]),
            f"{path}.levels must be [lowest, highest] or empty, got {list(self.levels)}",
        )


@settings("data")
class DataConfig:
    train: str = knob(
        "toy", "training problems: 'toy', a path as in data.train_sources[].path, or 'sources' for that list", "path"
    )
    heldout: str = knob("toy", "the same for evaluation, disjoint from train; empty: no evaluation", "path")
    problem_field: str = knob("problem", "column with the question, in the files of data.train and data.heldout")
    answer_field: str = knob("answer", "column with the reference answer; a GSM8K '#### N' ending is understood")
    id_field: str = knob("id", "column with a unique id; rows without it are named by file and line")
    columns: list[str] = knob([], "further columns, which reward functions get as keyword arguments (docs/rewards.md)")
    train_sources: list[SourceConfig] = knob([], "the training mixture, for data.train=sources (docs/data.md)")
    heldout_sources: list[SourceConfig] = knob([], "problems for evaluation, for data.heldout=sources")
    protected: list[SourceConfig] = knob([], "further problems that training must not see; answer_field may be empty in them")
    system: str = knob("", "system message put before every problem; empty: that of the template, mostly none")
    template: str = knob(
        PROBLEM, f"user message; {{problem}} is replaced by the question; or a name: {', '.join(TEMPLATES)} (docs/data.md)"
    )
    chat: Literal["auto", "off"] = knob(
        "auto", "auto: inside the tokenizer's chat template, if any; off: the template is the prompt"
    )
    template_args: dict[str, Any] = knob({}, "variables that the tokenizer's chat template uses, e.g. {enable_thinking: false}")
    thoughts: list[str] = knob(
        ["<think>", "</think>"], "marks of a thought, which holds no answer (docs/verifier.md); empty: none"
    )
    max_prompt: PositiveInt = knob(1024, "longest prompt after the chat template", "tokens")
    on_long_prompt: Literal["error", "drop"] = knob("error", "what to do with a longer prompt: stop, or drop and count it")

    # Of the next five, flag counts what it finds, drop also leaves it out, error stops.
    on_bad_row: Literal["error", "drop"] = knob("error", "a row without JSON object, problem, answer or plain text")
    on_string_gold: Policy = knob("flag", "a reference answer that can only be matched as text (reward=math)")
    on_duplicate: Policy = knob("flag", "a training problem that occurs a second time, also in another source")
    on_contamination: Policy = knob("error", "a training problem that is one of data.heldout or data.protected, but for notation")
    on_near_copy: Literal["off", "flag", "drop", "error"] = knob("flag", "a training problem that shares much text with them")
    near_copy_words: PositiveInt = knob(
        13, "length of the word sequences that near copies share; a shorter one is compared whole", "words"
    )
    near_copy_share: Share = knob(0.5, "part of the shorter problem's word sequences that a near copy shares")

    def __post_init__(self) -> None:
        self._check_template()
        self._check_columns()
        require(
            not self.thoughts or (len(self.thoughts) == 2 and all(self.thoughts)),
            f"data.thoughts must be two texts, [before, after], or empty, got {list(self.thoughts)}",
        )
        taken = sorted(OURS.intersection(self.template_args))
        require(not taken, f"data.template_args: {', '.join(taken)} is given by fr3e_async itself")
        for name, word, sources in (
            ("train", self.train, self.train_sources),
            ("heldout", self.heldout, self.heldout_sources),
        ):
            _check_sources(f"data.{name}_sources", sources, weighted=name == "train")
            require(word != SOURCES or bool(sources), f"data.{name}=sources, but data.{name}_sources is empty")
            require(
                not sources or word != "toy",
                f"data.{name}_sources is given, but data.{name}=toy; set data.{name}=sources, or data.{name}_sources=[]",
            )
        _check_sources("data.protected", self.protected, weighted=False, answers=False)

    def _check_columns(self) -> None:
        wrong = [name for name in self.columns if not name.isidentifier() or keyword.iskeyword(name) or name in REWARD_GIVEN]
        require(
            not wrong, f"data.columns: {wrong[0] if wrong else ''!r} is no name of a keyword argument, or rewards have it already"
        )
        require(not self.columns or "toy" not in (self.train, self.heldout), "data.columns is given, and the toy task has none")

    def _check_template(self) -> None:
        text = self.template
        if text in TEMPLATES:
            text = TEMPLATES[text].text
            require(
                not self.system or TEMPLATES[self.template].chat or SYSTEM in text,
                f"data.system is given, but data.template={self.template} has no room for a system message",
            )
        hint = did_you_mean(text, TEMPLATES) or f" or be one of {', '.join(TEMPLATES)}"
        require(PROBLEM in text, f"data.template must contain {{problem}}, got {self.template!r}{hint}")


def _check_sources(path: str, sources: Sequence[SourceConfig], *, weighted: bool, answers: bool = True) -> None:
    """Check each source, and that no two share a name: their problems' ids would collide."""
    first: dict[str, int] = {}
    for index, source in enumerate(sources):
        entry = f"{path}[{index}]"
        source.check(entry)
        require(weighted or source.weight == 1, f"{entry}.weight is for data.train_sources only")
        require(not answers or bool(source.answer_field), f"{entry}.answer_field has no value")
        earlier = first.setdefault(source.label, index)
        require(earlier == index, f"{entry} and {path}[{earlier}] are both called {source.label!r}; give one another name")


__all__ = ["SOURCES", "DataConfig", "SourceConfig"]
