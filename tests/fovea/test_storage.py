import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

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
    with pytest.raises(UserError, match="names no file"):
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
