"""The environment of containers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from lightkube.models.core_v1 import ConfigMap, Pod, Secret, Service

from kernelet.agents.kubelet.env import ConfigError, EnvContext, container_env, expand, service_env
from kernelet.agents.kubelet.fields import FieldError, NodeFacts

FACTS = NodeFacts("n1", "192.0.2.1", 4000, 8 << 30)


class Objects:
    """ConfigMaps and Secrets from dicts."""

    def __init__(
        self, maps: dict[str, dict[str, str]] | None = None, secrets: dict[str, dict[str, str]] | None = None
    ) -> None:
        self.maps, self.secrets = maps or {}, secrets or {}

    async def config_map(self, namespace: str, name: str) -> ConfigMap | None:
        return ConfigMap(data=self.maps[name]) if name in self.maps else None

    async def secret(self, namespace: str, name: str) -> Secret | None:
        return Secret(data=self.secrets[name]) if name in self.secrets else None


def pod_of(container: dict[str, Any], **spec: Any) -> Pod:
    metadata = {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}}
    body = {"metadata": metadata, "spec": {"containers": [{"name": "main", "image": "i", **container}], **spec}}
    return msgspec.convert(body, Pod)


def service(name: str, namespace: str, address: str, *ports: dict[str, Any]) -> Service:
    body = {"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": address, "ports": list(ports)}}
    return msgspec.convert(body, Service)


async def env_of(
    container: dict[str, Any], objects: Objects | None = None, services: tuple[Service, ...] = ()
) -> dict[str, str]:
    pod = pod_of(container)
    assert pod.spec
    context = EnvContext(pod, FACTS, ("10.0.0.5",), objects or Objects(), services)
    return await container_env(context, pod.spec.containers[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(NONE) $(", "$(NONE) $("),
        ("$A ${A} $", "$A ${A} $"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expected


async def test_variables_may_refer_to_earlier_ones_only() -> None:
    env = await env_of(
        {"env": [{"name": "A", "value": "$(B)"}, {"name": "B", "value": "b"}, {"name": "C", "value": "$(B)"}]}
    )
    assert env == {"A": "$(B)", "B": "b", "C": "b"}


async def test_values_come_from_objects_fields_and_resources() -> None:
    objects = Objects({"conf": {"k": "v"}}, {"sec": {"p": "MTIzNA=="}})
    ref = {"configMapKeyRef": {"name": "conf", "key": "k"}}
    env = await env_of(
        {
            "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}},
            "envFrom": [{"prefix": "C_", "configMapRef": {"name": "conf"}}, {"secretRef": {"name": "sec"}}],
            "env": [
                {"name": "K", "valueFrom": ref},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
                {"name": "ALL", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
            ],
        },
        objects,
    )
    assert env == {
        "C_k": "v", "p": "1234", "K": "v", "APP": "web", "IP": "10.0.0.5", "CPU": "2", "MEM": "64", "ALL": str(8 << 30),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"configMapKeyRef": {"name": "none", "key": "k"}}, 'configmap "shop/none" not found'),
        ({"configMapKeyRef": {"name": "conf", "key": "x"}}, "couldn't find key x in configmap shop/conf"),
        ({"secretKeyRef": {"name": "none", "key": "k"}}, 'secret "shop/none" not found'),
        ({"fieldRef": {"fieldPath": "spec.nothing"}}, "fieldRef 'spec.nothing' is not supported"),
    ],
)
async def test_what_is_missing_is_named(source: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, FieldError), match=message):
        await env_of({"env": [{"name": "A", "valueFrom": source}]}, Objects({"conf": {"k": "v"}}))


async def test_an_optional_reference_leaves_its_variable_out() -> None:
    source = {"secretKeyRef": {"name": "none", "key": "k", "optional": True}}
    assert await env_of({"env": [{"name": "A", "valueFrom": source}]}) == {}


def test_services_of_the_namespace_and_the_api_server_show_as_variables() -> None:
    services = [
        service("my-web", "shop", "10.96.0.7", {"port": 80, "name": "http"}, {"port": 53, "protocol": "UDP"}),
        service("kubernetes", "default", "10.96.0.1", {"port": 443, "name": "https"}),
        service("other", "default", "10.96.0.9", {"port": 1}),
        service("headless", "shop", "None", {"port": 1}),
    ]
    env = service_env(services, "shop", links=True)
    assert env["MY_WEB_SERVICE_HOST"] == "10.96.0.7" and env["MY_WEB_SERVICE_PORT"] == "80"
    assert env["MY_WEB_SERVICE_PORT_HTTP"] == "80" and env["MY_WEB_PORT"] == "tcp://10.96.0.7:80"
    assert env["MY_WEB_PORT_53_UDP"] == "udp://10.96.0.7:53" and env["MY_WEB_PORT_53_UDP_PROTO"] == "udp"
    assert env["KUBERNETES_SERVICE_HOST"] == "10.96.0.1" and env["KUBERNETES_SERVICE_PORT_HTTPS"] == "443"
    assert not any(name.startswith(("OTHER", "HEADLESS")) for name in env)
    assert all(name.startswith("KUBERNETES_") for name in service_env(services, "shop", links=False))
