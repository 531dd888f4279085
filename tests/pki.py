"""Certificates and hashes for tests, made anew in each run."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import bcrypt
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

#: What every client and server of the tests is called.
HOST = "127.0.0.1"


def hashed(password: str) -> str:
    """Return a hash that costs as little as it may."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


class Pki:
    """An authority, and the files that a server needs of it."""

    def __init__(self, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> None:
        self.ca = trustme.CA()
        self._key_type = key_type

    def write(self, folder: Path) -> None:
        """Write `ca.pem`, `server.pem` and `server.key`, and three that are wrong."""
        cert = self.ca.issue_cert(HOST, key_type=self._key_type)
        chain = cert.cert_chain_pems[0].bytes()
        (folder / "ca.pem").write_bytes(self.ca.cert_pem.bytes())
        (folder / "server.pem").write_bytes(chain)
        (folder / "server.key").write_bytes(cert.private_key_pem.bytes())
        (folder / "other.key").write_bytes(self.ca.issue_cert(HOST).private_key_pem.bytes())
        (folder / "damaged.pem").write_bytes(chain[:200] + chain[300:])
        key = serialization.load_pem_private_key(cert.private_key_pem.bytes(), None)
        (folder / "encrypted.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )

    def trust(self) -> ssl.SSLContext:
        """Return what a client needs to trust the server."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context

    def client(self, *names: str) -> ssl.SSLContext:
        """Return what a client needs who is called `names`: hosts, addresses, e-mail."""
        context = self.trust()
        self.ca.issue_cert(*names).configure_cert(context)
        return context

    def client_of_uri(self, uri: str, folder: Path) -> ssl.SSLContext:
        """Return what a client needs who is called by a URI, as SPIFFE does it."""
        authority = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        signer = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        key = ec.generate_private_key(ec.SECP256R1())
        day = dt.timedelta(days=1)
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True
            )
            .sign(signer, hashes.SHA256())  # type: ignore[arg-type]
        )
        path = folder / "client-of-uri.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = self.trust()
        context.load_cert_chain(path)
        return context
