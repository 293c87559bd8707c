"""Starts the server on a model: port first, then the model, then the answers."""

import logging
import os
import signal
import socket
import sys
import threading

from fovea.errors import UserError
from serving.engine.loading import LocatedModel, find_evaluation, locate_model
from serving.middleware.logs import configure_logging
from serving.settings import ServerSettings

logger = logging.getLogger("serving")


def serve(settings: ServerSettings, model: LocatedModel | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that are being answered are finished.

    Args:
        settings: of the server.
        model: what is served; without it, the model that the settings name.

    Raises:
        UserError: the port is taken, the model cannot be loaded, or a setting leads to nothing.
    """
    if settings.exit_with_parent:
        threading.Thread(target=_stop_with_parent, name="parent", daemon=True).start()
    configure_logging(settings.log_format)
    with _listen(settings.host, settings.port) as listener:
        located = model or _locate(settings)
        # These imports and loading the model take seconds, so errors in the settings are found before.
        from serving.application import run

        run(settings, located, listener)


def _locate(settings: ServerSettings) -> LocatedModel:
    source = settings.model_uri or settings.model_dir
    if source is None:
        raise UserError("there is no model to serve; give --model-uri or --model-dir")
    folder, digest = locate_model(str(source), record=settings.model_record)
    evaluation = find_evaluation(settings.evaluation, digest) if settings.evaluation else None
    return LocatedModel(settings.model_name, folder, digest, evaluation)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to the port; it takes no connections before the model is ready."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"port {port} on {host} cannot be used ({error.strerror}); "
            "stop what uses it, or choose another port (0 takes a free one)"
        ) from error
    return listener


def _stop_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    logger.info("the process that started this server has ended; stopping")
    os.kill(os.getpid(), signal.SIGTERM)
