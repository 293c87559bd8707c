"""Kubeflow Pipelines' API on this machine, as far as `fovea submit` asks it; no cluster can run here.

Paths and documents are those of `kfp_server_api`, whose models write the answers. It keeps what it is given,
starts nothing, and can be told to fail.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api

PREFIX = "/apis/v2beta1"

Answer = tuple[int, dict[str, Any]]


class KfpServer:
    """What Kubeflow Pipelines would hold, and how it misbehaves."""

    def __init__(self) -> None:
        self.host = ""
        self.token = ""
        """The bearer token that is asked for; empty for none."""
        self.pipelines: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.recurring_runs: list[dict[str, Any]] = []
        self.uploads: list[bytes] = []
        self.states: list[list[tuple[str, str]]] = []
        """What the tasks of a run are at each look; after the last, the run has ended."""
        self.end = "SUCCEEDED"
        self.faults: list[int | str | None] = []
        """For the next requests that write: a status to answer with, or ``drop`` to break the connection once
        the request is carried out."""
        self.read_faults: list[int] = []

    def get(self, path: str, query: dict[str, str]) -> Answer:
        if self.read_faults:
            return self.read_faults.pop(0), {"message": "out of order"}
        wanted = [p["stringValue"] for p in json.loads(query.get("filter", "{}")).get("predicates", [])]
        match path.removeprefix(PREFIX).strip("/").split("/"):
            case ["pipelines"]:
                return self._list("pipelines", self.pipelines, wanted)
            case ["pipelines", identity, "versions"]:
                own = [version for version in self.versions if version["pipeline_id"] == identity]
                return self._list("pipeline_versions", own, wanted)
            case ["experiments"]:
                return self._list("experiments", self.experiments, wanted)
            case ["runs"]:
                return self._list("runs", self.runs, wanted)
            case ["recurringruns"]:
                return self._list("recurring_runs", self.recurring_runs, wanted)
            case ["runs", identity]:
                return self._look(identity)
        return 404, {"message": f"no {path}"}

    def _list(self, name: str, items: list[dict[str, Any]], wanted: list[str]) -> Answer:
        found = [item for item in items if not wanted or item["display_name"] in wanted]
        return 200, {name: found} if found else {}

    def _look(self, identity: str) -> Answer:
        run = next((run for run in self.runs if run["run_id"] == identity), None)
        if run is None:
            return 404, {"message": f"run {identity} not found"}
        state = self.end if len(self.states) <= 1 else "RUNNING"
        tasks = self.states.pop(0) if len(self.states) > 1 else (self.states or [[]])[0]
        details = api.V2beta1RunDetails(
            task_details=[
                api.V2beta1PipelineTaskDetail(task_id=str(number), display_name=name, state=task_state)
                for number, (name, task_state) in enumerate(tasks)
            ]
        )
        return 200, run | {"state": state, "run_details": document(details)}

    def post(self, path: str, query: dict[str, str], body: bytes) -> Answer:
        match path.removeprefix(PREFIX).strip("/").split("/"):
            case ["pipelines"]:
                return self._create(self.pipelines, "pipeline_id", json.loads(body))
            case ["pipelines", "upload_version"]:
                self.uploads.append(body)
                version = api.V2beta1PipelineVersion(
                    display_name=query["name"], pipeline_id=query["pipelineid"]
                )
                return self._create(self.versions, "pipeline_version_id", document(version))
            case ["experiments"]:
                return self._create(self.experiments, "experiment_id", json.loads(body))
            case ["runs"]:
                return self._create(self.runs, "run_id", json.loads(body))
            case ["recurringruns"]:
                return self._create(self.recurring_runs, "recurring_run_id", json.loads(body))
        return 404, {"message": f"no {path}"}

    def _create(self, items: list[dict[str, Any]], key: str, item: dict[str, Any]) -> Answer:
        if any(item["display_name"] == other["display_name"] for other in items):
            return 409, {"message": f"{item['display_name']} already exists"}
        items.append(item | {key: f"{key}-{len(items)}"})
        return 200, items[-1]


def document(model: Any) -> dict[str, Any]:
    """A model of `kfp_server_api` as JSON."""
    made: dict[str, Any] = api.ApiClient().sanitize_for_serialization(model)
    return made


@contextmanager
def serve_kfp() -> Iterator[KfpServer]:
    """Serve for the time of the block."""
    kfp = KfpServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(kfp.get)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = kfp.faults.pop(0) if kfp.faults else None
            if isinstance(fault, int):
                self._answer(lambda path, query: (fault, {"message": "out of order"}))
                return
            self._answer(lambda path, query: kfp.post(path, query, body), drop=fault == "drop")

        def _answer(self, handle: Any, drop: bool = False) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            if kfp.token and self.headers.get("Authorization") != f"Bearer {kfp.token}":
                status, told = 401, {"message": "Unauthenticated: token expired"}
            else:
                status, told = handle(url.path, query)
            if drop:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            body = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kfp.host = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield kfp
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
