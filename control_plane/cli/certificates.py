"""`loraplane certs`: certificates for development: an authority of one's own, and one certificate a part.

Made with `cryptography`. The authority's private key is written beside them, so whoever reads the
directory can make more: enough to try TLS, not to run it.
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.cli.failures import reported
from control_plane.cli.output import console, print_object

PARTS = ("control-plane", "worker", "client")
VALID_DAYS = 30
CLOCK_SKEW = datetime.timedelta(minutes=5)

Signed = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def certs(
    directory: Annotated[Path, typer.Argument(help="where they are written")],
    host: Annotated[
        list[str] | None, typer.Option(help="a name or address of a machine; repeat for more")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Make an authority and certificates for control plane, worker and client, for development."""
    with reported():
        names = [*dict.fromkeys(("localhost", "127.0.0.1", "::1", *(host or ())))]
        write_certificates(directory, names)
    if as_json:
        files = sorted(str(file) for file in directory.glob("*.pem"))
        print_object({"directory": str(directory), "files": files})
        return
    console.print(
        f"wrote {directory}: set LORAPLANE_TLS_CA_FILE={directory}/ca.pem and, for each part, "
        f"LORAPLANE_TLS_CERT_FILE and LORAPLANE_TLS_KEY_FILE ({', '.join(PARTS)}); "
        "LORAPLANE_TLS_REQUIRE_CLIENT_CERT=true makes it mutual"
    )


def write_certificates(directory: Path, hosts: Sequence[str]) -> None:
    """Write `ca.pem` and, for each part, `<part>.pem` and `<part>-key.pem` (mode 600)."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = _authority()
    _write(directory, "ca", authority)
    for part in PARTS:
        _write(directory, part, _issued(part, [part, *hosts], authority))


def _authority() -> Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("loraplane development authority")
    certificate = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _issued(part: str, hosts: Sequence[str], authority: Signed) -> Signed:
    issuer, issuer_key = authority
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name(f"loraplane {part}"), issuer.subject, key)
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(directory: Path, name: str, signed: Signed) -> None:
    certificate, key = signed
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.open(directory / f"{name}-key.pem", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
