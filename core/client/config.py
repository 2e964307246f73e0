"""Where the API server is and who asks."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ClientConfig:
    """Plain data, made by `core.security.kubeconfig` or by hand; PEM texts, not paths."""

    address: str
    """`host:port` or `unix:///path`. With a token, the token port."""
    ca_pem: bytes
    """The certificates the server's one must be signed by."""
    cert_pem: bytes = b""
    key_pem: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)
    """A bearer token, sent as call metadata in place of a client certificate."""
    user_agent: str = "kernelet"
    timeout: float = 15.0
    """Seconds a call may take, retries included, where the call itself states no other deadline."""
    keepalive: float = 10.0
    """Seconds of silence after which the server is asked whether it is there. Half as long it may take to answer."""
    server_name: str = ""
    """The name to expect in the server's certificate where it is not the address's host: always
    `kernelet-apiserver` on a unix socket."""
