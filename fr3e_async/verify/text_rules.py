r"""Rules about texts: the same tokens, choices, words, what stands before an answer. Each is as ``judge`` says."""

from __future__ import annotations

from fr3e_async.verify.numbers import written_number
from fr3e_async.verify.policies import Policies
from fr3e_async.verify.rulings import (
    RIGHT,
    SENTENCE,
    SENTENCE_WORDS,
    UNKNOWN,
    WRONG,
    Ruling,
    by,
)  # fmt: skip
from fr3e_async.verify.structure import (
    shape_of,
)
from fr3e_async.verify.tokens import SPACE, Tokens, enclosed, is_word, trimmed, words_of
from fr3e_async.verify.units import quantity
from fr3e_async.verify.words import LEADS, PHRASES, STANCES


def same_text(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""The same tokens are the same answer.

    >>> \dfrac12 ~ \frac{1}{2}    ½ ~ \frac12    x^{\prime} ~ x'    f'(x) !~ f(x)    vv^{\cdot} !~ vv^*    A^{-1} !~ A^T
    """
    return (RIGHT, "same text") if said == meant else None


def decimal_comma(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Digits with a comma where the other side has the same digits with a point.

    >>> 1,22 ~ 1.22    1,22 !~ 1.23
    """
    for comma, point in ((said, meant), (meant, said)):
        if len(comma) == 3 and comma[1] == "," and len(point) == 1 and "." in point[0] and f"{comma[0]}.{comma[2]}" == point[0]:
            return RIGHT, "policy: decimal comma"
    return None


def choice(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""The reference is one letter A to J, alone or in brackets; the answer names that letter, and no other.

    >>> (b) ~ B    (B) 12 ~ B    \text{Option A} ~ A    \text{A or B} !~ A    \text{(C) is wrong, so (D)} !~ C    C = D !~ x
    """
    letter = _letter(_letters(meant))
    if letter is None:
        return None
    rest = tuple(token for token in _letters(said) if not (is_word(token) and token[1:].lower() in _CHOOSING))
    rest = rest[1:] if rest[:1] in ((":",), ("'选",)) else rest
    bracketed = rest[:1] == ("(",)
    head, tail = (rest[:3], rest[3:]) if bracketed else (rest[:1], rest[1:])
    chosen = _letter(tuple(token.upper() if len(token) == 1 else token for token in head)) if bracketed else _letter(head)
    if tail[:1] in ((".",), (")",), (":",)):
        tail = tail[1:]
    elif tail and not bracketed:
        return WRONG, "another choice"
    if chosen is None or (tail and written_number(quantity(tail).core) is None):
        return WRONG, "another choice"
    return (RIGHT, "choice") if chosen == letter else (WRONG, "another choice")


_CHOOSING = frozenset(["option", "choice", "answer", "the", "is"])


def _letters(tokens: Tokens) -> Tokens:
    """With the capitals A to J of ``\\text{A and B}`` and of ``BC`` as letters of their own."""
    spelt = [[*t[1:]] if is_word(t) and set(t[1:]) <= set("ABCDEFGHIJ") else [t] for t in tokens]
    return tuple(letter for piece in spelt for letter in piece)


def _letter(tokens: Tokens) -> str | None:
    inside = enclosed(tokens, "(", ")") or tokens
    return inside[0] if len(inside) == 1 and len(inside[0]) == 1 and inside[0] in "ABCDEFGHIJ" else None


def several_choices(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""The reference is several different letters A to J; the answer has the same letters, in any order.

    >>> A, B, D ~ ABD    \text{A, B, and D} ~ ABD    CA ~ AC    AB !~ ABD
    """
    letters = [token for token in _letters(meant) if token not in (",", ";")]
    if len(letters) < 2 or len(set(letters)) < len(letters) or any(len(t) != 1 or t not in "ABCDEFGHIJ" for t in letters):
        return None
    ours = [t for t in _letters(said) if t not in (",", ";") and not (is_word(t) and t[1:].lower() == "and")]
    if all(len(t) == 1 and t in "ABCDEFGHIJ" for t in ours):
        return (RIGHT, "choices") if sorted(ours) == sorted(letters) else (WRONG, "other choices")
    return None


def words(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""The reference is words. The same words, without articles and with small letters, are right; so are phrases of one row of ``PHRASES``.

    >>> \text{Even} ~ even    \text{yes, it is} ~ Yes    \text{DNE} ~ \text{does not exist}    \infty ~ \text{infinitely many}
    >>> \text{odd} !~ \text{even}    \text{Yes and no} !~ Yes    \text{Alice or Bob} !~ \text{Alice}
    """
    ours, theirs = _phrase(said), _phrase(meant)
    if ours and ours == theirs:
        return RIGHT, "same words"
    if not is_prose(meant):
        return None
    spoken, expected = _spoken(said), _spoken(meant)
    if spoken == expected and spoken:
        return RIGHT, "same words"
    stance = STANCES.get(expected[0]) if len(expected) == 1 else None
    if stance is not None and spoken and all(is_word(t) or t == "," for t in said):
        agrees = STANCES.get(spoken[0]) == stance and set(spoken[1:]) <= _AFFIRMING
        return (RIGHT, "yes or no") if agrees else (WRONG, "another word")
    if len(expected) >= SENTENCE_WORDS:
        return UNKNOWN, SENTENCE
    return WRONG, "other words"


_ARTICLES = frozenset(["a", "an", "the"])
_AFFIRMING = frozenset("it is they are does do indeed always".split())


def is_prose(tokens: Tokens) -> bool:
    """Words, and nothing that computes; or a sentence around mathematics."""
    count = len(words_of(tokens))
    if written_number(tokens) is not None or not count:
        return False
    return all(
        is_word(token) or token in (",", ".", ";", ":", "-", "'", "?", "!") or (len(token) == 1 and token.isalpha())
        for token in tokens
    ) or (
        count > SENTENCE_WORDS
        and shape_of(tokens).kind == "one"
        and written_number(quantity(tokens).core) is None
        and "=" not in tokens
    )


def _spoken(tokens: Tokens) -> list[str]:
    """Words in small letters without articles, nor those of ``LEADS`` at the head; whatever else is there but punctuation stays."""
    said = [token[1:].lower() if is_word(token) else token for token in tokens if token not in (",", ".", ";", ":", SPACE)]
    while len(said) > 1 and said[0] in LEADS:
        said = said[1:]
    return [word for word in said if word not in _ARTICLES] or said


def _phrase(tokens: Tokens) -> str:
    """The first of the row of ``PHRASES`` that the tokens are in; a sign for one of them counts too."""
    sign = {
        (r"\infty",): "infinity",
        (r"\emptyset",): "no solution",
        (r"\{", r"\}"): "no solution",
        (r"\mathbb", "{", "R", "}"): "all real numbers",
    }
    interval = tokens == ("(", "-", r"\infty", ",", r"\infty", ")") or tokens == ("(", "-", r"\infty", ",", "+", r"\infty", ")")
    text = sign.get(
        tokens, "all real numbers" if interval else " ".join(words_of(tokens)).lower() if all(map(is_word, tokens)) else ""
    )
    return next((row[0] for row in PHRASES if text in row), "")


def lead(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Words such as "the answer is" before mathematics say nothing.

    >>> \text{Solution is: } 5 ~ 5    \text{only } x=0 ~ 0    \text{not } 4 !~ 4
    """
    ours, theirs = _without_lead(said), _without_lead(meant)
    return None if (ours, theirs) == (said, meant) else by("claims", ours, theirs, policies)


def _without_lead(tokens: Tokens) -> Tokens:
    at = next((at for at, token in enumerate(tokens) if not (is_word(token) and token[1:].lower() in LEADS)), len(tokens))
    return trimmed(tokens[at:]) if 0 < at < len(tokens) and not is_word(tokens[at]) else tokens
