"""The REST face over HTTP, as clients other than kubectl see it."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import aiohttp
import pytest

from .conftest import Server

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def refused(response: aiohttp.ClientResponse) -> tuple[int, str]:
    status = await response.json()
    assert status["kind"] == "Status" and status["status"] == "Failure" and status["code"] == response.status
    return response.status, status["reason"]


async def line(response: aiohttp.ClientResponse) -> dict[str, Any]:
    async with asyncio.timeout(5):
        event: dict[str, Any] = json.loads(await response.content.readline())
    return event


async def test_an_object_is_created_read_changed_and_deleted(http: aiohttp.ClientSession) -> None:
    created = await http.post(CONFIG_MAPS, json=config_map("life", a="1"))
    assert created.status == 201
    obj = await created.json()
    assert obj["metadata"]["uid"] and obj["metadata"]["namespace"] == "default"
    obj["data"] = {"a": "2"}
    assert (await http.put(f"{CONFIG_MAPS}/life", json=obj)).status == 200
    assert await refused(await http.put(f"{CONFIG_MAPS}/life", json=obj)) == (409, "Conflict")
    kind = {"Content-Type": "application/merge-patch+json"}
    patched = await http.patch(f"{CONFIG_MAPS}/life", data=b'{"data":{"b":"3"}}', headers=kind)
    assert (await patched.json())["data"] == {"a": "2", "b": "3"}
    assert (await http.delete(f"{CONFIG_MAPS}/life")).status == 200
    assert await refused(await http.get(f"{CONFIG_MAPS}/life")) == (404, "NotFound")


async def test_a_yaml_body_is_taken_and_a_yaml_answer_given(http: aiohttp.ClientSession) -> None:
    body = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: in-yaml}\ndata: {day: 2026-01-02}\n"
    created = await http.post(CONFIG_MAPS, data=body, headers={"Content-Type": "application/yaml"})
    assert (await created.json())["data"] == {"day": "2026-01-02"}
    shown = await http.get(f"{CONFIG_MAPS}/in-yaml", headers={"Accept": "application/yaml"})
    assert shown.content_type == "application/yaml" and "\n  name: in-yaml\n" in await shown.text()


async def test_a_list_can_be_had_as_table_or_as_metadata_alone(http: aiohttp.ClientSession) -> None:
    table = await (await http.get("/api/v1/namespaces", headers={"Accept": f"{TABLE},application/json"})).json()
    assert (table["kind"], table["columnDefinitions"][0]["name"]) == ("Table", "Name")
    row = next(row for row in table["rows"] if row["cells"][0] == "default")
    assert row["object"]["kind"] == "PartialObjectMetadata" and row["object"]["metadata"]["name"] == "default"
    bare = await (await http.get("/api/v1/namespaces?includeObject=None", headers={"Accept": TABLE})).json()
    assert bare["rows"][0]["object"] is None
    whole = await (await http.get("/api/v1/namespaces?includeObject=Object", headers={"Accept": TABLE})).json()
    assert whole["rows"][0]["object"]["status"]["phase"] == "Active"
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    partial = await (await http.get("/api/v1/namespaces", headers={"Accept": accept})).json()
    assert partial["kind"] == "PartialObjectMetadataList" and set(partial["items"][0]) == {
        "kind",
        "apiVersion",
        "metadata",
    }


async def test_an_accept_list_with_protobuf_falls_back_to_json(http: aiohttp.ClientSession) -> None:
    protobuf = "application/vnd.kubernetes.protobuf"
    listed = await http.get("/api/v1/namespaces", headers={"Accept": f"{protobuf},application/json"})
    assert (listed.status, listed.content_type) == (200, "application/json")
    assert await refused(await http.get("/api/v1/namespaces", headers={"Accept": protobuf})) == (406, "NotAcceptable")


async def test_a_watch_tells_changes_from_a_revision_on(http: aiohttp.ClientSession) -> None:
    revision = (await (await http.get(CONFIG_MAPS)).json())["metadata"]["resourceVersion"]
    query = {"watch": "true", "resourceVersion": revision, "fieldSelector": "metadata.name=watched"}
    async with http.get(CONFIG_MAPS, params=query) as watch:
        assert watch.status == 200
        await http.post(CONFIG_MAPS, json=config_map("watched"))
        await http.post(CONFIG_MAPS, json=config_map("unwatched"))
        await http.delete(f"{CONFIG_MAPS}/watched")
        events = [await line(watch), await line(watch)]
    assert [event["type"] for event in events] == ["ADDED", "DELETED"]
    assert all(event["object"]["metadata"]["name"] == "watched" for event in events)


async def test_a_watch_of_tables_names_the_columns_once(http: aiohttp.ClientSession) -> None:
    async with http.get("/api/v1/namespaces?watch=1", headers={"Accept": TABLE}) as watch:
        first, second = await line(watch), await line(watch)
    assert first["object"]["kind"] == second["object"]["kind"] == "Table"
    assert first["object"]["columnDefinitions"] and not second["object"]["columnDefinitions"]
    assert len(second["object"]["rows"]) == 1


async def test_initial_events_end_in_an_annotated_bookmark(http: aiohttp.ClientSession) -> None:
    query = "watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    async with http.get(f"/api/v1/namespaces?{query}") as watch:
        events = [await line(watch)]
        while events[-1]["type"] == "ADDED":
            events.append(await line(watch))
    assert events[-1]["type"] == "BOOKMARK"
    assert events[-1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"


async def test_timeout_seconds_ends_a_watch_cleanly(http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(10), http.get(f"{CONFIG_MAPS}?watch=1&timeoutSeconds=1&resourceVersion=1") as watch:
        await watch.read()


async def test_a_revision_of_the_future_and_a_nonsense_one_are_refused(http: aiohttp.ClientSession) -> None:
    assert await refused(await http.get(f"{CONFIG_MAPS}?watch=1&resourceVersion=x")) == (400, "BadRequest")


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b'{"a":', "application/json", (400, "BadRequest")),
        (b"[]", "application/json", (400, "BadRequest")),
        (b"", "application/json", (400, "BadRequest")),
        (b"\xff\xfe", "application/json", (400, "BadRequest")),
        (b'{"metadata":{"name":"deep"},"x":' + b"[" * 900 + b"]" * 900 + b"}", "application/json", (400, "BadRequest")),
        (b"a: &a [*a, *a]", "application/yaml", (400, "BadRequest")),
        (b'{"a":1}', "text/plain", (415, "UnsupportedMediaType")),
        (b'{"x":"' + b"y" * (3 << 20) + b'"}', "application/json", (413, "RequestEntityTooLarge")),
    ],
    ids=["torn", "array", "empty", "no text", "deep", "cyclic", "type", "large"],
)
async def test_a_bad_body_is_a_status(
    http: aiohttp.ClientSession, body: bytes, kind: str, expected: tuple[int, str]
) -> None:
    assert await refused(await http.post(CONFIG_MAPS, data=body, headers={"Content-Type": kind})) == expected


async def test_a_body_too_large_that_hides_its_length_is_refused(http: aiohttp.ClientSession) -> None:
    packed = gzip.compress(b'{"x":"' + b"y" * (4 << 20) + b'"}')
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert await refused(await http.post(CONFIG_MAPS, data=packed, headers=headers)) == (413, "RequestEntityTooLarge")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/api/v1/nonsense", (404, "NotFound")),
        ("GET", "/apis/apps/v2/deployments", (404, "NotFound")),
        ("GET", "/api/v1/pods/x", (404, "NotFound")),
        ("GET", "/api/v1/namespaces/default/nodes", (404, "NotFound")),
        ("GET", "/api/v1/namespaces/default/pods/x/nonsense", (404, "NotFound")),
        ("PUT", "/api/v1/namespaces", (405, "MethodNotAllowed")),
        ("GET", "/api/v1/namespaces?limit=x", (400, "BadRequest")),
        ("GET", "/api/v1/namespaces?labelSelector=%21%21", (400, "BadRequest")),
        ("GET", "/openapi/v3/apis/none/v1", (404, "NotFound")),
        ("DELETE", f"{CONFIG_MAPS}/x?propagationPolicy=Never", (400, "BadRequest")),
        ("DELETE", f"{CONFIG_MAPS}/x?dryRun=Some", (400, "BadRequest")),
    ],
)
async def test_a_wrong_request_is_a_status(
    http: aiohttp.ClientSession, method: str, path: str, expected: tuple[int, str]
) -> None:
    assert await refused(await http.request(method, path)) == expected


async def test_server_side_apply_is_refused_with_what_is_supported(http: aiohttp.ClientSession) -> None:
    headers = {"Content-Type": "application/apply-patch+yaml"}
    response = await http.patch(f"{CONFIG_MAPS}/x", data=b"{}", headers=headers)
    assert response.status == 415
    assert "application/strategic-merge-patch+json" in (await response.json())["message"]


async def test_an_unknown_field_is_a_warning_or_an_error(http: aiohttp.ClientSession) -> None:
    warned = await http.post(f"{CONFIG_MAPS}?dryRun=All", json=config_map("field") | {"extra": 1})
    assert warned.status == 201 and warned.headers["Warning"] == '299 - "unknown field \\"extra\\""'
    strict = await http.post(f"{CONFIG_MAPS}?fieldValidation=Strict", json=config_map("field") | {"extra": 1})
    assert strict.status == 400
    assert (await http.get(f"{CONFIG_MAPS}/field")).status == 404


async def test_discovery_is_aggregated_or_plain_and_cached_by_its_tag(http: aiohttp.ClientSession) -> None:
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
    new = await http.get("/apis", headers={"Accept": accept})
    assert "as=APIGroupDiscoveryList" in new.headers["Content-Type"] and new.headers["Vary"] == "Accept"
    assert (await new.json())["kind"] == "APIGroupDiscoveryList"
    again = await http.get("/apis", headers={"Accept": accept, "If-None-Match": new.headers["ETag"]})
    assert again.status == 304
    assert (await (await http.get("/apis")).json())["kind"] == "APIGroupList"
    assert (await (await http.get("/apis/apps")).json())["preferredVersion"]["version"] == "v1"
    assert (await (await http.get("/api/v1")).json())["groupVersion"] == "v1"


async def test_openapi_tells_kubectl_what_it_looks_for(http: aiohttp.ClientSession) -> None:
    index = await (await http.get("/openapi/v3")).json()
    document = await (await http.get(index["paths"]["apis/apps/v1"]["serverRelativeURL"])).json()
    patch = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert patch["x-kubernetes-group-version-kind"] == {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert "fieldValidation" in [parameter["name"] for parameter in patch["parameters"]]
    containers = document["components"]["schemas"]["PodSpec"]["properties"]["containers"]
    assert containers["x-kubernetes-patch-merge-key"] == "name"
    assert containers["description"].startswith("List of containers belonging to the pod.")


async def test_a_large_list_is_compressed_when_asked(http: aiohttp.ClientSession) -> None:
    await http.post(CONFIG_MAPS, json=config_map("large", text="x" * 200_000))
    listed = await http.get(CONFIG_MAPS, headers={"Accept-Encoding": "gzip"})
    assert listed.headers["Content-Encoding"] == "gzip"
    assert (
        len(next(item for item in (await listed.json())["items"] if "text" in item["data"])["data"]["text"]) == 200_000
    )


async def test_whoami_and_can_i_answer_for_the_caller(http: aiohttp.ClientSession) -> None:
    who = await http.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json={})
    assert (await who.json())["status"]["userInfo"]["username"] == "kubernetes-admin"
    question = {"spec": {"resourceAttributes": {"verb": "delete", "resource": "nodes"}}}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    assert (await (await http.post(path, json=question)).json())["status"] == {"allowed": True}
    acting = {"Impersonate-User": "system:node:n1", "Impersonate-Group": "system:nodes"}
    answer = await (await http.post(path, json=question, headers=acting)).json()
    assert answer["status"] == {"allowed": False}


async def test_requests_are_counted(http: aiohttp.ClientSession) -> None:
    await http.get("/api/v1/namespaces/default")
    text = await (await http.get("/metrics")).text()
    assert 'apiserver_request_total{code="200",resource="namespaces",verb="get"}' in text


async def test_without_credentials_only_health_version_and_the_ca_are_open(server: Server) -> None:
    connector = aiohttp.TCPConnector(ssl=server.tls(user=""))
    async with aiohttp.ClientSession(server.url, connector=connector) as stranger:
        for path in ("/livez", "/readyz?verbose", "/healthz", "/version", "/cacerts", "/readyz/registry"):
            assert (await stranger.get(path)).status == 200, path
        for path in ("/api", "/apis", "/api/v1/pods", "/metrics", "/openapi/v3", "/", "/nonsense"):
            assert await refused(await stranger.get(path)) == (401, "Unauthorized"), path
        wrong = await stranger.get("/api/v1/pods", headers={"Authorization": "Bearer nonsense"})
        assert await refused(wrong) == (401, "Unauthorized")


async def test_a_client_that_leaves_ends_its_watch_at_once(http: aiohttp.ClientSession) -> None:
    async def running() -> float:
        lines = (await (await http.get("/metrics")).text()).splitlines()
        return float(next(text for text in lines if text.startswith("apiserver_current_inflight_requests ")).split()[1])

    before = await running()
    watch = await http.get(f"{CONFIG_MAPS}?watch=1")
    assert await running() == before + 1
    watch.close()
    # The server learns of it with the next packet, which may be behind the one that asks.
    counts = [await running() for _ in range(50)]
    assert counts[-1] == before
