"""Who makes a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class User:
    """An authenticated identity: a certificate's common name and organizations, or a token's user and groups."""

    name: str
    groups: tuple[str, ...] = ()


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))
SERVER = User("system:apiserver", ("system:masters",))
"""The API server itself: bootstrap objects and its own housekeeping."""
