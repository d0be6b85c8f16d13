"""The numbers that a text names, read exactly: the one grammar of gold answers and of what a model writes.

A numeral may carry a sign ("−5", "- 5"), a currency, thousands' separators ("1,000", "1 000", "1'000", Indian
"1,23,456"), decimals, a fraction ("3/4", "1 1/2", "2½"), a power ("10²"), an exponent ("1e3", "5 × 10^3"), a word or
letter of scale ("5k", "2.5 million"); it may be LaTeX, full-width, or in the digits of any script. Values are exact
fractions and every size is bounded; nothing is ever evaluated.

What can be read in two ways is not read: "2,5", "1,2345", "2:30" and "1/2/2020" are numerals without a value.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from functools import cache

LONGEST = 100  # characters of a numeral, digits of a power; anything longer has no value

SCALES = {
    "k": 10**3,
    "hundred": 10**2,
    "thousand": 10**3,
    "lakh": 10**5,
    "crore": 10**7,
    "million": 10**6,
    "mn": 10**6,
    "billion": 10**9,
    "bn": 10**9,
    "trillion": 10**12,
    "tn": 10**12,
}
SCALE_WORD = "|".join(word for word in SCALES if word != "k")
GROUPED = r"[1-9][0-9]{0,2}(?P<separator>[, '])[0-9]{3}(?:(?P=separator)[0-9]{3})*|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}"
END = r"(?![0-9]|[.,'_:/^]-?[0-9]|e[+-]?[0-9])"
THOUSANDS = re.compile(  # a numeral with thousands' commas, in a text as it stands
    r"(?<![0-9.,])(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3})(?![0-9]|,[0-9])"
)
NUMERAL = re.compile(
    r"(?P<sign>(?<![\w.)\]-])-|(?<![\w.)\]-])(?<![\w.)\]] )- )?"  # "3-5" and "x - 5" subtract; else it is a sign
    r"(?:"
    r"(?:(?:(?P<whole>[0-9]{1,9}) )?(?P<top>[0-9]{1,30}) ?/ ?(?P<bottom>[0-9]{1,30})"
    rf"|(?P<decimal>(?:{GROUPED}|[0-9]++)(?:\.[0-9]++)?|(?<![\w.])\.[0-9]++)"
    r"(?:\^(?P<power>-?[0-9]{1,3})|e(?P<exponent>[+-]?[0-9]{1,2})| ?[*x] ?10\^(?P<ten>-?[0-9]{1,2}))?"
    rf"){END}"
    rf"(?P<scale>k(?![a-z0-9])|(?:[ -]?(?:{SCALE_WORD})s?(?![a-z]))+)?"
    r"|[0-9]++(?:(?:[.,'_:/]|\^-?|e[+-]?)[0-9]++)*+)"  # no value: the longest run, so that no part of it is read
)

# Around the only numeral of a text, which stands as 0 here, these say that the text names another number.
OPERATION = re.compile(
    r"[√∛π∞^±≤≥≠]|(?<![a-z])(?:sqrt|pi|log|ln|frac|binom)(?![a-z])"
    r"|(?<![=-])[<>]=? ?\(*+0"
    r"|0\)*+ ?(?:[+÷]|\* ?[\w(]|- ?(?:\(|[a-z](?![a-z])))|0 ?[xyzn](?![a-z])"  # 5 + x, 5*x, 5 - x, 2x
    r"|[\w)\]](?: ?[-+] |[-+])\(*+0|[\w)\]] ?[*÷/] ?\(*+0(?!\*)|[-*÷/] ?\(++0"  # x - 5, x/5, -(5)
    r"|(?<![a-z])(?:not|minus|plus|times|half|halves|third|quarter|twice|double|triple|dozens?)(?![a-z])"
)

SIGN_WORD = re.compile(r"(?<![\w)\]] )(?<![\w)\]])(?:minus|negative) (?=\.?[0-9])|(?<![a-z])negative (?=\.?[0-9])")
MINUS = frozenset("‐‑‒–—―−˗﹘﹣－➖")
OTHER = {"’": "'", "‘": "'", "∕": "/", "×": "*", "·": "*", "⋅": "*", "∙": "*", "٬": ",", "٫": "."}
SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
VULGAR_FRACTION = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞↉])")
SPACES = re.compile(r"[^\S\n]+")
MARKUP = re.compile(r"</?[a-z][a-z0-9]*>|\*\*|__|`", re.IGNORECASE)
UNIT_POWER = re.compile(
    r"(?<![a-z])((?:[cdkm]?m|ft|in|yd|mi|s|feet|foot|inch(?:es)?|(?:centi|kilo)?met(?:er|re)s?|yards?|miles?|units?)"
    r")(?:[ })]*\^)?[23](?![0-9])",
    re.IGNORECASE,
)
MILLIONS = re.compile(r"(?<=[0-9])([MB])(?![A-Za-z0-9])")  # "5m" is metres
LATEX: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\\!"), ""),
    (re.compile(r"\{ *([,.]) *\}"), r"\1"),
    (re.compile(r"\\[,;: ]"), " "),
    (re.compile(r"\^ *\{? *\\circ *\}?"), ""),
    (re.compile(r"\^ *\{ *(-?[0-9]+) *\}"), r"^\1"),
    (re.compile(r"\\(?:times|cdot)(?![a-z])"), "*"),
    (
        re.compile(r"\\[cdt]?frac *(?:\{ *(-?[0-9]+) *\}|([0-9])) *(?:\{ *([0-9]+) *\}|([0-9]))"),
        lambda found: f"{_gap(found)}{found[1] or found[2]}/{found[3] or found[4]}",
    ),
    (re.compile(r"\\(?:text|mathrm|mbox)[a-z]* *\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\|\{\}"), ""),
)


def numbers(text: str) -> list[Fraction | None]:
    """The value of every numeral in `text`, in order; None where one can be read in two ways or is too long."""
    return [_value(found) for found in NUMERAL.finditer(_plain(text))]


def number(text: str) -> Fraction | None:
    """The number that `text` names: the value of its only numeral, where nothing around it computes further."""
    plain = _plain(text)
    found = NUMERAL.search(plain)
    if found is None or NUMERAL.search(plain, found.end()) or OPERATION.search(_blanked(plain, found)):
        return None
    return _value(found)


def written(value: Fraction) -> str:
    """The one way a value is written: a decimal ("0.5") where it has an end, else a reduced fraction ("1/3")."""
    places = _decimal_places(value.denominator)
    if places is None:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else sign + digits


def _blanked(plain: str, found: re.Match[str]) -> str:
    return f"{plain[: found.start()]}0{plain[found.end() :]}"


def _plain(text: str) -> str:
    """`text` in the characters of the grammar: no LaTeX, no currency, one kind of minus and of space, lower case."""
    if not text.isascii():
        text = SUPERSCRIPT.sub(lambda found: "^" + unicodedata.normalize("NFKC", found[0]), text)
        text = "".join(map(_ascii, VULGAR_FRACTION.sub(" ", text)))
    if "\\" in text or "{" in text:
        for pattern, replacement in LATEX:
            text = pattern.sub(replacement, text)
    text = MARKUP.sub(" ", text.replace("$", ""))
    text = MILLIONS.sub(r"\1n", UNIT_POWER.sub(r"\1", text))
    return SIGN_WORD.sub("-", SPACES.sub(" ", text.lower()).strip())


@cache
def _ascii(character: str) -> str:
    """One character as the grammar knows it, or as it is."""
    if character.isascii():
        return character
    if character in MINUS:
        return "-"
    if character in OTHER:
        return OTHER[character]
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    kind = unicodedata.category(character)
    if kind in ("Sc", "Cf"):  # currencies and what nobody sees
        return ""
    if kind == "Zs":
        return " "
    return unicodedata.normalize("NFKC", character).replace("⁄", "/").replace("−", "-")


def _gap(found: re.Match[str]) -> str:
    """A space where the fraction follows a whole number, as in 2½."""
    return " " if found.string[: found.start()][-1:].isdigit() else ""


def _value(found: re.Match[str]) -> Fraction | None:
    if found["top"] is not None:
        magnitude = _fraction(found["whole"], int(found["top"]), int(found["bottom"]))
    elif found["decimal"] is not None and len(found[0]) <= LONGEST:
        magnitude = _decimal(found)
    else:
        magnitude = None
    if magnitude is None:
        return None
    scale = math.prod(SCALES[word] for word in re.findall(rf"k|{SCALE_WORD}", found["scale"] or ""))
    return magnitude * (-scale if found["sign"] else scale)


def _fraction(whole: str | None, top: int, bottom: int) -> Fraction | None:
    if bottom == 0 or (whole is not None and not 0 < top < bottom):
        return None
    return int(whole or 0) + Fraction(top, bottom)


def _decimal(found: re.Match[str]) -> Fraction | None:
    base = Fraction(re.sub("[, ']", "", found["decimal"]))
    power = int(found["power"] or 1)
    if abs(power) * len(found["decimal"]) > LONGEST or (power < 0 and base == 0):
        return None
    ten = int(found["exponent"] or found["ten"] or 0)
    return base**power * Fraction(10) ** ten


def _decimal_places(denominator: int) -> int | None:
    """Decimals that write 1/denominator exactly; None when it never ends (a prime factor other than 2 and 5)."""
    powers = {2: 0, 5: 0}
    for prime in powers:
        while denominator % prime == 0:
            denominator //= prime
            powers[prime] += 1
    return max(powers.values()) if denominator == 1 else None
