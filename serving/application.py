"""The application: a model behind its routes, bounds and error answers, and the server that runs it."""

import logging
import signal
import socket
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from transformers.utils.logging import disable_progress_bar

from fovea.errors import UserError
from fovea.evaluation.calibration import Calibration
from fovea.inference import Predictor
from fovea.platform import load_platform
from fovea.records import EvaluationRecord
from serving.engine.batching import BatchLimits
from serving.engine.loading import LocatedModel
from serving.engine.model import PICTURE_LIMITS, ServedModel
from serving.engine.pictures import PictureFetcher
from serving.middleware.access import ApiKeys, KeyCheck
from serving.middleware.limits import BodyLimit
from serving.middleware.logs import RequestLog
from serving.middleware.metrics import show_metrics
from serving.page import page_router
from serving.protocols.errors import add_error_handlers
from serving.protocols.openapi import describe
from serving.protocols.protocol import Protocol
from serving.protocols.registry import PROTOCOLS
from serving.settings import ServerSettings

logger = logging.getLogger("serving")

_SWITCH_SECONDS = 0.001
"""After so long the thread that generates gives Python's lock to others that ask for it. The event loop asks
after every wait: with the usual 5 ms, many short turns of it add up."""

_KEEP_ALIVE_SECONDS = 65
"""Longer than the 60 s that proxies keep an idle connection, so that none is closed while it is reused."""


def run(settings: ServerSettings, model: LocatedModel, listener: socket.socket) -> None:
    """Load a model and serve it on ``listener`` until the process is asked to stop.

    Raises:
        UserError: the model cannot be loaded, or the evaluation asked it something else.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    disable_progress_bar()
    fetcher = _fetcher(settings)
    keys = ApiKeys(settings.api_keys) if settings.api_keys else None
    logger.info("loading %s", model.digest)
    predictor = Predictor.load(
        model.folder, device=settings.device, dtype=settings.dtype, static_shapes=settings.compile
    )
    served = ServedModel(
        name=model.name,
        digest=model.digest,
        predictor=predictor,
        calibration=_calibration(model.evaluation, predictor),
        limits=BatchLimits(
            max_batch_size=settings.max_batch_size,
            max_waiting=settings.max_waiting,
            hang_seconds=settings.hang_seconds,
        ),
        workers=settings.workers,
        fetcher=fetcher,
        max_request_seconds=settings.request_seconds,
    )
    application = build(served, settings, keys)
    try:
        _serve(application, listener, settings)
    finally:
        served.close()
    logger.info("stopped")


def build(
    served: ServedModel,
    settings: ServerSettings,
    keys: ApiKeys | None = None,
    protocols: Sequence[Protocol] = PROTOCOLS,
) -> FastAPI:
    """Return the application: the routes of the protocols, error answers and bounds, innermost first."""
    application = FastAPI(docs_url=None, redoc_url=None)
    application.state.served = served
    application.include_router(page_router())
    for protocol in protocols:
        application.include_router(protocol.router)
    application.add_api_route("/metrics", show_metrics, include_in_schema=False)
    described = cache(partial(describe, protocols, with_keys=keys is not None))
    application.openapi = described  # type: ignore[method-assign]
    add_error_handlers(application, protocols)
    application.add_middleware(BodyLimit, protocols=protocols, check_room=served.batcher.check_room)
    if keys is not None:
        application.add_middleware(
            KeyCheck, keys=keys, protocols=protocols, requests_per_minute=settings.requests_per_minute
        )
    application.add_middleware(RequestLog)
    if settings.cors_origins:
        application.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id", "x-request-timeout"],
            expose_headers=["retry-after", "x-request-id"],
        )
    return application


def _serve(application: FastAPI, listener: socket.socket, settings: ServerSettings) -> None:
    """Answer on ``listener`` until SIGTERM or Ctrl-C; requests under way have ``grace_seconds`` to finish."""
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            loop="asyncio",
            log_config=None,
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=settings.grace_seconds,
        )
    )
    # Once it has stopped, uvicorn raises the signal again; by default that would end the process as failed.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    listener.listen(1024)
    _announce(listener, settings.address_file)
    server.run(sockets=[listener])


def _announce(listener: socket.socket, file: Path | None) -> None:
    """Say where requests are answered, in the log and in ``file``."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    logger.info("answering at %s", address)
    if file is not None:
        # A process that waits for the file must not read half of it.
        part = file.with_name(file.name + ".part")
        part.write_text(address)
        part.replace(file)


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
