"""Leader election by a Lease (coordination.k8s.io/v1), with the rules of client-go's leaderelection.

A holder renews the lease; a candidate takes it once it has not changed for the lease's duration by the candidate's own
monotonic clock, so that clocks need not agree. A leader that could not renew for the renew deadline, which is shorter
than the lease, has its task cancelled while nobody else can hold the lease yet. Three things differ from client-go:
candidates watch the lease, so that a released one is taken at once; a holder that is known to have died on this very
machine (see `process`) is succeeded at once; and losing the lease goes back to being a candidate.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kernelet.core.api.errors import JSON, AlreadyExists, ApiError, Conflict, NotFound
from kernelet.core.api.kinds import KINDS
from kernelet.core.api.times import now_micro
from kernelet.core.client.client import Client
from kernelet.core.client.process import is_gone, new_identity, own_mark

ADDRESS = "kernelet.dev/address"
"""Annotation: where the leader serves, for those who look for it."""
PROCESS = "kernelet.dev/process"
"""Annotation: the mark of the leader's process."""

_log = logging.getLogger(__name__)
_LEASE = KINDS.by_plural("coordination.k8s.io", "v1", "leases")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `renew` must be shorter than `lease`: the difference is what a lost leader has to stop."""

    lease: float = 10.0
    renew: float = 6.0
    retry: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.retry < self.renew < self.lease:
            raise ValueError(
                f"lease ({self.lease}s) must be longer than the renew deadline ({self.renew}s), "
                f"and that longer than the retry period ({self.retry}s)"
            )


class LeaderElector:
    """One candidate for one lease. `address` is published on the lease while this candidate leads."""

    def __init__(
        self,
        client: Client,
        name: str,
        namespace: str = "kube-system",
        *,
        identity: str = "",
        address: str = "",
        timing: Timing | None = None,
    ) -> None:
        self._client = client
        self._name = name
        self._namespace = namespace
        self.identity = identity or new_identity()
        self._annotations = {PROCESS: own_mark()} | ({ADDRESS: address} if address else {})
        self._timing = timing or Timing()
        self._seen: tuple[str, float] = ("", 0.0)
        """The lease's resourceVersion as last seen, and when (monotonic) it was first seen."""
        self._holder = ""
        self._leading = asyncio.Event()

    @property
    def leading(self) -> bool:
        return self._leading.is_set()

    @property
    def holder(self) -> str:
        """Who led when this candidate last looked; "" for nobody."""
        return self._holder

    async def wait_leading(self) -> None:
        await self._leading.wait()

    async def run(self, on_started: Callable[[], Awaitable[None]]) -> None:
        """Competes; while leading, runs `on_started()`, which is cancelled when the lease is lost.

        Returns when `on_started` returns, raises what it raises, and runs until cancelled otherwise; in each case the
        lease is released, so that a successor starts at once.
        """
        while True:
            lease, renewed = await self._acquire()
            _log.info("leading", extra={"lease": self._name, "identity": self.identity})
            if await self._lead(on_started, lease, renewed):
                return
            _log.warning("no longer leading", extra={"lease": self._name, "identity": self.identity})

    async def _acquire(self) -> tuple[JSON, float]:
        """Waits until the lease is ours; returns it and the monotonic time of the attempt that took it."""
        changed = asyncio.Event()
        watcher = asyncio.create_task(self._watch(changed), name=f"lease {self._name}")
        try:
            while True:
                started = time.monotonic()
                try:
                    lease = await asyncio.wait_for(self._try_acquire(), self._timing.renew)
                except (ApiError, TimeoutError) as error:
                    _log.info("cannot compete for lease %s: %s", self._name, error or "no answer in time")
                    lease = None
                if lease is not None:
                    return lease, started
                changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), self._timing.retry * random.uniform(0.8, 1.2))
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])

    async def _watch(self, changed: asyncio.Event) -> None:
        """Sets the event at each change of the lease. A help only: `_acquire` looks by itself, too."""
        fields = f"metadata.name={self._name}"
        while True:
            try:
                async for event in self._client.raw.watch(_LEASE, self._namespace, fields=fields):
                    if not (event.object.get("spec") or {}).get("holderIdentity"):
                        changed.set()
            except ApiError as error:
                _log.debug("watch of lease %s ended: %s", self._name, error)
            await asyncio.sleep(self._timing.retry)

    async def _try_acquire(self) -> JSON | None:
        """The lease if it is ours now, else None. Raises ApiError when the server does not answer."""
        try:
            lease = await self._client.raw.get(_LEASE, self._name, self._namespace)
        except NotFound:
            lease = self._taken({"metadata": {"name": self._name, "namespace": self._namespace}})
            try:
                return await self._client.raw.create(_LEASE, lease, self._namespace)
            except AlreadyExists:
                return None
        self._observe(lease)
        if not self._may_take(lease):
            return None
        try:
            return await self._client.raw.update(_LEASE, self._taken(lease), self._namespace)
        except (Conflict, NotFound):
            return None

    def _observe(self, lease: JSON) -> None:
        version = str(lease["metadata"].get("resourceVersion") or "")
        if version != self._seen[0]:
            self._seen = (version, time.monotonic())
        self._holder = str((lease.get("spec") or {}).get("holderIdentity") or "")

    def _may_take(self, lease: JSON) -> bool:
        if not self._holder or self._holder == self.identity:
            return True
        duration = float((lease.get("spec") or {}).get("leaseDurationSeconds") or self._timing.lease)
        if time.monotonic() >= self._seen[1] + duration:
            return True
        mark = str((lease["metadata"].get("annotations") or {}).get(PROCESS) or "")
        return bool(mark) and is_gone(mark)

    def _taken(self, lease: JSON) -> JSON:
        """The lease with us as its holder from now on."""
        spec = lease.get("spec") or {}
        now = now_micro()
        ours = spec.get("holderIdentity") == self.identity
        first = "leaseTransitions" not in spec
        annotations = {k: v for k, v in (lease["metadata"].get("annotations") or {}).items() if k != ADDRESS}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": lease["metadata"] | {"annotations": annotations | self._annotations},
            "spec": spec
            | {
                "holderIdentity": self.identity,
                # Whole seconds only; rounded up, so that nobody takes the lease before we are sure to have stopped.
                "leaseDurationSeconds": max(1, -int(-self._timing.lease // 1)),
                "acquireTime": spec.get("acquireTime", now) if ours else now,
                "renewTime": now,
                "leaseTransitions": 0 if first else spec["leaseTransitions"] + (0 if ours else 1),
            },
        }

    async def _lead(self, on_started: Callable[[], Awaitable[None]], lease: JSON, renewed: float) -> bool:
        """Runs the leading task until it ends (True) or the lease is lost (False)."""
        self._holder = self.identity
        self._leading.set()
        leading = asyncio.ensure_future(on_started())
        renewing = asyncio.create_task(self._renew(lease, renewed), name=f"renew {self._name}")
        try:
            await asyncio.wait([leading, renewing], return_when=asyncio.FIRST_COMPLETED)
            if leading.done():
                leading.result()
                return True
            return False
        finally:
            self._leading.clear()
            await self._stop(leading)
            renewing.cancel()
            await asyncio.wait([renewing])
            await self._release()

    async def _stop(self, leading: asyncio.Future[None]) -> None:
        """Ends the leading task. An error it ends in by itself now is logged: the cancellation goes first."""
        if leading.done():
            return
        leading.cancel()
        await asyncio.wait([leading])
        if not leading.cancelled() and leading.exception() is not None:
            _log.error("the leading task failed while it was stopped", exc_info=leading.exception())

    async def _renew(self, lease: JSON, renewed: float) -> None:
        """Renews until the lease is lost: taken by another, or not renewed within the deadline. Then returns."""
        while True:
            await asyncio.sleep(self._timing.retry)
            started = time.monotonic()
            left = renewed + self._timing.renew - started
            if left <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    lease = await self._client.raw.update(_LEASE, self._taken(lease), self._namespace)
                renewed = started
            except (Conflict, NotFound):
                found = await self._reread(left)
                if found is None:
                    return
                lease = found
            except (ApiError, TimeoutError) as error:
                _log.warning("lease %s not renewed: %s", self._name, error or "no answer in time")

    async def _reread(self, seconds: float) -> JSON | None:
        """The lease if it is still ours: somebody may have annotated it, or an answer of ours was lost."""
        try:
            async with asyncio.timeout(seconds):
                lease = await self._client.raw.get(_LEASE, self._name, self._namespace)
        except (ApiError, TimeoutError) as error:
            _log.warning("lease %s lost: %s", self._name, error or "no answer in time")
            return None
        self._observe(lease)
        return lease if self._holder == self.identity else None

    async def _release(self) -> None:
        """Gives the lease up, if it is still ours; a failure only makes the successor wait for its end."""
        try:
            async with asyncio.timeout(self._timing.retry):
                lease = await self._client.raw.get(_LEASE, self._name, self._namespace)
                if (lease.get("spec") or {}).get("holderIdentity") != self.identity:
                    return
                now = now_micro()
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now, "acquireTime": now}
                await self._client.raw.update(_LEASE, lease, self._namespace)
        except (ApiError, TimeoutError) as error:
            _log.info("lease %s not released, it runs out by itself: %s", self._name, error or "no answer in time")
