"""One topology and one set of client processes for a module's tests; one engine at a time, emptied before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..proxy.topology import Topology, own_cgroup
from .proxy import Proxy, Site, site


@pytest.fixture(scope="module", name="site")
def _site(topology: Topology, bpffs: None) -> Iterator[Site]:
    with own_cgroup() as config, site(topology, config) as made:
        yield made


@pytest.fixture(scope="module")
def proxy(site: Site, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    made = Proxy(request.param, site)
    made.start()
    try:
        yield made
    finally:
        made.dispose()


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> None:
    if "proxy" in request.fixturenames:
        request.getfixturevalue("proxy").reset()
