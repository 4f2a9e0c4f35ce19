"""Brings the files of a checkpoint back into a directory."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.checkpoint.manifest import FileRef, Manifest
from headrace.checkpoint.store import Crc32c, Digest, Objects, new_checksum
from headrace.checkpoint.upload import THREADS, in_threads
from headrace.errors import CorruptError, FatalError

_CHUNK_BYTES = 256 * 1024


class DamagedFilesError(CorruptError):
    """Objects that a checkpoint names are missing or damaged; an older checkpoint may do without them.

    Args:
        message: What is wrong with them.
        remedy: What can be done.
        objects: Their paths.
    """

    def __init__(self, message: str, *, remedy: str = "", objects: frozenset[str] = frozenset()) -> None:
        super().__init__(message, remedy=remedy)
        self.objects = objects


Progress = Callable[[int, int], None]
"""Told the bytes that are in place and the bytes of all files, from several threads but one at a time."""


@dataclass(frozen=True, slots=True)
class RestoreStats:
    """What a restore did."""

    files: int
    fetched_files: int
    fetched_bytes: int
    reused_bytes: int


def restore(
    objects: Objects,
    manifest: Manifest,
    directory: Path,
    reuse: Sequence[Path] = (),
    on_progress: Progress | None = None,
    threads: int = THREADS,
) -> RestoreStats:
    """Put the files of ``manifest`` into ``directory``, whole or not at all; what was there before is deleted.

    Args:
        objects: Where the files are.
        manifest: Names them.
        directory: Where they go.
        reuse: Directories of earlier stores or snapshots that nobody will write to any more; files that one of them
            holds unchanged are linked instead of fetched. ``directory`` itself may be among them.
        on_progress: Is told after each file.
        threads: How many files come down at a time.

    Raises:
        DamagedFilesError: a file is missing or damaged.
        RetriableError: the checkpoint store cannot be reached.
        FatalError: the local directory cannot be written.
    """
    for ref in manifest.files:
        if ref.name in ("", ".", "..") or "/" in ref.name or "\0" in ref.name:
            raise CorruptError(f"{_where(manifest)} names a file outside its directory: {ref.name!r}")
    temporary = directory.with_name(directory.name + ".restoring")
    lock = threading.Lock()
    done = fetched_files = fetched_bytes = 0

    def bring(ref: FileRef) -> None:
        nonlocal done, fetched_files, fetched_bytes
        linked = any(_link(earlier / ref.name, temporary / ref.name, ref) for earlier in reuse)
        if not linked:
            _fetch(objects, manifest, ref, temporary / ref.name)
        with lock:
            done += ref.size
            if not linked:
                fetched_files += 1
                fetched_bytes += ref.size
            if on_progress is not None:
                on_progress(done, manifest.size_bytes)

    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            in_threads(bring, manifest.files, threads)
            shutil.rmtree(directory, ignore_errors=True)
            temporary.rename(directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise FatalError(
            f"the state of task {manifest.task} cannot be written to {directory}: {error}",
            remedy="Look at the space and the permissions of HEADRACE_STATE_DIR",
        ) from error
    return RestoreStats(len(manifest.files), fetched_files, fetched_bytes, manifest.size_bytes - fetched_bytes)


def _link(source: Path, target: Path, ref: FileRef) -> bool:
    try:
        os.link(source, target)
        # The link, and not what its name may mean by now.
        if target.stat().st_size == ref.size and _is_whole(target, ref):
            return True
        target.unlink()
    except OSError:
        target.unlink(missing_ok=True)
    return False


def _is_whole(path: Path, ref: FileRef) -> bool:
    digest = _digest_of(ref)()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == (ref.crc32c or ref.checksum)


def _digest_of(ref: FileRef) -> Callable[[], Digest]:
    return Crc32c if ref.crc32c else new_checksum


def _where(manifest: Manifest) -> str:
    return f"checkpoint {manifest.number} of task {manifest.task} of topology {manifest.topology}"


def _fetch(objects: Objects, manifest: Manifest, ref: FileRef, target: Path) -> None:
    found = objects.download(ref.object, target, _digest_of(ref))
    if found != (ref.size, ref.crc32c or ref.checksum):
        told = "lacks the object" if found is None else "has a damaged object:"
        raise DamagedFilesError(
            f"{_where(manifest)} {told} {ref.object}",
            remedy="See what else is damaged with `headrace checkpoints verify`",
            objects=frozenset({ref.object}),
        )
