"""Volumes in temporary folders."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lightkube.models.core_v1 import ConfigMap, HostPathVolumeSource, Pod, Secret

from kernelet.agents.kubelet.atomic import Entry, write_atomically
from kernelet.agents.kubelet.fields import NodeFacts
from kernelet.agents.kubelet.payloads import PayloadContext
from kernelet.agents.kubelet.podfiles import DnsConfig, hosts_file, resolv_conf
from kernelet.agents.kubelet.volumes import VolumeError, VolumeRoots, Volumes, host_path, mounts_of

FACTS = NodeFacts("n1", "192.0.2.1", 4000, 8 << 30)


class Objects:
    async def config_map(self, namespace: str, name: str) -> ConfigMap | None:
        return (
            ConfigMap(data={"a": "1", "b": "2"}, binaryData={"c": base64.b64encode(b"\x00").decode()})
            if name == "conf"
            else None
        )

    async def secret(self, namespace: str, name: str) -> Secret | None:
        return Secret(data={"p": base64.b64encode(b"pin").decode()}) if name == "sec" else None


def pod_of(*volumes: dict[str, Any], container: dict[str, Any] | None = None, **spec: Any) -> Pod:
    metadata = {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"x": 'q"'}}
    containers = [{"name": "main", "image": "i", **(container or {})}]
    return msgspec.convert(
        {"metadata": metadata, "spec": {"containers": containers, "volumes": list(volumes), **spec}}, Pod
    )


def context_of(pod: Pod) -> PayloadContext:
    return PayloadContext(pod, FACTS, ("10.0.0.5",), Objects())


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    return Volumes(VolumeRoots(tmp_path / "disk", tmp_path / "memory"), DnsConfig())


def test_files_change_all_at_once_and_not_without_need(tmp_path: Path) -> None:
    assert write_atomically(tmp_path, {"a": Entry(b"1"), "d/b": Entry(b"2", 0o400)})
    data = (tmp_path / "..data").resolve()
    assert not write_atomically(tmp_path, {"a": Entry(b"1"), "d/b": Entry(b"2", 0o400)})
    assert (tmp_path / "..data").resolve() == data
    assert (tmp_path / "d" / "b").stat().st_mode & 0o777 == 0o400
    assert write_atomically(tmp_path, {"a": Entry(b"3")})
    assert (tmp_path / "a").read_bytes() == b"3"
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("..")) == ["a"]
    assert not data.exists()


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "..data", ""])
def test_a_path_cannot_leave_the_volume(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="must be relative"):
        write_atomically(tmp_path, {path: Entry(b"")})


async def test_configuration_secrets_and_fields_become_files(volumes: Volumes, tmp_path: Path) -> None:
    pod = pod_of(
        {"name": "conf", "configMap": {"name": "conf", "items": [{"key": "a", "path": "sub/a", "mode": 0o600}]}},
        {"name": "sec", "secret": {"secretName": "sec", "defaultMode": 0o400}},
        {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "all", "projected": {"sources": [
            {"configMap": {"name": "conf"}}, {"secret": {"name": "sec"}}, {"serviceAccountToken": {"path": "token"}},
            {"configMap": {"name": "none", "optional": True}},
        ]}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "mem", "emptyDir": {"medium": "Memory"}},
    )  # fmt: skip
    ready = await volumes.prepare(context_of(pod))
    assert (ready["conf"] / "sub" / "a").read_text() == "1"
    assert (ready["sec"] / "p").read_text() == "pin" and ready["sec"].is_relative_to(tmp_path / "memory")
    assert (ready["down"] / "labels").read_text() == 'x="q\\""'
    assert sorted(path.name for path in ready["all"].iterdir() if path.name[0] != ".") == ["a", "b", "c", "p"]
    assert ready["all"].is_relative_to(tmp_path / "memory"), "a projection of a secret stays in memory"
    assert ready["tmp"].stat().st_mode & 0o777 == 0o777 and ready["mem"].is_relative_to(tmp_path / "memory")
    (ready["tmp"] / "kept").write_text("x")
    assert ((await volumes.prepare(context_of(pod)))["tmp"] / "kept").read_text() == "x"
    assert volumes.known_pods() == {"u1"}
    await volumes.remove("u1")
    assert volumes.known_pods() == set()


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ({"configMap": {"name": "none"}}, "volume 'v' of pod shop/web: configmap \"shop/none\" not found"),
        ({"configMap": {"name": "conf", "items": [{"key": "z", "path": "z"}]}}, "has no key 'z'"),
        ({"configMap": {"name": "conf", "items": [{"key": "a", "path": "../z"}]}}, "must be relative"),
        ({"nfs": {"path": "/", "server": "s"}}, "its kind is not supported"),
    ],
)
async def test_a_volume_that_cannot_be_set_up_is_named(volumes: Volumes, volume: dict[str, Any], message: str) -> None:
    with pytest.raises(VolumeError, match=message):
        await volumes.prepare(context_of(pod_of({"name": "v", **volume})))


def test_host_paths_are_checked_against_their_type(tmp_path: Path) -> None:
    assert host_path(HostPathVolumeSource(path=str(tmp_path / "new"), type="DirectoryOrCreate")).is_dir()
    assert host_path(HostPathVolumeSource(path=str(tmp_path / "file"), type="FileOrCreate")).is_file()
    with pytest.raises(VolumeError, match="is not a Directory"):
        host_path(HostPathVolumeSource(path=str(tmp_path / "file"), type="Directory"))


def test_mounts_take_sub_paths_but_none_that_lead_out(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    mount = {"name": "v", "mountPath": "/m", "subPathExpr": "$(POD)/x"}
    pod = pod_of(container={"volumeMounts": [mount]})
    assert pod.spec
    (found,) = mounts_of(pod.spec.containers[0], {"v": tmp_path}, set(), {"POD": "web"})
    assert (found.source, found.target, found.read_only) == (str(tmp_path / "web" / "x"), "/m", False)
    out = pod_of(container={"volumeMounts": [{"name": "v", "mountPath": "/m", "subPath": "link"}]})
    assert out.spec
    with pytest.raises(VolumeError, match="leads out of the volume"):
        mounts_of(out.spec.containers[0], {"v": tmp_path}, {"v"}, {})


def test_resolv_conf_follows_the_policy(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\nsearch example.org\noptions timeout:1\n")
    dns = DnsConfig(host_file=tmp_path / "resolv.conf")
    assert resolv_conf(pod_of(), dns) == (
        "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    )
    assert (
        resolv_conf(pod_of(dnsPolicy="Default"), dns)
        == "search example.org\nnameserver 192.0.2.53\noptions timeout:1\n"
    )
    own = {"nameservers": ["192.0.2.9"], "searches": ["x"], "options": [{"name": "ndots", "value": "1"}]}
    assert (
        resolv_conf(pod_of(dnsPolicy="None", dnsConfig=own), dns) == "search x\nnameserver 192.0.2.9\noptions ndots:1\n"
    )


def test_the_hosts_file_names_the_pod() -> None:
    pod = pod_of(subdomain="db", hostAliases=[{"ip": "192.0.2.7", "hostnames": ["a", "b"]}])
    text = hosts_file(pod, ("10.0.0.5",), "cluster.local")
    assert "10.0.0.5\tweb.db.shop.svc.cluster.local\tweb\n" in text and "192.0.2.7\ta\tb\n" in text
