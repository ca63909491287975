"""Tables of signs and commands that write one thing in many ways, or nothing at all: the closed lists of ``tokens``."""

import unicodedata

GREEK = tuple("\\" + name for name in (
    "alpha beta gamma delta epsilon theta lambda mu omega phi rho sigma tau psi eta xi zeta kappa chi Omega Phi Delta Gamma Lambda Sigma"
).split())  # fmt: skip
FUNCTIONS = tuple("\\" + name for name in (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp gcd lcm max min"
).split())  # fmt: skip


_LETTERS = {unicodedata.lookup(f"GREEK {'SMALL' if command.islower() else 'CAPITAL'} LETTER {command[1:].replace('ambda', 'amda')}"): command
            for command in (*GREEK, r"\pi")}  # fmt: skip
SIGN = str.maketrans({
    **{letter: command + " " for letter, command in _LETTERS.items()},
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ",
    "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "−": "-", "–": "-", "√": " sqrt ", "∈": r"\in ", "∀": r"\forall ",
    "±": r"\pm ", "°": r"\degree ", "≈": r"\approx ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "、": ",", "。": ".", "，": ",", "或": " or ", "和": " and ", "’": "'", "′": "'", "“": "", "”": "",
    "⁄": "/", "¢": r" cents ", "€": r" euro ", "£": r" pounds ", "¥": r" yen ", "₹": " rupees ", "\u200b": "", "≡": r"\equiv ", "∖": r"\setminus ",
})  # fmt: skip
TEXT = frozenset(
    r"\text \mathrm \textbf \textit \textrm \textsf \textnormal \mbox \hbox \operatorname \operatorname* \textup \texttt".split()
)
WITH_OTHER_ARGUMENTS = {r"\fcolorbox": 2} | dict.fromkeys(r"\color \textcolor \phantom \hphantom \vphantom \hspace".split(), 1)
_NOTHING = (
    r"\left \right \middle \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl \biggr \Biggl \Biggr \displaystyle \textstyle \scriptstyle "
    r"\limits \nolimits \rm \bf \it \bfseries \mathstrut \strut \Large \large \LARGE \huge \Huge \normalsize \small \centering \therefore "
    r"\checkmark \noindent \( \) \[ \] $ ** __ \smash \mathbf \mathit \mathsf \mathtt \mathnormal \boldsymbol \bm \underline \emph \boxed "
    r"\fbox \ensuremath \mathcal \mathop"
)
# What stands for each command: another one, a space, or nothing.
SYNONYMS = {
    **dict.fromkeys(_NOTHING.split(), ""),
    **dict.fromkeys([*r"\, \; \: ~ \quad \qquad \enspace \thinspace \hfill \space \nobreakspace \medspace".split(), "\\ "], " "),
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\leq": r"\le", r"\leqslant": r"\le", "<=": r"\le", r"\geq": r"\ge",
    r"\geqslant": r"\ge", ">=": r"\ge", r"\neq": r"\ne", "!=": r"\ne", r"\lt": "<", r"\gt": ">", r"\cupdot": r"\cup", r"\bigcup": r"\cup",
    r"\degree": "°", r"\textdegree": "°", r"\textcirc": "°", r"\varnothing": r"\emptyset", r"\O": r"\emptyset", r"\colon": ":", r"\infin": r"\infty",
    r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\prime": "'",
    r"\overrightarrow": r"\vec", r"\varepsilon": r"\epsilon", r"\varphi": r"\phi", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|",
    r"\backslash": r"\setminus", r"\%": "%", r"\$": "'dollars", r"\pounds": "'pounds", r"\euro": "'euro", r"\yen": "'yen", r"\langle": "⟨",
    r"\rangle": "⟩", r"\land": r"\wedge", r"\lor": r"\vee", r"\to": r"\rightarrow", r"\centerdot": r"\cdot", r"\top": "T", r"\intercal": "T", r"\ast": r"\cdot",
    "*": r"\cdot", r"\simeq": r"\approx", r"\doteq": r"\approx", r"\mod": r"\pmod", r"\bmod": r"\pmod", r"\pod": r"\pmod",
    r"\bar": r"\overline", r"\ldots": r"\dots", r"\cdots": r"\dots", r"\&": "&",
}  # fmt: skip
OPENING, CLOSING = frozenset(["(", "[", "{", r"\{", "⟨"]), frozenset([")", "]", "}", r"\}", "⟩"])
# How many arguments a command has; of ``WHOLE`` ones the argument is all digits of a number, not the first one.
ARGUMENTS = {r"\frac": 2, r"\binom": 2, r"\overset": 2, r"\underset": 2} | dict.fromkeys(
    r"\sqrt \usqrt \vec \overline \hat \tilde \dot \ddot \mathbb ^ _".split(), 1
)
WHOLE = frozenset([r"\usqrt", "^", "_"])
PREFIXES = ("arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "sqrt")
ORDINALS = frozenset(["'st", "'nd", "'rd", "'th"])
UPRIGHT_UNITS = frozenset("mgshLlNJWVKCFTH")  # units of one letter, which only upright ones are
