"""The checks of ``map_async``, made where the user's line stands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, get_args

from headrace.dsl.definition import check_policy, check_selector, user_location
from headrace.errors import TopologyError
from headrace.operators.async_map import AsyncMap, Cache, Order
from headrace.operators.retrying import ErrorPolicy, Retry
from headrace.settings import duration_ms


def async_policy(retry: Any, on_error: ErrorPolicy | None) -> ErrorPolicy | None:
    """Return the policy that ``retry=`` and ``on_error=`` of ``map_async`` make together.

    Raises:
        TopologyError: ``retry`` is none, or both say how to retry.
    """
    if retry is None:
        return on_error
    if not isinstance(retry, Retry):
        raise TopologyError(f"retry= of map_async needs retry(...), not {retry!r} ({user_location()})")
    if on_error is None:
        return retry
    policy = check_policy(on_error)
    if isinstance(policy, Retry):
        raise TopologyError(
            f"map_async was given retry= and on_error=retry(...) ({user_location()})", remedy="Give one of them"
        )
    return replace(retry, then=policy)


def async_map(
    function: Callable[[Any], Awaitable[Any]],
    concurrency: Any,
    order: Order,
    timeout: str | timedelta,
    retry: Retry | None,
    cache: Any,
) -> AsyncMap:
    """Describe a ``map_async`` step.

    Raises:
        TopologyError: an option makes no sense.
        SettingsError: ``timeout`` is no duration.
    """
    if type(concurrency) is not int or concurrency < 1:
        raise TopologyError(
            f"concurrency of map_async must be a whole number of at least 1, not {concurrency!r} ({user_location()})"
        )
    if order not in get_args(Order):
        raise TopologyError(f'order of map_async must be "key", "input" or "none", not {order!r} ({user_location()})')
    timeout_ms = duration_ms(timeout, f"timeout of map_async ({user_location()})")
    if timeout_ms == 0:
        raise TopologyError(f"a timeout of 0 would let no call of map_async end ({user_location()})")
    if cache is not None and not isinstance(cache, Cache):
        raise TopologyError(f"cache= of map_async needs Cache(...), not {cache!r} ({user_location()})")
    if cache is not None and cache.by is not None:
        check_selector(cache.by, "by= of Cache")
    return AsyncMap(function, concurrency, order, timeout_ms, retry, cache)
