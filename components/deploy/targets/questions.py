"""Requests to a server at an address: whether it serves the right model, and its errors under traffic."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from components.deploy.targets import cluster
from components.deploy.verification import PREDICT_PATH, Expectation, Probe, Verification, percentile, verify
from fovea.progress import Progress

logger = logging.getLogger("fovea")

_KEY = "deployer"
"""The name of this step's API key."""

_PAUSE_SECONDS = 1.0
_REQUESTS = "fovea_http_requests"


@dataclass(frozen=True)
class HeldOutQuestions:
    """Requests about held-out pictures.

    Args:
        probes: the pictures, with the evaluation's answers.
        expected: what the server must answer.
        max_error_rate: share of the requests that may fail under traffic.
        pause_seconds: between two requests under traffic.
    """

    probes: Sequence[Probe]
    expected: Expectation
    max_error_rate: float = 0.01
    pause_seconds: float = _PAUSE_SECONDS

    def verify(self, address: str, seconds: float) -> Verification:
        """Verify the answers about all pictures; ``seconds`` is the timeout of each request."""
        logger.info("deploy: asking %s about %d held-out pictures", address, len(self.probes))
        with _client(address, seconds) as client:
            return verify(client, self.probes, self.expected, Progress(logger, "deploy: asking"))

    def identify(self, address: str) -> str:
        """Return the digest of the model that answers about the first picture, or ''."""
        try:
            with _client(address, 60.0) as client:
                return str(self._ask(client, self.probes[0])["model_digest"])
        except (httpx.HTTPError, KeyError, TypeError, ValueError):
            return ""

    def watch(self, address: str, seconds: float) -> str:
        """Send requests for ``seconds``, and count the errors of the server's other callers.

        Returns:
            '' if errors and latency kept their limits, else the reason.
        """
        deadline = time.monotonic() + seconds
        taken: list[float] = []
        failures: list[str] = []
        with _client(address, 2 * self.expected.max_answer_seconds) as client:
            before = _served(client)
            while not taken or time.monotonic() < deadline:
                started = time.monotonic()
                failures += self._failure(client, self.probes[len(taken) % len(self.probes)])
                taken.append(time.monotonic() - started)
                time.sleep(max(0.0, min(self.pause_seconds, deadline - time.monotonic())))
            after = _served(client)
        if len(failures) > self.max_error_rate * len(taken):
            return f"{len(failures)} of {len(taken)} questions failed: {failures[-1]}"
        if percentile(taken) > self.expected.max_answer_seconds:
            limit = f"{self.expected.max_answer_seconds:g} s are allowed"
            return f"answers take {percentile(taken):.1f} s (95th percentile of {len(taken)}), {limit}"
        requests, errors = after[0] - before[0], after[1] - before[1]
        if requests > 0 and errors > self.max_error_rate * requests:
            return f"{errors:.0f} of {requests:.0f} requests of callers ended with 5xx"
        return ""

    def _failure(self, client: httpx.Client, probe: Probe) -> list[str]:
        try:
            digest = self._ask(client, probe)["model_digest"]
        except httpx.HTTPError as error:
            return [str(error) or type(error).__name__]
        except (KeyError, TypeError, ValueError) as error:
            return [f"the answer cannot be read ({type(error).__name__})"]
        return [] if digest == self.expected.model_digest else [f"model {digest} answers"]

    def _ask(self, client: httpx.Client, probe: Probe) -> dict[str, object]:
        body = {
            "instances": [{"image": {"b64": probe.base64}}],
            "parameters": {"max_new_tokens": self.expected.max_new_tokens},
        }
        response = client.post(PREDICT_PATH.format(name=self.expected.name), json=body)
        response.raise_for_status()
        prediction: dict[str, object] = response.json()["predictions"][0]
        return prediction


def _client(address: str, seconds: float) -> httpx.Client:
    # The address is inside the cluster: no proxy leads there.
    return httpx.Client(base_url=address, timeout=seconds, trust_env=False, headers=_authorisation())


def _authorisation() -> dict[str, str]:
    # Read for every client: keys are changed while the pod runs.
    path = cluster.API_KEYS / _KEY
    return {"Authorization": f"Bearer {path.read_text().strip()}"} if path.is_file() else {}


def _served(client: httpx.Client) -> tuple[float, float]:
    """Return how many requests the server has answered, and how many of them with 5xx, from its metrics."""
    try:
        response = client.get("/metrics")
        response.raise_for_status()
        families = list(text_string_to_metric_families(response.text))
    except (httpx.HTTPError, ValueError):
        return 0.0, 0.0
    counts = [
        (sample.value, str(sample.labels.get("status", "")))
        for family in families
        if family.name == _REQUESTS
        for sample in family.samples
        if sample.name == f"{_REQUESTS}_total"
    ]
    return sum(value for value, _ in counts), sum(value for value, status in counts if status[:1] == "5")
