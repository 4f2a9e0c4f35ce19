"""A checkpoint store in memory, and what each worker sees of it over a bad line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from headrace.checkpoint.store import Digest, new_checksum
from headrace.errors import RetriableError
from headrace.testing.simulation import faults

T = TypeVar("T")


class Operator(Protocol):
    """Carries operations of one worker out, or lets them fail."""

    def operate(self, kind: str, effect: Callable[[], T], told: str) -> T:
        """Carry an operation out, unless the worker crashes or the operation fails.

        Raises:
            RetriableError: it failed, before its effect or after it.
        """
        ...

    def strike(self, kind: str, told: str) -> str | None:
        """Begin an operation, and return what is to become of it, beside what ``operate`` sees to."""
        ...

    def finish(self) -> None:
        """End an operation that ``strike`` began."""
        ...

    def later(self, effect: Callable[[], object]) -> None:
        """Carry something out in a while, whatever becomes of the worker."""
        ...


class Watcher(Protocol):
    """Is told of every change of the objects."""

    def created(self, path: str, data: bytes, by: str) -> None:
        """An object was created that was not there."""
        ...

    def deleted(self, path: str) -> None:
        """An object is gone."""
        ...


class SharedObjects:
    """The objects that all workers share."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self.watcher: Watcher | None = None

    def create(self, path: str, data: bytes, by: str) -> bool:
        """Write an object unless there is one; return whether it was written."""
        if path in self.rows:
            return False
        self.rows[path] = data
        if self.watcher is not None:
            self.watcher.created(path, data, by)
        return True

    def delete(self, path: str) -> None:
        """Delete an object if there is one."""
        if self.rows.pop(path, None) is not None and self.watcher is not None:
            self.watcher.deleted(path)

    def put(self, path: str, data: bytes) -> None:
        """Write an object, or over it."""
        self.rows[path] = data


class WorkerObjects:
    """The checkpoint store as one worker sees it; see ``checkpoint.store.Objects``."""

    def __init__(self, shared: SharedObjects, operator: Operator, name: str, moments: Iterator[int]) -> None:
        self._moments = moments
        self._shared = shared
        self._operator = operator
        self._name = name

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one; return whether it was written, as far as the answer tells."""
        return self._written("create", path, lambda: self._shared.create(path, data, self._name))

    def upload(self, path: str, file: Path) -> None:
        """Write the bytes of a file as an object, or over it."""
        data = file.read_bytes()
        self._written("upload", path, lambda: self._shared.put(path, data))

    def read(self, path: str) -> bytes | None:
        """Return the bytes of an object; None if there is none."""
        return self._operator.operate("fetch", lambda: self._shared.rows.get(path), path)

    def download(
        self, path: str, file: Path, new_digest: Callable[[], Digest] = new_checksum
    ) -> tuple[int, str] | None:
        """Write the bytes of an object to a new file; return their number and checksum, None if there is no object."""

        def fetch() -> tuple[int, str] | None:
            data = self._shared.rows.get(path)
            if data is None:
                return None
            file.write_bytes(data)
            moment = next(self._moments)
            os.utime(file, ns=(moment, moment))
            digest = new_digest()
            digest.update(data)
            return len(data), digest.hexdigest()

        return self._operator.operate("fetch", fetch, path)

    def list(self, path: str) -> dict[str, int]:
        """Return the paths and sizes of all objects below ``path``, in the order of their paths."""
        start = path.rstrip("/") + "/"

        def found() -> dict[str, int]:
            rows = self._shared.rows
            return {name: len(rows[name]) for name in sorted(name for name in rows if name.startswith(start))}

        return self._operator.operate("list", found, path)

    def names(self, path: str) -> Sequence[str]:
        """Return, sorted, the names that the paths of objects below ``path`` continue with."""
        start = path.rstrip("/") + "/"
        below = self.list(path)
        return sorted({name.removeprefix(start).partition("/")[0] for name in below})

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects one after the other."""
        if not paths:
            return
        told = f"{len(paths)} objects, {paths[0]} first"
        struck = self._operator.strike("delete", told)
        if struck == faults.FAIL:
            raise _failed("delete", told)
        some = paths[: len(paths) // 2] if struck == faults.HALF else paths
        for path in some:
            self._shared.delete(path)
        self._operator.finish()
        if struck is not None:
            raise _failed("delete", told)

    def _written(self, kind: str, path: str, effect: Callable[[], T]) -> T:
        struck = self._operator.strike(kind, path)
        if struck == faults.FAIL:
            raise _failed(kind, path)
        if struck == faults.LATE:
            self._operator.later(effect)
            raise _failed(kind, path)
        result = effect()
        if struck == faults.TWICE:
            result = effect()
        self._operator.finish()
        if struck == faults.LOST:
            raise _failed(kind, path)
        return result


def _failed(kind: str, told: str) -> RetriableError:
    return RetriableError(f"simulated: the checkpoint store did not answer to {kind} of {told}")
