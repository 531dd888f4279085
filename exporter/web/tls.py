"""TLS as the web config file has it: Go's names, OpenSSL's settings."""

from __future__ import annotations

import logging
import os
import platform
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, Self

from msgspec import UNSET

from exporter.errors import ConfigError
from exporter.web.config import Tls

log = logging.getLogger(__name__)

#: Suites of TLS 1.2 as Go and as OpenSSL name them: those that Go calls secure.
CIPHERS: Mapping[str, str] = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
#: Those of TLS 1.3 may be listed, and are all on either way, as in Go.
CIPHERS_13 = frozenset(
    {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
)
_CURVES = {
    "CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519",
}  # fmt: skip
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")
_SAN_KINDS = ("DNS", "email", "IP Address", "URI")


class Newest(ssl.SSLContext):
    """A context that hands every connection to the newest one.

    A listening socket has one context for its life, and asyncio asks it once a connection: so each
    handshake has the certificate, the authorities and the versions of now.
    """

    _newest: Callable[[], ssl.SSLContext]

    def __new__(cls, newest: Callable[[], ssl.SSLContext]) -> Self:
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        self._newest = newest
        return self

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Begin a connection."""
        return self._newest().wrap_bio(*args, **kwargs)


def context(tls: Tls) -> ssl.SSLContext:
    """Return a context for the section `tls_server_config`.

    Raises:
        ConfigError: names the key, and says what is wrong or why it cannot be done.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Prometheus offers HTTP/2 first.
    made.set_alpn_protocols(["http/1.1"])
    try:
        _set_versions(made, tls)
        _set_ciphers(made, tls)
        _set_curve(made, tls)
        _set_certificate(made, tls)
        _set_clients(made, tls)
    except ConfigError as error:
        raise ConfigError(f"tls_server_config: {error}") from error
    return made


def _set_versions(made: ssl.SSLContext, tls: Tls) -> None:
    for name in ("min_version", "max_version"):
        if (value := getattr(tls, name)) not in _VERSIONS:
            raise ConfigError(f"{name}: {value} is no longer supported (RFC 8996)")
    if tls.min_version > tls.max_version:
        raise ConfigError(f"min_version {tls.min_version} is above max_version {tls.max_version}")
    with _refused_by_name(f"min_version: {tls.min_version}"):
        made.minimum_version = _VERSIONS[tls.min_version]
    with _refused_by_name(f"max_version: {tls.max_version}"):
        made.maximum_version = _VERSIONS[tls.max_version]


def _set_ciphers(made: ssl.SSLContext, tls: Tls) -> None:
    if not tls.prefer_server_cipher_suites:
        made.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    for name in tls.cipher_suites:
        if name not in CIPHERS and name not in CIPHERS_13:
            raise ConfigError(f"cipher_suites: {name!r} is unknown, or not secure")
    if not tls.cipher_suites or tls.min_version == "TLS13":
        return
    wanted = [CIPHERS[name] for name in tls.cipher_suites if name in CIPHERS]
    if not wanted:
        raise ConfigError("cipher_suites: none is of TLS 1.2; say min_version: TLS13 instead")
    with _refused_by_name(f"cipher_suites: {', '.join(tls.cipher_suites)}"):
        made.set_ciphers(":".join(wanted))


def _set_curve(made: ssl.SSLContext, tls: Tls) -> None:
    if len(tls.curve_preferences) > 1:
        raise ConfigError("curve_preferences: Python's ssl takes one curve, not a list of them")
    for name in tls.curve_preferences:
        # Debian 12's Python 3.11.2 with OpenSSL 3.0 does not take X25519.
        with _refused_by_name(f"curve_preferences: {name}"):
            made.set_ecdh_curve(_CURVES[name])


@contextmanager
def _refused_by_name(setting: str) -> Iterator[None]:
    """Refuse a setting that this Python or its OpenSSL does not take.

    Raises:
        ConfigError: names the setting, and the versions that do not take it.
    """
    try:
        yield
    except (ssl.SSLError, ValueError) as error:
        openssl = " ".join(ssl.OPENSSL_VERSION.split()[:2])
        raise ConfigError(
            f"{setting} cannot be set in Python {platform.python_version()} with {openssl}: "
            f"{getattr(error, 'reason', '') or error}"
        ) from error


def _set_certificate(made: ssl.SSLContext, tls: Tls) -> None:
    cert = _pem(tls, "cert", b"CERTIFICATE-----")
    key = _pem(tls, "key", b"PRIVATE KEY-----")

    def refuse() -> str:
        # Without this, OpenSSL asks the terminal.
        raise ConfigError(f"{_named(tls, 'key')} is encrypted")

    try:
        with _as_file(cert) as cert_path, _as_file(key) as key_path:
            made.load_cert_chain(cert_path, key_path, refuse)
    except ssl.SSLError as error:
        names = f"{_named(tls, 'cert')} and {_named(tls, 'key')}"
        raise ConfigError(f"{names} are not a certificate and its key: {_reason(error)}") from error


def _set_clients(made: ssl.SSLContext, tls: Tls) -> None:
    kind = tls.client_auth_type
    if kind in _UNVERIFIED:
        raise ConfigError(
            f"client_auth_type: {kind} takes certificates that nobody vouches for, which "
            "Python's ssl cannot; say RequireAndVerifyClientCert"
        )
    given = tls.client_ca or tls.client_ca_file
    if kind == "NoClientCert" and given:
        raise ConfigError("client_ca is given, and client_auth_type asks for no certificates")
    if kind != "NoClientCert" and not given:
        raise ConfigError(f"client_auth_type: {kind} needs client_ca or client_ca_file")
    if tls.client_allowed_sans is not UNSET:
        if kind != "RequireAndVerifyClientCert":
            raise ConfigError(
                "client_allowed_sans needs client_auth_type: RequireAndVerifyClientCert"
            )
        if not tls.client_allowed_sans:
            raise ConfigError("client_allowed_sans is empty: no client would be let in")
        made.sslobject_class = _matching(frozenset(tls.client_allowed_sans))
    if kind == "NoClientCert":
        return
    try:
        made.load_verify_locations(cadata=_pem(tls, "client_ca", b"CERTIFICATE-----").decode())
    except (ssl.SSLError, UnicodeError) as error:
        raise ConfigError(f"{_named(tls, 'client_ca')} is not a certificate in PEM") from error
    # Go trusts what is named, self-signed or not.
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    required = kind == "RequireAndVerifyClientCert"
    made.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL


def _matching(allowed: frozenset[str]) -> type[ssl.SSLObject]:
    """Return a connection that ends where none of the client's names is allowed.

    It ends before a request is read, as in Go: there is nobody to send a 403 to.
    """

    class Matching(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            names = sans(self.getpeercert() or {})
            if allowed.isdisjoint(names):
                log.warning("client certificate refused", extra={"sans": " ".join(names)})
                raise ssl.SSLCertVerificationError(1, "no name of the client is allowed")

    return Matching


def sans(certificate: Mapping[str, Any]) -> list[str]:
    """Return the names of a certificate of `getpeercert`: DNS, e-mail, IP and URI."""
    return [
        str(ip_address(value.strip())) if kind == "IP Address" else value
        for kind, value in certificate.get("subjectAltName", ())
        if kind in _SAN_KINDS
    ]


def _named(tls: Tls, name: str) -> str:
    """Return what the file calls a certificate or key: its key, and the path if it is one."""
    path: str = getattr(tls, f"{name}_file")
    return f"{name}_file {path}" if path else name


def _pem(tls: Tls, name: str, mark: bytes) -> bytes:
    path: str = getattr(tls, f"{name}_file")
    try:
        if path:
            with open(path, "rb") as file:
                text = file.read()
        else:
            text = getattr(tls, name).encode("ascii", "replace")
    except OSError as error:
        raise ConfigError(f"{name}_file {path}: {error.strerror}") from error
    if mark not in text:
        kind = mark.decode().removesuffix("-----").lower()
        raise ConfigError(f"{_named(tls, name)} holds no {kind} in PEM")
    return text


@contextmanager
def _as_file(text: bytes) -> Iterator[str]:
    """Lend a path to `text`, which OpenSSL wants; it lies in memory and is nobody else's."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "no PEM").replace("_", " ").lower()
