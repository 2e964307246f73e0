"""Who calls over gRPC: the verified client certificate, or a bearer token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from ..api.errors import Unauthorized
from ..security.pki import subject_of
from ..security.users import User

Authenticate = Callable[[str], User | None]
"""A bearer token to its user."""

_CACHED_CERTIFICATES = 4096


class CallContext(Protocol):
    """The part of grpc.aio.ServicerContext that tells the caller."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


class Identifier:
    """Caches the parsed certificate by its bytes; the TLS layer has verified it."""

    def __init__(self, authenticate: Authenticate) -> None:
        self._authenticate = authenticate
        self._by_certificate: dict[bytes, User] = {}

    def user_of(self, context: CallContext) -> User:
        """Raises Unauthorized for a caller that shows neither a certificate nor a valid token."""
        for pem in context.auth_context().get("x509_pem_cert", ()):
            return self._of_certificate(pem)
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                scheme, _, token = str(value).partition(" ")
                user = self._authenticate(token.strip()) if scheme.lower() == "bearer" else None
                if user is None:
                    raise Unauthorized("the bearer token is invalid or has expired")
                return user
        raise Unauthorized("Unauthorized: show a client certificate or an `authorization: Bearer` token")

    def _of_certificate(self, pem: bytes) -> User:
        user = self._by_certificate.get(pem)
        if user is None:
            name, groups = subject_of(pem)
            user = User(name, groups)
            if len(self._by_certificate) >= _CACHED_CERTIFICATES:
                self._by_certificate.clear()
            self._by_certificate[pem] = user
        return user
