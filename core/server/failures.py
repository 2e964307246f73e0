"""Store errors as API errors, so that the faces know only ApiError."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from ..api.errors import Expired, InternalError, ServiceUnavailable
from ..store import Compacted, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def store_errors_translated() -> Iterator[None]:
    """Raises ServiceUnavailable for a store that cannot be reached, Expired for history that is gone."""
    try:
        yield
    except StoreUnavailable as error:
        raise ServiceUnavailable(f"the store is unavailable: {error}", retry_after=1) from error
    except Compacted as error:
        raise Expired(f"the requested revision is gone: {error}; list again") from error
    except StoreError as error:
        log.exception("an unexpected store error")
        raise InternalError(f"the store failed: {error}") from error


def translated(call: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The same coroutine function with the store's errors translated."""

    @functools.wraps(call)
    async def translating(*args: P.args, **kwargs: P.kwargs) -> R:
        with store_errors_translated():
            return await call(*args, **kwargs)

    return translating
