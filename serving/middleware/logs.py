"""The log: a line for each event, on standard error, as text for people or as JSON for machines."""

import json
import logging
import logging.config
import re
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import CLIENT_GONE
from serving.middleware import metrics
from serving.settings import LogFormat

REQUEST_ID = "x-request-id"
_PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

# Probes and scrapes come every few seconds.
_QUIET = ("/metrics", "/v2/health/live", "/v2/health/ready")

logger = logging.getLogger("serving")


def configure_logging(form: LogFormat = "line") -> None:
    """Set logging up, for KServe and uvicorn too."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "line": {"format": "%(asctime)s %(levelname)s %(message)s"},
                "json": {"()": JsonFormatter},
            },
            "handlers": {"all": {"class": "logging.StreamHandler", "formatter": form}},
            "root": {"handlers": ["all"], "level": "WARNING"},
            "loggers": {
                "fovea": {"level": "INFO"},
                "serving": {"level": "INFO"},
                "kserve": {"level": "WARNING"},
                "kserve.trace": {"level": "WARNING"},
                "uvicorn": {"level": "WARNING"},
                "uvicorn.access": {"level": "WARNING"},
            },
        }
    )


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class RequestLog:
    """ASGI middleware: gives each request an id, counts and times it, and logs it in a line.

    The line holds neither pictures nor answers, and of the path no more than its route.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log its status and time."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex
        notes = scope.setdefault("state", {}).setdefault("notes", {})
        status = CLIENT_GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - started
            route = _route(scope)
            metrics.HTTP_REQUESTS.labels(route, str(status)).inc()
            metrics.HTTP_TIME.labels(route).observe(seconds)
            if route not in _QUIET:
                _log(
                    {
                        "request_id": request_id,
                        "method": scope["method"],
                        "route": route,
                        "status": status,
                        "ms": round(seconds * 1000, 1),
                        **notes,
                    }
                )


def _route(scope: Scope) -> str:
    """Return the route's template: clients choose the path, and labels of metrics must not grow with it."""
    route = scope.get("route")
    return getattr(route, "path", None) or "none"


def _log(fields: dict[str, Any]) -> None:
    text = f"{fields['method']} {fields['route']} {fields['status']} in {fields['ms']:g} ms"
    rest = [
        f"{name}={value}" for name, value in fields.items() if name not in ("method", "route", "status", "ms")
    ]
    logger.info("%s (%s)", text, ", ".join(rest), extra={"fields": fields})
