"""S3 storage: parallel transfers with every digest checked, and records that are committed last.

Addresses and credentials come from boto3's usual sources (``AWS_ENDPOINT_URL_S3``,
``AWS_ACCESS_KEY_ID``, a role of the service account, …): the platform sets them, never a run.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from fovea.errors import UserError
from fovea.ranges import CutError, download_ranges
from fovea.records import FileEntry, Record

T = TypeVar("T")
U = TypeVar("U")

logger = logging.getLogger("fovea")

_WORKERS = 8
_STALE = timedelta(days=2)
"""Longer than any upload."""
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_BEYOND_THE_END = {"416", "InvalidRange"}


def split_uri(uri: str) -> tuple[str, str]:
    """Split ``s3://bucket/key`` into bucket and key (which can be empty). The scheme has no case.

    Raises:
        UserError: not an S3 URI.
    """
    scheme, mark, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme.lower() != "s3" or not mark or not bucket:
        raise UserError(f"{uri!r} is not an S3 URI; write s3://bucket/prefix")
    return bucket, key


def join_uri(root: str, *parts: str) -> str:
    """Join an S3 URI and parts of a key with single slashes."""
    return "/".join([root.rstrip("/"), *parts])


def index_uri(artifact_root: str, step: str, input_key: str) -> str:
    """Return the URI of the record of ``step`` with ``input_key``; it exists once the payload is complete."""
    return join_uri(artifact_root, "index", step, f"{input_key}.json")


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_cache() -> Path:
    """Return the cache folder of downloaded payloads: ``$FOVEA_CACHE``, or else ``~/.cache/fovea``."""
    return Path(os.environ.get("FOVEA_CACHE") or Path.home() / ".cache" / "fovea")


def s3_client(**options: Any) -> Any:
    """Return a boto3 client for S3, with the current credentials of the environment.

    boto3's default session keeps the first credentials it ever saw, so each client has its own session.

    Args:
        **options: options of `boto3.session.Session.client`.
    """
    session = botocore.session.get_session()
    session.register_component("data_loader", _service_descriptions())
    return boto3.Session(botocore_session=session).client("s3", **options)


@cache
def _service_descriptions() -> Any:
    """Return botocore's loader, shared because it parses megabytes of JSON."""
    return botocore.session.get_session().get_component("data_loader")


class Storage:
    """S3 operations of the steps. Can be shared between threads."""

    def __init__(self, client: Any = None) -> None:
        self._client = client or s3_client(
            config=Config(
                retries={"mode": "standard", "max_attempts": 5},
                max_pool_connections=4 * _WORKERS,
                # rclone returns the checksum of the whole object for a range; data read in ranges are
                # checked by our SHA-256.
                response_checksum_validation="when_required",
            ),
        )
        self._transfer = TransferConfig(
            multipart_threshold=64 << 20, multipart_chunksize=32 << 20, max_concurrency=4
        )
        self._ranges = ThreadPoolExecutor(2 * _WORKERS, thread_name_prefix="s3-range")

    def read_bytes(self, uri: str) -> bytes:
        """Return an object's bytes.

        Raises:
            UserError: the object does not exist, or S3 refuses.
        """
        bucket, key = split_uri(uri)
        with _explained(uri):
            found = self._client.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
            body: bytes = found["Body"].read()
            return body

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """Return ``length`` bytes (at least 1) of an object from ``start``, or fewer at its end.

        Raises:
            UserError: the object does not exist, or S3 refuses.
        """
        bucket, key = split_uri(uri)
        with _explained(uri):
            try:
                found = self._client.get_object(
                    Bucket=bucket, Key=key, Range=f"bytes={start}-{start + length - 1}"
                )
            except ClientError as error:
                if _code(error) in _BEYOND_THE_END:
                    return b""
                raise
            part: bytes = found["Body"].read()
            return part

    def read_file(self, uri: str, path: Path) -> None:
        """Download an object of any size to a local file.

        Raises:
            UserError: the object does not exist, or S3 refuses.
        """
        bucket, key = split_uri(uri)
        with _explained(uri):
            self._client.download_file(bucket, key, str(path), Config=self._transfer)

    def write_bytes(self, uri: str, data: bytes | BinaryIO, *, only_if_absent: bool = False) -> bool:
        """Write an object in one request; return False if ``only_if_absent`` and it already existed.

        ``data`` can be an open file of up to 5 GB.
        """
        bucket, key = split_uri(uri)
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        try:
            self._client.put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            # 409: a concurrent conditional write to the same key is in progress and will win.
            if only_if_absent and _code(error) in {
                "PreconditionFailed",
                "412",
                "ConditionalRequestConflict",
                "409",
            }:
                return False
            raise _explain(uri, error) from error
        except BotoCoreError as error:
            raise _explain(uri, error) from error
        return True

    def exists(self, uri: str) -> bool:
        """Return whether the object exists."""
        bucket, key = split_uri(uri)
        try:
            self._client.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if _code(error) in _ABSENT:
                return False
            raise _explain(uri, error) from error
        except BotoCoreError as error:
            raise _explain(uri, error) from error
        return True

    def list(self, uri: str) -> Iterator[str]:
        """Yield the URIs of the objects whose keys start with that of ``uri``, in order."""
        bucket, prefix = split_uri(uri)
        with _explained(uri):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    yield f"s3://{bucket}/{item['Key']}"

    def delete(self, uris: Iterable[str]) -> None:
        """Delete objects; missing ones are ignored.

        Raises:
            UserError: S3 refuses.
        """
        for uri in uris:
            bucket, key = split_uri(uri)
            with _explained(uri):
                self._client.delete_object(Bucket=bucket, Key=key)

    def upload_folder(
        self, folder: Path, uri: str, progress: Callable[[int, int], None] | None = None
    ) -> tuple[FileEntry, ...]:
        """Upload every file below ``folder`` under the prefix ``uri``.

        Returns:
            The files with sizes and digests, sorted by path.
        """
        bucket, prefix = split_uri(uri)
        self.abort_stale_uploads(uri.rstrip("/").rpartition("/")[0] + "/")
        paths = sorted(path for path in folder.rglob("*") if path.is_file())

        def upload(path: Path) -> FileEntry:
            name = path.relative_to(folder).as_posix()
            digest = sha256_file(path)
            self._client.upload_file(
                str(path), bucket, str(PurePosixPath(prefix) / name), Config=self._transfer
            )
            return FileEntry(path=name, size=path.stat().st_size, sha256=digest)

        with _explained(uri):
            return tuple(_parallel(upload, paths, progress))

    def abort_stale_uploads(self, uri: str, older_than: timedelta = _STALE) -> int:
        """Abort multipart uploads below ``uri`` that a killed process has left; return their number.

        Their parts cost storage and are invisible. If S3 does not allow it, use a lifecycle rule
        (AbortIncompleteMultipartUpload).
        """
        bucket, prefix = split_uri(uri)
        oldest, count = datetime.now(UTC) - older_than, 0
        try:
            for page in self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=bucket, Prefix=prefix
            ):
                for upload in page.get("Uploads", []):
                    if upload["Initiated"] < oldest:
                        self._client.abort_multipart_upload(
                            Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        count += 1
        except (ClientError, BotoCoreError) as error:
            logger.debug("%s: stale uploads are left alone (%s)", uri, error)
        return count

    def download(
        self,
        record: Record,
        cache: Path | None = None,
        pattern: str = "*",
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Download a payload's files that match ``pattern`` into ``cache`` and return their folder.

        The folder is named by the record's digest. A file appears in it only when it is complete and its
        digest has been checked, so existing files are not downloaded again.

        Raises:
            UserError: a file is missing in S3, or differs from the record.
        """
        bucket, prefix = split_uri(record.uri)
        folder = (cache or default_cache()) / record.kind / record.digest.removeprefix("sha256:")
        wanted = [entry for entry in record.files if fnmatch(entry.path, pattern)]
        if not wanted:
            raise UserError(f"{record.uri}: the {record.kind} record has no file that matches {pattern!r}")

        def download(entry: FileEntry) -> None:
            target = folder / entry.path
            if target.is_file() and target.stat().st_size == entry.size:
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            with _replacing(target) as part:
                with _explained(record.uri + entry.path):
                    download_ranges(self._client, self._ranges, bucket, prefix + entry.path, entry.size, part)
                if part.stat().st_size != entry.size or sha256_file(part) != entry.sha256:
                    raise UserError(
                        f"{record.uri}{entry.path}: is not the file its record names (digest differs); "
                        "it was modified, so run the step that created it again"
                    )

        _parallel(download, wanted, progress)
        return folder

    def find(self, artifact_root: str, step: str, input_key: str) -> Record | None:
        """Return the record that ``step`` committed for ``input_key``, or None."""
        uri = index_uri(artifact_root, step, input_key)
        return Record.from_json(self.read_bytes(uri), source=uri) if self.exists(uri) else None

    def find_by_payload(self, uri: str) -> Record:
        """Return the record whose payload is at ``uri``, as named by `run_step`.

        Raises:
            UserError: there is none.
        """
        # {artifact root}/{step}/{first part of the input key}-{attempt}/
        root, step, name = ["", "", *uri.rstrip("/").rsplit("/", 2)][-3:]
        for index in self.list(join_uri(root, "index", step, name.partition("-")[0])):
            record = Record.from_json(self.read_bytes(index), source=index)
            if record.uri == uri:
                return record
        raise UserError(f"{uri}: no record in the index has this payload; was it deleted?")

    def commit(self, artifact_root: str, record: Record) -> Record:
        """Commit a record, which makes its payload visible. Of several attempts the first wins.

        Returns:
            The record in the index: this one, or that of a faster attempt.
        """
        uri = index_uri(artifact_root, record.step, record.input_key)
        if self.write_bytes(uri, record.to_json().encode(), only_if_absent=True):
            return record
        return Record.from_json(self.read_bytes(uri), source=uri)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``target`` that replaces it if the block succeeds."""
    folder = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
    try:
        yield folder / target.name
        (folder / target.name).replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parallel(
    function: Callable[[T], U], items: Iterable[T], progress: Callable[[int, int], None] | None
) -> list[U]:
    todo = list(items)
    results = []
    with ThreadPoolExecutor(_WORKERS) as pool:
        for number, result in enumerate(pool.map(function, todo), start=1):
            results.append(result)
            if progress is not None:
                progress(number, len(todo))
    return results


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _explain(uri: str, error: Exception) -> UserError:
    if isinstance(error, ClientError):
        code = _code(error)
        if code in {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}:
            return UserError(f"{uri}: S3 refuses access ({code}); check the credentials and their policy")
        if code == "NoSuchBucket":
            return UserError(f"{uri}: there is no such bucket; create it, or correct artifact_root")
        if code in _ABSENT:
            return UserError(f"{uri}: there is no such object")
        return UserError(f"{uri}: S3 answered {code}: {error}")
    return UserError(f"{uri}: S3 cannot be reached ({error}); check AWS_ENDPOINT_URL_S3 and the network")


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise _explain(uri, error) from error
    except (boto3.exceptions.Boto3Error, CutError) as error:
        raise UserError(f"{uri}: transfer failed ({error})") from error
