"""Which worker runs which task. Pure: all members compute the same from the same facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def assign(members: Sequence[str], units: Sequence[str], holders: Mapping[str, str]) -> dict[str, str]:
    """Spread ``units`` over ``members`` evenly, moving as few as possible.

    No member gets two more than another. A unit stays with the member that held it last, as long as that keeps to its
    share; what moves is taken in the order of ``units``, so that tasks of one kind spread out.

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
    held = {member: [unit for unit in units if holders.get(unit) == member] for member in order}
    # The members that hold most keep the extra ones: that moves least.
    generous = sorted(order, key=lambda member: (-len(held[member]), member))
    share = {member: least + (place < spare) for place, member in enumerate(generous)}
    kept = {unit: member for member in order for unit in held[member][: share[member]]}
    room = {member: share[member] - min(len(held[member]), share[member]) for member in order}
    result: dict[str, str] = {}
    for unit in units:
        member = kept.get(unit)
        if member is None:
            member = max(order, key=lambda m: room[m])
            room[member] -= 1
        result[unit] = member
    return result
