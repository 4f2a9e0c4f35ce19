"""Protobuf messages, plain or in Confluent's wire format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

from headrace.errors import TopologyError
from headrace.record import JoinedBytes
from headrace.serde.confluent import HEADER_BYTES, check_wire, frame, schema_id_of

M = TypeVar("M")


class Protobuf(Generic[M]):
    """Protobuf messages of one class, which ``protoc`` has made.

    Equal messages are written as equal bytes, so that a replay writes what was written before.

    Args:
        kind: The message's class.
        wire: ``"plain"`` is the bare message; ``"confluent"`` has a zero byte, the schema's id and the message's place
            in its ``.proto`` file before it.
        schema_id: The id under which the schema is registered, which is written with ``wire="confluent"``. Any id is
            read, as a message can be read without its writer's schema.

    Raises:
        TopologyError: protobuf is not installed, ``kind`` is no message class, or the arguments do not fit together.

    Example:
        >>> from google.protobuf.wrappers_pb2 import StringValue
        >>> Protobuf(StringValue).encode_many([StringValue(value="x")])
        [b'\\n\\x01x']
    """

    def __init__(
        self, kind: type[M], *, wire: Literal["plain", "confluent"] = "plain", schema_id: int | None = None
    ) -> None:
        given: Any = kind
        if not _is_message_class(given):
            raise TopologyError(
                "Protobuf needs a message class, such as Payment of payment_pb2",
                remedy="Make it of the .proto file with protoc",
            )
        check_wire("Protobuf", wire, schema_id)
        self.kind: type[M] = kind
        self._read: Callable[[bytes], M] = given.FromString
        self._descriptor = given.DESCRIPTOR
        self._confluent = wire == "confluent"
        self._place = _place(self._descriptor)
        self._header = b"" if schema_id is None else frame(schema_id) + self._place

    @property
    def name(self) -> str:
        """Return ``protobuf``, the wire format if it is not plain, and the message's name."""
        return f"protobuf{'-confluent' if self._confluent else ''}[{self._descriptor.name}]"

    @property
    def unwritable(self) -> str:
        """Say why no value can be written; empty if it can."""
        return (
            'Protobuf with wire="confluent" needs schema_id= to write' if self._confluent and not self._header else ""
        )

    @property
    def internal(self) -> Protobuf[M]:
        """Return the serde for topics that nobody else reads."""
        return Protobuf(self.kind) if self._confluent else self

    def encode_many(self, values: Sequence[M]) -> list[bytes | None]:
        """Encode each message.

        Raises:
            TopologyError: nothing can be written with these arguments.
            TypeError: a value is of another class, or lacks a required field.
        """
        if self.unwritable:
            raise TopologyError(self.unwritable)
        return [None if value is None else self._encode(value) for value in values]

    def decode_many(self, values: JoinedBytes) -> list[M]:
        """Decode each message."""
        return [self.decode(value) for value in values.split()]

    def decode(self, value: bytes | None) -> M:
        """Decode one message."""
        if value is None:
            return None  # type: ignore[return-value]  # as all serdes do, although a stream's values are taken for M
        if self._confluent:
            value = self._body(value)
        try:
            return self._read(value)
        except Exception as error:  # noqa: BLE001  # what it says may quote the bytes
            raise ValueError(f"not a {self._descriptor.name}: {type(error).__name__}") from None

    def _encode(self, value: Any) -> bytes:
        kind: Any = self.kind
        if not isinstance(value, kind):
            raise TypeError(f"expected {self._descriptor.name}, got {type(value).__name__}")
        missing = value.FindInitializationErrors()
        if missing:
            raise TypeError(f"a {self._descriptor.name} lacks the required field {missing[0]!r}")
        data: bytes = self._header + value.SerializeToString(deterministic=True)
        return data

    def _body(self, value: bytes) -> bytes:
        schema_id_of(value)
        for place in (self._place, b"\x02\x00") if self._place == b"\x00" else (self._place,):
            if value.startswith(place, HEADER_BYTES):
                return value[HEADER_BYTES + len(place) :]
        raise ValueError(f"the value is another message of the file than {self._descriptor.name}")


def _place(descriptor: Any) -> bytes:
    """Return a message's place in its file: how deep, and which at each depth; the first of the file is just a zero."""
    path: list[int] = []
    while descriptor is not None:
        parent = descriptor.containing_type
        siblings = parent.nested_types if parent is not None else descriptor.file.message_types_by_name.values()
        path.insert(0, [sibling.full_name for sibling in siblings].index(descriptor.full_name))
        descriptor = parent
    return b"\x00" if path == [0] else b"".join(map(_varint, [len(path), *path]))


def _varint(number: int) -> bytes:
    number *= 2  # zigzag of what is not negative
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _is_message_class(kind: Any) -> bool:
    try:
        from google.protobuf.message import Message
    except ImportError as error:
        raise TopologyError("Protobuf needs protobuf", remedy='Run: pip install "headrace[protobuf]"') from error
    return isinstance(kind, type) and issubclass(kind, Message)
