"""What one value of a user's type is in stored state: which types may stand there, and which version it has."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import msgspec

from headrace.errors import TopologyError
from headrace.serde.hooks import from_plain, to_plain
from headrace.serde.msgpack import check_kind
from headrace.serde.schema import schema_of

Migration = Callable[[Any], Any]
"""Makes plain data (dicts, lists, scalars) of one version from that of the version before."""

_PLAIN: frozenset[type] = frozenset({dict, list, str, int, float, bool, bytes, type(None)})
_SHARED = (str, int, float, bool, bytes, type(None))
"""Types of which one object can stand for all."""


class Versioned:
    """The type of a stored value, with the way from its older versions.

    Args:
        kind: A plain type, a ``msgspec.Struct``, dataclass or ``TypedDict``, or a collection of them.
        version: The version of ``kind``; it is stored with every value.
        migrations: For a version ``n`` the function that turns its plain data into that of ``n + 1``.
    """

    def __init__(self, kind: Any, version: int, migrations: Mapping[int, Migration] | None) -> None:
        self.kind = kind
        self.version = version
        self.migrations = dict(migrations or {})
        self.allowed = allowed_types(kind)
        """Types that come back from the store as themselves; None if that cannot be told."""
        self._inner = _inner_types(kind)
        self.sure = self.allowed if self.allowed is not None and self._inner is None else frozenset[type]()
        """Types of values that need no closer look."""

    @property
    def name(self) -> str:
        """Return what the type is called in messages."""
        return getattr(self.kind, "__name__", None) or str(self.kind)

    @property
    def oldest(self) -> int:
        """Return the oldest version that can be read."""
        return min(self.migrations, default=self.version)

    def check(self, what: str) -> None:
        """Refuse a type that cannot be stored, and migrations with gaps.

        Raises:
            TopologyError: names ``what`` and the remedy.
        """
        try:
            for part in (self.kind, *typing.get_args(self.kind)):
                check_kind(part)
            decoder(self.kind)
        except (TypeError, NameError) as error:
            raise TopologyError(
                f"{what} cannot hold {self.name}: {error}",
                remedy="Use a plain type, a msgspec.Struct, a dataclass, a TypedDict, or list[...] or dict[...] of one",
            ) from error
        if type(self.version) is not int or not 1 <= self.version < 128:
            raise TopologyError(f"{what} needs a version from 1 to 127, not {self.version!r}")
        missing = sorted(set(range(self.oldest, self.version)) - self.migrations.keys())
        if missing:
            raise TopologyError(
                f"{what} has version {self.version} and no migration from version {missing[0]}",
                remedy=f"Add {missing[0]}: function to migrations=, which makes version {missing[0] + 1} of it",
            )
        for version, migration in self.migrations.items():
            if type(version) is not int or not 1 <= version < self.version:
                raise TopologyError(f"{what} has version {self.version}, so there is no migration from {version!r}")
            if not callable(migration):
                raise TopologyError(f"{what}: the migration from version {version} is not a function")

    def accept(self, value: Any, what: str) -> Any:
        """Return ``value`` as it is to be kept: a whole number where there should be a float becomes one.

        Raises:
            TopologyError: it would come back from the store as another type.
        """
        found = type(value)
        if self.allowed is not None and found not in self.allowed:
            if found is int and float in self.allowed:
                return float(value)
            raise TopologyError(
                f"{what} holds {self.name}, and was given {found.__name__}, which would not come back as one",
                remedy=f"Declare the state with the type {found.__name__}, or make {self.name} of the value",
            )
        if self._inner is not None and value:
            items = value.values() if isinstance(value, dict) else value
            strange = set(map(type, items)) - self._inner
            if strange and not (strange == {int} and float in self._inner):
                name = min(kind.__name__ for kind in strange)
                raise TopologyError(
                    f"{what} holds {self.kind}, and was given one with {name} in it, which would not come back as such",
                    remedy="Declare the state with the type that it really holds",
                )
        return value

    def fresh(self, default: Any) -> Callable[[], Any]:
        """Return what makes a default value: a new one each time if it could be changed in place."""
        if isinstance(default, _SHARED):
            return lambda: default
        data, decode = encoder().encode(default), decoder(self.kind).decode
        return lambda: decode(data)

    def upgrade(self, version: int, data: Any, what: str) -> Any:
        """Return the value that plain data of an older version means.

        Raises:
            TopologyError: a migration fails, or what it makes is not of the type.
        """
        step = version
        try:
            for step in range(version, self.version):
                data = self.migrations[step](data)
            step = self.version
            return msgspec.convert(data, self.kind, dec_hook=from_plain)
        except msgspec.ValidationError as error:
            raise TopologyError(
                f"what the migrations of {what} make of version {version} is no {self.name}: {error}",
                remedy="Mend the migrations and start again; nothing is lost",
            ) from error
        except KeyError as error:
            if step not in self.migrations and step < self.version:
                raise TopologyError(
                    f"{what} was stored as version {version}, from which there is no migration",
                    remedy="Keep the migrations for as long as rows of old versions may be there",
                ) from error
            raise self._failed(what, step, error) from error
        except Exception as error:
            raise self._failed(what, step, error) from error

    def shape(self) -> dict[str, Any]:
        """Describe what stored values depend on."""
        return {"version": self.version, "oldest": self.oldest, "type": schema_of(self.kind)}

    def _failed(self, what: str, version: int, error: Exception) -> TopologyError:
        return TopologyError(
            f"the migration of {what} from version {version} failed with {type(error).__name__}",
            remedy="Mend it and start again; nothing is lost",
        )


def encoder() -> msgspec.msgpack.Encoder:
    """Return what writes values of any type that may stand in state."""
    return msgspec.msgpack.Encoder(enc_hook=to_plain)


def decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """Return what reads values of ``kind``."""
    return msgspec.msgpack.Decoder(kind, dec_hook=from_plain)


def allowed_types(kind: Any) -> frozenset[type] | None:
    """Return the exact types that values of ``kind`` have, None if they cannot be told.

    Example:
        >>> sorted(found.__name__ for found in allowed_types(list[int] | None))
        ['NoneType', 'list']
    """
    if kind is Any:
        return _PLAIN
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = [allowed_types(option) for option in typing.get_args(kind)]
        known = [option for option in options if option is not None]
        return frozenset(chain.from_iterable(known)) if len(known) == len(options) else None
    if origin is typing.Literal:
        return frozenset([type(value) for value in typing.get_args(kind)])
    if origin is typing.Annotated:
        return allowed_types(typing.get_args(kind)[0])
    cls = origin or getattr(kind, "__supertype__", kind)
    if cls is None:
        return frozenset({type(None)})
    if typing.is_typeddict(cls):
        return frozenset({dict})
    told = isinstance(cls, type) and cls is not object and cls.__module__ not in ("typing", "collections.abc")
    return frozenset({cls}) if told else None


def _inner_types(kind: Any) -> frozenset[type] | None:
    """Return the exact types that a collection's items, or a dict's values, have; None if that is not to be checked."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (list, set, frozenset, dict) and arguments and arguments[-1] is not Any:
        return allowed_types(arguments[-1])
    return None
