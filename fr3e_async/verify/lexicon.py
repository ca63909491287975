"""The closed lists of the judge: signs and commands that write one thing in many ways, or nothing at all; and the words that it knows.

Each table of words says what its words may be taken for. A word that stands in none of them is never dropped. Words have two letters or
more: a single letter is a variable.
"""

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

# ---- Words ----

CONNECTIVES = frozenset("and or und oder et ou".split())
# Plain ASCII mathematics, and upright names, as commands.
ASCII_COMMANDS = {
    **{command[1:]: command for command in (*FUNCTIONS, *GREEK) if command in FUNCTIONS or len(command) > 4},
    **{name: "\\" + name for name in "det lim pi phi rho tau infty".split()},
    "sqrt": r"\usqrt", "infinity": r"\infty", "inf": r"\infty", "mod": r"\pmod",
}  # fmt: skip
NUMBERS = {name: value for value, name in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen "
    "twenty".split()
)} | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}  # fmt: skip
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
PERCENT = frozenset(["percent", "pct"])
# What may follow a number without saying more than what was counted or measured; pint knows the units proper (``quantities``).
CURRENCIES = {name + s: name for name in "dollar cent euro pound yen yuan rupee".split() for s in ("", "s")} | {
    "usd": "dollar", "eur": "euro", "gbp": "pound", "jpy": "yen", "rmb": "yuan", "元": "yuan"
}  # fmt: skip
UNITS = frozenset(
    "mm cm dm km mg kg kg mL ml kL nm um ms min hr hrs sec secs kN kJ MJ kW MW mW kWh Hz kHz MHz GHz kPa MPa Pa eV keV MeV mol rad ft mph oz lb "
    "lbs kmph kph square cubic sq cu per inches feet kelvin celsius fahrenheit hertz".split()
) | {name + s for name in (
    "meter metre centimeter millimeter kilometer gram kilogram liter litre inch foot yard mile ounce second minute hour day week month year degree "
    "radian newton joule watt volt ohm pascal erg ton tonne gallon acre hectare bit byte"
).split() for s in ("", "s")}  # fmt: skip
COUNTED = frozenset(name + s for name in (  # nouns that name what was counted
    "unit way apple student person book ball car item point time piece number triangle card coin marble girl boy cookie egg page ticket solution "
    "integer term digit step side edge face block bag game team player animal dog cat flower tree orange pencil pen cup bottle question hand"
).split() for s in ("", "s")) | frozenset(
    "people child children candy candies vertex vertices box boxes st nd rd th 天 个 第 米 人 种 次 本 只 元 辆 张 页 岁 年 月 日 小时 分钟 秒 厘米 千米 千克 克 度 "
    "平方厘米 平方米 平方".split()
)  # fmt: skip
STANCES = dict.fromkeys("yes true correct 是 正确".split(), True) | dict.fromkeys("no false incorrect 否 错误".split(), False)
# Ways to say one thing; the first of each is its name.
PHRASES = {(phrase if "\\" in phrase else f"'{phrase.replace(' ', chr(39))}").lower(): row for row in (
    r"no solution|no solutions|none exist|no real solution|no real solutions|there is no solution|there are no solutions|no such solution|\emptyset|\{\}",
    r"infinity|infinitely many|infinite|infinitely many solutions|\infty",
    "does not exist|dne|not exist|limit does not exist|the limit does not exist", "undefined|not defined|is undefined",
    r"all real numbers|all reals|all real x|any real number|the real numbers|\mathbb{R}|(-\infty,\infty)|(-\infty,+\infty)",
    "converges|convergent|convergence", "diverges|divergent|divergence", "increasing|increases", "decreasing|decreases",
    "circle|kreis|kör|圆", "ellipse|ellipszis|椭圆", "parabola|parabel|抛物线", "hyperbola|hyperbel|hiperbola|双曲线",
) for phrase in row.split("|")}  # fmt: skip
LEADS = frozenset(
    "the a an answer is final solution solutions answers result value are it only option choice so therefore function".split()
)
OTHERS = frozenset("to am pm base usd not less more than but plus minus over where for with dne none infinite".split())
# Two letters that are as often a product, 2\pi hr and 3mg: a unit only in \text{}, or where the other side says so.
PRODUCTS = frozenset("mg ml kl nm um ms dm hr kn kj mj kw mw ev pa".split())
DOMAIN_WORDS = frozenset(
    "where for with any all every each is are a an the some arbitrary fixed given positive negative nonnegative non negative real rational natural "
    "integer integers constant constants number numbers numeric and be being to in parameter parameters which can".split()
)
KNOWN_WORDS = frozenset(
    word.lower() for table in (CONNECTIVES, NUMBERS, SCALES, PERCENT, CURRENCIES, UNITS, COUNTED, STANCES, LEADS, OTHERS)
    for word in table if (len(word) > 1 or not word.isascii()) and word.lower() not in PRODUCTS
)  # fmt: skip
