"""The requests that are sent to the Kubernetes API; tests/cluster has a real server for what they do."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from kubernetes import client

from components.deploy.targets.cluster import Cluster, ClusterError, ConflictError

MANIFEST = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "a"}}
SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/shop/inferenceservices"


def status(code: int, **fields: Any) -> tuple[int, bytes]:
    """An answer of the API server that is no object."""
    return code, json.dumps({"kind": "Status", "code": code, **fields}).encode()


@contextmanager
def serving(*answers: tuple[int, bytes]) -> Iterator[tuple[Cluster, list[tuple[str, str, str]]]]:
    """A cluster that gives the answers in turn, and its requests: method, path with query, content type."""
    left, seen = list(answers), list[tuple[str, str, str]]()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((self.command, self.path, self.headers.get("Content-Type", "")))
            code, body = left.pop(0)
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 - http.server's

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{server.server_port}"
        configuration.retries = False
        yield Cluster(client.ApiClient(configuration), "shop"), seen
        server.shutdown()
    assert not left


def test_a_retry_of_an_apply_is_the_same_request() -> None:
    with serving(status(503), (200, json.dumps(MANIFEST).encode())) as (cluster, seen):
        assert cluster.apply(MANIFEST, dry_run=True) == MANIFEST
    query = "fieldValidation=Strict&dryRun=All&fieldManager=fovea&force=False"
    # Nothing else is asked: a discovery of the kinds would be a request too.
    assert seen == [("PATCH", f"{SERVICES}/a?{query}", "application/apply-patch+yaml")] * 2


def test_a_missing_object_is_none_and_a_missing_kind_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the API server had been up for long.
    monkeypatch.setattr("components.deploy.targets.cluster._START_SECONDS", 0.0)
    missing, unknown = status(404, details={"name": "a"}), status(404)
    with serving(missing, missing, missing, unknown) as (cluster, seen):
        assert cluster.get("inferenceservices", "a") is None
        cluster.delete("inferenceservices", "a")
        with pytest.raises(ConflictError, match="inferenceservices/a is gone"):
            cluster.replace("inferenceservices", MANIFEST)
        with pytest.raises(ClusterError, match="there is no inferenceservices in namespace 'shop'"):
            cluster.get("inferenceservices", "a")
    assert [(method, path) for method, path, _ in seen] == [
        ("GET", f"{SERVICES}/a"),
        ("DELETE", f"{SERVICES}/a?propagationPolicy=Background"),
        ("PUT", f"{SERVICES}/a"),
        ("GET", f"{SERVICES}/a"),
    ]


def test_a_log_is_shown_as_it_was_written() -> None:
    line = b'{"level": "error"}\n'
    with serving((200, line), status(400)) as (cluster, seen):
        assert cluster.log("pod", "server", previous=True) == '{"level": "error"}'
        assert cluster.log("pod", "server", previous=True) == ""
    path, _, query = seen[0][1].partition("?")
    assert path == "/api/v1/namespaces/shop/pods/pod/log"
    assert set(query.split("&")) == {"container=server", "previous=True", "tailLines=5"}
