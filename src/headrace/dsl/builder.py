"""``Topology``: where streams begin and nodes are gathered."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar, overload

from headrace.dsl.definition import Definition, check_policy, check_selector, key_serde_of, user_location
from headrace.dsl.keyed import KeyedStream
from headrace.dsl.stream import Stream
from headrace.operators.selectors import Selector
from headrace.serde.api import Serde, serde_for
from headrace.settings import duration_ms
from headrace.topology.graph import ErrorPolicy, Graph, Port, Source
from headrace.topology.validate import validate

V = TypeVar("V")


class Topology:
    """A stream-processing program: what it reads, what it does with it, where the results go.

    Args:
        name: Names the consumer group, the checkpoints and the internal topics; change it and the program starts
            anew. Letters, digits, ``.``, ``_`` and ``-``.
        on_error: What happens with a record that cannot be decoded or processed, unless a step says otherwise:
            ``"stop"`` ends the worker with the user's traceback, ``"skip"`` counts the record and goes on.

    Example:
        >>> from headrace import Topology
        >>> topology = Topology("shouting")
        >>> topology.stream("words", value=str).map(str.upper).to("loud-words")
    """

    def __init__(self, name: str, *, on_error: ErrorPolicy = "stop") -> None:
        self.name = name
        self._definition = Definition(check_policy(on_error))

    @overload
    def stream(
        self, topic: str, *, value: type[V] | Serde[V], key: Any = None, keyed_by: Selector,
        time: Selector | None = None, out_of_orderness: str | timedelta = "0s",
        idle_after: str | timedelta = "30s", name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[V]: ...  # fmt: skip
    @overload
    def stream(
        self, topic: str, *, value: type[V] | Serde[V], key: Any = None, keyed_by: None = None,
        time: Selector | None = None, out_of_orderness: str | timedelta = "0s",
        idle_after: str | timedelta = "30s", name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> Stream[V]: ...  # fmt: skip
    @overload
    def stream(
        self, topic: str, *, value: None = None, key: Any = None, keyed_by: Selector,
        time: Selector | None = None, out_of_orderness: str | timedelta = "0s",
        idle_after: str | timedelta = "30s", name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[dict[str, Any]]: ...  # fmt: skip
    @overload
    def stream(
        self, topic: str, *, value: None = None, key: Any = None, keyed_by: None = None,
        time: Selector | None = None, out_of_orderness: str | timedelta = "0s",
        idle_after: str | timedelta = "30s", name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> Stream[dict[str, Any]]: ...  # fmt: skip
    def stream(
        self,
        topic: str,
        *,
        value: Any = None,
        key: Any = None,
        keyed_by: Selector | None = None,
        time: Selector | None = None,
        out_of_orderness: str | timedelta = "0s",
        idle_after: str | timedelta = "30s",
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> Any:
        """Read a topic.

        Args:
            topic: Its name; it must exist when the topology starts.
            value: What a value is: a ``msgspec.Struct``, dataclass or ``TypedDict`` (from MessagePack), ``bytes``,
                ``str``, ``int``, or a serde such as ``Json(Payment)``. Dicts from MessagePack if None.
            key: What a key is: ``str`` (the default, UTF-8), ``int``, ``bytes`` or a serde.
            keyed_by: The field, or a function of the value, by which the producers already key this topic. It makes
                the stream keyed without a repartition; a record whose key is something else is an error.
            time: The field, or a function of the value, that holds the event time: whole milliseconds since the
                epoch or an aware ``datetime``. The record's own timestamp if None.
            out_of_orderness: How far behind the latest event time of its partition a record may be without being
                late.
            idle_after: A partition that was read to its end and got nothing for this long no longer holds time back.
            name: The step's name; the topic if None.
            on_error: What happens with a record that does not decode; the topology's policy if None.

        Returns:
            A ``KeyedStream`` if ``keyed_by`` is given, else a ``Stream``.

        Raises:
            TopologyError: ``value`` or ``key`` is nothing that can be decoded into.
            SettingsError: a duration is none.
        """
        where = f"stream({topic!r})"
        serde = serde_for(value, f"value of {where}")
        key_serde = serde_for(key, f"key of {where}", lambda: key_serde_of(getattr(serde, "kind", value), keyed_by))
        for what, selector in (("keyed_by=", keyed_by), ("time=", time)):
            if selector is not None:
                check_selector(selector, f"{what} of {where}")
        node = Source(
            name=name or topic,
            topic=topic,
            value=serde,
            key=key_serde,
            keyed_by=keyed_by,
            time=time,
            out_of_orderness_ms=duration_ms(out_of_orderness, f"out_of_orderness of {where}"),
            idle_after_ms=duration_ms(idle_after, f"idle_after of {where}"),
            on_error=check_policy(on_error or self._definition.on_error),
            location=user_location(),
        )
        self._definition.add(node)
        if keyed_by is None:
            return Stream(self._definition, Port(node.name), node.name, serde, key_serde)
        return KeyedStream(self._definition, Port(node.name), node.name, serde, key_serde, keyed_by)

    def graph(self) -> Graph:
        """Return the topology as immutable data, checked whole.

        Raises:
            TopologyError: lists every fault.
        """
        return validate(self.name, self._definition.nodes)
