"""Pictures as they come in requests: base64, bounded before and while they are decoded."""

import base64
import binascii

from PIL import Image

from fovea.pictures import PictureError, PictureLimits, decode_picture
from serving.errors import RequestError


def decode_base64_picture(text: str, limits: PictureLimits, where: str) -> Image.Image:
    """Decode a picture given as base64 or as a ``data:`` URL.

    Args:
        text: base64, with or without ``data:image/…;base64,`` in front.
        limits: bounds in bytes and pixels.
        where: the part of the request to name when it is refused.

    Raises:
        RequestError: it is an address and not a picture, is not base64, or the picture cannot be used.
    """
    if text.startswith(("http://", "https://")):
        raise RequestError(
            f"{where}: this server does not fetch pictures from addresses; send the picture itself, as "
            "data:image/jpeg;base64,…",
            param=where,
        )
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise RequestError(f"{where}: a data: URL must read data:image/…;base64,…", param=where)
    if len(text) > limits.max_bytes * 4 // 3 + 4:
        raise RequestError(f"{where}: at most {limits.max_bytes:,} bytes are allowed", param=where)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where}: not base64 ({error})", param=where) from error
    try:
        return decode_picture(data, limits)
    except PictureError as error:
        raise RequestError(f"{where}: {error}", param=where) from error
