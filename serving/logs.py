"""What the server logs: a line an event, on standard error."""

import logging
import logging.config


def configure_logging() -> None:
    """Set logging up, for KServe and uvicorn too, which leave alone what is set up already."""
    logging.config.dictConfig(_LOGGING)


class _Quiet(logging.Filter):
    """Keeps probes and scrapes out of the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(part in message for part in ("/metrics ", "/v2/health/", '"GET / '))


class _OneLine(logging.Filter):
    """KServe logs a traceback for each request that a caller got wrong: one line says it all."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and type(error).__module__ == "kserve.errors":
            record.msg, record.args, record.exc_info = str(error), (), None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"quiet": {"()": _Quiet}, "one_line": {"()": _OneLine}},
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {
        "line": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["quiet", "one_line"]}
    },
    "root": {"handlers": ["line"], "level": "WARNING"},
    "loggers": {
        "fovea": {"level": "INFO"},
        "serving": {"level": "INFO"},
        "kserve": {"level": "WARNING"},
        "kserve.trace": {"level": "WARNING"},
        "uvicorn": {"level": "WARNING"},
        "uvicorn.access": {"level": "INFO"},
    },
}
