"""The cluster's certificate authority and the certificates it issues (EC P-256, SHA-256, RFC 5280).

A certificate's common name is the user, its organizations are the groups. The CA lives ten years. A certificate lives
one year and is issued anew by the next `issue` once less than 30 days remain. Validity begins an hour before the clock
of the issuer, so that a host whose clock is somewhat behind accepts it.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .files import locked, write_atomic

CA_LIFETIME = datetime.timedelta(days=3650)
CERTIFICATE_LIFETIME = datetime.timedelta(days=365)
RENEW_BEFORE = datetime.timedelta(days=30)
CLOCK_SKEW = datetime.timedelta(hours=1)


class PkiError(Exception):
    """A certificate cannot be read, made or trusted; the message names the file or subject, the cause and the fix."""


@dataclass(frozen=True, slots=True)
class CertPair:
    """Where an issued certificate and its key are (PEM)."""

    cert_path: Path
    key_path: Path

    def read(self) -> tuple[bytes, bytes]:
        """(certificate PEM, key PEM). Raises PkiError."""
        return _read(self.cert_path), _read(self.key_path)


class Pki:
    """A CA in a folder. Make one with `ensure` (creates what is missing) or `load` (must exist)."""

    def __init__(self, folder: Path, ca: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.folder = folder
        self._ca = ca
        self._key = key
        self.ca_pem = ca.public_bytes(serialization.Encoding.PEM)

    @classmethod
    def ensure(cls, folder: Path | str) -> Self:
        """The CA of `folder` (`ca.crt`, `ca.key`), made on first use. Raises PkiError.

        A folder with a certificate and no key, or the reverse, is an error: making another CA would lock out every
        certificate issued so far.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(folder):
                if not (folder / "ca.crt").exists() and not (folder / "ca.key").exists():
                    _make_ca(folder)
                return cls.load(folder)
        except OSError as error:
            raise PkiError(
                f"PKI folder {folder}: {error.strerror or error}; run as its owner or choose another folder"
            ) from error

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The CA that `folder` holds. Raises PkiError when a part is missing, unreadable, expired or does not match."""
        folder = Path(folder)
        restore = "restore it from a backup, or remove the whole folder to begin with a new CA"
        for name in ("ca.crt", "ca.key"):
            if not (folder / name).exists():
                raise PkiError(f"{folder / name} is missing; {restore}")
        ca, key = _parse_certificate(folder / "ca.crt"), _parse_key(folder / "ca.key")
        if ca.public_key() != key.public_key():
            raise PkiError(f"{folder}: ca.key is not the key of ca.crt; {restore}")
        if ca.not_valid_after_utc <= _now():
            raise PkiError(f"{folder / 'ca.crt'} expired on {ca.not_valid_after_utc:%Y-%m-%d}; {restore}")
        return cls(folder, ca, key)

    @property
    def ca_path(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def ca_hash(self) -> str:
        """SHA-256 of the CA certificate's DER, hex: what a join token pins."""
        return ca_hash(self.ca_pem)

    def issue(
        self,
        name: str,
        common_name: str,
        organizations: Sequence[str] = (),
        *,
        sans: Sequence[str] = (),
        server: bool = False,
        client: bool = True,
    ) -> CertPair:
        """Writes `<folder>/<name>.crt` and `.key`, or keeps them when they are still right. Raises PkiError.

        They are kept when the key fits, this CA signed them, more than 30 days remain, and subject, SANs and usages
        equal what is asked. A SAN is a DNS name or an IP address.
        """
        pair = CertPair(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        request = _Request(common_name, tuple(organizations), _parse_sans(sans), server, client)
        try:
            with locked(self.folder):
                if not self._still_right(pair, request):
                    key = ec.generate_private_key(ec.SECP256R1())
                    certificate = self._sign(request, key.public_key())
                    write_atomic(pair.key_path, _key_pem(key), 0o600)
                    write_atomic(pair.cert_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        except OSError as error:
            raise PkiError(f"certificate {pair.cert_path}: {error.strerror or error}") from error
        return pair

    def sign_csr(
        self,
        csr_pem: bytes,
        *,
        common_name: str,
        organizations: Sequence[str] = (),
        sans: Sequence[str] = (),
        server: bool = False,
        client: bool = True,
    ) -> bytes:
        """A certificate (PEM) for the key of a signing request (PKCS #10).

        The request's subject must be the one given here and its SANs a part of `sans`; only what is given here enters
        the certificate. Raises PkiError.
        """
        try:
            csr = x509.load_pem_x509_csr(csr_pem)
            if not csr.is_signature_valid:
                raise PkiError(f"certificate request for {common_name!r}: its signature does not fit its key")
        except (ValueError, InvalidSignature) as error:
            raise PkiError(f"certificate request for {common_name!r} is unreadable: {error}") from error
        asked, wanted = _subject(csr.subject), (common_name, tuple(sorted(organizations)))
        if asked != wanted:
            raise PkiError(
                f"certificate request names {asked[0]!r} of {list(asked[1])}, "
                f"allowed is {wanted[0]!r} of {list(wanted[1])}"
            )
        request = _Request(common_name, tuple(organizations), _parse_sans(sans), server, client)
        extra = set(_san_texts(csr.extensions)) - {_san_text(san) for san in request.sans}
        if extra:
            raise PkiError(
                f"certificate request for {common_name!r} asks for names it may not have: {', '.join(sorted(extra))}"
            )
        public_key = csr.public_key()
        if not isinstance(public_key, ec.EllipticCurvePublicKey):
            raise PkiError(f"certificate request for {common_name!r}: use an EC key on curve P-256")
        return self._sign(request, public_key).public_bytes(serialization.Encoding.PEM)

    def _sign(self, request: _Request, public_key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        now = _now()
        usages = [ExtendedKeyUsageOID.SERVER_AUTH] * request.server + [ExtendedKeyUsageOID.CLIENT_AUTH] * request.client
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(request.common_name, request.organizations))
            .issuer_name(self._ca.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(min(now + CERTIFICATE_LIFETIME, self._ca.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if request.sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(request.sans), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _still_right(self, pair: CertPair, request: _Request) -> bool:
        if not pair.cert_path.exists() or not pair.key_path.exists():
            return False
        try:
            certificate, key = _parse_certificate(pair.cert_path), _parse_key(pair.key_path)
            certificate.verify_directly_issued_by(self._ca)
        except (PkiError, ValueError, TypeError, InvalidSignature):
            # A torn or foreign file is what issuing anew repairs; an unreadable folder fails at the write.
            return False
        usages = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        wanted = {ExtendedKeyUsageOID.SERVER_AUTH} if request.server else set()
        wanted |= {ExtendedKeyUsageOID.CLIENT_AUTH} if request.client else set()
        return (
            certificate.public_key() == key.public_key()
            and certificate.not_valid_after_utc - _now() > RENEW_BEFORE
            and certificate.not_valid_before_utc <= _now()
            and _subject(certificate.subject) == (request.common_name, tuple(sorted(request.organizations)))
            and sorted(_san_texts(certificate.extensions)) == sorted(_san_text(san) for san in request.sans)
            and usages == wanted
        )


@dataclass(frozen=True, slots=True)
class _Request:
    common_name: str
    organizations: tuple[str, ...]
    sans: list[x509.GeneralName]
    server: bool
    client: bool


def ca_hash(ca_pem: bytes) -> str:
    """SHA-256 of a certificate's DER, lower-case hex. Raises PkiError where the PEM holds no certificate."""
    try:
        der = x509.load_pem_x509_certificate(ca_pem).public_bytes(serialization.Encoding.DER)
    except ValueError as error:
        raise PkiError(f"no CA certificate: {error}") from error
    return hashlib.sha256(der).hexdigest()


def subject_of(cert_pem: bytes) -> tuple[str, tuple[str, ...]]:
    """(user, groups) of a certificate, which the caller has verified already. Raises PkiError."""
    try:
        certificate = x509.load_pem_x509_certificate(cert_pem)
    except ValueError as error:
        raise PkiError(f"no certificate: {error}") from error
    return _subject(certificate.subject)


def make_csr(common_name: str, organizations: Sequence[str] = (), sans: Sequence[str] = ()) -> tuple[bytes, bytes]:
    """(request PEM, key PEM) with a new EC P-256 key: what a joining node sends, and what it keeps. Raises PkiError."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(common_name, organizations))
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(_parse_sans(sans)), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), _key_pem(key)


def _make_ca(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    now = _now()
    name = _name("kernelet-ca", ())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    # The certificate last: a crash in between leaves a key alone, which the next start reports instead of replacing.
    write_atomic(folder / "ca.key", _key_pem(key), 0o600)
    write_atomic(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _name(common_name: str, organizations: Sequence[str]) -> x509.Name:
    try:
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in organizations]
        return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    except ValueError as error:
        raise PkiError(f"certificate subject {common_name!r} of {list(organizations)}: {error}") from error


def _subject(name: x509.Name) -> tuple[str, tuple[str, ...]]:
    users = [str(attribute.value) for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    groups = sorted(str(attribute.value) for attribute in name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME))
    return users[0] if users else "", tuple(groups)


def _parse_sans(sans: Sequence[str]) -> list[x509.GeneralName]:
    found: dict[str, x509.GeneralName] = {}
    for san in sans:
        try:
            found[san] = x509.IPAddress(ipaddress.ip_address(san))
        except ValueError:
            if not san or not san.isascii() or any(char.isspace() or char in "/:" for char in san):
                raise PkiError(f"{san!r} is neither a DNS name nor an IP address") from None
            found[san] = x509.DNSName(san)
    return list(found.values())


def _san_text(san: x509.GeneralName) -> str:
    return str(san.value)


def _san_texts(extensions: x509.Extensions) -> list[str]:
    try:
        return [_san_text(san) for san in extensions.get_extension_for_class(x509.SubjectAlternativeName).value]
    except x509.ExtensionNotFound:
        return []


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PkiError(f"{path}: {error.strerror or error}") from error


def _parse_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise PkiError(f"{path} is no PEM certificate: {error}") from error


def _parse_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError) as error:
        raise PkiError(f"{path} is no PEM private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError(f"{path} is no EC key; the cluster uses EC P-256")
    return key
