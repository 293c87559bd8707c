import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.retries.standard import ExponentialBackoff
from moto.server import ThreadedMotoServer

from fovea import ranges
from fovea.errors import UserError
from fovea.records import ModelRecord, now
from fovea.storage import Storage, split_uri


def model_record(storage: Storage, folder: Path, uri: str, run_id: str = "run-1") -> ModelRecord:
    return ModelRecord(
        step="import_model",
        step_version=1,
        input_key="0" * 64,
        uri=uri,
        files=storage.upload_folder(folder, uri),
        parameters={},
        parents={},
        created_at=now(),
        run_id=run_id,
        architecture="Phi3VForCausalLM",
        num_crops=4,
    )


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    folder = tmp_path / "payload"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 5000)
    (folder / "sub" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def conditional_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """moto: in memory, but with conditional writes, which rclone ignores."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.Session().client("s3").create_bucket(Bucket="race")
    yield "s3://race"
    server.stop()


def test_what_goes_up_comes_down(s3: str, payload: Path) -> None:
    storage = Storage()
    record = model_record(storage, payload, f"{s3}/models/a/")
    folder = storage.download(record)
    assert [entry.path for entry in record.files] == ["sub/config.json", "weights.bin"]
    for entry in record.files:
        assert (folder / entry.path).read_bytes() == (payload / entry.path).read_bytes()


def test_a_part_of_an_object(s3: str) -> None:
    storage = Storage()
    storage.write_bytes(f"{s3}/object", bytes(range(200)))
    for start, length in ((0, 200), (0, 7), (190, 10), (190, 1000), (77, 1)):
        assert storage.read_range(f"{s3}/object", start, length) == bytes(range(200))[start : start + length]
    assert storage.read_range(f"{s3}/object", 200, 5) == b""
    with pytest.raises(UserError, match="there is no such object"):
        storage.read_range(f"{s3}/none", 0, 5)


def test_a_file_that_was_changed_in_s3_is_refused_and_never_in_the_cache(s3: str, payload: Path) -> None:
    storage = Storage()
    record = model_record(storage, payload, f"{s3}/models/a/")
    storage.write_bytes(f"{s3}/models/a/weights.bin", bytes(256 * 5000))
    with pytest.raises(UserError, match=r"weights\.bin: is not the file"):
        storage.download(record)
    with pytest.raises(UserError, match=r"weights\.bin: is not the file"):
        storage.download(record)


def test_only_what_matches_the_pattern_is_fetched(s3: str, payload: Path) -> None:
    storage = Storage()
    folder = storage.download(model_record(storage, payload, f"{s3}/models/a/"), pattern="*.bin")
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["weights.bin"]
    with pytest.raises(UserError, match="has no file"):
        storage.download(model_record(storage, payload, f"{s3}/models/a/"), pattern="*.none")


def test_what_is_complete_is_not_fetched_again(s3: str, payload: Path) -> None:
    storage = Storage()
    record = model_record(storage, payload, f"{s3}/models/a/")
    first = storage.download(record)
    for uri in list(storage.list(record.uri)):
        bucket, key = split_uri(uri)
        boto3.Session().client("s3").delete_object(Bucket=bucket, Key=key)
    assert storage.download(record) == first


def test_a_record_is_found_once_it_is_committed(s3: str, payload: Path) -> None:
    storage = Storage()
    record = model_record(storage, payload, f"{s3}/models/a/")
    assert storage.find(s3, "import_model", record.input_key) is None
    assert storage.commit(s3, record) == record
    assert storage.find(s3, "import_model", record.input_key) == record


def test_of_many_attempts_the_first_wins_and_the_others_adopt_it(conditional_s3: str, payload: Path) -> None:
    storage = Storage()
    records = [
        model_record(storage, payload, f"{conditional_s3}/models/{number}/", run_id=f"run-{number}")
        for number in range(8)
    ]
    results: list[Any] = []
    start = threading.Barrier(len(records))

    def attempt(record: ModelRecord) -> None:
        start.wait()
        results.append(storage.commit(conditional_s3, record))

    threads = [threading.Thread(target=attempt, args=[record]) for record in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(records)
    assert len({result.run_id for result in results}) == 1
    assert storage.find(conditional_s3, "import_model", "0" * 64) == results[0]


@pytest.mark.parametrize("uri", ["", "s3://", "http://bucket/key", "/bucket/key"])
def test_what_is_no_s3_uri_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="not an S3 URI"):
        split_uri(uri)


def test_errors_say_where_and_what_to_do(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such object"):
        Storage().read_bytes(f"{s3}/nothing")
    with pytest.raises(UserError, match="no such bucket"):
        list(Storage().list("s3://no-such-bucket-here/x"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="refuses access"):
        Storage().read_bytes(f"{s3}/nothing")


def test_files_go_up_and_down_alone(conditional_s3: str, tmp_path: Path) -> None:
    storage, uri = Storage(), f"{conditional_s3}/one/file.bin"
    (tmp_path / "up").write_bytes(bytes(range(256)) * 1000)
    with (tmp_path / "up").open("rb") as file:
        assert storage.write_bytes(uri, file, only_if_absent=True)
        file.seek(0)
        assert not storage.write_bytes(uri, file, only_if_absent=True)
    storage.read_file(uri, tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()
    with pytest.raises(UserError, match="no such object"):
        storage.read_file(f"{conditional_s3}/none", tmp_path / "none")


class CuttingProxy:
    """Stands before an S3 server and cuts connections after so many bytes of its answers, or of requests."""

    def __init__(self, host: str, port: int, cuts: Iterator[int], of: str = "answers") -> None:
        self.cut = 0
        self._server, self._cuts, self._of = (host, port), cuts, of
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            for source, target, passed in ((caller, server, "requests"), (server, caller, "answers")):
                left = next(self._cuts) if passed == self._of else None
                threading.Thread(target=self._pass, args=(source, target, left), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, left: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data if left is None else data[:left])
                if left is not None:
                    left -= len(data)
                    if left <= 0:
                        self.cut += 1
                        break
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_download_whose_connections_are_cut_goes_on(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """At random points, over and over; what has come is not fetched again."""
    random_ = random.Random(seed)  # noqa: S311
    folder = tmp_path / "payload"
    folder.mkdir()
    (folder / "large.bin").write_bytes(random_.randbytes(6_000_001))
    (folder / "small.bin").write_bytes(random_.randbytes(100_000))
    record = model_record(Storage(), folder, f"{s3}/models/a/")
    address = urlsplit(os.environ["AWS_ENDPOINT_URL_S3"])
    proxy = CuttingProxy(
        str(address.hostname), address.port or 80, iter(lambda: random_.randint(1, 1_500_000), None)
    )
    monkeypatch.setattr(ranges, "RANGE_BYTES", 1_000_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    fetched = Storage().download(record, cache=tmp_path / "other")
    proxy.close()
    assert (fetched / "large.bin").read_bytes() == (folder / "large.bin").read_bytes()
    assert proxy.cut > 3
    assert sorted(path.name for path in fetched.iterdir()) == ["large.bin", "small.bin"]


@pytest.mark.parametrize("seed", [0, 1])
def test_an_upload_whose_connections_are_cut_goes_on_or_is_done_again(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """At random points, in several parts: what comes down is what went up, and no part is left over."""
    random_ = random.Random(seed)  # noqa: S311
    folder = tmp_path / "payload"
    folder.mkdir()
    (folder / "large.bin").write_bytes(random_.randbytes(16 << 20))
    (folder / "small.bin").write_bytes(random_.randbytes(100_000))
    direct = Storage()
    # A part is of 5 MiB: the first connections break in it, later ones do or do not.
    cuts = chain([1 << 20] * 4, iter(lambda: random_.randint(1, 10 << 20), None))
    address = urlsplit(os.environ["AWS_ENDPOINT_URL_S3"])
    proxy = CuttingProxy(
        str(address.hostname),
        address.port or 80,
        cuts,
        "requests",
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.0)
    storage = Storage()
    storage._transfer = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
    for _ in range(20):
        with suppress(UserError):
            record = model_record(storage, folder, f"{s3}/models/a/")
            break
        # Given up: nobody sees half of a file, and its parts are gone.
        assert not direct.exists(f"{s3}/models/a/large.bin")
    proxy.close()
    assert proxy.cut > 0
    assert "Uploads" not in boto3.Session().client(
        "s3", endpoint_url=address.geturl()
    ).list_multipart_uploads(Bucket=split_uri(s3)[0])
    fetched = direct.download(record, cache=tmp_path / "other")
    for path in folder.iterdir():
        assert (fetched / path.name).read_bytes() == path.read_bytes()


def test_a_server_that_gives_nothing_is_given_up(
    s3: str, payload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = model_record(Storage(), payload, f"{s3}/models/a/")
    address = urlsplit(os.environ["AWS_ENDPOINT_URL_S3"])
    proxy = CuttingProxy(str(address.hostname), address.port or 80, iter(lambda: 0, None))
    monkeypatch.setattr(ranges, "_CUTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match="the connection is cut again and again"):
        Storage().download(record, cache=tmp_path / "other")
    proxy.close()
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()]


def test_stale_uploads_are_aborted_and_fresh_ones_are_not(conditional_s3: str) -> None:
    client, bucket = boto3.Session().client("s3"), split_uri(conditional_s3)[0]
    for key in ("train_lora/a/model.bin", "train_lora/b/model.bin", "other/c.bin"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    storage = Storage()
    # moto says of every upload that it was begun in 2010.
    assert storage.abort_stale_uploads(f"{conditional_s3}/train_lora/", timedelta(days=36500)) == 0
    assert storage.abort_stale_uploads(f"{conditional_s3}/train_lora/") == 2
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["other/c.bin"]
