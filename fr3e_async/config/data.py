"""Settings of problems and how they become prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fr3e_async.config.knobs import knob, require, require_positive


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: str = knob("toy", "'toy' or a JSONL file of training problems", "path")
    heldout: str = knob("toy", "'toy' or a JSONL file for evaluation, disjoint from train; empty: no evaluation", "path")
    problem_field: str = knob("problem", "column with the question")
    answer_field: str = knob("answer", "column with the reference answer; a GSM8K '#### N' ending is understood")
    id_field: str = knob("id", "column with a unique id; rows without it are named by file and line")
    system: str = knob("", "system message put before every problem; empty: none")
    template: str = knob("{problem}", "user message; {problem} is replaced by the question")
    max_prompt: int = knob(1024, "longest prompt after the chat template", "tokens")
    on_long_prompt: Literal["error", "drop"] = knob("error", "what to do with a longer prompt: stop, or drop and count it")

    on_string_gold: Literal["flag", "drop", "error"] = knob(
        "flag",
        "a reference answer that can only be matched as text (reward=math): say so once; leave the problem out and count it; stop",
    )

    def __post_init__(self) -> None:
        require_positive("data", max_prompt=self.max_prompt)
        require("{problem}" in self.template, f"data.template must contain {{problem}}, got {self.template!r}")
