"""Who calls: the client certificate of the connection, or a bearer token (RFC 6750)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from kernelet.core.api.errors import Unauthorized
from kernelet.core.security.authz import Authorizer
from kernelet.core.security.users import User


def authenticate(request: web.Request, tokens: Callable[[str], User | None]) -> User:
    """The caller, whose certificate TLS has verified already. Raises Unauthorized.

    A certificate outranks a token. A token that is unknown or expired is refused, not ignored.
    """
    certificate = request.transport.get_extra_info("peercert") if request.transport is not None else None
    user = user_of(certificate) if certificate else None
    if user is not None:
        return user
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if not token:
        raise Unauthorized("Unauthorized: show a client certificate of this cluster or a bearer token")
    user = tokens(token.strip()) if scheme.lower() == "bearer" else None
    if user is None:
        raise Unauthorized("Unauthorized: the bearer token is unknown or has expired")
    return user


def user_of(certificate: dict[str, Any]) -> User | None:
    """The user of a certificate as ssl.SSLSocket.getpeercert() shows it; None without a common name."""
    names = [pair for relative in certificate.get("subject", ()) for pair in relative]
    users = [value for key, value in names if key == "commonName"]
    groups = tuple(sorted(value for key, value in names if key == "organizationName"))
    return User(users[0], groups) if users else None


def impersonate(request: web.Request, user: User, authorizer: Authorizer) -> User:
    """The user named by Impersonate-User and Impersonate-Group, if `user` may act for them. Raises Forbidden."""
    name = request.headers.get("Impersonate-User", "")
    groups = tuple(request.headers.getall("Impersonate-Group", []))
    if not name and not groups:
        return user
    authorizer.check(user, "impersonate", "", "users", name=name)
    for group in groups:
        authorizer.check(user, "impersonate", "", "groups", name=group)
    return User(name, groups)
