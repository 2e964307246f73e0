"""kubeconfig files: written for kubectl and for the `kernelet` command, and read from wherever a person keeps them.

The gRPC address travels as a cluster extension that other clients ignore:

    clusters:
    - name: default
      cluster:
        server: https://127.0.0.1:6443
        extensions:
        - name: kernelet.dev
          extension: {grpc: "unix:///run/kernelet/default/registry.sock"}
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .files import write_atomic

if TYPE_CHECKING:
    from kernelet.core.client.config import ClientConfig

EXTENSION = "kernelet.dev"
DEFAULT_PATH = Path("/var/lib/kernelet/default/admin.kubeconfig")
GRPC_PORT = 6444
TOKEN_PORT = 6445

_Map = dict[str, Any]


class KubeconfigError(Exception):
    """A kubeconfig cannot be used; the message names the file, the entry, the cause and the fix."""


def write_kubeconfig(
    path: Path | str,
    server_url: str,
    ca: bytes,
    cert: bytes = b"",
    key: bytes = b"",
    cluster: str = "default",
    grpc_address: str = "",
    *,
    token: str = "",
    user: str = "admin",
) -> None:
    """Writes a kubeconfig (0600, atomic) with `ca`, `cert` and `key` (PEM) embedded. Raises KubeconfigError.

    `grpc_address` is `unix:///path` or `host:port`; with a token it is the token port's.
    """
    import yaml

    entry: _Map = {"server": server_url, "certificate-authority-data": _encode(ca)}
    if grpc_address:
        entry["extensions"] = [{"name": EXTENSION, "extension": {"grpc": grpc_address}}]
    credentials: _Map = {"token": token} if token else {}
    if cert:
        credentials |= {"client-certificate-data": _encode(cert), "client-key-data": _encode(key)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": cluster,
        "preferences": {},
        "clusters": [{"name": cluster, "cluster": entry}],
        "users": [{"name": f"{cluster}-{user}", "user": credentials}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": f"{cluster}-{user}"}}],
    }
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, yaml.safe_dump(document, sort_keys=False).encode(), 0o600)
    except OSError as error:
        raise KubeconfigError(f"kubeconfig {path}: {error.strerror or error}") from error


def find_kubeconfig(explicit: Path | str | None = None, environment: Mapping[str, str] = os.environ) -> list[Path]:
    """The files to read, most important first; empty when there is none.

    Order: `explicit`, $KERNELET_CONFIG, $KUBECONFIG (its files merge), /var/lib/kernelet/default/admin.kubeconfig,
    ~/.kube/config.
    """
    if explicit:
        return [Path(explicit)]
    if environment.get("KERNELET_CONFIG"):
        return [Path(environment["KERNELET_CONFIG"])]
    if environment.get("KUBECONFIG"):
        return [Path(part) for part in environment["KUBECONFIG"].split(os.pathsep) if part]
    for path in (DEFAULT_PATH, Path(environment.get("HOME") or "/root") / ".kube" / "config"):
        if os.access(path, os.R_OK):
            return [path]
    return []


def load_kubeconfig(path: Path | str | None = None, context: str = "") -> ClientConfig:
    """How to reach the cluster of a kubeconfig's context ("": its current one) over gRPC. Raises KubeconfigError.

    Without the extension the address is the server's host with port 6444, or 6445 when the user has a token only.
    """
    from kernelet.core.client.config import ClientConfig

    merged, source = _load(path)
    name = context or merged["current-context"]
    if not name:
        raise KubeconfigError(f"kubeconfig {source} has no current-context; name one with --context")
    chosen = _entry(merged, "contexts", name, source)
    cluster = _entry(merged, "clusters", str(chosen.get("cluster", "")), source)
    user = _entry(merged, "users", str(chosen.get("user", "")), source) if chosen.get("user") else {}
    _refuse_unsupported(cluster, user, source)
    cert, key = _pem(user, "client-certificate", source), _pem(user, "client-key", source)
    token = "" if cert else _token(user, source)
    return ClientConfig(
        address=_grpc_address(cluster, source, TOKEN_PORT if token else GRPC_PORT),
        ca_pem=_pem(cluster, "certificate-authority", source),
        cert_pem=cert,
        key_pem=key,
        token=token,
    )


def default_namespace(path: Path | str | None = None, context: str = "") -> str:
    """The namespace of a kubeconfig's context; "default" where it names none. Raises KubeconfigError."""
    merged, source = _load(path)
    chosen = _entry(merged, "contexts", context or merged["current-context"], source)
    return str(chosen.get("namespace") or "default")


def _load(path: Path | str | None) -> tuple[_Map, str]:
    paths = find_kubeconfig(path)
    # As kubectl has it: files of a list may be missing, a file named alone may not.
    present = [item for item in paths if item.exists()] if len(paths) > 1 else paths
    if not present:
        raise KubeconfigError(
            "no kubeconfig found: start a cluster with `kernelet up`, set KUBECONFIG, or name a file with --kubeconfig"
        )
    merged: _Map = {"current-context": "", "clusters": {}, "users": {}, "contexts": {}}
    for item in present:
        document = _parse(item)
        merged["current-context"] = merged["current-context"] or str(document.get("current-context") or "")
        for section in ("clusters", "users", "contexts"):
            for entry in document.get(section) or []:
                values = dict(entry.get(section[:-1]) or {})
                values[".folder"] = item.parent
                merged[section].setdefault(str(entry.get("name", "")), values)
    return merged, ", ".join(map(str, present))


def _parse(path: Path) -> _Map:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = yaml.load(path.read_bytes(), Loader=loader)
    except OSError as error:
        raise KubeconfigError(f"kubeconfig {path}: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise KubeconfigError(f"kubeconfig {path} is no YAML: {error}") from error
    if not isinstance(document, dict):
        raise KubeconfigError(
            f"kubeconfig {path} is no kubeconfig: expected a mapping with clusters, users and contexts"
        )
    for section in ("clusters", "users", "contexts"):
        entries = document.get(section) or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise KubeconfigError(f"kubeconfig {path}: {section} must be a list of mappings")
    return document


def _entry(merged: _Map, section: str, name: str, source: str) -> _Map:
    found: _Map | None = merged[section].get(name)
    if found is None:
        known = ", ".join(sorted(merged[section])) or "none"
        raise KubeconfigError(f"kubeconfig {source} has no entry {name!r} in {section}; it has: {known}")
    return found


def _refuse_unsupported(cluster: _Map, user: _Map, source: str) -> None:
    if user.get("exec") or user.get("auth-provider"):
        raise KubeconfigError(
            f"kubeconfig {source}: the user gets credentials from a plug-in (exec or auth-provider), which is not "
            "supported; use a client certificate or a token"
        )
    if user.get("username"):
        raise KubeconfigError(
            f"kubeconfig {source}: user name and password are not supported; use a certificate or a token"
        )
    if cluster.get("insecure-skip-tls-verify"):
        raise KubeconfigError(
            f"kubeconfig {source}: insecure-skip-tls-verify is not supported; give the cluster's certificate-authority"
        )


def _pem(entry: _Map, key: str, source: str) -> bytes:
    """`<key>-data` (base64) or the file `<key>`, relative to the kubeconfig; b"" when neither is there."""
    if entry.get(f"{key}-data"):
        try:
            return base64.b64decode(str(entry[f"{key}-data"]), validate=False)
        except binascii.Error as error:
            raise KubeconfigError(f"kubeconfig {source}: {key}-data is no base64: {error}") from error
    return _file(entry, key, source)


def _file(entry: _Map, key: str, source: str) -> bytes:
    if not entry.get(key):
        return b""
    path = Path(entry[".folder"]) / str(entry[key])
    try:
        return path.read_bytes()
    except OSError as error:
        raise KubeconfigError(f"kubeconfig {source}: {key} {path}: {error.strerror or error}") from error


def _token(user: _Map, source: str) -> str:
    return str(user.get("token") or "") or _file(user, "tokenFile", source).decode(errors="replace").strip()


def _grpc_address(cluster: _Map, source: str, default_port: int) -> str:
    for entry in cluster.get("extensions") or []:
        extension = entry.get("extension") if isinstance(entry, dict) and entry.get("name") == EXTENSION else None
        if isinstance(extension, dict) and extension.get("grpc"):
            return str(extension["grpc"])
    try:
        host = urlsplit(str(cluster.get("server") or "")).hostname
    except ValueError:
        host = None
    if not host:
        raise KubeconfigError(
            f"kubeconfig {source}: the cluster's server {cluster.get('server')!r} is no URL like https://HOST:6443"
        )
    return f"[{host}]:{default_port}" if ":" in host else f"{host}:{default_port}"


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
