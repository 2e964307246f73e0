"""What every namespace has from the start: the service account `default` and the cluster's CA."""

from __future__ import annotations

import logging

from lightkube.models.core_v1 import ConfigMap, Namespace, ServiceAccount
from lightkube.models.meta_v1 import ObjectMeta

from kernelet.core.api.errors import AlreadyExists, Forbidden, NotFound
from kernelet.core.client.informer import Change
from kernelet.core.controllers.access import HasMetadata, Key, deleting, name_of, namespace_of
from kernelet.core.controllers.informers import Informers
from kernelet.core.controllers.runtime import Controller

log = logging.getLogger(__name__)

ACCOUNT = "default"
CA_MAP = "kube-root-ca.crt"


class ServiceAccountsController:
    """Keys are ("", namespace). `ca_pem` is what pods verify the API server with."""

    def __init__(self, informers: Informers, ca_pem: str, workers: int = 2) -> None:
        self._client = informers.client
        self._ca = ca_pem
        self._namespaces = informers.of(Namespace)
        self._accounts = informers.of(ServiceAccount)
        self._maps = informers.of(ConfigMap)
        self.controller = Controller("serviceaccounts", self.reconcile, workers)
        self._namespaces.subscribe(lambda change: self.controller.enqueue(("", name_of(change.object))))
        self._accounts.subscribe(self._changed)
        self._maps.subscribe(self._changed)

    def _changed(self, change: Change[ServiceAccount] | Change[ConfigMap]) -> None:
        obj: HasMetadata = change.object
        if name_of(obj) in (ACCOUNT, CA_MAP):
            self.controller.enqueue(("", namespace_of(obj)))

    async def reconcile(self, key: Key) -> None:
        """One namespace; nothing is made in one that is being deleted."""
        name = key[1]
        namespace = self._namespaces.get("", name)
        if namespace is None or deleting(namespace):
            return
        try:
            await self._ensure(name)
        except Forbidden as error:
            # Its deletion began after our look.
            if not any(cause.reason == "NamespaceTerminating" for cause in error.causes):
                raise
        except NotFound:
            log.debug("namespace went away namespace=%s", name)

    async def _ensure(self, namespace: str) -> None:
        if self._accounts.get(namespace, ACCOUNT) is None:
            account = ServiceAccount(
                apiVersion="v1", kind="ServiceAccount", metadata=ObjectMeta(name=ACCOUNT, namespace=namespace)
            )
            await self._create(account)
        present = self._maps.get(namespace, CA_MAP)
        data = {"ca.crt": self._ca}
        if present is None:
            text = (
                "Contains a CA bundle that can be used to verify the API server when using internal endpoints such as "
                "the internal service IP or kubernetes.default.svc."
            )
            made = ConfigMap(
                apiVersion="v1",
                kind="ConfigMap",
                metadata=ObjectMeta(name=CA_MAP, namespace=namespace, annotations={"kubernetes.io/description": text}),
                data=data,
            )
            await self._create(made)
        elif present.data != data:
            gone = dict.fromkeys(set(present.data or {}) - set(data))
            await self._client.patch(ConfigMap, CA_MAP, {"data": data | gone}, namespace)

    async def _create(self, obj: ServiceAccount | ConfigMap) -> None:
        try:
            await self._client.create(obj)
        except AlreadyExists:
            log.debug("exists already object=%s/%s", namespace_of(obj), name_of(obj))
