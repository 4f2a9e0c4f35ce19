"""Which worker runs which task. Pure: all members compute the same from the same facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def assign(members: Sequence[str], units: Sequence[str], holders: Mapping[str, str]) -> dict[str, str]:
    """Spread ``units`` over ``members`` evenly, moving as few as possible.

    No member gets two more than another. A unit stays with the member that held it last, as long as that keeps to its
    share; what moves spreads out over the members by kind. While a plan is carried out unit by unit, it stays the same.

    Args:
        members: Ids of the live members.
        units: All units, tasks of one sub-topology beside each other.
        holders: Who held a unit last.

    Returns:
        A member for every unit; nothing if there are no members.

    Example:
        >>> assign(["a", "b"], ["t-0", "t-1", "t-2"], {"t-0": "b", "t-1": "b", "t-2": "b"})
        {'t-0': 'b', 't-1': 'b', 't-2': 'a'}
    """
    order = sorted(members)
    if not order:
        return {}
    least, spare = divmod(len(units), len(order))
    held: dict[str, list[str]] = {member: [] for member in order}
    for unit in units:
        if (holder := holders.get(unit)) in held:
            held[holder].append(unit)
    # Members that hold enough keep the extra ones: that moves least. How much more than enough does not count, or the
    # plan would change while it is carried out, and what was copied for one member would be meant for another.
    generous = sorted(order, key=lambda member: (len(held[member]) <= least, member))
    share = {member: least + (place < spare) for place, member in enumerate(generous)}
    result = {unit: member for member in order for unit in held[member][: share[member]]}
    room = iter([member for member in order for _ in range(share[member] - len(held[member]))])
    # In steps over all units, of which each has its place whatever has moved before it, tasks of one kind spread out.
    for step in range(len(order)):
        for unit in units[step :: len(order)]:
            if unit not in result:
                result[unit] = next(room)
    return {unit: result[unit] for unit in units}
