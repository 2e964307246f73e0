"""Binding through the API server's Bind call."""

from __future__ import annotations

from kernelet.core.scheduler.framework import SUCCESS, Handle, Status
from kernelet.core.scheduler.podinfo import PodInfo


class DefaultBinder:
    name = "DefaultBinder"

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def bind(self, pod: PodInfo, node: str) -> Status:
        """Raises Conflict where the pod is bound already, NotFound where it is gone."""
        if self._handle.client is None:
            raise LookupError("the default binder needs a client")
        await self._handle.client.bind(pod.namespace, pod.key[1], pod.uid, node)
        return SUCCESS
