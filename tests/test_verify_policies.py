r"""What the judge takes for right, policy by policy and in both directions. Each row: answer, gold, outcome.

In this process, without a pool: the judge is a pure function of two texts and the switches.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.config import VerifierPoolConfig
from fr3e_async.verify import judge
from fr3e_async.verify.pool import policies_of
from fr3e_async.verify.readable import reference_kind
from fr3e_async.verify.rulings import Policies

R, W, U = judge.CORRECT, judge.WRONG, judge.UNKNOWN
Row = tuple[str, str, str]

UNFINISHED: list[Row] = [
    (r"17\cdot 23", "391", W), ("17 + 23", "40", W), (r"\frac{34}{2}", "17", W), ("2^{10}", "1024", W), ("5!", "120", W),
    (r"\binom{10}{3}", "120", W), (r"\sqrt{4}", "2", W), (r"\log_2 8", "3", W), (r"\gcd(12,18)", "6", W), (r"2^{10} \mod 7", "2", W),
    (r"\max(1,9,3)", "9", W), (r"\lfloor 42.5 \rfloor", "42", W), ("9^{9^{9}}", "1", W), (r"\sin(\pi/2)", "1", W),
    (r"\int_0^1 x^2\,dx", r"\frac13", W), (r"\frac12+\frac13", r"\frac56", W), (r"\sqrt{0.25}", "0.5", W), ("0.5+0.25", "0.75", W), ("2+1.14", "3.14", W),
    (r"\sum_{k=1}^n k", r"\frac{n(n+1)}{2}", W), (r"\frac{d}{dx}x^2", "2x", W), (r"\lim_{n\to\infty}(1+1/n)^n", "e", W),
    (r"\cos(\pi/6)", r"\frac{\sqrt3}{2}", W),
    (r"10^3", "1000", R), (r"1.5\times 10^{3}", "1500", R), ("1e3", "1000", R), ("42.0", "42", R), (r"\frac24", "0.5", R), ("2/4", r"\frac12", R),
    (r"3\frac{1}{2}", "3.5", R), (r"5 \pmod{7}", "5", R), (r"0 \pmod{7}", "0", R), (r"7 \pmod{7}", "7", W), ("4^{50}", "2^{100}", R), (r"\frac{n!}{2!(n-2)!}", r"\binom{n}{2}", R),
    (r"n(n+1)/2", r"\frac{n^2+n}{2}", R), (r"\frac{1+\sqrt5}{2}", "1.618", R), (r"5\cdot 2^{2/3}", r"5\sqrt[3]{4}", R),
    (r"\int_0^x f(t)\,dt", r"\int_0^x f(t)\,dt", R),
]  # fmt: skip

NUMBERS: list[Row] = [
    ("41.9999", "42", W), ("42.0000001", "42", W), ("10^{-8}", "0", W), (r"1.0000000000000000001\times 10^{20}", "1" + "0" * 20, W),
    ("1267650600228229401496703205377", "2^{100}", W), ("1267650600228229401496703205376", "2^{100}", R),
    (r"6\frac{1}{64}", "6.01", R), (r"6\frac{1}{64}", "6.00", W), (r"6\frac{1}{64}", "6.03", W), (r"-\frac23", "-0.666", R), ("0.6668", "0.666", W), (r"\frac23", "0.66", W),
    (r"\frac{84}{13}", "6.46", R), (r"\frac{84}{12}", "6.46", W), ("7.03125", "7.03", R), ("0.3333", r"\frac13", R), ("0.333", r"\frac13", W),
    (r"3.142", r"\pi", R), ("3.14", r"\pi", W), ("3.15", "3.14159", W), ("1,22", "1.22", R), ("2.\\overline{3}", r"\frac73", R),
    (r"1.3\%", r"1.27\%", W), ("300", "299.94", R), ("2.65", "2.653", R), (r"7.1\cdot 10^{35}", r"7\times 10^{35}", W), ("785.13", "785.12", W),
    ("123456789.124", "123456789.123", W), ("684.12", "785.12", W), ("0.52", "0.5", W), (r"\approx 42", "42", W),
    (r"\frac{1+\sqrt{97}}{8} \approx 1.36", r"\frac{1+\sqrt{97}}{8}", R), (r"\approx 1.41", r"\sqrt{2}", W), (r"\approx x", "x^2", W),
]  # fmt: skip

UNITS: list[Row] = [
    (r"12\text{ cm}", r"12\text{ m}", W), ("12 cm", "12 m", W), (r"27\text{ min}", r"27\text{ s}", W), (r"5\text{ kg}", r"5\text{ m}", W),
    (r"12\text{ cm}", "12", R), ("12", r"12\text{ cm}", R), ("12 m", "12", W), (r"12\text{ m}", "12", R), ("12 m", r"12\text{ m}", R), (r"1200\text{ cm}", r"12\text{ m}", R),
    (r"60\text{ km/h}", r"60\text{ kilometers per hour}", R), (r"9\text{ ab}", "9ab", W), (r"9\text{ km}", "9 km", R), (r"5\text{ cm}^2", r"5\text{ square centimeters}", R),
    (r"5\text{ cm}^2", r"5\text{ cm}", W), ("42 apples", "42", R), (r"42\text{ pears}", r"42\text{ apples}", W), ("12^{\\mathrm{th}}", "12", R),
    ("15", "15th Day", R), (r"\$12", "12", R), (r"45^\circ", "45", R), (r"120^\circ", r"\frac{2\pi}{3}", R), (r"60^\circ", r"\frac{2\pi}{3}", W),
    (r"42\text{米}", "42", R), ("3m", "3", W), ("3", "3m", W), ("5x", "5", W),
]  # fmt: skip

PERCENT: list[Row] = [
    (r"50\%", "0.5", R), (r"50\%", r"\frac12", R), (r"\frac58", r"62.5\%", R), (r"\frac1{15}", r"6.67\%", R), (r"100\%", "1", R),
    ("42", r"42\%", R), (r"42\%", "42", W), (r"0.42", r"42\%", R), (r"28 percent", r"28\%", R),
    (r"4200\%", "42", W), (r"1\%", "1", W), (r"0.5\%", "0.5", W), ("0.5", r"0.5\%", W), ("0.5", "50", W), (r"28.5\%", r"41.4\%", W),
    (r"12\%", "12 m", W), ("12 m", r"12\%", W), (r"12\%", "12 apples", W),
]  # fmt: skip

SHAPES: list[Row] = [
    (r"\{1,2\}", "(1,2)", W), ("(1,2)", r"\{1,2\}", W), ("(2,1)", "(1,2)", W), ("(1,2]", "[1,2]", W), (r"\{42\}", "42", W),
    ("1,2", "1,2,3", W), ("1,2,3", "1,2", W), (r"\pm 3", "3", W), ("3", r"\pm 3", W), (r"41\text{ or }42", "42", W), ("42, or 43", "42", W),
    (r"41\text{, I mean }42", "42", W), (r"42 \text{ or more}", "42", W), (r"\geq 42", "42", W), (r"x\in\{41,42\}", "42", W), ("4 2", "42", W),
    (r"\begin{cases}3\\4\end{cases}", "3", W), (",".join(map(str, range(200))), "42", W), ("32, 349", "32349", W),
    ("[x=-1, y=-2, z=4]", "Solution is: $[x=-1, y=-5, z=4]$", W), ("-1", "[x=-1, y=2]", W), ("x=2, y=1", "x=1, y=2", W),
    (r"\{2,1\}", r"\{1,2\}", R), ("2,1", "1,2", R), (r"\{1,2\}", "1,2", R), ("3,-3", r"\pm 3", R), (r"1\text{ and }2", "1,2", R), ("1或2", "1,2", R),
    ("(1,2)", "(1,2)", R), ("a=1, b=2, a=2, b=1", "a=2, b=1, a=1, b=2", R), ("1, 2", "(1,2)", R), ("(1,2)", "[1,2]", W), ("[1,2,3]", "(1,2,3)", R), ("2, 1", "(1,2)", W), ("(x,y)=(1,2)", "(1,2)", R), ("y=2, x=1", "x=1, y=2", R), ("w=16, d=3, a=1", "16,3,1", R), ("(5,2),(7,2)", "p=5,q=2;p=7,q=2", R),
    (r"1+\sqrt{19}, 1-\sqrt{19}", r"1\pm\sqrt{19}", R), (r"32,\! 349", "32349", R),
    ("[7]", "7", W), ("7", "[7]", R), ("]0,1]", "(0,1]", R), ("[0,1[", "(0,1]", W), (r"\left]-\infty,1\right[\cup]2,3]", r"(-\infty,1)\cup(2,3]", R),
    ("(1,2)^T", r"\begin{pmatrix}1\\2\end{pmatrix}", R), ("(1,2)^T", "(1,2)", R), ("(2,1)^T", r"\begin{pmatrix}1\\2\end{pmatrix}", W),
    (r"\begin{pmatrix}1&2\end{pmatrix}^T", r"\begin{pmatrix}1\\2\end{pmatrix}", R), (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^T", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", W),
    (r"7 \text{ stuffed goats and } 4 \text{ toy helicopters}", "7,4", W), (r"7 \text{ apples and } 4 \text{ books}", "7,4", R),
]  # fmt: skip

SETS: list[Row] = [
    ("k < -5", r"(-\infty,-5)", R), (r"(-\infty,-5)", "k < -5", R), ("k > -5", r"(-\infty,-5)", W), (r"x \in", "(1,2)", W), (r"0.5 \leq x \leq 8", r"[\frac12,8]", R),
    (r"2 < x \leq 4", "(2,4)", W), (r"x \in [-2,7]", "[-2,7]", R), (r"(4,8]\cup[10,12)", r"4<m\le 8\text{ or }10\le m<12", R),
    (r"x>1\text{ and }x<3", "(1,3)", R), (r"x>1\text{ and }x<3", r"\mathbb{R}", W), (r"x>1\text{ and }y<3", "(1,3)", W), (r"x<1\text{ and }x>3", "(3,1)", W),
    (r"x>1\text{ or }x<3", "(1,3)", W), (r"x\ge1\text{ and }x<3", "(1,3)", W), (r"-1\le x\le1,x\ne0", r"[-1,0)\cup(0,1]", R), (r"-1\le x\le1,x\ne\frac12", r"[-1,0)\cup(0,1]", W),
    (r"(2,3)", r"\Big\{x | 2 < x < 3\Big\}", R), (r"\mathbb{R}\setminus\{1\}", r"(-\infty,1)\cup(1,\infty)", R),
    (r"\{x \mid x<2\} - \{1\}", r"(-\infty,1)\cup(1,2)", R), (r"p \equiv 1 \pmod 2", r"p \equiv 1 \pmod 4", W),
]  # fmt: skip

EQUATIONS: list[Row] = [
    ("1=2=3=42", "42", W), ("1=1", "1", W), ("x=5=5", "5", R), (r"7\approx 8", "7", W), (r"\sqrt2\approx5", r"\sqrt2", W), (r"\sqrt2\approx1.41", r"\sqrt2", R),
    ("ABA", "A^2B", W), ("A^2B", "ABA", W), (r"ab\cdot a", "a^2b", R), (r"\sum_{k=0}^n F_{n-k}F_k", r"\sum_{k=0}^n F_kF_{n-k}", R), (r"\sum_{k=0}^n F_{n-k}", r"\sum_{k=0}^n F_{k}", W),
    (r"y=ce^x", r"y=Ce^x", R), (r"mc^2", r"MC^2", W), (r"cV", r"CV", W), (r"x_1+\dots+x_n", r"x_1+x_2+\dots+x_n", R), (r"x_1+\dots+x_n", r"x_2+\dots+x_n", W), (r"x_1+\dots+x_n", r"y_1+\dots+y_n", W),
    (r"x_n+x_{n-1}+\dots+x_1", r"x_1+\dots+x_n", R), (r"x_1+x_3+\dots+x_n", r"x_1+\dots+x_n", W), (r"(a-b):\frac12", "2a-2b", R), (r"(a-b):\frac12", r"\frac{a-b}{2}", W),
     ("x=5=7", "7", W), ("x=5", "5", R), (r"10^3 = 1000", "1000", R), (r"x=\frac12=0.5=50\%", "0.5", R), ("x=x", "42", W),
    ("y=2x+3", "2x+3", R), ("f(x)=x", "f(z)=z", R), ("f(x)=x+1", "f(z)=z", W), ("y=2x", "y=3x", W), (r"\frac6x", "xy=6", R), (r"\frac6{x+1}", "xy=6", W),
    ("x^{2}+70=0", "x^{2}+50=0", W), ("2x^2+100=0", "x^{2}+50=0", R), ("x=y+2", "x-(y+2)=0", R), ("1", "2x+z=1", W),
    (r"\frac{1}{0}", r"\infty", W), (r"\frac{\pi}{6}+n\pi", r"\frac{\pi}{6}+k\pi", R), (r"\arccos(1-2a)", r"2\arcsin\sqrt{a}", R),
    (r"\arccos(1-3a)", r"2\arcsin\sqrt{a}", W), ("x", "|x|", W), (r"\lfloor p/6\rfloor", r"\lfloor p/9\rfloor", W), (r"\sqrt{-1}", "i", R),
    (r"\frac{3n+m}{2}", r"\frac32 n+\frac12 m", R), ("x^2-2", "y^2-2", W), ("x+y=2x-3", "y=2x-3", W), ("AB+BC=12+8=20", "AB+BC=20", R), ("x<2", "y<2", W), (r"2k+1 \text{ for prime } k", "2k+1", W),
]  # fmt: skip

WORDS: list[Row] = [
    (r"\text{even}", r"\text{Even}", R), (r"\text{odd}", r"\text{even}", W), ("Yes", r"\text{Yes}", R), ("yes, always", "Yes", R), ("yes, they are, it is, they do, it does, indeed, always", "Yes", R), ("No", "Yes", W),
    (r"\text{Bob and Alice}", r"\text{Alice and Bob}", R), (r"\text{Bob or Alice}", r"\text{Alice and Bob}", W), (r"\text{blue box and red ball}", r"\text{red box and blue ball}", U),
    ("C", "C Cecile", R), ("A", "A dog", W), ("B", "B flat", W), ("B。不是 A", "B", R), ("B. not A", "B", R), ("B. not B", "B", W), ("B is not A", "B", W), ("A. not B", "B", W), ("ellipse", "ellipszis", R), ("circle", "ellipszis", W),
    ("True", "Yes", R), (r"\textbf{(B) } 12", "B", R), (r"\text{C}", "B", W), ("A, B", "A", W), ("the lake trip", "More time is required on the river.", U),
    (r"\infty", r"\text{infinitely many solutions}", R), ("Cut along the midline.", "cut along the midline", R), ("lambda: 42", "42", W),
    ('__import__("os").system("true")', "42", W), ("", "42", W), ("42", "", U),
]  # fmt: skip

NOTATION: list[Row] = [
    (r"\dfrac{1}{2}", r"\frac12", R), (r"\frac 1 2", r"\frac12", R), ("½", r"\frac12", R), ("４２", "42", R), ("−5", "-5", R), ("2π", r"2\pi", R), (r"\color{red}{42}", "42", R),
    (r"\left(-∞,3\right)", r"(-\infty,3)", R), (r"\\dfrac{1}{2}", r"\frac12", R), ("\frac{1}{2}", r"\frac12", R), (r"x^{2}", "x²", R),
    (r"\mathrm{E}", "E", R), (r"\mathrm{x+1}", "x+1", R), (r"\frac{1+a}c", r"\frac{1+a}{c}", R), (r"\left[\begin{array}{cc}1 & 2 \\ 3 & 4\end{array}\right]", r"\begin{pmatrix}1 & 2 \\3 & 4\end{pmatrix}", R),
    ("2x**2+1", "2x^2+1", R), ("**42**", "42", R), ("1010_2", "1010_2", R), (r"2F\text{ (base 16)}", "2F_{16}", R), ("1010_2", "1010_3", W), (r"\boxed{42}", "42", R),
]  # fmt: skip

POLICIES = {
    "unfinished": UNFINISHED, "numbers": NUMBERS, "units": UNITS, "percent": PERCENT, "shapes": SHAPES, "sets": SETS,
    "equations": EQUATIONS, "words": WORDS, "notation": NOTATION,
}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [pytest.param(*row, id=f"{name}: {row[0][:40]} | {row[1][:40]}") for name, rows in POLICIES.items() for row in rows],
)
def test_the_default_policies(answer: str, gold: str, outcome: str) -> None:
    assert judge.judge(answer, gold)[0] == outcome, judge.judge(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold", "switch", "outcome"),
    [
        (r"17\cdot 23", "391", {"unfinished": "correct"}, R),
        (r"\frac{34}{2}", "17", {"unfinished": "correct"}, R),
        (r"17\cdot 24", "391", {"unfinished": "correct"}, W),
        (r"12\text{ cm}", r"12\text{ m}", {"units": "ignored"}, R),
        (r"13\text{ cm}", r"12\text{ m}", {"units": "ignored"}, W),
        (r"42\%", "42", {"percent": "exact"}, W),
        ("42", r"42\%", {"percent": "exact"}, W),
        (r"42\%", "0.42", {"percent": "exact"}, R),
        (r"42\%", r"42\%", {"percent": "exact"}, R),
        ("3.14", r"\pi", {"decimal_digits": 3}, R),
        ("3.1416", r"\pi", {"decimal_digits": 6}, W),
        ("3.14159", r"\pi", {"decimal_digits": 6}, R),
    ],
)
def test_each_switch(answer: str, gold: str, switch: dict[str, object], outcome: str) -> None:
    assert judge.judge(answer, gold, **switch)[0] == outcome  # type: ignore[arg-type]


def test_a_variable_that_the_reference_has_not_is_said() -> None:
    assert judge.judge("x+y", "x") == (W, "other variables")


def test_the_switches_of_a_run_reach_the_judge_as_json() -> None:
    config = VerifierPoolConfig(unfinished="correct", units="ignored", percent="exact", decimal_digits=6)
    options = json.loads(json.dumps(asdict(policies_of(config))))
    assert judge.judge("2+2", "4", **options)[0] == R
    assert judge.judge("4 cm", r"4\text{ m}", **options)[0] == R
    assert judge.judge(r"40\%", "40", **options)[0] == W
    assert policies_of(VerifierPoolConfig()) == Policies()


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ("42", "integer"), ("$1,000$", "integer"), ("-3.00", "integer"), ("0.5", "mathematics"), (r"\frac12", "mathematics"), ("x=3", "mathematics"),
        (r"27\text{ min}", "mathematics"), (r"m_{\max}=n^2", "mathematics"), (r"x<5", "mathematics"), ("B", "mathematics"), ("Yes", "word"),
        (r"\text{Evelyn}", "word"), (r"\text{odd numbers}", "text"), ("Any $h$ will work.", "text"), ("", "text"),
    ],
)  # fmt: skip
def test_what_answers_to_a_gold_are_compared_by(gold: str, kind: str) -> None:
    assert reference_kind(gold) == kind


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_no_way_to_write_an_integer_makes_it_another(said: int, meant: int) -> None:
    for style in ("{}", "{}.0", "x = {}", r"{}\text{{ cm}}", "({})", r"\mathbf{{{}}}", "{:,}"):
        outcome, reason = judge.judge(style.format(said), str(meant))
        assert (outcome == R) == (said == meant), (style, reason)


@given(st.text(alphabet="0123456789xyzne+-/=<>(){}[],.;:| \\%_&$'", max_size=24))  # without powers: there is no CPU limit here
def test_whatever_is_said_the_judge_answers(text: str) -> None:
    for gold in ("7", r"\frac{x}{2}", "(1,2)"):
        assert judge.judge(text, gold)[0] in (R, W, U)
    assert judge.judge("7", text)[0] in (R, W, U)


def test_deep_nesting_is_unknown_and_no_crash() -> None:
    assert judge.judge("(" * 900 + "x" + ")" * 900, "x+1")[0] in (W, U)
    assert judge.judge(r"\frac{1}{" * 300 + "x" + "}" * 300, "x+1")[0] in (W, U)
