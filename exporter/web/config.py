"""The web config file of Prometheus exporters: TLS, users, headers and a rate limit.

Its keys are those of exporter-toolkit (docs/web-configuration.md). What cannot be honoured here is
refused by its name: no key that protects is ever left out of account.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Literal

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from exporter.config import yaml_file
from exporter.errors import ConfigError

ClientAuth = Literal[
    "NoClientCert",
    "RequestClientCert",
    "RequireAnyClientCert",
    "RequireClientCert",
    "VerifyClientCertIfGiven",
    "RequireAndVerifyClientCert",
]
Version = Literal["TLS10", "TLS11", "TLS12", "TLS13"]
Curve = Literal["CurveP256", "CurveP384", "CurveP521", "X25519"]

#: Headers that may be set -> the values that they may have, if not any.
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
#: bcrypt's alphabet; the last letter of the salt has four bits to spare, which must be 0.
_HASH = re.compile(
    r"\$2[abxy]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}", re.ASCII
)
_DURATION = re.compile(r"(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+", re.ASCII)
_SECONDS = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0,
}  # fmt: skip
#: What Go's durations reach.
_LONGEST_SECONDS = 2**63 / 1e9


class Tls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section `tls_server_config`; texts are PEM, files are relative to the folder of the file."""

    cert: str = ""
    key: str = ""
    client_ca: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    client_auth_type: ClientAuth = "NoClientCert"
    client_allowed_sans: tuple[str, ...] | UnsetType = UNSET
    min_version: Version = "TLS12"
    max_version: Version = "TLS13"
    cipher_suites: tuple[str, ...] = ()
    prefer_server_cipher_suites: bool = True
    curve_preferences: tuple[Curve, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that this names."""
        return tuple(filter(None, (self.cert_file, self.key_file, self.client_ca_file)))


class RateLimit(Struct, frozen=True):
    """A token bucket for the whole server."""

    #: From one request to the next, once `burst` of them came at once.
    interval_seconds: float
    burst: int


class WebConfig(Struct, frozen=True, kw_only=True):
    """The file, checked."""

    tls: Tls | None = None
    headers: Mapping[str, str] = {}
    #: Name -> bcrypt hash.
    users: Mapping[str, str] = {}
    rate_limit: RateLimit | None = None


class _Http(Struct, frozen=True, forbid_unknown_fields=True):
    #: Allows HTTP/2, does not require it: HTTP/1.1 is what is spoken.
    http2: bool = True
    #: The value of X-XSS-Protection is a number to YAML.
    headers: dict[str, str | int] = {}


class _RateLimit(Struct, frozen=True, forbid_unknown_fields=True):
    interval: str | int
    burst: int = 0


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    tls_server_config: Tls = Tls()
    http_server_config: _Http = _Http()
    basic_auth_users: dict[str, str] = {}
    rate_limit: _RateLimit | UnsetType = UNSET


def read(path: str) -> WebConfig:
    """Return the file at `path`. Certificates are not looked at: `web.tls` does that.

    Raises:
        ConfigError: names the file, the place in it and what is wrong there.
    """
    file = yaml_file.read(path, _File)
    try:
        return WebConfig(
            tls=_tls(file.tls_server_config, os.path.dirname(path)),
            headers=dict(_headers(file.http_server_config.headers)),
            users=dict(_users(file.basic_auth_users)),
            rate_limit=_rate_limit(file.rate_limit),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _tls(tls: Tls, folder: str) -> Tls | None:
    if tls == Tls():
        return None
    for name in ("cert", "key", "client_ca"):
        text, file = getattr(tls, name), getattr(tls, f"{name}_file")
        if text and file:
            raise ConfigError(f"tls_server_config: both {name} and {name}_file are given")
        if not text and not file and name != "client_ca":
            raise ConfigError(f"tls_server_config: neither {name} nor {name}_file is given")
        if not file.isprintable():
            raise ConfigError(f"tls_server_config: {name}_file {file!r} is not a path")
    return replace(
        tls,
        cert_file=_below(folder, tls.cert_file),
        key_file=_below(folder, tls.key_file),
        client_ca_file=_below(folder, tls.client_ca_file),
    )


def _below(folder: str, path: str) -> str:
    return os.path.join(folder, path) if path else ""


def _headers(headers: Mapping[str, str | int]) -> Iterator[tuple[str, str]]:
    for name, said in headers.items():
        value = str(said)
        allowed = _HEADERS.get(name)
        if allowed is None:
            raise ConfigError(
                f"http_server_config: header {name!r} cannot be set; {', '.join(_HEADERS)} can"
            )
        if not value:
            continue
        if allowed and value not in allowed:
            raise ConfigError(
                f"http_server_config: {name} must be {' or '.join(allowed)}, not {value!r}"
            )
        if not value.isprintable():
            raise ConfigError(f"http_server_config: {name} is not a valid header: {value!r}")
        yield name, value


def _users(users: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, hashed in users.items():
        # Such a name could never be sent (RFC 7617), and "" stands for nobody.
        if not name or ":" in name or not name.isprintable():
            raise ConfigError(f"basic_auth_users: {name!r} is not a user name")
        if not _HASH.fullmatch(hashed):
            # The value may be the password itself: it is not shown.
            raise ConfigError(f"basic_auth_users: password of {name!r} is not a bcrypt hash")
        yield name, hashed


def _rate_limit(limit: _RateLimit | UnsetType) -> RateLimit | None:
    if limit is UNSET:
        return None
    seconds = _seconds(limit.interval)
    if seconds and limit.burst < 1:
        raise ConfigError("rate_limit: burst must be 1 or more, or no request would be answered")
    return RateLimit(seconds, limit.burst) if seconds else None


def _seconds(interval: str | int) -> float:
    """Return a duration, as Go writes it, in seconds. Go's bare numbers are nanoseconds: refused."""
    text = str(interval)
    if text == "0":
        return 0.0
    parts = re.findall(r"([\d.]+)(\D+)", text) if _DURATION.fullmatch(text) else ()
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not parts or seconds > _LONGEST_SECONDS:
        raise ConfigError(
            f"rate_limit: interval must be a duration such as 1s or 500ms, got {text!r}"
        )
    return seconds
