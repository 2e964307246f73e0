"""Bearer tokens: made here, kept as SHA-256 hashes in `tokens.json`, and the join token that pins the CA.

A secret is 32 random bytes, so a plain hash is enough: there is nothing to guess. The file is read again when it has
changed, so a token made by another process is known to a running API server at its next request.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import secrets
import ssl
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from .files import locked, write_atomic
from .pki import PkiError, ca_hash
from .users import User

_JOIN = re.compile(r"K1([0-9a-f]{64})::(\S+)")


class TokenError(Exception):
    """A token or the file of tokens is unusable; the message says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token as kept on disk: never the secret itself. Times are Unix seconds; `expires` 0 means never."""

    hash: str
    user: str
    groups: list[str]
    created: float
    expires: float


class Tokens:
    """The tokens of `<folder>/tokens.json`."""

    def __init__(self, folder: Path | str) -> None:
        """Raises TokenError when the file is there and unreadable."""
        self.path = Path(folder) / "tokens.json"
        self._stamp: tuple[int, int] | None = None
        self._records: dict[str, TokenRecord] = {}
        self._refresh()

    def create(self, user: str, groups: Sequence[str] = (), ttl: float | None = None) -> str:
        """A new secret for `user`, good for `ttl` seconds (None: for ever), kept as a hash. Raises TokenError."""
        secret = secrets.token_urlsafe(32)
        now = time.time()
        record = TokenRecord(_hash(secret), user, list(groups), now, now + ttl if ttl is not None else 0)
        self._change(add=record)
        return secret

    def revoke(self, secret: str) -> bool:
        """Forgets a token; False when it was not known. Raises TokenError."""
        known = _hash(secret) in self._refresh()
        self._change(remove=_hash(secret))
        return known

    def authenticate(self, token: str) -> User | None:
        """Whose token this is; None when unknown or expired. Raises TokenError when the file is unreadable.

        A join token (`K1<ca hash>::<secret>`) stands for its secret.
        """
        join = _JOIN.fullmatch(token)
        record = self._refresh().get(_hash(join[2] if join else token))
        if record is None or _expired(record):
            return None
        return User(record.user, tuple(record.groups))

    def _refresh(self) -> dict[str, TokenRecord]:
        try:
            status = self.path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._records = {item["hash"]: TokenRecord(**item) for item in json.loads(self.path.read_text())}
                self._stamp = stamp
        except FileNotFoundError:
            self._records, self._stamp = {}, None
        except OSError as error:
            raise TokenError(f"{self.path}: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise TokenError(f"{self.path} is damaged ({error}); remove it and make new tokens") from error
        return self._records

    def _change(self, add: TokenRecord | None = None, remove: str = "") -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(self.path.parent):
                kept = [item for item in self._refresh().values() if item.hash != remove and not _expired(item)]
                kept += [add] if add else []
                write_atomic(self.path, json.dumps([asdict(item) for item in kept], indent=1).encode(), 0o600)
        except OSError as error:
            raise TokenError(f"{self.path}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a joining host is given: the hash of the CA to trust, and the secret to show it."""

    ca_hash: str
    secret: str

    def __str__(self) -> str:
        return f"K1{self.ca_hash}::{self.secret}"

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Raises TokenError."""
        found = _JOIN.fullmatch(text.strip())
        if not found:
            raise TokenError("the join token is malformed: expected K1<64 hex digits>::<secret>; copy it whole")
        return cls(found[1], found[2])


def fetch_pinned_ca(server_url: str, token: JoinToken | str, timeout: float = 10.0) -> bytes:
    """The cluster's CA (PEM), trusted because its hash is the token's. Blocking; raises TokenError.

    `GET /cacerts` runs over a connection that is not trusted yet and carries no secret; the CA is compared with the
    hash, and then the server has to prove, on a second connection, that its own certificate comes from that CA.
    """
    token = JoinToken.parse(token) if isinstance(token, str) else token
    address = urlsplit(server_url)
    if address.scheme != "https" or not address.hostname:
        raise TokenError(f"server {server_url!r}: expected https://HOST:PORT")
    untrusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    untrusted.check_hostname = False
    untrusted.verify_mode = ssl.CERT_NONE
    ca_pem = _get(address.hostname, address.port or 6443, "/cacerts", untrusted, timeout)
    try:
        found = ca_hash(ca_pem)
    except PkiError as error:
        raise TokenError(f"{server_url} answered with no CA certificate: {error}") from error
    if not secrets.compare_digest(found, token.ca_hash):
        raise TokenError(
            f"{server_url} presents another CA (sha256 {found}) than the join token names (sha256 {token.ca_hash}): "
            "the token is of another cluster, or somebody is in between; nothing was sent"
        )
    trusted = ssl.create_default_context(cadata=ca_pem.decode())
    _get(address.hostname, address.port or 6443, "/cacerts", trusted, timeout)
    return ca_pem


def _get(host: str, port: int, path: str, context: ssl.SSLContext, timeout: float) -> bytes:
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise TokenError(
            f"https://{host}:{port}{path}: {error}; check the address and that the API server runs"
        ) from error
    finally:
        connection.close()
    if response.status != 200:
        raise TokenError(f"https://{host}:{port}{path}: the server answered {response.status} {response.reason}")
    return body


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _expired(record: TokenRecord) -> bool:
    return bool(record.expires) and record.expires <= time.time()
