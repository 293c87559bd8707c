"""The application: KServe's model server with our model, OpenAI's routes, bounds and error answers."""

import logging
import logging.config
import socket
import warnings
from functools import partial
from pathlib import Path

from fastapi.exceptions import FastAPIDeprecationWarning
from transformers.utils.logging import disable_progress_bar

from fovea.inference import Predictor
from serving.batching import Batcher
from serving.errors import add_error_handlers
from serving.kserve_api import ModelServer, app, configure_logging
from serving.limits import BodyLimit
from serving.location import locate_model
from serving.model import KServeModel, ServedModel
from serving.openai import openai_router
from serving.server import ServerSettings

logger = logging.getLogger("serving")

_GRACE_SECONDS = 30


def run(settings: ServerSettings, listener: socket.socket) -> None:
    """Load the model and serve it on ``listener`` until the process is told to stop."""
    configure_logging(_LOGGING)
    disable_progress_bar()
    # Of kserve's own use of FastAPI, once for each route.
    warnings.simplefilter("ignore", FastAPIDeprecationWarning)
    if settings.digest is None:
        folder, digest = locate_model(settings.model)
    else:
        folder, digest = Path(settings.model), settings.digest
    logger.info("loading %s", digest)
    predictor = Predictor.load(folder, device=settings.device, dtype=settings.dtype)
    batcher = Batcher(predictor, settings.max_batch_size)
    served = ServedModel(settings.name, digest, predictor, batcher)
    served.warm_up()
    app.include_router(openai_router(served))
    add_error_handlers(app)
    app.add_middleware(BodyLimit)
    try:
        _Server(listener, settings).start([KServeModel(served)])
    finally:
        batcher.close()
    logger.info("stopped")


class _Server(ModelServer):  # type: ignore[misc]
    """KServe's server, on a socket that is bound already: KServe itself would listen on every interface."""

    def __init__(self, listener: socket.socket, settings: ServerSettings) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__(
            http_port=port, enable_grpc=False, enable_latency_logging=False, grace_period=_GRACE_SECONDS
        )
        self._listener = listener
        self._address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._address_file = settings.address_file

    async def _serve(self) -> None:
        uvicorn_server = self._rest_server._server
        uvicorn_server.serve = partial(uvicorn_server.serve, sockets=[self._listener])
        self._listener.listen()
        logger.info("answering at %s", self._address)
        if self._address_file is not None:
            # Whoever waits for the file finds it whole.
            part = self._address_file.with_name(self._address_file.name + ".part")
            part.write_text(self._address)
            part.replace(self._address_file)
        await super()._serve()


class _Quiet(logging.Filter):
    """Keeps probes and scrapes out of the access log, and tracebacks of callers' mistakes out of the log."""

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
