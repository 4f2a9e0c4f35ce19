"""What a checkpoint consists of, where its objects lie, and how a manifest is written down.

Objects of a task lie under ``<topology>/<task>/``::

    manifests/<number>.json          one checkpoint each; the number grows by one from manifest to manifest
    files/<epoch>-<hash>             what manifests name; the epoch is that of the worker which uploaded the file, the
                                     hash is over its bytes and the number of the manifest that it was uploaded for

Writing manifest n+1 only if it does not exist makes the manifests of a task one sequence that all its owners, past
and present, agree on: of two workers that believe to own the task, one fails. Files carry the epoch, so that an owner
of the past never deletes what a later one uploaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import msgspec

from headrace.errors import CorruptError, FatalError, InvalidError, SettingsError

VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_FRAME = re.compile(rb'\{"crc32c":"([0-9a-f]{8})","manifest":(.*)\}\n', re.DOTALL)
_MANIFEST_NAME = re.compile(r"(\d{10})\.json")
_FILE_NAME = re.compile(r"(\d+)-[0-9a-f]{32}(?:#\d+)?")
"""With a number sign, it is what a killed process left of an upload to a directory."""


class FileRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file of a store directory and the object that holds its bytes."""

    name: str
    """In the store directory."""
    object: str
    """Path of the object, from the root of the checkpoint store."""
    size: int
    checksum: str
    """BLAKE2b with 128 bits, in hexadecimal digits: says which file it is."""
    crc32c: str = ""
    """CRC-32C in hexadecimal digits: says whether a copy is whole, ten times as fast; earlier versions wrote none."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checkpoint of one task; that it exists is what commits the checkpoint."""

    topology: str
    task: str
    epoch: int
    """Of the owner that wrote it."""
    number: int
    """Its place in the sequence of the task's manifests; the highest that is whole is the one that counts."""
    created_ms: int
    files: tuple[FileRef, ...] = ()
    positions: dict[str, int] = field(default_factory=dict)
    """``topic/partition`` and the next offset to read there."""
    info: dict[str, Any] = field(default_factory=dict)
    """JSON that only the writer understands."""
    version: int = VERSION

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(ref.size for ref in self.files)


def task_path(topology: str, task: str) -> str:
    """Return the path below which all objects of a task lie.

    Raises:
        SettingsError: a name cannot be part of a path.
    """
    for what, name in (("topology", topology), ("task", task)):
        if not _NAME.fullmatch(name):
            raise SettingsError(
                f"a {what} with checkpoints cannot have this name: {name!r}",
                remedy="Use letters, digits, '_', '-' and '.', and do not begin with '-' or '.'",
            )
    return f"{topology}/{task}"


def manifests_path(topology: str, task: str) -> str:
    """Return the path below which the manifests of a task lie."""
    return f"{task_path(topology, task)}/manifests"


def manifest_path(topology: str, task: str, number: int) -> str:
    """Return the path of one manifest.

    Example:
        >>> manifest_path("spend", "0-3", 7)
        'spend/0-3/manifests/0000000007.json'
    """
    return f"{manifests_path(topology, task)}/{number:010d}.json"


def manifest_number(path: str) -> int | None:
    """Return the number of the manifest at ``path``, or None if a manifest cannot have that path."""
    match = _MANIFEST_NAME.fullmatch(path.rpartition("/")[2])
    return int(match[1]) if match else None


def files_path(topology: str, task: str) -> str:
    """Return the path below which the files of a task lie."""
    return f"{task_path(topology, task)}/files"


def file_path(topology: str, task: str, epoch: int, digits: str) -> str:
    """Return the path of a file that the owner with ``epoch`` uploads; ``digits`` are 32, in hexadecimal."""
    return f"{files_path(topology, task)}/{epoch:010d}-{digits}"


def file_epoch(path: str) -> int | None:
    """Return the epoch of the owner that uploaded the file at ``path``, or None if a file cannot have that path."""
    match = _FILE_NAME.fullmatch(path.rpartition("/")[2])
    return int(match[1]) if match else None


def check_place(manifest: Manifest, path: str) -> None:
    """Refuse a manifest that lies where another one belongs, or whose files are another task's.

    Raises:
        InvalidError: it was copied there from elsewhere.
    """
    own = f"{manifest.topology}/{manifest.task}"
    if path != f"{own}/manifests/{manifest.number:010d}.json":
        raise InvalidError(
            f"the manifest {path} belongs elsewhere: it is checkpoint {manifest.number} of task {manifest.task} of "
            f"topology {manifest.topology}",
            remedy="Delete what was copied there; a checkpoint can only be used under the name it was made for",
        )
    for ref in manifest.files:
        if not ref.object.startswith(f"{own}/files/"):
            raise InvalidError(
                f"the manifest {path} names a file of another task: {ref.object}",
                remedy="Delete the manifest, so that the checkpoint before it is used",
            )


def encode(manifest: Manifest) -> bytes:
    """Return a manifest as JSON around its own checksum."""
    body = msgspec.json.encode(manifest, order="deterministic")
    return b'{"crc32c":"%08x","manifest":%b}\n' % (google_crc32c.value(body), body)


def decode(data: bytes, path: str) -> Manifest:
    """Return the manifest that was read from ``path``.

    Raises:
        CorruptError: the bytes are damaged.
        FatalError: a later version of headrace wrote them.
    """
    match = _FRAME.fullmatch(data)
    if match is None or google_crc32c.value(match[2]) != int(match[1], 16):
        raise CorruptError(f"the manifest {path} is damaged")
    try:
        version = _versioned.decode(match[2]).version
        if version == VERSION:
            return _manifest.decode(match[2])
    except msgspec.MsgspecError as error:
        raise CorruptError(f"the manifest {path} makes no sense: {error}") from error
    raise FatalError(
        f"the manifest {path} has version {version}, this headrace reads version {VERSION}",
        remedy="Run the version of headrace that wrote it, or a later one",
    )


@dataclass(frozen=True, slots=True)
class _Versioned:
    version: int


# Made at once, as threads decode: see ``serde.converting``.
_versioned = msgspec.json.Decoder(_Versioned)
_manifest = msgspec.json.Decoder(Manifest)
