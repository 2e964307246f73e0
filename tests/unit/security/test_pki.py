"""Certificates: made once, kept while right, made anew when not, and errors that name the file and the fix."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509

from kernelet.core.security import pki as pki_module
from kernelet.core.security.pki import CertPair, Pki, PkiError, ca_hash, make_csr, subject_of


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki.ensure(tmp_path / "pki")


def handshake(server: CertPair, client: CertPair | None, ca: Path, name: str) -> str:
    """Runs a TLS handshake over a socket pair; the user the server sees."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.cert_path, server.key_path)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    left, right = socket.socketpair()
    seen: list[str] = []

    def serve() -> None:
        try:
            wrapped = context.wrap_socket(left, server_side=True)
        except ssl.SSLError:
            return  # the client refused; its own error is what the caller looks at
        with wrapped as connection:
            der = connection.getpeercert(binary_form=True)
            seen.append(subject_of(ssl.DER_cert_to_PEM_cert(der or b"").encode())[0])
            connection.send(b"x")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        outgoing = ssl.create_default_context(cafile=str(ca))
        if client:
            outgoing.load_cert_chain(client.cert_path, client.key_path)
        with outgoing.wrap_socket(right, server_hostname=name) as connection:
            connection.recv(1)
    finally:
        right.close()
        thread.join(5)
        left.close()
    return seen[0]


def test_a_second_start_finds_the_same_ca_and_certificates(pki: Pki) -> None:
    first = pki.issue("admin", "admin", ["system:masters"], sans=["localhost", "127.0.0.1"])
    before = first.read()
    again = Pki.ensure(pki.folder)
    assert again.ca_pem == pki.ca_pem
    assert again.issue("admin", "admin", ["system:masters"], sans=["127.0.0.1", "localhost"]).read() == before


def test_keys_are_readable_by_their_owner_alone(pki: Pki) -> None:
    pair = pki.issue("admin", "admin")
    for path in (pair.key_path, pki.folder / "ca.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_other_names_make_a_new_certificate(pki: Pki) -> None:
    before = pki.issue("server", "kernelet-apiserver", sans=["localhost"], server=True).read()
    assert pki.issue("server", "kernelet-apiserver", sans=["localhost", "10.0.0.1"], server=True).read() != before


def test_a_certificate_near_its_end_is_renewed(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pki.issue("admin", "admin").read()
    later = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=340)
    monkeypatch.setattr(pki_module, "_now", lambda: later)
    assert pki.issue("admin", "admin").read() != before


def test_a_torn_certificate_file_is_issued_anew(pki: Pki) -> None:
    pair = pki.issue("admin", "admin")
    pair.cert_path.write_bytes(pair.cert_path.read_bytes()[:100])
    x509.load_pem_x509_certificate(pki.issue("admin", "admin").read()[0])


def test_mutual_tls_works_and_the_server_sees_the_user(pki: Pki) -> None:
    server = pki.issue("server", "kernelet-apiserver", sans=["kernelet-apiserver"], server=True, client=False)
    client = pki.issue("node", "system:node:n1", ["system:nodes"])
    assert handshake(server, client, pki.ca_path, "kernelet-apiserver") == "system:node:n1"


def test_a_name_outside_the_sans_is_refused_by_the_client(pki: Pki) -> None:
    server = pki.issue("server", "x", sans=["localhost"], server=True)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, pki.issue("c", "c"), pki.ca_path, "elsewhere")


def test_a_ca_key_that_is_gone_is_named_and_not_replaced(pki: Pki) -> None:
    (pki.folder / "ca.key").unlink()
    with pytest.raises(PkiError, match=r"ca\.key is missing; restore it"):
        Pki.ensure(pki.folder)
    assert not (pki.folder / "ca.key").exists()


def test_a_ca_key_of_another_ca_is_refused(pki: Pki, tmp_path: Path) -> None:
    other = Pki.ensure(tmp_path / "other")
    (pki.folder / "ca.key").write_bytes((other.folder / "ca.key").read_bytes())
    with pytest.raises(PkiError, match=r"not the key of ca\.crt"):
        Pki.ensure(pki.folder)


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(PkiError, match=r"PKI folder /proc/kernelet-pki: .*; run as its owner or choose another folder"):
        Pki.ensure(Path("/proc/kernelet-pki"))  # also root makes no folder there


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "pki").write_text("x")
    with pytest.raises(PkiError, match=r"PKI folder .*pki: File exists"):
        Pki.ensure(tmp_path / "pki")


@pytest.mark.parametrize("san", ["", "a b", "http://x", "host:1"])
def test_a_name_that_is_no_host_is_refused(pki: Pki, san: str) -> None:
    with pytest.raises(PkiError, match="neither a DNS name nor an IP address"):
        pki.issue("x", "x", sans=[san])


def test_a_signing_request_gets_a_certificate_for_its_own_key(pki: Pki) -> None:
    request, key = make_csr("system:node:n1", ["system:nodes"], ["n1", "10.0.0.7"])
    signed = pki.sign_csr(
        request, common_name="system:node:n1", organizations=["system:nodes"], sans=["n1", "10.0.0.7"], server=True
    )
    assert subject_of(signed) == ("system:node:n1", ("system:nodes",))
    (pki.folder / "n1.crt").write_bytes(signed)
    (pki.folder / "n1.key").write_bytes(key)
    pair = CertPair(pki.folder / "n1.crt", pki.folder / "n1.key")
    assert handshake(pair, pair, pki.ca_path, "n1") == "system:node:n1"


def test_a_signing_request_cannot_widen_what_it_is_given(pki: Pki) -> None:
    masters, _ = make_csr("system:node:n1", ["system:masters"])
    with pytest.raises(PkiError, match=r"system:masters.*allowed is 'system:node:n1' of \['system:nodes'\]"):
        pki.sign_csr(masters, common_name="system:node:n1", organizations=["system:nodes"])
    names, _ = make_csr("system:node:n1", [], ["kubernetes"])
    with pytest.raises(PkiError, match="names it may not have: kubernetes"):
        pki.sign_csr(names, common_name="system:node:n1", sans=["n1"])


def test_the_ca_hash_is_of_the_certificate_itself(pki: Pki) -> None:
    assert pki.ca_hash == ca_hash(pki.ca_pem)
    with pytest.raises(PkiError, match="no CA certificate"):
        ca_hash(b"x")
