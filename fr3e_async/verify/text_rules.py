r"""Rules about texts: the same tokens, choices, words, what stands before an answer. Each is as ``judge`` says."""

from __future__ import annotations

from fr3e_async.verify.numbers import written_number
from fr3e_async.verify.policies import Policies
from fr3e_async.verify.rulings import RIGHT, SENTENCE, SENTENCE_WORDS, UNKNOWN, WRONG, Ruling, by
from fr3e_async.verify.structure import shape_of
from fr3e_async.verify.tokens import SPACE, Tokens, is_word, trimmed, variable, words_of
from fr3e_async.verify.units import quantity
from fr3e_async.verify.words import LEADS, PHRASES, STANCES

_LETTERS = frozenset("ABCDEFGHIJ")
_CHOOSING = frozenset(["'option", "'choice", "'answer", "'the", "'is", "'选", "'and", ",", ";"])


def same_text(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""The same tokens are the same answer.

    >>> \dfrac12 ~ \frac{1}{2}    ½ ~ \frac12    x^{\prime} ~ x'    f'(x) !~ f(x)    vv^{\cdot} !~ vv^*    A^{-1} !~ A^T
    """
    return (RIGHT, "same text") if said == meant else None


def decimal_comma(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Digits with a comma where the other side has the same digits with a point.

    >>> 1,22 ~ 1.22    1,22 !~ 1.23
    """
    comma, point = sorted(("".join(said), "".join(meant)))
    numbers = comma.replace(",", "", 1).isdigit() and point.count(".") == comma.count(",") == 1
    return (RIGHT, "policy: decimal comma") if numbers and comma.replace(",", ".") == point else None


def choice(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""The reference is one letter A to J or several different ones; the answer names the same letters and no other, in any order.

    Behind one letter in brackets, or before a stop, the value of the choice may stand.

    >>> (b) ~ B    (B) 12 ~ B    \text{Option A} ~ A    \text{A or B} !~ A    \text{(C) is wrong, so (D)} !~ C    C = D !~ x
    >>> A, B, D ~ ABD    \text{A, B, and D} ~ ABD    CA ~ AC    AB !~ ABD
    """
    letters, rest = _choices(meant)
    if not letters or rest or len(set(letters)) < len(letters) or any(token.islower() for token in meant if variable(token)):
        return None
    ours, tail = _choices(said)
    if len(letters) > 1 and tail:
        return None
    marked = said[:1] == ("(",) or tail[:1] in ((".",), (")",), (":",))
    tail = tail[tail[:1] in ((".",), (")",), (":",)) :]
    same = sorted(ours) == sorted(letters) and (not tail or (marked and written_number(quantity(tail).core) is not None))
    return (RIGHT, "choice") if same else (WRONG, "another choice")


def _choices(tokens: Tokens) -> tuple[str, Tokens]:
    r"""The letters at the head of ``tokens``, of ``\text{A and B}`` and in brackets too, where they may be small; and what follows them."""
    kept = [t for t in tokens if t.lower() not in _CHOOSING]
    kept = [t for word in kept for t in (word[1:] if is_word(word) and set(word[1:]) <= _LETTERS else [word])]
    kept = kept[kept[:1] == [":"] :]
    letters = ""
    while kept and (kept[0] in _LETTERS or (kept[0] == "(" and kept[2:3] == [")"] and kept[1].upper() in _LETTERS)):
        letters += kept[kept[0] == "("].upper()
        kept = kept[3 if kept[0] == "(" else 1 :]
    return letters, tuple(kept)


def words(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""The reference is words. The same words, without articles and with small letters, are right; so are phrases of one row of ``PHRASES``.

    >>> \text{Even} ~ even    \text{yes, it is} ~ Yes    \text{DNE} ~ \text{does not exist}    \infty ~ \text{infinitely many}
    >>> \text{odd} !~ \text{even}    \text{Yes and no} !~ Yes    \text{Alice or Bob} !~ \text{Alice}
    """
    phrases = [
        PHRASES.get(" ".join(words_of(side)).lower() if all(map(is_word, side)) else "".join(side)) for side in (said, meant)
    ]
    spoken, expected = _spoken(said), _spoken(meant)
    if phrases[0] and phrases[0] == phrases[1]:
        return RIGHT, "same words"
    if not is_prose(meant):
        return None
    if spoken == expected:
        return RIGHT, "same words"
    if len(expected) == 1 and expected[0] in STANCES and all(is_word(token) or token == "," for token in said):
        agrees = STANCES.get(spoken[0]) == STANCES[expected[0]] and set(spoken[1:]) <= _AFFIRMING
        return (RIGHT, "yes or no") if agrees else (WRONG, "another word")
    return (UNKNOWN, SENTENCE) if len(expected) >= SENTENCE_WORDS else (WRONG, "other words")


_ARTICLES = frozenset(["a", "an", "the"])
_AFFIRMING = frozenset("it is they are does do indeed always".split())
_STOPS = frozenset([",", ".", ";", ":", SPACE])


def is_prose(tokens: Tokens) -> bool:
    """Words, and nothing that computes; or a sentence around mathematics."""
    count = len(words_of(tokens))
    if written_number(tokens) is not None or not count:
        return False
    if all(is_word(token) or token in "-'?!,.;:" or variable(token) for token in tokens):
        return True
    value = shape_of(tokens).kind != "one" or "=" in tokens or written_number(quantity(tokens).core) is not None
    return count > SENTENCE_WORDS and not value


def _spoken(tokens: Tokens) -> list[str]:
    """Words in small letters without articles, nor those of ``LEADS`` at the head; whatever else is there but punctuation stays."""
    said = [token[1:].lower() if is_word(token) else token for token in tokens if token not in _STOPS]
    while len(said) > 1 and said[0] in LEADS:
        said = said[1:]
    return [word for word in said if word not in _ARTICLES] or said or [""]


def lead(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Words such as "the answer is" before mathematics say nothing.

    >>> \text{Solution is: } 5 ~ 5    \text{only } x=0 ~ 0    \text{not } 4 !~ 4
    """
    ours, theirs = _without_lead(said), _without_lead(meant)
    return None if (ours, theirs) == (said, meant) else by("claims", ours, theirs, policies)


def _without_lead(tokens: Tokens) -> Tokens:
    at = next((at for at, token in enumerate(tokens) if not (is_word(token) and token[1:].lower() in LEADS)), 0)
    return trimmed(tokens[at:]) if at and not is_word(tokens[at]) else tokens
