"""Parts of the REST face that need no server."""

from __future__ import annotations

import pytest

from kernelet.core.api.errors import BadRequest, MethodNotAllowed, NotFound
from kernelet.core.api.kinds import KINDS
from kernelet.core.server.rest import paths
from kernelet.core.server.rest.answers import quoted
from kernelet.core.server.rest.bodies import check_shape
from kernelet.core.server.rest.negotiate import Accepted, Form, NotAcceptable, negotiate
from kernelet.core.server.rest.openapi import parse_docstring

BOTH = frozenset((Form.PLAIN, Form.TABLE))
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", Accepted()),
        ("*/*", Accepted()),
        (f"{TABLE},application/json", Accepted(Form.TABLE)),
        ("application/json;as=Table;g=meta.k8s.io;v=v1beta1,application/json", Accepted()),
        ("application/vnd.kubernetes.protobuf,application/json", Accepted()),
        ("application/json;q=0.1,application/yaml", Accepted(yaml=True)),
        ("application/json;as=Something;g=x;v=v1, application/json;q=0.5", Accepted()),
    ],
)
def test_the_best_form_that_can_be_given_is_chosen(accept: str, expected: Accepted) -> None:
    assert negotiate(accept, BOTH) == expected


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "application/cbor", "application/json;as=X"])
def test_an_accept_nothing_fits_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="application/json, application/yaml"):
        negotiate(accept, BOTH)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/api/v1/pods", ("list", "pods", "", "", "")),
        ("GET", "/api/v1/namespaces/a/pods/b", ("get", "pods", "a", "b", "")),
        ("PUT", "/api/v1/namespaces/a/finalize", ("update", "namespaces", "", "a", "finalize")),
        ("GET", "/api/v1/namespaces/a", ("get", "namespaces", "", "a", "")),
        ("PATCH", "/apis/apps/v1/namespaces/a/deployments/b/scale", ("patch", "deployments", "a", "b", "scale")),
        ("POST", "/api/v1/namespaces/a/pods/b/binding", ("create", "pods", "a", "b", "binding")),
        ("DELETE", "/api/v1/nodes", ("deletecollection", "nodes", "", "", "")),
        ("GET", "/api/v1/watch/namespaces/a/pods", ("watch", "pods", "a", "", "")),
        ("GET", "/api/v1/nodes/a%3Ab", ("get", "nodes", "", "a:b", "")),
    ],
)
def test_a_path_names_a_verb_and_an_object(method: str, path: str, expected: tuple[str, ...]) -> None:
    found = paths.split(path)
    assert found is not None
    target = paths.resolve(found, KINDS)
    ref = target.ref
    verb = paths.verb_of(method, target, target.watch)
    assert (verb, ref.kind.plural, ref.namespace, ref.name, ref.subresource) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/pods/a",
        "/api/v1/namespaces/a/nodes",
        "/api/v2/pods",
        "/api/v1/namespaces//pods",
        "/api/v1/pods/a/b/c/d",
    ],
)
def test_a_path_that_names_nothing_is_not_found(path: str) -> None:
    found = paths.split(path)
    assert found is not None
    with pytest.raises(NotFound):
        paths.resolve(found, KINDS)


def test_an_object_cannot_be_posted_to() -> None:
    found = paths.split("/api/v1/namespaces/a/pods/b")
    assert found is not None
    with pytest.raises(MethodNotAllowed):
        paths.verb_of("POST", paths.resolve(found, KINDS), watching=False)


def test_aliases_that_multiply_are_counted_as_often_as_they_are_used() -> None:
    bomb: list[object] = ["x"]
    for _ in range(30):
        bomb = [bomb] * 10
    with pytest.raises(BadRequest, match="more than 500000 values"):
        check_shape(bomb)


def test_a_warning_header_carries_any_text() -> None:
    assert quoted('a "b"\r\n\\ é \u2713') == '"a \\"b\\"  \\\\ é ?"'


def test_descriptions_come_from_the_models() -> None:
    summary, fields = parse_docstring(
        "A thing\n      of use.\n\n      **parameters**\n\n      * **name** ``str`` - Its name,\n"
        "        which is long.\n      * **size** ``Optional[int]`` - "
    )
    assert (summary, fields) == ("A thing of use.", {"name": "Its name, which is long.", "size": ""})
