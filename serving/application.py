"""The application: KServe's model server with our model, OpenAI's routes, bounds and error answers."""

import logging
import socket
import warnings
from functools import partial
from pathlib import Path

from fastapi.exceptions import FastAPIDeprecationWarning
from transformers.utils.logging import disable_progress_bar

from fovea.inference import Predictor
from serving.batching import Batcher
from serving.errors import add_error_handlers
from serving.kserve_api import ModelServer, app
from serving.limits import BodyLimit
from serving.model import KServeModel, ServedModel
from serving.openai import openai_router
from serving.server import ServerSettings

logger = logging.getLogger("serving")

_GRACE_SECONDS = 30


def run(settings: ServerSettings, folder: Path, digest: str, listener: socket.socket) -> None:
    """Load the model in ``folder`` and serve it on ``listener`` until the process is told to stop."""
    disable_progress_bar()
    # Of kserve's own use of FastAPI, once for each route.
    warnings.simplefilter("ignore", FastAPIDeprecationWarning)
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
