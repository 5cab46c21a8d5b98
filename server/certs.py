"""A certificate authority for development, and certificates of it.

What comes out of here is for trying things out and for closed networks: the authority's key lies beside the rest.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY = "ca"
SERVER = "server"
CLOCK_SLACK = dt.timedelta(hours=1)
"""Boards without a battery wake up in the past: certificates are valid from a little earlier."""


@dataclass(frozen=True, slots=True)
class CertOptions:
    """Which certificates to make."""

    folder: Path
    """Where the PEM files go: NAME.pem and NAME-key.pem. An authority that is there already is used again."""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    """Names and addresses under which devices reach the server."""
    clients: tuple[str, ...] = ()
    """Names of devices that get a certificate of their own, for mutual TLS."""
    days: int = 365

    def __post_init__(self) -> None:
        if not self.hosts:
            raise UsageError("a server's certificate needs a name or an address that devices reach it under")
        if self.days < 1:
            raise UsageError(f"certificates are valid for a day or more, not for {self.days}")
        for name in self.clients:
            if Path(name).name != name or name in (AUTHORITY, SERVER, ".", ".."):
                raise UsageError(f"{name!r} cannot be the name of a device's certificate")


def make_certificates(options: CertOptions) -> Sequence[Path]:
    """Make an authority, a server's certificate and one for each client.

    Returns:
        The files that were written.

    Raises:
        MissingDependencyError: the `cryptography` library is not there.
        UsageError: the folder holds an authority that cannot be read.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise MissingDependencyError("making certificates needs: pip install 'narrows[server]'") from None
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if (folder / f"{AUTHORITY}-key.pem").exists():
        authority = _read(folder)
    else:
        authority = _authority(options.days)
        written += _write(folder, AUTHORITY, *authority)
    written += _write(folder, SERVER, *_issue(authority, "narrows server", options.hosts, options.days))
    for name in options.clients:
        written += _write(folder, name, *_issue(authority, name, (), options.days))
    return written


def _authority(days: int) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    key = _new_key()
    name = _name("narrows development authority")
    builder = _builder(name, name, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.sign(key, hashes.SHA256()), key


def _issue(
    authority: tuple[x509.Certificate, EllipticCurvePrivateKey], name: str, hosts: Sequence[str], days: int
) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    """A server's certificate where there are hosts, a client's where there are none."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer, issuer_key = authority
    key = _new_key()
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = _builder(_name(name), issuer.subject, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256()), key


def _builder(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    from cryptography import x509

    now = dt.datetime.now(dt.UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - CLOCK_SLACK,
        not_valid_after=now + dt.timedelta(days=days),
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _name(common_name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(folder: Path, name: str, certificate: x509.Certificate, key: EllipticCurvePrivateKey) -> list[Path]:
    from cryptography.hazmat.primitives import serialization as form

    cert_path, key_path = folder / f"{name}.pem", folder / f"{name}-key.pem"
    pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    # The key first, and whole: a server that watches the pair must not read half of one.
    for path, content in ((key_path, pem), (cert_path, certificate.public_bytes(form.Encoding.PEM))):
        temporary = path.with_suffix(".new")
        temporary.touch(mode=0o600)
        temporary.write_bytes(content)
        temporary.replace(path)
    return [cert_path, key_path]


def _read(folder: Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        certificate = x509.load_pem_x509_certificate((folder / f"{AUTHORITY}.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / f"{AUTHORITY}-key.pem").read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"the authority in {folder} cannot be read ({error}); remove it, or choose a folder") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"the authority in {folder} is none that narrows made; choose another folder")
    return certificate, key
