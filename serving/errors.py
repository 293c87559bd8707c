"""Requests that cannot be answered: what the engine, the middleware and the protocols raise."""

CLIENT_GONE = 499
"""The status that is logged and counted where the client closed the connection before the answer."""


class RequestError(Exception):
    """A request that cannot be answered: status, a message for the client, and which part is wrong."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after
        """Seconds; sent to the client with 429 and 503."""
