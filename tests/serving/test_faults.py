"""The server as a process, among callers that vanish, dawdle and flood it, and told to end under load."""

import http.client
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from tests.serving.conftest import RunningServer, StartServer, encoded, idle, metric, picture, wait_until

GOOD = encoded(picture(1))
BODY = json.dumps({"instances": [{"image": {"b64": GOOD}}], "parameters": {"max_new_tokens": 64}}).encode()


def connection(server: RunningServer) -> socket.socket:
    host, _, port = server.address.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def head(size: int, path: str = "/v1/models/fovea:predict") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: test",
        "Content-Type: application/json",
        f"Content-Length: {size}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_callers_that_vanish_leave_nothing_behind(server: RunningServer) -> None:
    process = psutil.Process(server.process.pid)
    server.predict([GOOD]).raise_for_status()
    files, threads = process.num_fds(), process.num_threads()
    for number in range(60):
        with connection(server) as sock:
            # In the middle of the body, or while the answer is made.
            sock.sendall(head(len(BODY)) + BODY[: None if number % 2 else 50])
    wait_until(lambda: idle(server))
    server.predict([GOOD]).raise_for_status()
    wait_until(lambda: process.num_fds() <= files + 2)
    assert process.num_threads() <= threads + 4
    assert "Traceback" not in server.log.read_text()


def test_a_stream_whose_reader_vanishes_is_ended(server: RunningServer) -> None:
    url = f"data:image/png;base64,{GOOD}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "noise"}]
    chat = {"model": "fovea", "messages": [{"role": "user", "content": content}], "stream": True}
    body = json.dumps(chat).encode()
    for _ in range(5):
        with connection(server) as sock:
            sock.sendall(head(len(body), "/openai/v1/chat/completions") + body)
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: idle(server))
    assert "Traceback" not in server.log.read_text()


def test_slow_bodies_hold_nobody_up(server: RunningServer) -> None:
    slow = [connection(server) for _ in range(50)]
    try:
        for sock in slow:
            sock.sendall(head(1000) + b"{")
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: server.predict([GOOD]).status_code, range(12)))
        assert set(answers) == {200}
    finally:
        for sock in slow:
            sock.close()


@pytest.mark.parametrize("path", ["/v1/models/fovea:predict", "/openai/v1/chat/completions"])
def test_a_hundred_megabytes_take_no_memory(server: RunningServer, path: str) -> None:
    process = psutil.Process(server.process.pid)
    server.predict([GOOD]).raise_for_status()
    before = process.memory_info().rss
    with connection(server) as sock:
        sock.sendall(head(100 << 20, path))
        # Head and body may come one after the other; the server ends the connection.
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413")
    assert (b'"type":"invalid_request_error"' in answer) == path.startswith("/openai")
    assert process.memory_info().rss - before < 20 << 20


def test_told_to_end_it_answers_what_it_has_and_takes_no_more(
    start_server: StartServer, model_folder: Any
) -> None:
    with start_server(
        "--model-dir", str(model_folder), "--max-batch-size", "2", "--grace-seconds", "20"
    ) as server:
        host = server.address.removeprefix("http://")
        asked = [http.client.HTTPConnection(host, timeout=60) for _ in range(12)]
        for each in asked:
            each.request("POST", "/v1/models/fovea:predict", BODY, {"content-type": "application/json"})
        wait_until(lambda: metric(server, "fovea_batch_size_count") >= 3)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert [each.getresponse().status for each in asked] == [200] * 12
        assert server.process.wait(30) == 0
        assert time.monotonic() - started < 20
        with pytest.raises(OSError, match="refused"):
            connection(server)
