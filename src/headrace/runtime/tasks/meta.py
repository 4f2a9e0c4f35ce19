"""What a task keeps in its store beside the operators' rows, as it is read back: one row of MessagePack."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

import msgpack
import msgspec

from headrace.errors import FatalError, InvalidError
from headrace.serde.converting import converter
from headrace.state.decoding import unreadable
from headrace.state.keys import STORE_ID_LIMIT, store_prefix
from headrace.topology.plan import TaskId

FORMAT = 3
"""Version of what ``flush`` writes beside the operators' rows; 1 had one event time for all steps."""

WITHOUT_OUTBOX = 2
"""What it writes while no row of an outbox is there, which a version that knows none would forget to send."""

META_KEY = store_prefix(0) + b"task"

_StoreId = Annotated[int, msgspec.Meta(ge=1, lt=STORE_ID_LIMIT)]
_Position = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class _Time(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    watermark: int
    progress: dict[str, tuple[int, bool, int]] = {}


class _Meta(TypedDict):
    task: str
    shapes: dict[str, dict[str, Any]]
    stores: NotRequired[dict[str, _StoreId]]
    watermark: NotRequired[int]
    times: NotRequired[dict[str, int]]
    end: NotRequired[int]
    closing: NotRequired[tuple[int | dict[str, int], int] | None]
    sequences: NotRequired[dict[str, _Position]]
    inputs: NotRequired[dict[str, tuple[_Position, _Time, dict[str, int]]]]


_checked = converter(_Meta)


def read_meta(data: bytes | None, task: TaskId) -> dict[str, Any]:
    """Return what a task kept, or an empty dict if it never kept anything.

    Raises:
        CorruptError: it makes no sense.
        FatalError: a newer version wrote it.
        InvalidError: another task wrote it.
    """
    if data is None:
        return {}
    part = f"task {task}"
    try:
        meta: Any = msgpack.unpackb(data)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise unreadable(part, f"no MessagePack, {type(error).__name__}") from error
    version = meta.get("format") if type(meta) is dict else None
    if type(version) is not int or version < 1:
        raise unreadable(part, "it names no format")
    if version > FORMAT:
        raise FatalError(
            f"the state of task {task} has format {version}, this version knows {FORMAT}",
            remedy="Run the newer version of headrace that wrote it",
        )
    try:
        _checked(meta)
    except (msgspec.ValidationError, RecursionError) as error:
        raise unreadable(part, str(error)) from error
    stores = meta.get("stores", {})
    if len(set(stores.values())) < len(stores) or (version == 1 and "watermark" not in meta):
        raise unreadable(part, "its parts do not fit together")
    if meta["task"] != str(task):
        raise InvalidError(f"the state of task {meta['task']} was given to task {task}")
    return dict(meta)
