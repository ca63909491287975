"""The words that the judge knows: tables, each with what its words may be taken for. Whatever is not here is never dropped.

Words of two letters and more only: a single letter is a variable.
"""

from fr3e_async.verify.signs import FUNCTIONS, GREEK

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
# What may follow a number without saying more than what was counted or measured; pint knows the units proper (``units``).
CURRENCIES = {
    "dollars": "dollar", "dollar": "dollar", "usd": "dollar", "cents": "cent", "cent": "cent", "euro": "euro", "euros": "euro", "eur": "euro",
    "pounds": "pound", "gbp": "pound", "yen": "yen", "jpy": "yen", "yuan": "yuan", "rmb": "yuan", "rupees": "rupee", "元": "yuan",
}  # fmt: skip
UNITS = frozenset(
    "mm cm dm km mg kg kg mL ml kL nm um ms min hr hrs sec secs kN kJ MJ kW MW mW kWh Hz kHz MHz GHz kPa MPa Pa eV keV MeV mol rad "
    "meter meters metre metres centimeter centimeters millimeter millimeters kilometer kilometers gram grams kilogram kilograms liter liters "
    "litre litres inch inches foot feet ft yard yards mile miles mph ounce ounces oz lb lbs second seconds minute minutes hour hours day days "
    "week weeks month months year years degree degrees radian radians newton newtons joule joules watt watts volt volts ohm ohms hertz pascal "
    "pascals kelvin celsius fahrenheit erg ergs ton tons tonne tonnes gallon gallons acre acres hectare hectares bit bits byte bytes kmph kph "
    "square cubic sq cu per".split()
)
COUNTED = frozenset(  # nouns that name what was counted
    "unit units way ways apple apples student students people person persons book books child children ball balls car cars item items point "
    "points time times piece pieces number numbers triangle triangles card cards coin coins marble marbles girl girls boy boys cookie cookies "
    "egg eggs page pages candy candies ticket tickets solution solutions integer integers term terms digit digits step steps side sides edge "
    "edges vertex vertices face faces block blocks box boxes bag bags game games team teams player players animal animals dog dogs cat cats "
    "flower flowers tree trees orange oranges pencil pencils pen pens cup cups bottle bottles question questions hand hands st nd rd th 天 个 "
    "第 米 人 种 次 本 只 元 辆 张 页 岁 年 月 日 小时 分钟 秒 厘米 千米 千克 克 度 平方厘米 平方米 平方".split()
)
STANCES = dict.fromkeys("yes true correct 是 正确".split(), True) | dict.fromkeys("no false incorrect 否 错误".split(), False)
# Ways to say one thing; the first of each is its name.
PHRASES = {(phrase if "\\" in phrase else f"'{phrase.replace(' ', chr(39))}").lower(): row for row in (
    r"no solution|no solutions|none exist|no real solution|no real solutions|there is no solution|there are no solutions|no such solution|\emptyset|\{\}",
    r"infinity|infinitely many|infinite|infinitely many solutions|\infty",
    "does not exist|dne|not exist|limit does not exist|the limit does not exist", "undefined|not defined|is undefined",
    r"all real numbers|all reals|all real x|any real number|the real numbers|\mathbb{R}|(-\infty,\infty)|(-\infty,+\infty)",
    "converges|convergent|convergence", "diverges|divergent|divergence", "increasing|increases", "decreasing|decreases",
) for phrase in row.split("|")}  # fmt: skip
LEADS = frozenset(
    "the a an answer is final solution solutions answers result value are it only option choice so therefore function".split()
)
OTHERS = frozenset("am pm base usd not less more than but plus minus over where for with dne none infinite".split())
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
