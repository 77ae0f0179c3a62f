"""What of a written text has another form when it is read aloud: money, dates, times, years, units, initials.

espeak-ng reads whole numbers, decimals, ordinals and percentages as people do, and they stay digits here. What it reads
otherwise is rewritten so that it does, in American English: "$5.99" it says as "dollar five, ninety nine", "12/25/2020"
with two slashes, "1998" as "nineteen hundred ninety eight", "VIII" as "roman eight", "Jan." as "jan". The authors'
cleaning (data/phonemes.py) has eighteen abbreviations; it runs after this, on what is left.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTH_OF = {month[:3]: month for month in _MONTHS} | {"sept": "september"}
_MONEY = {
    "$": ("dollar", "dollars", "cents"),
    "€": ("euro", "euros", "cents"),
    "£": ("pound", "pounds", "pence"),
    "¥": ("yen", "yen", ""),
}
_UNITS = {
    **{"km/h": "kilometers per hour", "mph": "miles per hour", "m/s": "meters per second"},
    **{"km": "kilometers", "cm": "centimeters", "mm": "millimeters", "kg": "kilograms", "mg": "milligrams"},
    **{"lb.": "pounds", "lbs.": "pounds", "lb": "pounds", "lbs": "pounds", "oz": "ounces", "oz.": "ounces"},
    **{"ft.": "feet", "ft": "feet", "mi.": "miles", "khz": "kilohertz", "mhz": "megahertz"},
    **{"hz": "hertz", "db": "decibels", "ml": "milliliters", "kb": "kilobytes", "mb": "megabytes", "gb": "gigabytes"},
    **{"°c": "degrees celsius", "°f": "degrees fahrenheit", "°": "degrees", "min.": "minutes", "sec.": "seconds"},
}
_FRACTIONS = {
    **{"1/2": "one half", "1/3": "one third", "2/3": "two thirds"},
    **{"1/4": "one quarter", "3/4": "three quarters", "1/8": "one eighth"},
}
_ABBREVIATIONS = {
    **{"e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "approx.": "approximately"},
    **{"ph.d.": "p-h-d", "prof.": "professor", "dept.": "department", "mt.": "mount", "ave.": "avenue"},
    **{"sr.": "senior", "inc.": "incorporated", "govt.": "government"},
}
_DECADES = (
    *("hundreds", "tens", "twenties", "thirties", "forties"),
    *("fifties", "sixties", "seventies", "eighties", "nineties"),
)
_ROMAN = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_ROMAN += ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_SCALES = "thousand|million|billion|trillion"
_ADDRESS = re.compile(
    r"(?:https?://)?(?:[\w.+-]+@)?(?:[a-z0-9-]+\.)+(?:com|org|net|edu|gov|io|ai|co|info|dev|uk|de|fr|eu|us|ca|au)\b"
    r"(?:/[\w./%~-]*\w)?/?",
    re.IGNORECASE,
)
_ADDRESS_MARKS = {".": " dot ", "/": " slash ", "@": " at ", "-": " dash ", "_": " underscore ", "+": " plus "}


def foreign_script(text: str) -> tuple[str, str] | None:
    """The first word in letters that are not Latin, and the name of their script; None where all are Latin."""
    for word in text.split():
        for symbol in word:
            name = unicodedata.name(symbol, "") if unicodedata.category(symbol) in ("Lu", "Ll", "Lt", "Lo") else ""
            script = name.split(" ")[0].split("-")[0]
            # Signs such as that of micro, and ordinals, are letters to Unicode.
            if name and script not in ("LATIN", "MICRO", "FEMININE", "MASCULINE", "FULLWIDTH", "MODIFIER", "KELVIN"):
                return word, {"CJK": "Chinese"}.get(script, script.capitalize())
    return None


def in_words(text: str) -> str:
    """The text with what is read in another way than it is written rewritten so that espeak-ng reads it right."""
    text = re.sub("[‐‑]", "-", text).replace("’", "'")
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def _address(match: re.Match) -> str:
    said = re.sub(r"^https?://", "", match[0], flags=re.IGNORECASE).rstrip("/")
    return "".join(_ADDRESS_MARKS.get(symbol, symbol) for symbol in said)


def _money(match: re.Match) -> str:
    one, many, parts = _MONEY[match["sign"]]
    whole, _, part = match["amount"].partition(".")
    if match["scale"]:
        return f"{match['amount']} {match['scale']} {many}"
    unit = one if whole == "1" else many
    if not part.strip("0"):
        return f"{whole} {unit}"
    if len(part) != 2 or not parts:
        return f"{whole}.{part} {many}"
    cents = f"{int(part)} {parts if int(part) != 1 else {'cents': 'cent', 'pence': 'penny'}[parts]}"
    return cents if not whole.strip("0") else f"{whole} {unit} and {cents}"


def _date(year: str, month: str, day: str, otherwise: str) -> str:
    if not 1 <= int(month) <= 12 or not 1 <= int(day) <= 31:
        return otherwise
    return f"{_MONTHS[int(month) - 1]} {_ordinal(int(day))}, {_year(year)}"


def _slashed(match: re.Match) -> str:
    first, second, year = match.groups()
    month, day = (second, first) if int(first) > 12 else (first, second)  # the American order, where it can be
    return _date(year, month, day, match[0])


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _year(text: str) -> str:
    """A year in two halves; as it is where people do not say it so."""
    century, rest = divmod(int(text), 100)
    if not 11 <= century <= 20 or 2000 <= int(text) < 2010:
        return text
    return f"{century} {'hundred' if not rest else f'oh {rest}' if rest < 10 else rest}"


def _decade(match: re.Match) -> str:
    century, decade = match["century"] or "", _DECADES[int(match["decade"])]
    return "two thousands" if century == "20" and decade == "hundreds" else f"{century} {decade}".strip()


def _time(match: re.Match) -> str:
    hour, minute = int(match[1]), int(match[2])
    if hour > 24 or minute > 59:
        return match[0]
    if not minute:
        return f"{hour}" if match[3] else f"{hour} o'clock"
    return f"{hour} oh {minute}" if minute < 10 else f"{hour} {minute}"


def _roman(match: re.Match) -> str:
    value, digits = 0, [{"I": 1, "V": 5, "X": 10}[symbol] for symbol in match[0]]
    for digit, following in zip(digits, [*digits[1:], 0]):
        value += -digit if digit < following else digit
    return _ROMAN[value] if value < len(_ROMAN) else match[0]


def _of_table(table: dict[str, str]) -> tuple[str, Callable[[re.Match], str]]:
    longest = sorted(table, key=len, reverse=True)
    return "|".join(map(re.escape, longest)), lambda match: table[match["key"].lower()]


def _rules() -> list[tuple[re.Pattern, str | Callable[[re.Match], str]]]:
    units, unit = _of_table(_UNITS)
    fractions, fraction = _of_table(_FRACTIONS)
    abbreviations, abbreviation = _of_table(_ABBREVIATIONS)
    months, month = _of_table(_MONTH_OF)
    edge = r"(?<![\w.,/-])"  # no part of a longer number or word
    end = r"(?![\w/-]|[.,:]\d)"
    anyhow = re.IGNORECASE
    return [
        (_ADDRESS, _address),
        (re.compile(rf"(?P<sign>[$€£¥])\s?(?P<amount>{_NUMBER})(?:\s(?P<scale>{_SCALES}))?(?!\d)"), _money),
        (re.compile(rf"{edge}(\d{{1,2}})/(\d{{1,2}})/(\d{{4}}){end}"), _slashed),
        (re.compile(rf"{edge}(\d{{4}})-(\d\d)-(\d\d){end}"), lambda m: _date(*m.groups(), m[0])),
        (re.compile(rf"{edge}(?P<key>{fractions}){end}"), fraction),
        (re.compile(rf"{edge}(\d{{1,2}}):(\d\d)(?!:?\d)(\s?[ap]\.?m\b)?", anyhow), lambda m: _time(m) + (m[3] or "")),
        (re.compile(rf"{edge}\(?(\d)(\d)(\d)\)?[ -](\d)(\d)(\d)(\d){end}"), r"\1 \2 \3, \4 \5 \6 \7"),
        (re.compile(r"(?<=\d)\s?[-–](?=\d)"), " to "),
        (re.compile(r"(\d)'\s?(\d{1,2})(?:\"|'')"), r"\1 feet \2 inches"),
        (re.compile(rf"(?<=\d)\s?(?P<key>{units})(?![\w/])", anyhow), lambda m: f" {unit(m)}"),
        (re.compile(rf"{edge}'?(?P<century>1[1-9]|20)?(?P<decade>\d)0'?s\b"), _decade),
        (re.compile(rf"{edge}(1[1-9]\d\d|20\d\d)(?![\w/%°-]|[.,:]\d)"), lambda m: _year(m[1])),
        (re.compile(rf"\b(?P<key>{abbreviations})(?!\w)", anyhow), abbreviation),
        (re.compile(rf"\b(?P<key>{months})\.(?=\s+\d)", anyhow), month),
        (re.compile(r"\bN[or]\.\s?(?=\d)|#(?=\d)"), "number "),
        (re.compile(r"\b([a-z])\.(?:([a-z])\.)+(?!\w)", anyhow), lambda m: "-".join(re.findall(r"\w", m[0]))),
        (re.compile(r"(?<=[a-z] )(?=[IVX]{2})X{0,2}(?:IX|IV|V?I{0,3})\b"), _roman),
        (re.compile(r"\s?\(\s*([^()]*?)\s*\)(?=[.,;:!?])"), r", \1"),
        (re.compile(r"\s?\(\s*([^()]*?)\s*\)"), r", \1,"),
        (re.compile(r"(?<=\s)<(?=\s)"), "less than"),
        (re.compile(r"(?<=\s)>(?=\s)"), "greater than"),
        (re.compile(r"[*~`^|\\]+|(?<!\w)_+|_+(?!\w)"), " "),  # marks of style, which espeak-ng would name
    ]


_RULES = _rules()
