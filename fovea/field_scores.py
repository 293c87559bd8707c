"""How likely a model found each field of its answer: from the tokens' log-probabilities to the fields'."""

import math
from collections.abc import Callable, Mapping, Sequence

Span = tuple[int, int]
"""First character of a field in an answer's text, and the first one after it."""


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

    That is the logarithm of the probability that the model, after what stands before the field, says just
    this value and then stops saying it. Without the token behind the field, ``139`` would be as sure as the
    ``1390`` that it could still have become. A token that reaches across a field's edge counts as the
    field's.

    Args:
        text: What the tokens are decoded to, without the token that ends the answer.
        spans: Of the fields, in ``text``.
        tokens: Of the text.
        logprobs: Of the tokens and, where the answer has ended, of the token that ended it.
        decode: From tokens to text.
        ended: Whether a token ended the answer.

    Returns:
        Scores, 0 at most. A field is missing where the answer was cut off before the field's end, or where
        the model's figures are no numbers.
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
    """Return for each token how many characters of ``text`` are whole with it, and how many are touched.

    Tokens are decoded with all that stands before them, since what a piece becomes depends on that: the first
    one loses its space, and bytes become a character only together.
    """
    places: list[tuple[int, int]] = []
    whole = 0
    for count in range(1, len(tokens) + 1):
        part = decode(tokens[:count])
        whole = max(whole, _common(text, part))
        places.append((whole, whole + (len(part) > whole)))
    return places


def _common(text: str, part: str) -> int:
    """Return how many characters two texts begin with alike."""
    if text.startswith(part):
        return len(part)
    return next(
        (at for at, (one, other) in enumerate(zip(text, part, strict=False)) if one != other), len(text)
    )
