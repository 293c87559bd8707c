"""Compute the likelihood of each field of an answer from the tokens' log-probabilities."""

import math
from collections.abc import Callable, Mapping, Sequence

Span = tuple[int, int]
"""Start and end (exclusive) of a field in an answer's text."""


def field_scores(
    text: str,
    spans: Mapping[str, Span],
    tokens: Sequence[int],
    logprobs: Sequence[float],
    decode: Callable[[Sequence[int]], str],
    *,
    ended: bool,
) -> dict[str, float]:
    """Return each field's score: the sum of the log-probabilities of its tokens and of the one that ends it.

    This is the logarithm of the probability that the model, given the text before the field, generates
    exactly this value and then ends it. Without the token after the field, ``139`` would be as likely as the
    ``1390`` that could still follow. A token that crosses a field's boundary counts for the field.

    Args:
        text: The decoded tokens, without the token that ends the answer.
        spans: Positions of the fields in ``text``.
        tokens: Of the text.
        logprobs: Of the tokens and, if the answer has ended, of the token that ended it.
        decode: Converts tokens to text.
        ended: Whether a token ended the answer.

    Returns:
        Scores, at most 0. A field is missing if the answer was cut off before the end of the field, or if
        the log-probabilities are not finite.
    """
    places = _places(text, tokens, decode)
    if ended:
        places.append((len(text) + 1, len(text) + 1))
    scores = {}
    for name, (start, end) in spans.items():
        first = next((i for i, (_, touched) in enumerate(places) if touched > start), len(places))
        last = next((i for i, (whole, _) in enumerate(places) if whole > end), None)
        if last is None:
            continue
        score = sum(logprobs[first : last + 1])
        if math.isfinite(score):
            scores[name] = min(0.0, score)
    return scores


def _places(
    text: str, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> list[tuple[int, int]]:
    """Return for each token how many characters of ``text`` are complete after it, and how many it touches.

    Tokens are decoded together with those before them, because the result depends on them: the first
    token loses its space, and several tokens can form one character.
    """
    places: list[tuple[int, int]] = []
    whole = 0
    for count in range(1, len(tokens) + 1):
        part = decode(tokens[:count])
        whole = max(whole, _common(text, part))
        places.append((whole, whole + (len(part) > whole)))
    return places


def _common(text: str, part: str) -> int:
    """Return the length of the common prefix of two texts."""
    if text.startswith(part):
        return len(part)
    return next(
        (at for at, (one, other) in enumerate(zip(text, part, strict=False)) if one != other), len(text)
    )
