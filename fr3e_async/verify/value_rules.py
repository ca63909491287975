r"""Rules about texts and single values: choices, words, units, percent, numbers, what is left to compute, algebra. Each is as ``judge`` says."""

import re
from dataclasses import replace
from fractions import Fraction

from fr3e_async.verify import quantities, symbolic
from fr3e_async.verify.lexicon import LEADS, PHRASES, STANCES
from fr3e_async.verify.quantities import Number, Quantity, compare_numbers, quantity, written_number
from fr3e_async.verify.rulings import CORRECT, SENTENCE_WORDS, UNKNOWN, WRONG, Decision, Policies, by, by_policy
from fr3e_async.verify.structure import shape_of
from fr3e_async.verify.tokens import Tokens, enclosed, is_word, render, tokenise, trimmed, variable

_LETTERS = frozenset("ABCDEFGHIJ")
_CHOOSING = frozenset(["'option", "'choice", "'answer", "'the", "'is", "'选", "'and", ",", ";"])


def same_text(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""The same tokens are the same answer.

    >>> \dfrac12 ~ \frac{1}{2}    ½ ~ \frac12    x^{\prime} ~ x'    mgh ~ m g h    f'(x) !~ f(x)    vv^{\cdot} !~ vv^*    A^{-1} !~ A^T
    """
    plain = ["".join(token[is_word(token) :] for token in side) for side in (said, meant)]  # mgh and m g h
    return (CORRECT, "same text") if said == meant or (plain[0] == plain[1] and plain[0].isalpha()) else None


def decimal_comma(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""Digits with a comma where the other side has the same digits with a point.

    >>> 1,22 ~ 1.22    1,22 !~ 1.23    1.234 !~ 1,234
    """
    comma, point = sorted(("".join(said), "".join(meant)))
    same = comma.replace(",", ".") == point and comma.count(",") == 1 and comma.replace(",", "").isdigit()
    return (CORRECT, "policy: decimal comma") if same and written_number((comma,)) is None else None


def choice(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""The reference is one letter A to J or several different ones; the answer names the same letters and no other, in any order.

    Behind one letter in brackets, or before a stop, the value of the choice may stand; behind a stop, that others are not meant. The reference
    may name who the letter is the initial of.

    >>> (b) ~ B    (B) 12 ~ B    \text{Option A} ~ A    \text{A or B} !~ A    \text{(C) is wrong, so (D)} !~ C    C = D !~ x
    >>> B. \text{not } A ~ B    \text{B is not A} !~ B    C ~ \text{C Cecile}    B !~ \text{B flat}
    >>> A, B, D ~ ABD    \text{A, B, and D} ~ ABD    CA ~ AC    AB !~ ABD
    """
    letters, rest = _choices(meant)
    named = letters and "".join(rest)[:2] == "'" + letters and all(map(is_word, rest))  # C Cecile
    if not letters or (rest and not named) or len(set(letters)) < len(letters) or any(t.islower() for t in meant if variable(t)):
        return None
    ours, tail = _choices(said)
    if len(letters) > 1 and tail:
        return None
    stopped = tail[:1] in ((".",), (")",), (":",))
    tail = tail[stopped:]
    others, left = _choices(tail[1:]) if stopped and tail[:1] in (("'not",), ("'不是",)) else ("", tail)
    valued = (said[:1] == ("(",) or stopped) and written_number(quantity(tail).core) is not None
    whole = not tail or tail == rest or valued or (others and not left and not {*others} & {*ours})
    return (CORRECT, "choice") if whole and sorted(ours) == sorted(letters) else (WRONG, "another choice")


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


def words(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""The reference is words. The same words, without articles and with small letters, are correct; so are phrases of one row of ``PHRASES``.

    >>> \text{Bob and Alice} ~ \text{Alice and Bob}    \text{Ellipse} ~ ellipszis    \text{Even} ~ even    \text{yes, it is} ~ Yes    \text{DNE} ~ \text{does not exist}    \infty ~ \text{infinitely many}
    >>> \text{odd} !~ \text{even}    \text{Yes and no} !~ Yes    \text{Alice or Bob} !~ \text{Alice}
    """
    phrase = PHRASES.get("".join(meant).lower())
    if phrase and phrase == PHRASES.get("".join(said).lower()):
        return CORRECT, "same words"
    if not is_prose(meant):
        return None
    spoken, expected = _spoken(said), _spoken(meant)
    if spoken == expected or (expected[1:-1] in (["and"], ["or"]) and spoken == expected[::-1]):
        return CORRECT, "same words"
    if len(expected) == 1 and expected[0] in STANCES and all(is_word(token) or token == "," for token in said):
        agrees = STANCES.get(spoken[0]) == STANCES[expected[0]] and set(spoken[1:]) <= _AFFIRMING
        return (CORRECT, "yes or no") if agrees else (WRONG, "another word")
    return (UNKNOWN, "the reference is a sentence") if len(expected) >= SENTENCE_WORDS else (WRONG, "other words")


_AFFIRMING = frozenset("it is they are does do indeed always".split())


def is_prose(tokens: Tokens) -> bool:
    """Words, and nothing that computes; or a sentence around mathematics."""
    count = sum(map(is_word, tokens))
    if written_number(tokens) is not None or not count:
        return False
    if all(is_word(token) or token in "-'?!,.;:" or variable(token) for token in tokens):
        return True
    value = shape_of(tokens).kind != "one" or "=" in tokens or written_number(quantity(tokens).core) is not None
    return count > SENTENCE_WORDS and not value


def _spoken(tokens: Tokens) -> list[str]:
    """Words in small letters without articles, nor those of ``LEADS`` at the head; whatever else is there but punctuation stays."""
    said = [token[1:].lower() if is_word(token) else token for token in tokens if token not in ",.;: "]
    while len(said) > 1 and said[0] in LEADS:
        said = said[1:]
    return [word for word in said if word not in ("a", "an", "the")] or said or [""]


def lead(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""Words such as "the answer is" before mathematics say nothing.

    >>> \text{Solution is: } 5 ~ 5    \text{only } x=0 ~ 0    \text{not } 4 !~ 4
    """
    ours, theirs = _without_lead(said), _without_lead(meant)
    return None if (ours, theirs) == (said, meant) else by("claims", ours, theirs, policies)


def _without_lead(tokens: Tokens) -> Tokens:
    at = next((at for at, token in enumerate(tokens) if not (is_word(token) and token[1:].lower() in LEADS)), 0)
    return trimmed(tokens[at:]) if at and not is_word(tokens[at]) else tokens


def amount(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""Units agree, by pint, or are missing on one side; then the values are equal.

    >>> 12\text{ cm} ~ 12    1200\text{ cm} ~ 12\text{ m}    450\text{ cents} ~ \$4.50    9.8\ \mathrm{m\,s^{-2}} ~ 9.8\ \mathrm{m/s^2}
    >>> 12\text{ cm} !~ 12\text{ m}    5\text{ m}^2 !~ 5\text{ m}    3\text{ million} !~ 3    42x^2 !~ 42    5\text{ km south} !~ 5\text{ km north}
    >>> 500 mL ~ 0.5\text{ L}    25^\circ C ~ 25^\circ\text{C}    25^\circ\text{C} ~ 25    12\text{ cm}^2 ~ 12平方厘米    500 ~ ₹500
    >>> 2\pi !~ 2\pi hr    3 !~ 3mg    2 !~ 2CM    \sin 30 !~ \sin 30^\circ    \sin\frac{\pi}{6} ~ \sin 30^\circ    25^\circ\text{F} !~ 25^\circ\text{C}
    """
    ours, theirs = quantity(said), quantity(meant)
    ours, theirs = quantity(said, bare=theirs.unit), quantity(meant, bare=ours.unit)
    if ours.core == said and theirs.core == meant:
        return None
    if quantities.PERCENT_SIGN in (ours.unit, theirs.unit) and ours.unit != theirs.unit:
        return _percentages(ours, theirs, policies)
    if ours.unit == theirs.unit or policies.units == "ignored":
        return by("values", ours.core, theirs.core, policies)
    if not ours.unit or not theirs.unit:
        return _unit_on_one_side(ours, theirs, policies)
    factor = quantities.factor_between(ours.unit, theirs.unit)
    if factor == 1 or (factor is None and ours.unit.lower().removesuffix("s") == theirs.unit.lower().removesuffix("s")):
        return by("values", ours.core, theirs.core, policies)
    number, reference = written_number(ours.core), written_number(theirs.core)
    equal = factor and number and reference and number.value * factor == reference.value
    return (CORRECT, "units converted") if equal else (WRONG, "units differ")


def _unit_on_one_side(ours: Quantity, theirs: Quantity, policies: Policies) -> Decision:
    unit = ours.unit or theirs.unit
    if unit == quantities.DEGREES and r"\pi" in (theirs.core if ours.unit else ours.core):
        turned = [(r"\frac", "{", "(", *q.core, ")", r"\pi", "}", "{", "180", "}") if q.unit else q.core for q in (ours, theirs)]
        return symbolic.equal(*turned)
    if not quantities.without_a_word_for_it(unit):
        return WRONG, "unproven: words that are no unit"
    return by_policy("unit not named", by("values", ours.core, theirs.core, policies))


def _percentages(ours: Quantity, theirs: Quantity, policies: Policies) -> Decision:
    r"""One side has a percent sign and the other none.

    50\% is 0.5, but an integer reference above 1 is no proportion (4200\% is not 42). With ``percent="optional"`` an answer may leave out
    the reference's sign: 42 is 42\%, except below 1. It may not add one: that would say another number.
    """
    signed, other = (theirs, ours) if theirs.unit == quantities.PERCENT_SIGN else (ours, theirs)
    if other.unit and (quantities.parsed_unit(other.unit) is not None or not quantities.without_a_word_for_it(other.unit)):
        return WRONG, "units differ"
    said, meant = written_number(ours.core), written_number(theirs.core)
    if said and meant:
        hundredth = [_hundredth(number) if q is signed else number for number, q in ((said, ours), (meant, theirs))]
        proportion = signed is theirs or not meant.integer or abs(meant.value) <= 1
        if proportion and (decision := compare_numbers(hundredth[0], hundredth[1], policies))[0] == CORRECT:
            return decision
    if policies.percent == "exact" or signed is ours or (meant and abs(meant.value) <= 1):
        return WRONG, "percent"
    return by_policy("percent sign", by("values", ours.core, theirs.core, policies))


def _hundredth(number: Number) -> Number:
    return replace(number, value=number.value / 100, places=None if number.places is None else number.places + 2, integer=False)


def numbers(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""Both are written out: equal exactly, or by what rounding explains (``compare_numbers``).

    >>> 1.5\times 10^{3} ~ 1500    3\frac{1}{2} ~ 3.5    \frac24 ~ 0.5    7.03125 ~ 7.03    41.9999 !~ 42    10^{-8} !~ 0    \frac{34}{2} !~ 17
    >>> 0.3 ~ 0.30000000000000004    0.3333333333333334 !~ 0.3333333333333333    1 !~ 1.000000000000000000001
    >>> 7 ~ [7]    [7] !~ 7    \frac23 ~ 0.666    \frac23 !~ 0.665
    """
    ours, theirs = written_number(said), written_number(enclosed(meant, "[", "]") or meant)
    if ours is None or theirs is None:
        return None
    fraction = ours.places is None and ours.value == theirs.value and theirs.integer and not any("." in token for token in said)
    if policies.unfinished == "wrong" and fraction and not any(map(is_word, said)):
        return RECKONING
    return compare_numbers(ours, theirs, policies)


RECKONING = WRONG, "leaves the computing to the reader"
_CLOSED = frozenset([r"\sqrt", r"\pi", r"\ln", r"\log", r"\exp", "e", r"\lg"])
_UNEVALUATED = frozenset([r"\int", r"\sum", r"\prod", r"\lim", r"\partial"])
_DERIVATIVE = r"\frac{d}{d"
# Operators that an answer in variables may well end with, but a constant should not.
_UNEVALUATED_CONSTANT = _UNEVALUATED | frozenset(
    r"\binom \gcd \lcm \max \min \pmod \lfloor \lceil ! \sin \cos \tan \cot \sec \csc \arcsin \arccos \arctan".split()
)
_COMPUTES = _CLOSED | _UNEVALUATED_CONSTANT | {"+", "/", "^", r"\cdot", r"\times", r"\frac", r"\div", "("}


def unfinished(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""An answer that leaves computing to the reader, where the reference does without (policy ``unfinished``).

    >>> \frac{1+\sqrt5}{2} ~ 1.618    4^{50} ~ 2^{100}    17\cdot 23 !~ 391    \sqrt{4} !~ 2    \sum_{k=1}^n k !~ \frac{n(n+1)}{2}
    """
    theirs, signs = written_number(meant), set(said)
    if policies.unfinished == "correct" or (theirs and _has_variables(said) and not signs & _UNEVALUATED):
        return None
    if theirs and written_number(said) is None:
        closed = signs & _CLOSED and not signs & _UNEVALUATED_CONSTANT and not theirs.integer and theirs.places is not None
        return RECKONING if not closed and (signs & _COMPUTES or "-" in said[1:]) else None
    left = (signs - set(meant)) & _UNEVALUATED
    if not _has_variables(meant) and not set(meant) & _UNEVALUATED_CONSTANT:
        left |= signs & _UNEVALUATED_CONSTANT
    return RECKONING if left or (_DERIVATIVE in "".join(said) and _DERIVATIVE not in "".join(meant)) else None


def _has_variables(tokens: Tokens) -> bool:
    return any(variable(token) and token not in "ei" for token in tokens)


def decimals(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""A decimal for a closed form, from ``decimal_digits`` digits on; a closed form for a decimal that it rounds to.

    >>> 3.142 ~ \pi    0.3010 ~ \lg 2    \frac{1+\sqrt5}{2} ~ 1.618    \sqrt5 ~ 2.23606797749979    3.14 !~ \pi    \frac{22}{7} !~ \pi    1.2677\times10^{30} !~ 2^{100}
    """
    ours, theirs = written_number(said), written_number(meant)
    exact = symbolic.decimal_value(meant if theirs is None else said) if (ours is None) is not (theirs is None) else None
    written = ours or theirs
    if exact is None or written is None or written.places is None:
        return None
    if written is ours:  # equal exactly or not at all
        return None if exact.denominator == 1 or exact == ours.value else compare_numbers(ours, Number(value=exact), policies)
    if policies.unfinished == "wrong" and not written.integer and abs(exact - written.value) <= abs(exact) / Fraction(10**30):
        return RECKONING
    return None if written.integer else compare_numbers(Number(value=exact), written, policies)


_COUNTS = re.compile(r"([CAP])(?:_\{(\d+)\}\^\{(\d+)\}|\^\{(\d+)\}_\{(\d+)\})|C\((\d+),(\d+)\)")


def counting(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""``C_5^2`` and ``C(5,2)`` are binomials, ``A_5^2`` and ``P_5^2`` count arrangements.

    >>> 10 ~ C_5^2    \binom{5}{2} ~ C_5^2    20 ~ A_5^2    10 ~ C(5,2)    11 !~ C_5^2
    """
    texts = [render(side) for side in (said, meant)]
    spelt = [tokenise(_COUNTS.sub(_binomial, text)) for text in texts]
    return symbolic.equal(*spelt) if any(map(_COUNTS.search, texts)) else None


def _binomial(found: re.Match[str]) -> str:
    n, k = found[2] or found[5] or found[6], found[3] or found[4] or found[7]
    return rf"\binom{{{n}}}{{{k}}}" + (f"({k}!)" if found[1] in ("A", "P") else "")


def algebra(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""Both are read as a whole, and are equal by ``symbolic``.

    >>> (1-x)(1+x) ~ 1-x^2    2\pi r ~ 2*pi*r    3x^2 !~ 3    6xyz !~ 6abc    \frac{1}{2024!} !~ \frac{1}{2023!}    f(x) !~ f'(x)
    >>> \pi !~ \pi+2^{-400}    10^{20} !~ \sqrt{10^{40}+1}    \frac{1}{f(x)} !~ f^{-1}(x)    A !~ P^{-1}AP    (n!)! !~ n!!    x !~ [x]    1\phantom{0}7 !~ 7
    >>> \frac{m g}{k} ~ \frac{mg}{k}    \frac{cb}{a} ~ \frac{bc}{a}    A^2B !~ ABA    (a-b):\frac{1}{2} ~ 2a-2b
    >>> \frac{a_0+a_1+\dots+a_k}{2} ~ \frac12(a_k+a_{k-1}+\dots+a_0)    a_1+\dots+a_n !~ a_0+\dots+a_n    a_1+a_3+\dots+a_9 !~ a_1+a_2+\dots+a_9
    """
    return symbolic.equal(said, meant)
