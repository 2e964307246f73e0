"""What every handler of the REST face needs, and what one request carries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from kernelet.core.api.errors import ApiError
from kernelet.core.api.kinds import KINDS, KindTable
from kernelet.core.security.authz import Authorizer
from kernelet.core.security.users import User

from ..nodeproxy import NodeProxy
from .metrics import Metrics
from .negotiate import Form, negotiate

if TYPE_CHECKING:
    from ..registry import Registry

log = logging.getLogger(__name__)

SERVER_VERSION = "v1.36.0+kernelet.0.1.0"


@dataclass
class Face:
    """The parts behind the REST face. `authenticate` turns a bearer token into a User, or None."""

    registry: Registry
    authorizer: Authorizer
    authenticate: Callable[[str], User | None]
    nodes: NodeProxy
    ca_pem: bytes
    kinds: KindTable = field(default_factory=lambda: KINDS)
    metrics: Metrics = field(default_factory=Metrics)
    streams: set[asyncio.Timeout] = field(default_factory=set)
    """Running watches and logs, each by the timeout that ends it: shutting down makes them all due at once."""
    writes: set[asyncio.Task[Any]] = field(default_factory=set)
    """Writes in progress; a client that leaves does not interrupt one."""

    async def finish(self, work: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        """Runs a write to its end even when the client goes away meanwhile."""
        task = asyncio.ensure_future(work)
        self.writes.add(task)
        task.add_done_callback(self.writes.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_report_abandoned)
            raise

    @contextmanager
    def stream(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Lets `end_streams` end what runs under `limit`."""
        self.streams.add(limit)
        try:
            yield
        finally:
            self.streams.discard(limit)

    def end_streams(self) -> None:
        """Ends every watch and log as if its time were up."""
        for stream in list(self.streams):
            stream.reschedule(asyncio.get_running_loop().time())


def _report_abandoned(task: asyncio.Task[Any]) -> None:
    """A write whose client has gone: refusals interest nobody any more, faults do."""
    if not task.cancelled() and task.exception() and not isinstance(task.exception(), ApiError):
        log.error("a write failed after its client had gone", exc_info=task.exception())


@dataclass
class Call:
    """One authenticated request."""

    face: Face
    http: web.Request
    user: User
    verb: str = ""
    resource: str = ""

    def query(self, key: str, default: str = "") -> str:
        return self.http.query.get(key, default)

    def flag(self, key: str) -> bool:
        """Kubernetes' query booleans: present and neither "false" nor "0" means true."""
        return key in self.http.query and self.http.query[key].lower() not in ("false", "0")

    def negotiate(self, *forms: Form) -> Form:
        """The form asked for, out of `forms` and plain. Raises NotAcceptable."""
        accept = ",".join(self.http.headers.getall("Accept", []))
        return negotiate(accept, frozenset((Form.PLAIN, *forms))).form
