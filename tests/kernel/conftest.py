"""Tests in here run as root, in network namespaces that they make and remove."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.netns import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Namespaces that live as long as the module's tests."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab() as made:
        yield made
