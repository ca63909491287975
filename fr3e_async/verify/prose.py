r"""Golds that are words: choices (A to J), single words, sentences. What is known of them without understanding language.

The same words are right. Two different single words are wrong (even, odd; names). Everything else about prose is unknown.
"""

from __future__ import annotations

import re

_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]{3,}")
_MATHEMATICAL = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "lim",
        "max",
        "min",
        "gcd",
        "lcm",
        "mod",
        "exp",
        "det",
        "arcsin",
        "arccos",
        "arctan",
        "and",
        "for",
        "only",
        "pmatrix",
        "where",
    ]
)
_SAYS_NUMBERS = re.compile(r"[0-9=<>^\\+*/()\[\]]")
_SENTENCE_WORDS = 3
_CHOICE = re.compile(r"\(?\s*([A-J])\s*\)?")
_CHOSEN = re.compile(r"\(\s*([A-Ja-j])\s*\).*|([A-J])\s*(?:[).:].*|)", re.DOTALL)
_STANCES = {"yes": True, "true": True, "no": False, "false": False}
_FILLERS = frozenset({"a", "an", "the"})


def words_of(text: str) -> list[str]:
    """The words of tidy ``text`` outside of commands, lower case, without articles."""
    plain = _COMMAND.sub(" ", _TEXT.sub(r" \1 ", text))
    return [word for word in re.findall(r"[^\W_]+(?:'[a-z]+)?", plain.lower()) if word not in _FILLERS]


def is_prose(text: str) -> bool:
    """A word without any mathematics, or mathematics inside a sentence. Quantities in a list are not: 40 candies, 60 lollipops."""
    plain = _COMMAND.sub(" ", _TEXT.sub(r" \1 ", text))
    words = [word for word in _WORD.findall(plain) if word.lower() not in _MATHEMATICAL]
    if not words:
        return False
    if not _SAYS_NUMBERS.search(plain) and "\\" not in _TEXT.sub("", text):
        return True
    return len(words) >= _SENTENCE_WORDS and not _is_list_of_quantities(plain)


def _is_list_of_quantities(plain: str) -> bool:
    return all(re.match(r"\s*-?[\d./]+\s*[A-Za-z]+(?:\s+[A-Za-z]+){0,3}\s*$", part) for part in re.split(r",|\band\b", plain))


def is_choice(text: str) -> bool:
    """One of the letters A to J, alone or in parentheses."""
    return _CHOICE.fullmatch(text) is not None


def choice_of(gold: str) -> str:
    return gold.strip("() ")


def chosen(text: str) -> str | None:
    """The letter that an answer chooses: ``B``, ``(b)``, ``(B) 12``, ``B. twelve``; None if it is anything else."""
    found = _CHOSEN.fullmatch(text.strip())
    return (found[1] or found[2]).upper() if found else None


def compare(said: str, meant: str) -> tuple[str, str]:
    """(outcome, reason) where the gold is prose."""
    ours, theirs = words_of(said), words_of(meant)
    if ours == theirs:
        return "right", "same words"
    stances = [_STANCES.get(words[0]) if words else None for words in (ours, theirs)]
    if None not in stances and 1 in (len(ours), len(theirs)):
        return ("right" if stances[0] == stances[1] else "wrong"), "yes or no"
    if len(ours) == len(theirs) == 1 and ours[0].isalpha():
        return "wrong", "another word"
    return "unknown", "gold is text"
