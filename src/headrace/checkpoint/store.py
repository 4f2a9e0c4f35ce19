"""Objects by path, in a directory, in memory or in S3, through obstore; every call blocks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import google_crc32c
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore

from headrace.errors import HeadraceError, RetriableError, SettingsError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_CHUNK_BYTES = 1024**2
_PART_BYTES = 5 * 1024**2
"""What S3 takes at least; with 10,000 parts, a file may have 50 GB."""
_PARTS_AT_ONCE = 2
_NO_BUCKET = "NoSuchBucket"
_DENIED = re.compile(r"status code: 40[13]\b|\(os error (1|13|30)\)")
"""Lists in S3, and files under a directory, fail in ways of their own."""
_PASSING = "RetriableError: "
"""In the words of a credential provider of ours, which obstore counts as one that refuses."""
_LOCAL_CHUNK_BYTES = 128 * 1024
"""Small enough to stay in the processor's cache between reading, checking and writing."""


class Digest(Protocol):
    """A checksum in the making."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the checksum of all bytes so far, in hexadecimal digits."""
        ...


class Crc32c:
    """CRC-32C with the instruction that processors have for it."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""
        self._value = google_crc32c.extend(self._value, data)

    def hexdigest(self) -> str:
        """Return the checksum of all bytes so far, in hexadecimal digits."""
        return f"{self._value:08x}"


def new_checksum() -> hashlib.blake2b:
    """Return the hash that names files and tells them apart."""
    return hashlib.blake2b(digest_size=16)


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

    def download(
        self, path: str, file: Path, new_digest: Callable[[], Digest] = new_checksum
    ) -> tuple[int, str] | None:
        """Write the bytes of an object to a new file; return their number and checksum, None if there is no object."""
        ...

    def list(self, path: str) -> dict[str, int]:
        """Return the paths and sizes of all objects below ``path``, in the order of their paths.

        With them, of a directory, what was not written to its end: its name goes on with ``#`` and a number.
        """
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
        environment: Environment variables; for S3, ``AWS_*`` tell region, endpoint and credentials: see ``s3.open_s3``.

    Raises:
        SettingsError: the URL makes no sense, or the directory cannot be written.
    """
    if url == "memory://":
        return StoredObjects(MemoryStore(), url)
    if url.startswith("s3://"):
        from headrace.checkpoint.s3 import open_s3  # it needs this module

        return open_s3(url, environment)
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
            # In parts, if it is larger than one; with all threads at work, this many times as much memory.
            obstore.put(self._store, path, file, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)
            self._force(path)

    def read(self, path: str) -> bytes | None:
        """Return the bytes of an object; None if there is none."""
        with self._errors("read", path):
            try:
                return bytes(obstore.get(self._store, path).bytes())
            except FileNotFoundError as error:
                if _NO_BUCKET in str(error):
                    raise
                return None

    def download(
        self, path: str, file: Path, new_digest: Callable[[], Digest] = new_checksum
    ) -> tuple[int, str] | None:
        """Write the bytes of an object to a new file; return their number and checksum, None if there is no object."""
        digest, size = new_digest(), 0
        with contextlib.ExitStack() as opened:
            with self._errors("read", path):
                try:
                    chunks = self._chunks(path, opened)
                except FileNotFoundError as error:
                    if _NO_BUCKET in str(error):
                        raise
                    return None
            # What fails on this side is no fault of the checkpoint store.
            target = opened.enter_context(file.open("xb"))
            while chunk := self._next(chunks, path):
                target.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def _next(self, chunks: Iterator[bytes], path: str) -> bytes:
        with self._errors("read", path):
            return next(chunks, b"")

    def _chunks(self, path: str, opened: contextlib.ExitStack) -> Iterator[bytes]:
        if self._directory is None:
            stream = obstore.get(self._store, path).stream(min_chunk_size=_CHUNK_BYTES)
            return (bytes(chunk) for chunk in stream)
        # Twice as fast as through obstore, whose threads hand every chunk over.
        source = opened.enter_context((self._directory / path).open("rb", buffering=0))
        return iter(lambda: source.read(_LOCAL_CHUNK_BYTES), b"")

    def list(self, path: str) -> dict[str, int]:
        """Return the paths and sizes of all objects below ``path``, in the order of their paths."""
        with self._errors("list", path):
            pages = obstore.list(self._store, path, chunk_size=1000)
            found = {one["path"]: one["size"] for page in pages for one in page}
            return dict(sorted((found | self._half_written(path)).items()))

    def _half_written(self, path: str) -> dict[str, int]:
        # obstore hides what it has not written to its end, and what a killed process never will.
        if self._directory is None:
            return {}
        found = {}
        for file in (self._directory / path).rglob("*#*"):
            with contextlib.suppress(FileNotFoundError):
                found[file.relative_to(self._directory).as_posix()] = file.stat().st_size
        return found

    def names(self, path: str) -> Sequence[str]:
        """Return, sorted, the names that the paths of objects below ``path`` continue with."""
        with self._errors("list", path):
            prefixes = obstore.list_with_delimiter(self._store, path)["common_prefixes"]
            return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes if self._is_inhabited(prefix))

    def _is_inhabited(self, prefix: str) -> bool:
        # Directories stay when the last file in them is deleted.
        return self._directory is None or any(path.is_file() for path in (self._directory / prefix).rglob("*"))

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects, one after another in this order; those that do not exist are as good as deleted."""
        for path in paths:
            with self._errors("delete", path):
                try:
                    if self._directory is None:
                        obstore.delete(self._store, path)
                    else:
                        (self._directory / path).unlink()
                except FileNotFoundError as error:
                    if _NO_BUCKET in str(error):
                        raise

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
        except (BaseError, OSError) as error:
            raise self._told(error, verb, path) from error

    def _told(self, error: BaseError | OSError, verb: str, path: str) -> HeadraceError:
        text = str(error)
        if _NO_BUCKET in text:
            return SettingsError(
                f"the bucket of {self._name} does not exist", remedy="Create it, or look at HEADRACE_CHECKPOINTS"
            )
        if "incorrectly configured region" in text or "PermanentRedirect" in text:
            return SettingsError(
                f"the bucket of {self._name} is in another region", remedy="Set AWS_REGION to the region of the bucket"
            )
        denied = isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError)
        if (denied or _DENIED.search(text)) and _PASSING not in text:
            return SettingsError(
                f"checkpoints in {self._name} refuse to {verb} {path}: {first_line(error)}",
                remedy="Give the user or role of this worker permission to read, write, list and delete there",
            )
        return RetriableError(
            f"checkpoints in {self._name} could not {verb} {path}: {first_line(error)}",
            remedy="Look at the network, the space left, the credentials and HEADRACE_CHECKPOINTS if this lasts",
        )


def first_line(error: BaseException) -> str:
    """Return what an error of obstore says, without the request that it dumps."""
    return str(error).partition("\n")[0].strip()
