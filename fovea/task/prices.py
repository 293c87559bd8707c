"""Prices as feeds write them: with currency signs and codes, thousands separators and either decimal mark."""

import re
import unicodedata
from decimal import Decimal
from typing import Literal, NamedTuple

from fovea.errors import UnusableError
from fovea.text import MISSING_WORDS

DecimalMark = Literal["", ".", ","]

_MISSING = {"", "-", "--", "tbd"} | MISSING_WORDS

_CODES = frozenset(
    """
    AED ALL AMD ARS AUD AZN BAM BDT BGN BHD BND BOB BRL BYN CAD CHF CLP CNY COP CRC CZK DKK DOP DZD EGP EUR
    GBP GEL GHS GTQ HKD HNL HRK HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KHR KRW KWD KZT LBP LKR MAD MDL
    MKD MMK MNT MOP MUR MXN MYR NGN NIO NOK NPR NZD OMR PAB PEN PHP PKR PLN PYG QAR RON RSD RUB SAR SEK SGD
    THB TND TRY TWD TZS UAH UGX USD UYU UZS VES VND XAF XOF ZAR ZMW
    """.split()  # noqa: SIM905 - a list of ninety strings reads worse
)
# The currencies of a sign; "$" alone is any of the dollars and pesos.
_SIGNS = {
    "US$": "USD",
    "A$": "AUD",
    "AU$": "AUD",
    "C$": "CAD",
    "CA$": "CAD",
    "HK$": "HKD",
    "NT$": "TWD",
    "NZ$": "NZD",
    "S$": "SGD",
    "R$": "BRL",
    "$": "USD AUD CAD NZD SGD HKD TWD MXN ARS CLP COP",
    "€": "EUR",
    "£": "GBP EGP LBP",
    "¥": "JPY CNY",
    "元": "CNY TWD",
    "円": "JPY",
    "₩": "KRW",
    "₹": "INR",
    "RS": "INR PKR LKR NPR MUR",
    "₽": "RUB",
    "₺": "TRY",
    "₪": "ILS",
    "₫": "VND",
    "฿": "THB",
    "₴": "UAH",
    "ZŁ": "PLN",
    "KR": "SEK NOK DKK ISK",
    "KČ": "CZK",
    "FT": "HUF",
    "FR": "CHF",
    "SFR": "CHF",
    "RM": "MYR",
    "₱": "PHP",
    "TL": "TRY",
    "RP": "IDR",
    "R": "ZAR",
    "РУБ": "RUB",
    "РУБЛЕЙ": "RUB",
    "Р": "RUB",
    "ГРН": "UAH",
    "ر.س": "SAR",
    "LEI": "RON",
}
_TAXES = {"INCL", "INC", "INKL", "INCLUSA", "VAT", "TAX", "GST", "MWST", "UST", "TTC", "TVA", "IVA"}
_WITHOUT_CURRENCY = _TAXES | {"EACH", "EA", "PC", "STK", "STÜCK"}
"""Words around a price of one piece with its taxes, which say nothing about its currency."""
_THREE_DECIMALS = {"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"}

# A number, with the words and signs around it; "1390,-" has no cents, "1390-" may be a negative number.
_PRICE = re.compile(
    r"(?P<before>(?:[^\d.,]|(?<=[A-Za-z])\.)*)"
    r"(?P<number>\d[\d.,' ]*?)"
    r"(?:(?P<no_cents>[.,/:][-–—]+)|(?P<minus>[-–—]+))?"
    r"(?P<after>\D*)",
    re.ASCII,
)
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉"
_RAISED_CENTS = re.compile(rf"([^.,]*\d)([{_RAISED}]{{2}})(\D*)")
_FOOTNOTE = re.compile(rf"(.*\d[.,]\d\d)[{_RAISED}](\D*)")
# "US $": the sign that a country's letters belong to.
_COUNTRY = re.compile(r"\b(US|CA|AU|HK|NZ|NT|A|C|S|R)\s+\$", re.IGNORECASE)
# ".75", ",89"
_WITHOUT_ZERO = re.compile(r"(?<![\w.,])([.,]\d{1,2})(?!\d)")
_THREE_AFTER_MARK = re.compile(r"\d{1,3}[.,]\d{3}", re.ASCII)
_MAX_LENGTH = 50
_RATE = re.compile(r"\d{1,9}(\.\d{1,12})?|\.\d{1,12}", re.ASCII)
_TOO_MUCH = Decimal(10) ** 12
# Thousands in groups of three, or as in India: 1,39,000.
_GROUPED = re.compile(r"\d{1,3}(?:([., '])\d{3})(?:\1\d{3})*|\d{1,2}(?:,\d{2})+,\d{3}", re.ASCII)


class Price(NamedTuple):
    """An amount, and the possible currencies of its sign or code (none where it has neither)."""

    amount: float
    currencies: frozenset[str]


def parse_price(value: str | Decimal, decimal_mark: DecimalMark = "") -> Price:
    """Read a price, rounded to cents; a number is what it is, however text would be read.

    Without a ``decimal_mark``, a single comma before three digits separates thousands; a single point there
    (``1.390``) is ambiguous.

    Raises:
        UnusableError: ``missing``, ``ambiguous``, ``unreadable`` or ``not_positive``.
    """
    if isinstance(value, Decimal):
        return Price(_positive(value), frozenset())
    text = unicodedata.normalize("NFKC", _lowered(value)).replace("’", "'").strip()
    if text.lower() in _MISSING:
        raise UnusableError("missing")
    text = _WITHOUT_ZERO.sub(r"0\1", _COUNTRY.sub(r"\1$", text))
    match = _PRICE.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        raise UnusableError("unreadable")
    number, currencies = match["number"].strip(), _currencies(match["before"], match["after"])
    if match["no_cents"]:
        amount = _whole(number)
    elif currencies & _THREE_DECIMALS and not decimal_mark and _THREE_AFTER_MARK.fullmatch(number):
        raise UnusableError("ambiguous")
    else:
        amount = _amount(number, decimal_mark)
    if match["minus"]:
        raise UnusableError("not_positive" if amount % 1 else "ambiguous")
    return Price(_positive(amount), currencies)


def _lowered(text: str) -> str:
    """Return a price with raised digits as cents, and without the mark of a footnote.

    Raises:
        UnusableError: ``ambiguous``, for raised digits that could be either.
    """
    if not any(digit in text for digit in _RAISED):
        return text
    cents, footnote = _RAISED_CENTS.fullmatch(text), _FOOTNOTE.fullmatch(text)
    if cents:
        return f"{cents[1]}.{unicodedata.normalize('NFKC', cents[2])}{cents[3]}"
    if footnote:
        return f"{footnote[1]}{footnote[2]}"
    raise UnusableError("ambiguous")


def parse_rate(value: str | Decimal) -> Decimal:
    """Read a rate of exchange: a plain number with at most one decimal mark, a point or a comma.

    Raises:
        UnusableError: ``missing``, ``unreadable`` or ``not_positive``.
    """
    text = str(value).strip().replace(",", ".")
    if text.lower() in _MISSING:
        raise UnusableError("missing")
    if not _RATE.fullmatch(text):
        raise UnusableError("unreadable")
    rate = Decimal(text)
    if not rate:
        raise UnusableError("not_positive")
    return rate


def convert(amount: float, rate: Decimal) -> float:
    """Return an amount in another currency, rounded to cents.

    Raises:
        UnusableError: ``not_positive``, where less than a cent is left, or ``unreadable``: absurdly much.
    """
    return _positive(Decimal(repr(amount)) * rate)


def _positive(amount: Decimal) -> float:
    if amount >= _TOO_MUCH:
        raise UnusableError("unreadable")
    amount = round(amount, 2)
    if amount <= 0:
        raise UnusableError("not_positive")
    return float(amount)


def _currencies(before: str, after: str) -> frozenset[str]:
    """Return the currencies that all words and signs around a number allow."""
    possible: frozenset[str] | None = None
    for word in [*before.upper().split(), *after.upper().replace("/", " ").split()]:
        name = word.strip(".:,*")
        if not name or name in _WITHOUT_CURRENCY:
            continue
        stands_for = frozenset(_SIGNS.get(name, name if name in _CODES else "").split())
        if not stands_for:
            raise UnusableError("unreadable")
        possible = stands_for if possible is None else possible & stands_for
    if possible is not None and not possible:
        raise UnusableError("unreadable")
    return possible or frozenset()


def _whole(number: str) -> Decimal:
    """Return a number without decimals, whose separators are of thousands."""
    if not (number.isdigit() or _GROUPED.fullmatch(number)):
        raise UnusableError("unreadable")
    return Decimal(re.sub(r"\D", "", number))


def _amount(number: str, decimal_mark: str) -> Decimal:
    mark = decimal_mark or _find_decimal_mark(number)
    whole, _, fraction = number.partition(mark) if mark else (number, "", "")
    separators = set(whole) - set("0123456789")
    if separators and not (separators != {mark} and _GROUPED.fullmatch(whole)):
        raise UnusableError("unreadable")
    digits = "".join(character for character in whole if character.isdigit())
    if (fraction and not fraction.isdigit()) or not digits or len(digits) > 12:
        raise UnusableError("unreadable")
    return Decimal(f"{digits}.{fraction or 0}")


def _find_decimal_mark(number: str) -> str:
    """Return the decimal mark of a number, or nothing where it has only thousands separators or none."""
    points, commas = number.count("."), number.count(",")
    if points and commas:
        return max(".", ",", key=number.rfind)
    if points + commas != 1:
        return ""
    mark = "." if points else ","
    whole, _, fraction = number.partition(mark)
    could_be_thousands = len(fraction) == 3 and _GROUPED.fullmatch(number)
    if not could_be_thousands or whole == "0":
        return mark
    if mark == ".":
        raise UnusableError("ambiguous")
    return ""
