"""Whether stored state can be used by steps as they are written now.

A shape is plain data that says what the stored rows of a step depend on; a checkpoint keeps it. A shape that is the
same will do. One that is not will do where it says how rows change with it:

- A dict with ``"version"`` and ``"oldest"`` describes values that say their own version. A higher version will do as
  long as migrations reach back to the oldest version that may be stored. Under the same version, ``"type"`` may change
  in ways that the stored values can follow, such as a new field with a default.
- A dict ``"states"`` has one entry for each state of a step. A state may be added. One that is gone must be listed in
  ``"dropped"`` beside it, and its name is not to be used again.

What a checkpoint keeps is therefore the new shape and what it must still remember of older ones: ``"since"``, the
oldest version that may be stored, ``"written"``, the types that values of the present version were written with, and
all that was ever dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import TopologyError
from headrace.serde.evolution import unreadable

_BOOKKEEPING = ("oldest", "since", "written")


def carry_over(
    task: str, kept: Mapping[str, Any], wanted: Mapping[str, Any], lines: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the shapes that the next checkpoint keeps.

    Args:
        task: The task, for messages.
        kept: The shapes of the steps in the last checkpoint, by step.
        wanted: Those of the steps as they are now.
        lines: Where the steps are written, for messages.

    Raises:
        TopologyError: a step was changed in a way that its stored state cannot follow.
    """
    shapes = dict(wanted)
    for step in [step for step in wanted if step in kept]:
        try:
            shapes[step] = followed(f"step {step!r} of task {task}", kept[step], wanted[step])
        except TopologyError as error:
            if lines is None:
                raise
            raise TopologyError(f"{error.message} ({lines[step]})", remedy=error.remedy) from None
    return shapes


def followed(where: str, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shape that is kept of one step that had another one.

    Args:
        where: Names the step in messages.
        kept: Its shape in the last checkpoint.
        wanted: That of the step as it is now.

    Raises:
        TopologyError: its stored state cannot follow the change.

    Example:
        >>> followed("step 'spend'", {"size_ms": 60_000}, {"size_ms": 60_000})
        {'size_ms': 60000}
    """
    if "states" in kept and "states" in wanted:
        return _states(where, kept, wanted)
    if all(isinstance(shape, dict) and "version" in shape for shape in (kept, wanted)):
        return _versioned(where, kept, wanted)
    changed = sorted(name for name in {*wanted, *kept} if not _follows(kept.get(name), wanted.get(name)))
    if changed:
        details = [detail for name in changed for detail in _named_details(name, kept.get(name), wanted.get(name))]
        raise TopologyError(
            f"{where} was changed in a way its stored state cannot follow: "
            f"{', '.join(changed)} {'is' if len(changed) == 1 else 'are'} different"
            + (f" ({'; '.join(dict.fromkeys(details))})" if details else ""),
            remedy="Take the change back, or let the step begin with empty state (--allow-reset)",
        )
    return {name: _part(f"{name} of {where}", kept[name], part) for name, part in wanted.items()}


def _follows(kept: Any, wanted: Any) -> bool:
    """Return whether two parts of a shape are the same, or are to be looked at more closely."""
    return kept == wanted or all(isinstance(part, dict) and "version" in part for part in (kept, wanted))


def _part(where: str, kept: Any, wanted: Any) -> Any:
    if isinstance(wanted, dict) and "version" in wanted:
        return _versioned(where, kept, wanted)
    return wanted


def _states(where: str, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    before, after = kept["states"], wanted["states"]
    gone = [name for name in sorted(before) if name not in after and name not in wanted["dropped"]]
    if gone:
        raise TopologyError(
            f"{where} has no state {gone[0]!r} any more, but has stored it",
            remedy=f'Give the state its name back, or forget what it holds with process(..., drop=("{gone[0]}",))',
        )
    again = [name for name in sorted(after) if name in kept["dropped"]]
    if again:
        raise TopologyError(
            f"{where} has a new state {again[0]!r}, under which rows may still hold what was dropped",
            remedy="Give the new state a name that was never used",
        )
    states = {
        name: _state(f"state {name!r} of {where}", before[name], state) if name in before else state
        for name, state in after.items()
    }
    return {**wanted, "states": states, "dropped": sorted({*kept["dropped"], *wanted["dropped"]})}


def _state(where: str, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    for name, part in wanted.items():
        if name != "type" and kept.get(name) != part:
            what = {"form": "is of another kind", "ttl": "began or ceased to have a ttl", "key": "has other keys"}
            raise TopologyError(
                f"{where} {what.get(name, f'has another {name}')} than when it was stored",
                remedy="Give it a new name and drop the old one with drop=, or take the change back",
            )
    return {**wanted, "type": _versioned(where, kept["type"], wanted["type"])}


def _versioned(where: str, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    since = kept.get("since", kept["version"])
    if wanted["version"] < kept["version"]:
        raise TopologyError(
            f"{where} was stored as version {kept['version']} and is declared with version {wanted['version']}",
            remedy="Run the newer topology that wrote it, or declare that version",
        )
    if since < wanted.get("oldest", wanted["version"]):
        raise TopologyError(
            f"{where} may be stored as version {since}, and migrations begin with version {wanted['oldest']}",
            remedy=f"Give migrations= one from version {since}; keep them as long as such rows may be there",
        )
    if wanted["version"] > kept["version"]:
        return {**wanted, "since": since}
    written = kept.get("written", [kept.get("type")])
    changes = [fault for before in written for fault in _changes(before, wanted.get("type"))]
    rest = {*wanted, *kept} - {"type", *_BOOKKEEPING}
    changes += [f"{name} is different" for name in sorted(rest) if kept.get(name) != wanted.get(name)]
    if changes:
        version = wanted["version"]
        raise TopologyError(
            f"{where} was stored with another type: {'; '.join(dict.fromkeys(changes))}",
            remedy=f"Declare it with version={version + 1} and migrations={{{version}: function}}, which makes the new "
            "fields of the old ones",
        )
    now = [before for before in written if before != wanted.get("type")]
    carried = {**wanted, "since": since} if since < wanted["version"] else dict(wanted)
    return {**carried, "written": [*now, wanted.get("type")]} if now else carried


def migrates(kept: Any, wanted: Any) -> bool:
    """Return whether stored values of a step, or of a part of it, have to be brought to a higher version.

    Example:
        >>> migrates({"states": {"total": {"version": 1}}}, {"states": {"total": {"version": 2}}})
        True
    """
    if not isinstance(kept, dict) or not isinstance(wanted, dict):
        return False
    if isinstance(kept.get("version"), int) and isinstance(wanted.get("version"), int):
        return bool(kept["version"] < wanted["version"])
    return any(migrates(part, wanted.get(name)) for name, part in kept.items())


def _changes(before: Any, after: Any) -> list[str]:
    """Say what stored values cannot follow: what cannot be read, and what would be read and lost."""
    return [*unreadable(before, after), *_lost(before, after)]


def _named_details(name: str, before: Any, after: Any) -> list[str]:
    """Say what is different in one part of a shape."""
    if all(isinstance(part, str | int | float) for part in (before, after)):
        return [f"{name} was {before} and is {after}"]
    return _details(before, after)


def _details(before: Any, after: Any) -> list[str]:
    """Say what is different in the descriptions of types that are somewhere in two parts of a shape."""
    if isinstance(before, dict) and isinstance(after, dict):
        if "fields" in before and "fields" in after:
            return _changes(before, after)
        return [detail for name in before if name in after for detail in _details(before[name], after[name])]
    if isinstance(before, list) and isinstance(after, list):
        renamed = _renamed(_by_name(before), _by_name(after))
        return renamed + [detail for pair in zip(before, after, strict=False) for detail in _details(*pair)]
    return []


def _renamed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Say which of the named parts, such as aggregates, are gone, new or of another kind."""
    gone = [f"{name!r} is gone" for name in before if name not in after]
    new = [f"{name!r} is new" for name in after if name not in before]
    other = [(name, kind, after[name]) for name, kind in before.items() if after.get(name, kind) != kind]
    changes = [*gone, *new, *[f"{name!r} was {kind} and is {now}" for name, kind, now in other]]
    return changes if changes or list(before) == list(after) else ["they are in another order"]


def _by_name(parts: list[Any]) -> dict[str, str]:
    named = [part for part in parts if isinstance(part, list) and len(part) > 1]
    return {name: kind for name, kind, *_ in named if isinstance(name, str) and isinstance(kind, str)}


def _lost(before: Any, after: Any) -> list[str]:
    """Return a phrase for each field that is gone: it may only have been renamed."""
    if isinstance(before, list) and isinstance(after, list):
        return [fault for pair in zip(before, after, strict=False) for fault in _lost(*pair)]
    if not isinstance(before, dict) or not isinstance(after, dict):
        return []
    found: list[str] = []
    for name, part in before.items():
        if name in after:
            found += _lost(part, after[name])
    if "fields" in before and "fields" in after:
        found += [f"field {name!r} is gone" for name in before["fields"] if name not in after["fields"]]
    return found
