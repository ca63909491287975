"""Each rule of the judge by the examples in its docstring: ``answer ~ reference`` is right, ``answer !~ reference`` is not."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from fr3e_async.verify import judge, lexicon


def examples() -> list[object]:
    """Parameters (rule, answer, reference, right)."""
    found = []
    for rule in judge.RULES:
        for line in (rule.__doc__ or "").splitlines():
            if line.strip().startswith(">>> "):
                for number, item in enumerate(re.split(r"\s{4,}", line.strip()[4:])):
                    answer, sign, reference = re.fullmatch(r"(.+) (!?~) (.+)", item).groups()  # type: ignore[union-attr]
                    found.append(pytest.param(answer, reference, sign == "~", id=f"{rule.__name__}-{number}-{item[:40]}"))
    return found


@pytest.mark.parametrize(("answer", "reference", "right"), examples())
def test_the_examples_of_a_rule(answer: str, reference: str, right: bool) -> None:
    outcome, reason = judge.judge(answer, reference)
    assert (outcome == judge.CORRECT) is right, reason


def test_every_rule_has_examples_of_both_kinds() -> None:
    without = [
        rule.__name__
        for rule in judge.RULES
        if not re.search(r">>>.* ~ ", rule.__doc__ or "") or " !~ " not in (rule.__doc__ or "")
    ]
    assert without == []


def rule_sources() -> dict[str, str]:
    """Module and source of all of ours that ``judge`` imports, and what those import: wherever a rule lies, it is among them."""
    found: dict[str, str] = {}
    waiting = {"fr3e_async.verify.judge"}
    while waiting:
        name = waiting.pop()
        path = Path(judge.__file__).parents[2] / (name.replace(".", "/") + ".py")
        found[name] = path.read_text(encoding="utf-8") if path.is_file() else ""
        for node in ast.parse(found[name]).body:  # not those for a type checker alone
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fr3e_async"):
                waiting |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)} - set(found)
    return {name: source for name, source in found.items() if source}


def lines_of_code(source: str) -> int:
    """Without blanks, comments and docstrings."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    kinds = (tokenize.STRING, tokenize.OP, tokenize.NAME, tokenize.NUMBER)
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - documented)


def size() -> dict[str, int]:
    sources = rule_sources().values()
    patterns = [len(re.findall(r"\bre\.(?:compile|sub|split|match|search|findall|fullmatch)\(", source)) for source in sources]
    return {"lines": sum(map(lines_of_code, sources)), "patterns": sum(patterns), "words": len(lexicon.KNOWN_WORDS)}


def test_rules_patterns_and_words_do_not_grow() -> None:
    """Whoever adds a rule looks for one that it replaces."""
    assert set(rule_sources()) == {f"fr3e_async.verify.{name}" for name in (
        "judge", "rulings", "claim_rules", "value_rules", "symbolic", "structure", "quantities", "tokens", "lexicon",
    )}  # fmt: skip
    assert {name: count for name, count in size().items() if count > {"lines": 1200, "patterns": 40, "words": 430}[name]} == {}


def test_lines_of_code_are_counted_without_what_is_no_code() -> None:
    assert lines_of_code('"""Doc\nstring."""\n\n# why\nx = 1\n\ndef f():\n    """Doc."""\n    return x  # it\n') == 3


if __name__ == "__main__":
    print(size())
