"""Pictures in requests: base64 or, where that is allowed, an address; bounded in size from the start."""

import asyncio
import base64
import binascii
import logging
import time
from dataclasses import dataclass

from PIL import Image

from fovea.fetch.client import Fetcher, FetchError, FetchLimits
from fovea.fetch.profiles import FetchProfile
from fovea.images import PictureError, PictureLimits, decode_picture
from serving.errors import RequestError
from serving.middleware import metrics

logger = logging.getLogger("serving")

ADDRESS = ("http://", "https://")


@dataclass(frozen=True)
class Picture:
    """A picture of a request.

    Args:
        where: the part of the request to name when it is refused.
        content: the file's bytes; or base64, a ``data:`` URL, or an address.
    """

    where: str
    content: str | bytes

    @property
    def is_address(self) -> bool:
        """Whether it has to be fetched."""
        return isinstance(self.content, str) and self.content[:8].lower().startswith(ADDRESS)

    def refusal(self, reason: str) -> RequestError:
        """Return the error that refuses this picture."""
        return RequestError(f"{self.where}: {reason}", param=self.where)


def decode(picture: Picture, limits: PictureLimits) -> Image.Image:
    """Decode a picture that has been fetched, or came with the request.

    Raises:
        RequestError: it is not base64, or the picture cannot be used.
    """
    started = time.perf_counter()
    content = picture.content
    data = content if isinstance(content, bytes) else _from_base64(picture, content, limits)
    try:
        return decode_picture(data, limits)
    except PictureError as error:
        raise picture.refusal(str(error)) from error
    finally:
        metrics.DECODE_TIME.observe(time.perf_counter() - started)


def _from_base64(picture: Picture, text: str, limits: PictureLimits) -> bytes:
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise picture.refusal("a data: URL must read data:image/…;base64,…")
    # MIME and many tools break lines.
    text = "".join(text.split())
    if len(text) > limits.max_bytes * 4 // 3 + 4:
        raise picture.refusal(f"at most {limits.max_bytes:,} bytes are allowed")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise picture.refusal(f"not base64 ({error})") from error


class PictureFetcher:
    """Fetches pictures by address, under the rules of a fetch profile.

    Its `Fetcher`, which remembers hosts, is replaced every few minutes: clients choose the hosts, so their
    number has no bound, and a host that failed may answer again.
    """

    _REMEMBERED_SECONDS = 300.0

    def __init__(self, profile: FetchProfile, limits: PictureLimits, seconds: float = 10.0) -> None:
        self._profile = profile
        self._limits = FetchLimits(
            max_bytes=limits.max_bytes, total_seconds=seconds, idle_seconds=min(5.0, seconds), attempts=2
        )
        self._turns = asyncio.Semaphore(32)
        self._fetcher = self._new()
        self._since = time.monotonic()

    def _new(self) -> Fetcher:
        return Fetcher(self._profile, self._limits)

    async def fetch(self, picture: Picture) -> Picture:
        """Return the picture with its bytes in place of its address.

        Raises:
            RequestError: it cannot be fetched. The message gives only the kind of reason, so that it reveals
                nothing about the network of the server.
        """
        if time.monotonic() - self._since > self._REMEMBERED_SECONDS:
            old, self._fetcher, self._since = self._fetcher, self._new(), time.monotonic()
            await old.__aexit__(None, None, None)
        started = time.perf_counter()
        try:
            async with self._turns:
                fetched = await self._fetcher.fetch(str(picture.content))
        except FetchError as error:
            logger.info("a picture was not fetched: %s", error.reason)
            raise picture.refusal(f"cannot be fetched ({_told(error)})") from None
        finally:
            metrics.FETCH_TIME.observe(time.perf_counter() - started)
        return Picture(picture.where, fetched.content)


def _told(error: FetchError) -> str:
    # Names that exist in this network only and names that do not exist look alike.
    hidden = ("forbidden_address", "connection_failed")
    return "no such address may be reached" if error.reason in hidden else error.reason.replace("_", " ")
