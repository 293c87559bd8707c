"""The application in this process, on a real predictor that can be made to fail, hang or wait."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from fovea.evaluation.calibration import Calibration, FieldCalibration
from fovea.fetch.profiles import FetchProfile
from fovea.inference import OnStep, Predictor, Sample
from fovea.task import Answer
from serving.application import build
from serving.engine.batching import BatchLimits
from serving.engine.model import PICTURE_LIMITS, ServedModel
from serving.engine.pictures import PictureFetcher
from serving.middleware.access import ApiKeys
from serving.protocols.protocol import Protocol
from serving.protocols.registry import PROTOCOLS
from serving.settings import ServerSettings
from tests.some_records import SOME_DIGEST

CALIBRATION = Calibration(
    fields={
        "product": FieldCalibration(rows=10, right=4, reason="10 answers to fit on, 50 are needed"),
        "category": FieldCalibration(slope=0.5, intercept=0.2, rows=200, right=150),
        "full_price": FieldCalibration(slope=2.0, intercept=-0.5, rows=200, right=120),
    }
)


class Controlled(Predictor):
    """A predictor that stands still while ``gate`` is closed, and fails while ``broken``."""

    gate: threading.Event
    broken = False

    def generate_batch(
        self,
        samples: Sequence[Sample],
        max_new_tokens: int | Sequence[int] = 64,
        on_step: OnStep | None = None,
    ) -> list[Answer]:
        self.gate.wait()
        if self.broken:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().generate_batch(samples, max_new_tokens, on_step)


def load(folder: Path) -> Controlled:
    predictor = Controlled.load(folder, device="cpu")
    predictor.gate = threading.Event()
    predictor.gate.set()
    return predictor


@contextmanager
def application(
    predictor: Controlled,
    *,
    limits: BatchLimits | None = None,
    keys: ApiKeys | None = None,
    profile: FetchProfile | None = None,
    settings: dict[str, Any] | None = None,
    calibration: Calibration | None = None,
    protocols: Sequence[Protocol] = PROTOCOLS,
) -> Iterator[TestClient]:
    """Serve ``predictor`` for the block; give what asks it."""
    asked = ServerSettings(**(settings or {}))
    served = ServedModel(
        name="fovea",
        digest=SOME_DIGEST,
        predictor=predictor,
        limits=limits or BatchLimits(),
        fetcher=PictureFetcher(profile, PICTURE_LIMITS, seconds=5) if profile else None,
        max_request_seconds=asked.request_seconds,
        calibration=calibration,
    )
    app = build(served, asked, keys, protocols)
    try:
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client
    finally:
        predictor.gate.set()
        predictor.broken = False
        served.close()
