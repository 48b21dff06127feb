"""Certificates of a job: an authority of its own, and one certificate for each end of a connection.

The key of the authority is derived from the job's secret, so every host of the job makes its own certificate and none
has to be sent about. A certificate proves that its holder knows the secret; it does not tell hosts apart, and need not:
all of them run the same user's programs. Ed25519 (RFC 8410) throughout.

They do not expire: they last as long as the job, and the clocks of its hosts may differ (RFC 5280, 4.1.2.5, has the
date for that).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torpor.link.secret import Secret
from torpor.named_tuple import NamedTuple

if TYPE_CHECKING:
    import ssl


class Identity(NamedTuple):
    """What one end shows and believes, as PEM."""

    authority: bytes
    certificate: bytes
    key: bytes
    name: str
    """What every certificate of the job is for, besides its host."""


def identity(secret: Secret, host: str, addresses: Sequence[str] = ()) -> Identity:
    """A new certificate for a host. addresses: names and numeric addresses by which others call it."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def called(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])

    def general(text: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ipaddress.ip_address(text))
        except ValueError:
            return x509.DNSName(text)

    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    end = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    root = Ed25519PrivateKey.from_private_bytes(secret.derive("certificates"))
    issuer = called(f"torpor job {secret.job}")
    name = f"job-{secret.job}.torpor.internal"
    authority = (
        x509.CertificateBuilder(issuer, issuer, root.public_key(), 1, begin, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(False, False, False, False, False, True, False, False, False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(root.public_key()), critical=False)
        .sign(root, None)
    )
    key = Ed25519PrivateKey.generate()
    names = [general(text) for text in dict.fromkeys((name, *addresses)) if text.isascii()]
    certificate = (
        x509.CertificateBuilder(issuer, called(host), key.public_key(), x509.random_serial_number(), begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(root, None)
    )
    return Identity(
        authority.public_bytes(Encoding.PEM),
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        name,
    )


def context(who: Identity, server: bool) -> ssl.SSLContext:
    """For one side of connections of the job: TLS 1.3 with a certificate on both sides, signed by the job's own
    authority and nobody else's. A client calls every server by `who.name`."""
    import ssl

    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=who.authority.decode())
    # The ssl module takes a key from a file only: from one that has no name.
    fd = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(fd, who.certificate + who.key)
        made.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return made
