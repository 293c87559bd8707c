"""The application: KServe's model server with our model, routes, bounds and error answers."""

import logging
import socket
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import FastAPIDeprecationWarning
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from transformers.utils.logging import disable_progress_bar

from fovea.errors import UserError
from fovea.evaluation.calibration import Calibration
from fovea.inference import Predictor
from fovea.platform import load_platform
from fovea.records import EvaluationRecord
from serving.engine.batching import BatchLimits
from serving.engine.model import PICTURE_LIMITS, KServeModel, ServedModel
from serving.engine.pictures import PictureFetcher
from serving.kserve_api import DataPlane, ModelServer, app, metrics_handler
from serving.middleware.access import ApiKeys, KeyCheck
from serving.middleware.limits import BodyLimit
from serving.middleware.logs import RequestLog
from serving.page import page_router
from serving.protocols.errors import add_error_handlers
from serving.protocols.openai import openai_router
from serving.protocols.openapi import document
from serving.protocols.v1 import v1_router
from serving.protocols.v2 import v2_router
from serving.settings import ServerSettings

logger = logging.getLogger("serving")

_SWITCH_SECONDS = 0.001
"""After so long the thread that generates gives Python's lock to others that ask for it. The event loop asks
after every wait: with the usual 5 ms, many short turns of it add up."""


def run(
    settings: ServerSettings,
    folder: Path,
    digest: str,
    listener: socket.socket,
    evaluation: EvaluationRecord | None = None,
) -> None:
    """Load the model in ``folder`` and serve it on ``listener`` until the process is told to stop.

    Raises:
        UserError: the model cannot be loaded, or the evaluation asked it something else.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    disable_progress_bar()
    # Of kserve's own use of FastAPI, once for each route.
    warnings.simplefilter("ignore", FastAPIDeprecationWarning)
    fetcher = _fetcher(settings)
    keys = ApiKeys(settings.api_keys) if settings.api_keys else None
    logger.info("loading %s", digest)
    predictor = Predictor.load(
        folder, device=settings.device, dtype=settings.dtype, static_shapes=settings.compile
    )
    served = ServedModel(
        name=settings.name,
        digest=digest,
        predictor=predictor,
        calibration=_calibration(evaluation, predictor),
        limits=BatchLimits(
            max_batch_size=settings.max_batch_size,
            max_waiting=settings.max_waiting,
            hang_seconds=settings.hang_seconds,
        ),
        workers=settings.workers,
        fetcher=fetcher,
        max_request_seconds=settings.request_seconds,
    )
    server = _Server(listener, settings)
    build(app, served, server.dataplane, settings, keys)
    try:
        server.start([KServeModel(served)])
    finally:
        served.close()
    logger.info("stopped")


def build(
    application: FastAPI,
    served: ServedModel,
    plane: DataPlane,
    settings: ServerSettings,
    keys: ApiKeys | None = None,
) -> None:
    """Put routes, error answers and bounds on an application, innermost first."""
    application.router.default_response_class = JSONResponse
    application.include_router(page_router())
    application.include_router(v1_router(served, plane))
    application.include_router(v2_router(served, plane))
    application.include_router(openai_router(served))
    application.add_api_route(
        "/metrics", metrics_handler, methods=["GET"], tags=["Operation"], include_in_schema=False
    )
    application.openapi = document(application, with_keys=keys is not None)  # type: ignore[method-assign]
    add_error_handlers(application)
    # Looked up once it is asked: the document is published of no model.
    application.add_middleware(BodyLimit, check_room=lambda: served.batcher.check_room())
    if keys is not None:
        application.add_middleware(KeyCheck, keys=keys, requests_per_minute=settings.requests_per_minute)
    application.add_middleware(RequestLog)
    if settings.cors_origins:
        application.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id", "x-request-timeout"],
            expose_headers=["retry-after", "x-request-id"],
        )


def _calibration(evaluation: EvaluationRecord | None, predictor: Predictor) -> Calibration | None:
    """Return what confidences come from, None where there is nothing; say which fields have none and why."""
    if evaluation is None:
        logger.info("without an evaluation's record (--evaluation) no confidences are given")
        return None
    task, crops = predictor.task, evaluation.generation.num_crops
    if evaluation.task_digest != task.digest:
        raise UserError(
            f"the evaluation asked another task ({evaluation.task_digest[:19]}) than the model answers, "
            f"{task.name} {task.version} ({task.digest[:19]}); evaluate the model again"
        )
    if crops != predictor.num_crops:
        raise UserError(
            f"the evaluation asked at num_crops={crops}, the model is served at {predictor.num_crops}; "
            "evaluate the model again"
        )
    found = evaluation.calibration
    for name, reason in found.reasons.items() if found else ():
        logger.info("no confidence is given of %s: %s", name, reason)
    if found is None or found.is_empty:
        logger.info("the evaluation has no calibration, so no confidences are given")
        return None
    return found


def _fetcher(settings: ServerSettings) -> PictureFetcher | None:
    if settings.fetch_profile is None:
        return None
    profile = load_platform().fetch_profile(settings.fetch_profile)
    return PictureFetcher(profile, PICTURE_LIMITS)


class _Server(ModelServer):  # type: ignore[misc]
    """KServe's server, on a socket that is bound already: KServe itself would listen on every interface."""

    def __init__(self, listener: socket.socket, settings: ServerSettings) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__(
            http_port=port,
            enable_grpc=False,
            enable_latency_logging=False,
            grace_period=settings.grace_seconds,
        )
        self._listener = listener
        self._address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._address_file = settings.address_file

    def setup_event_loop(self) -> None:
        # KServe sets up a loop here that it does not run, and that Python 3.14 does not have.
        pass

    async def _serve(self) -> None:
        # KServe would add routes that load, unload and explain models, without asking who wants that.
        self._rest_server.create_application = _nothing
        uvicorn_server = self._rest_server._server
        uvicorn_server.serve = partial(uvicorn_server.serve, sockets=[self._listener])
        self._listener.listen(1024)
        logger.info("answering at %s", self._address)
        if self._address_file is not None:
            # Whoever waits for the file finds it whole.
            part = self._address_file.with_name(self._address_file.name + ".part")
            part.write_text(self._address)
            part.replace(self._address_file)
        await super()._serve()


def _nothing(*_: Any) -> None:
    return None
