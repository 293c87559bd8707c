"""Bodies of requests that are compressed: decoded as they arrive, and never beyond a bound."""

import zlib

from serving.errors import RequestError

_GZIP = 16 + zlib.MAX_WBITS
"""zlib's sign of a gzip header and trailer."""


class Decoder:
    """Decodes the parts of a body.

    Args:
        encoding: what the request's Content-Encoding says; nothing for a body as it is.

    Raises:
        RequestError: 415, the encoding is none that this server knows.
    """

    def __init__(self, encoding: str) -> None:
        name = encoding.strip().lower()
        if name not in ("", "identity", "gzip", "x-gzip"):
            raise RequestError(
                f"content-encoding: {encoding[:40]!a} is not offered; send the body as it is, or as gzip",
                status=415,
                param="content-encoding",
            )
        self._gzip = zlib.decompressobj(_GZIP) if name.endswith("gzip") else None

    def decode(self, part: bytes, most: int, *, last: bool) -> bytes:
        """Return what a part holds; it is cut after one byte more than ``most``.

        Raises:
            RequestError: 400, it is not gzip, or the ``last`` part does not end it.
        """
        if self._gzip is None:
            return part
        try:
            found = self._gzip.decompress(part, most + 1)
        except zlib.error:
            raise _not_gzip("is not gzip") from None
        if len(found) <= most and (self._gzip.unused_data or (last and not self._gzip.eof)):
            raise _not_gzip("is not one whole gzip stream")
        return found


def _not_gzip(what: str) -> RequestError:
    return RequestError(
        f"the body {what}, as its content-encoding says; compress it again, or leave the header out",
        param="content-encoding",
    )
