"""``KeyedStream.process``: user code with state and timers per key."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

from headrace.dsl.definition import Definition, returned_type, user_location
from headrace.dsl.keyed import KeyedStream
from headrace.errors import TopologyError
from headrace.operators.keyed_state import KeyedState
from headrace.operators.process import ProcessRecords
from headrace.operators.programs import Process, Program, program_of_functions, program_of_object
from headrace.serde.api import Serde, serde_for
from headrace.serde.msgpack import Msgpack
from headrace.topology.graph import ErrorPolicy, Port

U = TypeVar("U")

_PLAIN = (dict, list, str, int, float, bool, bytes, type(None))

NamedOutputs = Iterable[str] | Mapping[str, Any]
"""Names of outputs, or names and what each one's values are."""


class ProcessResults(KeyedStream[U]):
    """What ``process`` yields, with its named outputs beside it."""

    def __init__(
        self,
        definition: Definition,
        port: Port,
        anchor: str,
        value: Serde[Any],
        key: Serde[Any],
        outputs: Mapping[str, KeyedStream[Any]],
    ) -> None:
        super().__init__(definition, port, anchor, value, key)
        self._outputs = outputs

    def output(self, name: str) -> KeyedStream[Any]:
        """Return what ``context.emit(name, ...)`` writes.

        Raises:
            TopologyError: the step has no such output.
        """
        stream = self._outputs.get(name)
        if stream is None:
            known = ", ".join(map(repr, self._outputs)) or "none"
            raise TopologyError(
                f"there is no output {name!r} ({user_location()})",
                remedy=f"Name it in process(..., outputs=(...)); those named there: {known}",
            )
        return stream

    def _same(self, port: Port) -> Self:
        return type(self)(self._definition, port, self._anchor, self._value, self._key, self._outputs)


def processed(
    stream: KeyedStream[Any],
    process: Any,
    *,
    on_timer: Callable[..., Any] | None,
    on_clock_timer: Callable[..., Any] | None,
    name: str | None,
    outputs: NamedOutputs,
    drop: Iterable[str],
    uses_clock: bool,
    on_error: ErrorPolicy | None,
    states: Mapping[str, Any],
) -> ProcessResults[Any]:
    """Append the step that ``KeyedStream.process`` stands for and return its results."""
    if isinstance(process, Process) or (isinstance(process, type) and issubclass(process, Process)):
        given = {"on_timer": on_timer, "on_clock_timer": on_clock_timer, **states}
        if extra := [argument for argument, value in given.items() if value is not None]:
            raise TopologyError(
                f"process was given a class and {extra[0]}= ({user_location()})", remedy="Put it into the class"
            )
        template = _made(process)
        for method in ("on_record", "on_timer", "on_clock_timer"):
            _check_called(getattr(template, method), f"{type(template).__name__}.{method}")
        program = program_of_object(template)
        detail, clock = type(template).__name__, template.uses_clock
        clock = clock or type(template).on_clock_timer is not Process.on_clock_timer
        value = _serde_of_class(type(template))
    else:
        program = _program_of_functions((process, on_timer, on_clock_timer), states)
        detail, clock = getattr(process, "__name__", "<lambda>"), on_clock_timer is not None
        value = _serde_of_functions(process, on_timer, on_clock_timer)
    if name is None and not detail.isidentifier():
        raise TopologyError(
            f"process keeps state under a name, and was given a function that has none ({user_location()})",
            remedy='Give the step one: process(..., name="...")',
        )
    wanted = name or f"{stream._anchor}-process-{detail}"
    for state_name, state in program.states.items():
        state.check(f"state {state_name!r} of step {wanted!r} ({user_location()})")
    typed = _named_outputs(outputs)
    spec = ProcessRecords(program, tuple(typed), _dropped(drop, program), stream._key.decode, clock or uses_clock)
    port = stream._step(spec, f"process-{detail}", name, on_error)
    key = stream._key
    named = {
        output: KeyedStream[Any](
            stream._definition,
            Port(port.node, output),
            port.node,
            serde_for(kind, f"output {output!r} of step {wanted!r}"),
            key,
        )
        for output, kind in typed.items()
    }
    return ProcessResults(stream._definition, port, port.node, value, key, named)


def _made(process: Any) -> Process[Any, Any]:
    if not isinstance(process, type):
        return process  # type: ignore[no-any-return]
    try:
        return process()  # type: ignore[no-any-return]
    except TypeError as error:
        raise TopologyError(
            f"process cannot make a {process.__name__} without arguments ({user_location()}): {error}",
            remedy=f"Pass an object: process({process.__name__}(...))",
        ) from error


def _check_called(function: Any, what: str) -> None:
    """Refuse what cannot be called as it has to be."""
    if not callable(function):
        raise TopologyError(
            f"{what} must be a function or a Process, not {type(function).__name__} ({user_location()})",
            remedy="Write a function of (record, context, **states) or a subclass of Process",
        )
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TopologyError(
            f"{what} is an async function ({user_location()}), which process would never await",
            remedy="Make it a plain function, and make the calls that must be awaited in map_async before or after it",
        )


def _program_of_functions(
    functions: tuple[Any, Callable[..., Any] | None, Callable[..., Any] | None], states: Mapping[str, Any]
) -> Program:
    for name, state in states.items():
        if not isinstance(state, KeyedState):
            raise TopologyError(
                f"process has no argument {name}=, and a {type(state).__name__} is no state ({user_location()})",
                remedy="States are ValueState(...), ListState(...) and MapState(...)",
            )
    taken: dict[int, tuple[str, ...]] = {}
    for function, what in zip(functions, ("process", "on_timer", "on_clock_timer"), strict=True):
        if function is not None:
            _check_called(function, what)
            taken[id(function)] = _states_taken(function, what, states)
    idle = sorted(set(states).difference(*taken.values()))
    if idle:
        raise TopologyError(
            f"process was given {idle[0]}=, which no function takes ({user_location()})",
            remedy=f"Add a parameter {idle[0]} behind context, or leave the state out",
        )
    return program_of_functions(functions, states, lambda function: taken[id(function)])


def _states_taken(function: Callable[..., Any], what: str, states: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the states that a function has parameters for; those behind the first two must be states."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return tuple(states)
    kinds = [parameter.kind for parameter in parameters]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return tuple(states)
    first = "record" if what == "process" else "name"
    named = [p for p in parameters[2:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if len(parameters) < 2 and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise TopologyError(
            f"the function of {what} takes too few arguments ({user_location()})",
            remedy=f"It gets ({first}, context) and the states by name",
        )
    for parameter in named:
        if parameter.name not in states and parameter.default is parameter.empty:
            raise TopologyError(
                f"the function of {what} takes {parameter.name!r}, which is no state that was given "
                f"({user_location()})",
                remedy=f"Pass {parameter.name}=ValueState(...), ListState(...) or MapState(...) to process",
            )
    return tuple(parameter.name for parameter in named if parameter.name in states)


def _named_outputs(outputs: NamedOutputs) -> dict[str, Any]:
    if isinstance(outputs, str):
        raise TopologyError(
            f"outputs= is a text ({user_location()})", remedy=f'Write outputs=("{outputs}",), with a comma'
        )
    typed = dict(outputs) if isinstance(outputs, Mapping) else dict.fromkeys(outputs)
    for name in typed:
        if not isinstance(name, str) or not name:
            raise TopologyError(f"an output of process needs a name, not {name!r} ({user_location()})")
    return typed


def _dropped(drop: Iterable[str], program: Program) -> tuple[str, ...]:
    names = (drop,) if isinstance(drop, str) else tuple(drop)
    for name in names:
        if name in program.states:
            raise TopologyError(f"state {name!r} is declared and dropped at once ({user_location()})")
    return names


def _serde_of_class(cls: type[Process[Any, Any]]) -> Serde[Any]:
    """Return how the results of a class are written to internal topics: by its type arguments or its annotations."""
    for parent in cls.__mro__:
        for base in getattr(parent, "__orig_bases__", ()):
            arguments = typing.get_args(base)
            if typing.get_origin(base) is Process and len(arguments) == 2 and not isinstance(arguments[1], TypeVar):
                return _serde(arguments[1])
    return _serde(_items_of(returned_type(cls.on_record)))


def _serde_of_functions(process: Any, *timers: Any) -> Serde[Any]:
    """Return how the results of functions are written: as ``process`` says, or timers if it gives none itself."""
    kind = returned_type(process)
    if kind is not types.NoneType:
        return _serde(_items_of(kind))
    given = [_items_of(returned_type(timer)) for timer in timers if timer is not None]
    return _serde(given[0] if given and all(kind == given[0] for kind in given) else None)


def _items_of(kind: Any) -> Any:
    """Return what an annotation of several results, such as ``Iterator[Alert] | None``, says that each of them is."""
    options: Sequence[Any] = [kind]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not types.NoneType]
    found = {typing.get_args(option)[0] for option in options if typing.get_args(option)}
    return found.pop() if len(found) == 1 and len(options) == 1 else None


def _serde(kind: Any) -> Serde[Any]:
    if not isinstance(kind, type) or (issubclass(kind, _PLAIN) and not typing.is_typeddict(kind)):
        return Msgpack()
    try:
        return Msgpack(kind)
    except TypeError:
        return Msgpack()
