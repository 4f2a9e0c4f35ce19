"""The contract of a serde, and which serde a type means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, get_origin, runtime_checkable
from uuid import UUID

from headrace.errors import TopologyError
from headrace.record import JoinedBytes
from headrace.serde.msgpack import Msgpack
from headrace.serde.primitives import Bytes, Float, Int, Str, Uuid
from headrace.serde.tuples import Tuple

V = TypeVar("V")


@runtime_checkable
class Serde(Protocol[V]):
    """Turns columns of values into bytes and back; pure, and safe to share between threads.

    A missing value (None, a tombstone) is neither encoded nor decoded: it stays None.
    """

    @property
    def name(self) -> str:
        """Say what the bytes are, for ``describe`` and for comparing deployments."""
        ...

    def encode_many(self, values: Sequence[V]) -> list[bytes | None]:
        """Encode values in their order; raises whatever the first bad one raises."""
        ...

    def decode_many(self, values: JoinedBytes) -> list[V]:
        """Decode a column; raises if any value is bad, without saying which."""
        ...

    def decode(self, value: bytes | None) -> V:
        """Decode one value; raises an error that says what is wrong with it and does not contain it."""
        ...


def internal_serde(serde: Serde[Any]) -> Serde[Any]:
    """Return the serde of a stream's values where nobody else reads them: in internal topics and in the store.

    It is the serde's own ``internal`` if it has one, such as ``Avro`` in a wire format that names its schemas.
    """
    found: Serde[Any] = getattr(serde, "internal", serde)
    return found


def changed_type(serde: Serde[Any], values: Sequence[Any]) -> tuple[str, str] | None:
    """Find a value that would come back from ``serde`` as another type.

    Only serdes with a ``kind`` are asked: the others refuse what they cannot give back.

    Returns:
        The name of its type, and of what it would be; None if there is no such value.

    Example:
        >>> from fractions import Fraction
        >>> changed_type(Msgpack(), [{"a": 1}, Fraction(1)])
        ('Fraction', 'dicts')
    """
    kind = getattr(serde, "kind", None)
    if kind is None:
        return None
    kinds = set(map(type, values))
    if kind is Any:
        strange = [found for found in kinds if not issubclass(found, _PLAIN)]
    elif isinstance(kind, type) and not issubclass(kind, _PLAIN):
        strange = list(kinds - {kind, type(None)})
    else:
        return None
    if not strange:
        return None
    return min(found.__name__ for found in strange), "dicts" if kind is Any else kind.__name__


_PLAIN = (dict, list, str, int, float, bool, bytes, type(None))
_PRIMITIVES: dict[Any, Callable[[], Serde[Any]]] = {bytes: Bytes, str: Str, int: Int, float: Float, UUID: Uuid}


def serde_for(given: Any, what: str, default: Callable[[], Serde[Any]] = Msgpack) -> Serde[Any]:
    """Return the serde that a user's ``value=`` or ``key=`` means.

    Args:
        given: None (the default), ``bytes``, ``str``, ``int``, ``float``, ``UUID``, a tuple type such as
            ``tuple[str, int]``, a class with typed fields (decoded from MessagePack), or a serde.
        what: The argument's place, named in errors.
        default: Made when ``given`` is None.

    Raises:
        TopologyError: it is none of these.

    Example:
        >>> serde_for(int, "value of stream('clicks')").name
        'int'
    """
    if given is None:
        return default()
    simple = _PRIMITIVES.get(given) if isinstance(given, type) else None
    if simple is not None:
        return simple()
    if isinstance(given, Serde) and not isinstance(given, type):
        return given
    if get_origin(given) is tuple:
        try:
            return Tuple(given)
        except TypeError as error:
            raise TopologyError(f"{what} cannot be {given}: {error}") from error
    if isinstance(given, type):
        try:
            return Msgpack(given)
        except TypeError as error:
            raise TopologyError(
                f"{what} cannot be {given.__name__}: {error}",
                remedy="Use a msgspec.Struct, a dataclass, a TypedDict, a pydantic model, dict, bytes, str, int, "
                "float, UUID, or a serde",
            ) from error
    raise TopologyError(
        f"{what} must be a type or a serde, not {type(given).__name__}",
        remedy="Write value=Payment, not value=Payment()",
    )
