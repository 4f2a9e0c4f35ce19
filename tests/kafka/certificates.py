"""Certificates for tests, made on the spot."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files in PEM format."""

    certificate: Path
    key: Path

    def in_one_line(self) -> tuple[str, str]:
        """Return certificate and key as a file of Java's properties holds them."""
        return tuple(file.read_text().replace("\n", "\\n") for file in (self.certificate, self.key))


class Authority:
    """Signs certificates.

    Args:
        directory: Where all files go.
        name: Its own.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = directory / f"{name}.pem"
        built = self._built(self._name, self._key.public_key(), 2).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self._write(self.certificate, built)

    def sign(self, name: str, address: str = "127.0.0.1", days: int = 2, password: str = "") -> Pair:
        """Return a certificate for a name and an IP address.

        Args:
            name: Also that of the files.
            address: An IP address.
            days: How long it counts; less than 0 for one that does not any more.
            password: Of the key.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        built = self._built(subject, key.public_key(), days).add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
        )
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        self._write(pair.certificate, built)
        how = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))
        return pair

    def _built(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now + min(days - 1, -1) * day).not_valid_after(now + days * day)

    def _write(self, path: Path, builder: x509.CertificateBuilder) -> None:
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
