"""Tables of signs and commands that write one thing in many ways, or nothing at all: the closed lists of ``tokens``."""

from __future__ import annotations

SIGNS = {
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ",
    "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "−": "-", "–": "-", "√": " sqrt ", "∈": r"\in ", "∀": r"\forall ",
    "±": r"\pm ", "°": r"\degree ", "≈": r"\approx ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", 
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "μ": r"\mu ", "ω": r"\omega ", "φ": r"\phi ", "ρ": r"\rho ",
    "σ": r"\sigma ", "Δ": r"\Delta ", "、": ",", "。": ".", "，": ",", "或": " or ", "和": " and ", "’": "'", "′": "'", "“": "", "”": "",
    "⁄": "/", "¢": r" cents ", "€": r" euro ", "£": r" pounds ", "¥": r" yen ", "\u200b": "", "≡": r"\equiv ", "∖": r"\setminus ",
}  # fmt: skip
GREEK = {
    "π": r"\pi", "θ": r"\theta", "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "λ": r"\lambda", "μ": r"\mu", "ω": r"\omega",
    "φ": r"\phi", "ρ": r"\rho", "σ": r"\sigma", "Δ": r"\Delta", "δ": r"\delta", "ε": r"\epsilon", "τ": r"\tau", "Ω": r"\Omega",
}  # fmt: skip
SIGN = str.maketrans(SIGNS)

SPACES = frozenset(
    r"\, \; \: \  ~ \quad \qquad \enspace \thinspace \hfill \space \nobreakspace \hspace \medspace".split() + ["\\ "]
)
NOTHING = frozenset(
    r"\left \right \middle \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl \biggr \Biggl \Biggr \displaystyle \textstyle \scriptstyle "
    r"\limits \nolimits \rm \bf \it \bfseries \mathstrut \strut \Large \large \LARGE \huge \Huge \normalsize \small \centering \therefore "
    r"\checkmark \noindent \( \) \[ \] $ ** __ \smash".split()
)
FONTS = frozenset(
    r"\mathbf \mathit \mathsf \mathtt \mathnormal \boldsymbol \bm \underline \emph \boxed \fbox \ensuremath \textcolor \mathcal \mathop".split()
)
TEXT = frozenset(
    r"\text \mathrm \textbf \textit \textrm \textsf \textnormal \mbox \hbox \operatorname \operatorname* \textup \texttt".split()
)
WITH_OTHER_ARGUMENTS = {
    r"\color": 1,
    r"\textcolor": 1,
    r"\phantom": 1,
    r"\hphantom": 1,
    r"\vphantom": 1,
    r"\fcolorbox": 2,
    r"\hspace": 1,
}
SYNONYMS = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\leq": r"\le", r"\leqslant": r"\le", "<=": r"\le", r"\geq": r"\ge",
    r"\geqslant": r"\ge", ">=": r"\ge", r"\neq": r"\ne", "!=": r"\ne", r"\lt": "<", r"\gt": ">", r"\cupdot": r"\cup", r"\bigcup": r"\cup",
    r"\degree": "°", r"\textdegree": "°", r"\textcirc": "°", r"\varnothing": r"\emptyset", r"\O": r"\emptyset", r"\colon": ":", r"\infin": r"\infty",
    r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\prime": "'",
    r"\overrightarrow": r"\vec", r"\varepsilon": r"\epsilon", r"\varphi": r"\phi", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|",
    r"\backslash": r"\setminus", r"\%": "%", r"\$": "'dollars", r"\pounds": "'pounds", r"\euro": "'euro", r"\yen": "'yen", r"\langle": "⟨",
    r"\rangle": "⟩", r"\land": r"\wedge", r"\lor": r"\vee", r"\to": r"\rightarrow", r"\centerdot": r"\cdot", r"\top": "T", r"\intercal": "T", r"\ast": r"\cdot",
    "*": r"\cdot", r"\simeq": r"\approx", r"\doteq": r"\approx", r"\lg": r"\lg", r"\mod": r"\pmod", r"\bmod": r"\pmod", r"\pod": r"\pmod",
 r"\bar": r"\overline", r"\ldots": r"\dots", r"\cdots": r"\dots", r"\&": "&",
}  # fmt: skip
OPENING, CLOSING = frozenset(["(", "[", "{", r"\{", "⟨"]), frozenset([")", "]", "}", r"\}", "⟩"])
ARGUMENTS = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1, r"\vec": 1, r"\overline": 1, r"\hat": 1, r"\tilde": 1, r"\dot": 1, r"\ddot": 1,
              r"\mathbb": 1, r"\overset": 2, r"\underset": 2, r"\pmod": 0}  # fmt: skip
PREFIXES = ("arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "sqrt")


ORDINALS = frozenset(["'st", "'nd", "'rd", "'th"])
UPRIGHT_UNITS = frozenset(["m", "g", "s", "h", "L", "l", "N", "J", "W", "V", "K", "C", "F", "T", "H"])
