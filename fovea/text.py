"""Text from tables and models: cleaned for training, and made safe to print."""

import html
import re
import unicodedata

from fovea.errors import UnusableError

SPECIAL_TOKEN = re.compile(r"<\|[^|]*\|>|</?s>|<unk>", re.IGNORECASE)
"""Special tokens of the model, such as ``<|end|>``: they control it, so no value may hold one."""

IMAGE_MARK = "<|image_1|>"
"""The place of a prompt's first picture."""

MISSING_WORDS = frozenset(
    {"nan", "-nan", "null", "none", "n/a", "na", "#n/a", "#na", "<na>", "<null>", "\\n", "(null)", "#null!"}
)
"""Whole cells, in small letters, by which programs say that there is no value."""

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Not <s>, which is a token of the model, nor <script>, which no feed has for its looks.
_INLINE_TAG = re.compile(
    r"</?(?:a|abbr|b|big|em|font|i|img|ins|small|span|strong|sub|sup|u)(?:\s[^<>]*)?/?>", re.IGNORECASE
)
_BLOCK_TAG = re.compile(
    r"</?(?:br|center|div|h[1-6]|hr|li|ol|p|table|tbody|td|th|thead|tr|ul)(?:\s[^<>]*)?/?>", re.IGNORECASE
)


def is_missing(text: str) -> bool:
    """Return whether a whole cell says that there is no value, as ``NULL`` or ``#N/A`` does."""
    return text.strip().lower() in MISSING_WORDS


def without_markup(text: str) -> str:
    """Return text with HTML's entities decoded and the tags of running text removed."""
    decoded = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    return _INLINE_TAG.sub("", _BLOCK_TAG.sub(" ", decoded))


def is_valid_text(text: str) -> bool:
    """Return whether text can be written as UTF-8; half of a surrogate pair, half an emoji, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean_text(text: str, max_length: int) -> str:
    """Return text in Unicode's composed form (NFC), with single spaces and no invisible characters.

    Markup such as ``<script>`` is text like any other.

    Raises:
        UnusableError: ``invalid_text``, ``empty``, ``too_long``, ``control_character`` or ``special_token``.
    """
    if not is_valid_text(text):
        raise UnusableError("invalid_text")
    words = " ".join(unicodedata.normalize("NFC", text).split())
    # Format characters (zero-width, direction marks, soft hyphens) are invisible: no picture can show them.
    words = "".join(character for character in words if unicodedata.category(character) != "Cf").strip()
    if not words:
        raise UnusableError("empty")
    if len(words) > max_length:
        raise UnusableError("too_long")
    if not words.isprintable():
        raise UnusableError("control_character")
    if SPECIAL_TOKEN.search(words):
        raise UnusableError("special_token")
    return words


def printable(text: str, length: int) -> str:
    """Return ``text`` cut to ``length`` characters, with invisible and control characters replaced."""
    shown = "".join(each if each.isprintable() else _replacement(each) for each in text[: 8 * length])
    return shorten(shown, length)


def one_line(text: str, length: int) -> str:
    """Return ``text`` as `printable` does, on one line with single spaces."""
    return shorten(" ".join(printable(text, 4 * length).split()), length)


def plain_line(text: str, length: int = 1000) -> str:
    """Return ``text`` on one line without quotes, backslashes or braces, cut to ``length`` characters.

    The line becomes a pipeline parameter, and KFP's local runner evaluates conditions on parameters as code.
    """
    line = " ".join(text.translate(str.maketrans("", "", "\"'`\\{}")).split())
    return shorten("".join(character for character in line if character.isprintable()), length)


def shorten(text: str, length: int) -> str:
    """Return ``text`` with at most ``length`` characters; the last one is an ellipsis where it was cut."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _replacement(character: str) -> str:
    return " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
