"""The metrics, under vLLM's names where they mean the same, and else under ``fovea_``.

vLLM's dashboards and alerts for queue, latency and tokens therefore work on this server. What it calls a
request is here one prompt with its pictures: an instance of a V1 or V2 request, or a chat completion.
"""

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 4000)
_MODEL = ("model_name",)

RUNNING = Gauge("vllm:num_requests_running", "Requests that are being generated", _MODEL)
WAITING = Gauge("vllm:num_requests_waiting", "Requests that are prepared or wait for their turn", _MODEL)
PROMPT_TOKENS = Counter("vllm:prompt_tokens", "Tokens of prompts, pictures included", _MODEL)
GENERATION_TOKENS = Counter("vllm:generation_tokens", "Tokens that were generated", _MODEL)
SUCCESS = Counter("vllm:request_success", "Answered requests", (*_MODEL, "finished_reason"))
FIRST_TOKEN = Histogram(
    "vllm:time_to_first_token_seconds",
    "From a request's admission to its first token",
    _MODEL,
    buckets=_SECONDS,
)
TOKEN_TIME = Histogram(
    "vllm:inter_token_latency_seconds", "Between two tokens of a batch", _MODEL, buckets=_SECONDS
)
LATENCY = Histogram(
    "vllm:e2e_request_latency_seconds",
    "From a request's admission to its answer",
    _MODEL,
    buckets=_SECONDS,
)
QUEUE_TIME = Histogram(
    "vllm:request_queue_time_seconds",
    "From a request's admission to the start of its batch",
    _MODEL,
    buckets=_SECONDS,
)
INFERENCE_TIME = Histogram(
    "vllm:request_inference_time_seconds", "From a batch's start to an answer", _MODEL, buckets=_SECONDS
)
PROMPT_LENGTH = Histogram("vllm:request_prompt_tokens", "Tokens of a prompt", _MODEL, buckets=_TOKENS)
ANSWER_LENGTH = Histogram("vllm:request_generation_tokens", "Tokens of an answer", _MODEL, buckets=_TOKENS)

BATCH_SIZE = Histogram(
    "fovea_batch_size", "Requests that were generated together", _MODEL, buckets=(1, 2, 4, 8, 16, 32, 64)
)
DECODE_TIME = Histogram(
    "fovea_picture_decode_seconds", "From a picture's bytes to its pixels", buckets=_SECONDS
)
FETCH_TIME = Histogram("fovea_picture_fetch_seconds", "Fetching a picture from its URL", buckets=_SECONDS)
PREPARE_TIME = Histogram(
    "fovea_prepare_seconds", "Decoding, tokenising and cutting into crops", buckets=_SECONDS
)
UNPARSED = Counter("fovea_unparsed_answers", "Answers that do not follow the task's template", _MODEL)
HTTP_REQUESTS = Counter("fovea_http_requests", "HTTP requests", ("route", "status"))
HTTP_TIME = Histogram(
    "fovea_http_request_seconds", "From the first byte to the last", ("route",), buckets=_SECONDS
)


async def show_metrics(request: Request) -> Response:
    """Return all metrics of the process, in the format that the scraper accepts."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(REGISTRY), headers={"content-type": content_type})
