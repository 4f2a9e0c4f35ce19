"""Objects by path, in a directory, in memory or in S3, through obstore; every call blocks."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore, S3Store

from headrace.errors import HeadraceError, RetriableError, SettingsError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config

_CHUNK_BYTES = 1024**2


class Objects(Protocol):
    """Immutable objects by path.

    What was written is found by every later call of every process. All methods may be called by several threads.

    Raises:
        RetriableError: from every method, when the store cannot be reached or is full.
        SettingsError: from every method, when the store refuses the credentials or the directory.
    """

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one; return whether it was written."""
        ...

    def upload(self, path: str, file: Path) -> None:
        """Write the bytes of a file as an object, or over it; all of it or nothing is seen."""
        ...

    def read(self, path: str) -> bytes | None:
        """Return the bytes of an object; None if there is none."""
        ...

    def download(self, path: str, file: Path) -> tuple[int, str] | None:
        """Write the bytes of an object to a new file; return their number and checksum, None if there is no object."""
        ...

    def list(self, path: str) -> dict[str, int]:
        """Return the paths and sizes of all objects below ``path``, in the order of their paths."""
        ...

    def names(self, path: str) -> Sequence[str]:
        """Return, sorted, the names that the paths of objects below ``path`` continue with."""
        ...

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects, one after another in this order; those that do not exist are as good as deleted."""
        ...


def open_objects(url: str, environment: Mapping[str, str]) -> Objects:
    """Open the checkpoint store at ``url``.

    Args:
        url: A directory, ``memory://`` (a new, empty store each time) or ``s3://bucket/prefix``.
        environment: Environment variables; for S3, ``AWS_*`` tell region, endpoint and credentials. Without keys the
            role of the container or of the machine is used.

    Raises:
        SettingsError: the URL makes no sense, or the directory cannot be written.
    """
    if url == "memory://":
        return StoredObjects(MemoryStore(), url)
    if url.startswith("s3://"):
        return StoredObjects(_s3(url, environment), url)
    if "://" in url and not url.startswith("file://"):
        raise SettingsError(
            f"checkpoints cannot go to {url!r}", remedy="Give a directory, memory:// or s3://bucket/prefix"
        )
    directory = Path(url.removeprefix("file://")).absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to read and write {directory}")
    except OSError as error:
        raise SettingsError(
            f"checkpoints cannot be written to the directory {directory}: {error.strerror or error}",
            remedy="Make it writable for this user, or give another one with --checkpoints or HEADRACE_CHECKPOINTS",
        ) from error
    return StoredObjects(LocalStore(directory), str(directory), directory)


def _s3(url: str, environment: Mapping[str, str]) -> S3Store:
    bucket, _, prefix = url.removeprefix("s3://").rstrip("/").partition("/")
    if not bucket:
        raise SettingsError(f"an S3 URL must name a bucket: {url!r}", remedy="Give s3://bucket/prefix")
    config: S3Config = {"conditional_put": "etag"}
    for variable, name in _S3_VARIABLES.items():
        if value := environment.get(variable):
            config[name] = value  # type: ignore[literal-required]
    client: ClientConfig = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=60)}
    if environment.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        client["allow_http"] = True
    retry: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
    try:
        return S3Store(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=retry)
    except BaseError as error:
        raise SettingsError(f"checkpoints cannot go to {url}: {_first_line(error)}") from error


_S3_VARIABLES = {
    "AWS_DEFAULT_REGION": "region",
    "AWS_REGION": "region",
    "AWS_ENDPOINT_URL": "endpoint",
    "AWS_ENDPOINT_URL_S3": "endpoint",
    "AWS_ACCESS_KEY_ID": "access_key_id",
    "AWS_SECRET_ACCESS_KEY": "secret_access_key",
    "AWS_SESSION_TOKEN": "session_token",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "container_credentials_relative_uri",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "container_credentials_full_uri",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "container_authorization_token_file",
}


class StoredObjects:
    """Objects in a store of obstore.

    Args:
        store: Of obstore.
        name: What errors call it.
        directory: Where a local store keeps its files, which are then forced to the disk: a manifest must not outlive
            a power failure that the files it names do not.
    """

    def __init__(self, store: ObjectStore, name: str, directory: Path | None = None) -> None:
        self._store = store
        self._name = name
        self._directory = directory

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one; return whether it was written."""
        with self._errors("write", path):
            try:
                obstore.put(self._store, path, data, mode="create")
            except AlreadyExistsError:
                return False
            self._force(path)
        return True

    def upload(self, path: str, file: Path) -> None:
        """Write the bytes of a file as an object, or over it; all of it or nothing is seen."""
        with self._errors("write", path):
            obstore.put(self._store, path, file)
            self._force(path)

    def read(self, path: str) -> bytes | None:
        """Return the bytes of an object; None if there is none."""
        with self._errors("read", path):
            try:
                return bytes(obstore.get(self._store, path).bytes())
            except FileNotFoundError:
                return None

    def download(self, path: str, file: Path) -> tuple[int, str] | None:
        """Write the bytes of an object to a new file; return their number and checksum, None if there is no object."""
        digest, size = new_checksum(), 0
        with self._errors("read", path):
            try:
                found = obstore.get(self._store, path)
            except FileNotFoundError:
                return None
            with file.open("xb") as target:
                for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
                    target.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
        return size, digest.hexdigest()

    def list(self, path: str) -> dict[str, int]:
        """Return the paths and sizes of all objects below ``path``, in the order of their paths."""
        with self._errors("list", path):
            pages = obstore.list(self._store, path, chunk_size=1000)
            return dict(sorted((found["path"], found["size"]) for page in pages for found in page))

    def names(self, path: str) -> Sequence[str]:
        """Return, sorted, the names that the paths of objects below ``path`` continue with."""
        with self._errors("list", path):
            prefixes = obstore.list_with_delimiter(self._store, path)["common_prefixes"]
            return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes)

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects, one after another in this order; those that do not exist are as good as deleted."""
        for path in paths:
            with self._errors("delete", path), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, path)

    def _force(self, path: str) -> None:
        if self._directory is None:
            return
        file = self._directory / path
        for target in (file, file.parent):
            descriptor = os.open(target, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def _errors(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except HeadraceError:
            raise
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            raise SettingsError(
                f"checkpoints in {self._name} refuse to {verb} {path}: {_first_line(error)}",
                remedy="Give the user or role of this worker permission to read, write, list and delete there",
            ) from error
        except (BaseError, OSError) as error:
            raise RetriableError(
                f"checkpoints in {self._name} could not {verb} {path}: {_first_line(error)}",
                remedy="Look at the network, the space left and HEADRACE_CHECKPOINTS if this lasts",
            ) from error


def new_checksum() -> hashlib.blake2b:
    """Return the hash that names files and proves them whole."""
    return hashlib.blake2b(digest_size=16)


def _first_line(error: BaseException) -> str:
    # What follows is a dump of the request.
    return str(error).partition("\n")[0].strip()
