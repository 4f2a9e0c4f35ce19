"""Brings the files of a checkpoint back into a directory."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.checkpoint.manifest import FileRef, Manifest
from headrace.checkpoint.store import Objects
from headrace.checkpoint.upload import file_checksum, in_threads
from headrace.errors import CorruptError, FatalError

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
    reuse: Path | None = None,
    on_progress: Progress | None = None,
) -> RestoreStats:
    """Put the files of ``manifest`` into ``directory``, whole or not at all; what was there before is deleted.

    Args:
        objects: Where the files are.
        manifest: Names them.
        directory: Where they go.
        reuse: A directory of an earlier store or snapshot that nobody will write to any more; files that it holds
            unchanged are linked instead of fetched. It may be ``directory`` itself.
        on_progress: Is told after each file.

    Raises:
        CorruptError: a file is missing or damaged.
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
        linked = reuse is not None and _link(reuse / ref.name, temporary / ref.name, ref)
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
            in_threads(bring, manifest.files)
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
        if source.stat().st_size != ref.size or file_checksum(source) != ref.checksum:
            return False
        os.link(source, target)
    except OSError:
        return False
    return True


def _where(manifest: Manifest) -> str:
    return f"checkpoint {manifest.number} of task {manifest.task} of topology {manifest.topology}"


def _fetch(objects: Objects, manifest: Manifest, ref: FileRef, target: Path) -> None:
    where = _where(manifest)
    found = objects.download(ref.object, target)
    if found is None:
        raise CorruptError(f"{where} lacks the object {ref.object}", remedy=_REMEDY)
    if found != (ref.size, ref.checksum):
        raise CorruptError(f"{where} has a damaged object: {ref.object}", remedy=_REMEDY)


_REMEDY = "Delete its manifest, so that the checkpoint before it is used"
