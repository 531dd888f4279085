"""User, password and TLS: the HTTP client configuration file, in the format that promtool reads."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from msgspec import Struct

from exporter.config import yaml_file
from exporter.errors import ConfigError


class BasicAuth(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A user, and the password or the path of a file with it."""

    username: str
    password: str | None = None
    password_file: str | None = None


class TlsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the server is verified, and this client's certificate."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    insecure_skip_verify: bool = False


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    basic_auth: BasicAuth | None = None
    tls_config: TlsConfig = TlsConfig()


class Credentials(Struct, frozen=True, kw_only=True):
    """The credentials and TLS settings of requests."""

    tls: ssl.SSLContext
    #: The name that the server's certificate must have, if it differs from the URL's.
    server_name: str | None = None
    username: str | None = None
    password: str = ""


def load(path: str | None) -> Credentials:
    """Return the credentials from the file at `path`; paths in it are relative to its directory.

    Raises:
        ConfigError: names the file, the place in it and what is wrong there.
    """
    if path is None:
        return Credentials(tls=ssl.create_default_context())
    file = yaml_file.read(path, _File)
    folder = os.path.dirname(path)
    context = _context(file.tls_config, folder, f"{path}: tls_config")
    made = Credentials(tls=context, server_name=file.tls_config.server_name)
    if file.basic_auth is None:
        return made
    where = f"{path}: basic_auth"
    if ":" in file.basic_auth.username:
        raise ConfigError(
            f"{where}.username: must not contain a ':', got {file.basic_auth.username!r}"
        )
    password = _password(file.basic_auth, folder, where)
    return Credentials(
        tls=context,
        server_name=made.server_name,
        username=file.basic_auth.username,
        password=password,
    )


def _password(auth: BasicAuth, folder: str, where: str) -> str:
    if auth.password_file is None:
        return auth.password or ""
    if auth.password is not None:
        raise ConfigError(f"{where}: must have password or password_file, got both")
    file = os.path.join(folder, auth.password_file)
    try:
        return Path(file).read_text("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{where}.password_file: {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{where}.password_file: {file}: not UTF-8") from error


def _context(config: TlsConfig, folder: str, where: str) -> ssl.SSLContext:
    if config.key_file and not config.cert_file:
        raise ConfigError(f"{where}: key_file needs a cert_file")
    if config.cert_file and not config.key_file:
        raise ConfigError(f"{where}: cert_file needs a key_file")
    ca_file = os.path.join(folder, config.ca_file) if config.ca_file else None
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}.ca_file: {ca_file}: {_reason(error)}") from error
    if config.cert_file and config.key_file:
        cert, key = (os.path.join(folder, file) for file in (config.cert_file, config.key_file))
        try:
            # Without a password given, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(cert, key, password="")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{where}: {cert} with {key}: {_reason(error)}") from error
    if config.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "not a PEM file with certificates"
    return getattr(error, "strerror", None) or str(error)
