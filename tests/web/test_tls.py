"""TLS, over real connections: what is spoken, who is let in, and what a change of a file does."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from exporter.cli.entry import main
from exporter.errors import ConfigError
from exporter.web import tls, watched_config
from exporter.web.config import Tls
from exporter.web.tls import CIPHERS, CIPHERS_13, sans
from exporter.web.watched_config import WatchedWebConfig
from tests.pki import HOST, Pki

CERT = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"
CLIENTS = CERT + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"
REFUSED = (ssl.SSLError, aiohttp.ClientError, OSError)


class Site:
    """A page behind TLS."""

    def __init__(self, folder: Path, pki: Pki) -> None:
        self.folder = folder
        self.pki = pki
        self.live: WatchedWebConfig
        self.port = 0
        self._runner: web.AppRunner

    async def serve(self, text: str) -> None:
        """Serve what a web config file says."""
        self.write(text)
        self.live = WatchedWebConfig(str(self.folder / "web.yml"))

        async def page(request: web.Request) -> web.Response:
            return web.Response(text="page")

        app = web.Application()
        app.router.add_get("/", page)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, 0, ssl_context=self.live.context)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def write(self, text: str) -> None:
        """Write the web config file."""
        (self.folder / "web.yml").write_text(text)

    async def handshake(self, context: ssl.SSLContext | None = None) -> ssl.SSLObject:
        """Connect, ask for the page, and return what the connection was.

        The client only knows that it was let in once there is an answer: TLS 1.3 has it so.
        """
        reader, writer = await asyncio.open_connection(
            HOST, self.port, ssl=context or self.pki.trust()
        )
        try:
            connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 60)
            if not answer.endswith(b"page"):
                raise ConnectionResetError
            return connection
        finally:
            writer.close()

    async def certificate(self) -> bytes:
        """Return the certificate of the server as a new connection gets it."""
        sent = (await self.handshake()).getpeercert(binary_form=True)
        assert sent is not None
        return sent

    async def refuses(self, context: ssl.SSLContext | None = None) -> bool:
        """Whether a client gets no answer."""
        try:
            await self.handshake(context)
        except REFUSED:
            return True
        return False

    async def close(self) -> None:
        """Stop serving."""
        await self._runner.cleanup()


Serve = Callable[..., Awaitable[Site]]


@pytest.fixture(scope="module")
def pki() -> Pki:
    """The authority of most tests."""
    return Pki()


@pytest.fixture
async def serve(tmp_path: Path, pki: Pki) -> AsyncIterator[Serve]:
    """Serves a web config file."""
    served = []

    async def start(text: str = CERT, of: Pki = pki) -> Site:
        of.write(tmp_path)
        site = Site(tmp_path, of)
        await site.serve(text)
        served.append(site)
        return site

    yield start
    for site in served:
        await site.close()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Returns what was logged, with the error."""

    def lines() -> list[str]:
        return [
            f"{record.message}: {record.err}" if hasattr(record, "err") else record.message
            for record in caplog.records
            if record.name.startswith("exporter")
        ]

    with caplog.at_level(logging.INFO):
        yield lines


def indented(path: Path) -> str:
    """Return a file as a block of YAML."""
    return "|\n" + "".join(f"    {line}\n" for line in path.read_text().splitlines())


# What is spoken.


async def test_the_newest_version_is_spoken_and_http_1_1(serve: Serve) -> None:
    """Prometheus offers HTTP/2 first; http2 says that it may be spoken, not that it must."""
    site = await serve(CERT + "http_server_config: {http2: true}\n")
    context = site.pki.trust()
    context.set_alpn_protocols(["h2", "http/1.1"])
    connection = await site.handshake(context)

    assert connection.version() == "TLSv1.3"
    assert connection.selected_alpn_protocol() == "http/1.1"


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Have a client speak one version."""
    context.minimum_version = context.maximum_version = version
    return context


async def test_tls_1_2_is_spoken_unless_the_file_says_otherwise(serve: Serve) -> None:
    """As in Go."""
    site = await serve()
    old = only(site.pki.trust(), ssl.TLSVersion.TLSv1_2)

    assert (await site.handshake(old)).version() == "TLSv1.2"
    site.write(CERT + "  min_version: TLS13\n")
    assert await site.refuses(old)
    site.write(CERT + "  max_version: TLS12\n")
    assert (await site.handshake()).version() == "TLSv1.2"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_tls_1_1_is_refused(serve: Serve) -> None:
    """Also where a client would."""
    site = await serve()
    context = only(site.pki.trust(), ssl.TLSVersion.TLSv1_1)
    context.set_ciphers("ALL:@SECLEVEL=0")

    assert await site.refuses(context)


async def test_who_speaks_no_tls_gets_no_answer(serve: Serve) -> None:
    """Nor is anything logged that a scanner could fill a disk with."""
    site = await serve()
    reader, writer = await asyncio.open_connection(HOST, site.port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")

    assert b"page" not in await asyncio.wait_for(reader.read(), 60)
    writer.close()
    assert not await site.refuses()


@pytest.mark.parametrize("key_type", [trustme.KeyType.RSA, trustme.KeyType.ECDSA])
async def test_each_suite_of_go_is_one_of_openssl(serve: Serve, key_type: trustme.KeyType) -> None:
    """It is spoken, and no other."""
    site = await serve(of=Pki(key_type))
    for name, openssl in CIPHERS.items():
        if ("_RSA_" in name) == (key_type is trustme.KeyType.RSA):
            site.write(CERT + f"  cipher_suites: [{name}]\n  max_version: TLS12\n")
            client = site.pki.trust()
            client.set_ciphers("ALL")
            suite = (await site.handshake(client)).cipher()
            assert suite is not None
            assert suite[0] == openssl
            other = site.pki.trust()
            other.set_ciphers(":".join({*CIPHERS.values()} - {openssl}))
            assert await site.refuses(other)


async def test_suites_of_tls_1_3_are_on_whatever_is_listed(serve: Serve) -> None:
    """As in Go, where they cannot be chosen either."""
    site = await serve(
        CERT
        + "  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]\n"
    )
    assert (await site.handshake()).version() == "TLSv1.3"
    site.write(CERT + f"  min_version: TLS13\n  cipher_suites: [{', '.join(CIPHERS_13)}]\n")
    assert (await site.handshake()).version() == "TLSv1.3"


@pytest.mark.parametrize(("preferred", "chosen"), [("true", "128"), ("false", "256")])
async def test_the_order_of_suites_is_the_servers_unless_the_file_says_otherwise(
    serve: Serve, preferred: str, chosen: str
) -> None:
    """With prefer_server_cipher_suites."""
    one, other = (f"TLS_ECDHE_ECDSA_WITH_AES_{n}" for n in ("128_GCM_SHA256", "256_GCM_SHA384"))
    site = await serve(
        CERT
        + f"  cipher_suites: [{one}, {other}]\n  prefer_server_cipher_suites: {preferred}\n"
        + "  max_version: TLS12\n"
    )
    client = site.pki.trust()
    client.set_ciphers(f"{CIPHERS[other]}:{CIPHERS[one]}")
    suite = (await site.handshake(client)).cipher()

    assert suite is not None
    assert chosen in suite[0]


@pytest.mark.parametrize(
    ("curve", "same", "other"),
    [
        ("CurveP256", "prime256v1", "secp384r1"),
        ("CurveP384", "secp384r1", "prime256v1"),
        ("CurveP521", "secp521r1", "prime256v1"),
    ],
)
async def test_one_curve_can_be_asked_for(serve: Serve, curve: str, same: str, other: str) -> None:
    """And no other is spoken then."""
    site = await serve(CERT + f"  curve_preferences: [{curve}]\n")
    accepted, refused = site.pki.trust(), site.pki.trust()
    accepted.set_ecdh_curve(same)
    refused.set_ecdh_curve(other)

    assert not await site.refuses(accepted)
    assert await site.refuses(refused)


async def test_x25519_is_spoken_or_refused_by_its_name(serve: Serve) -> None:
    """Not every Python that the program runs on takes it: Debian 12's does not."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ecdh_curve("X25519")
    except ssl.SSLError:
        with pytest.raises(
            ConfigError, match="curve_preferences: X25519 cannot be set in Python 3"
        ):
            await serve(CERT + "  curve_preferences: [X25519]\n")
        return
    site = await serve(CERT + "  curve_preferences: [X25519]\n")
    other = site.pki.trust()
    other.set_ecdh_curve("prime256v1")

    assert not await site.refuses()
    assert await site.refuses(other)


@pytest.mark.parametrize(
    ("method", "error", "setting"),
    [
        (
            "set_ecdh_curve",
            ssl.SSLError(1, "[EC: UNKNOWN_GROUP] unknown group"),
            "curve_preferences: CurveP384",
        ),
        (
            "set_ecdh_curve",
            ValueError("unknown elliptic curve name b'secp384r1'"),
            "curve_preferences: CurveP384",
        ),
        (
            "set_ciphers",
            ssl.SSLError("No cipher can be selected."),
            "cipher_suites: TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        ),
        ("minimum_version", ValueError("Unsupported protocol version 0x303"), "min_version: TLS12"),
        ("maximum_version", ValueError("Unsupported protocol version 0x304"), "max_version: TLS13"),
    ],
)
def test_what_this_python_does_not_take_is_refused_by_its_name(
    tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    method: str, error: Exception, setting: str,
) -> None:  # fmt: skip
    """By the check of the configuration already, and without a traceback."""

    def lacking(self: ssl.SSLContext, value: object) -> None:
        raise error

    pki.write(tmp_path)
    file = tmp_path / "web.yml"
    suites = "[TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]"
    file.write_text(CERT + f"  cipher_suites: {suites}\n  curve_preferences: [CurveP384]\n")
    lacks = property(fset=lacking) if method.endswith("version") else lacking
    monkeypatch.setattr(ssl.SSLContext, method, lacks)

    assert main([f"--web.config.file={file}", "--config.check"]) == 1
    said = capsys.readouterr().err
    assert f"{file}: tls_server_config: {setting} cannot be set in Python 3" in said
    assert "Traceback" not in said


# Certificates in the file.


async def test_certificates_may_stand_in_the_file_itself(serve: Serve, tmp_path: Path) -> None:
    """All three, in PEM; nothing of them is left on the disk or open."""
    site = await serve()
    before = sorted(os.listdir(tmp_path))
    names = {"cert": "server.pem", "key": "server.key", "client_ca": "ca.pem"}
    texts = "".join(f"  {key}: {indented(tmp_path / file)}" for key, file in names.items())
    descriptors = os.listdir("/proc/self/fd")
    told: dict[str, Any] = {key: (tmp_path / file).read_text() for key, file in names.items()}
    tls.context(Tls(**told, client_auth_type="VerifyClientCertIfGiven"))
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    site.write(f"tls_server_config:\n{texts}  client_auth_type: RequireAndVerifyClientCert\n")

    assert not await site.refuses(site.pki.client("a.example"))
    assert await site.refuses()
    assert sorted(os.listdir(tmp_path)) == before


# Clients.


async def test_clients_need_a_certificate_where_one_is_required(serve: Serve) -> None:
    """Of the authority that the file names."""
    site = await serve(CLIENTS)
    stranger = Pki().client("a.example")
    site.pki.ca.configure_trust(stranger)

    assert not await site.refuses(site.pki.client("a.example"))
    assert await site.refuses()
    assert await site.refuses(stranger)


async def test_clients_may_have_a_certificate_where_it_is_verified_if_given(serve: Serve) -> None:
    """But not of a stranger."""
    site = await serve(CLIENTS.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"))
    stranger = Pki().client("a.example")
    site.pki.ca.configure_trust(stranger)

    assert not await site.refuses(site.pki.client("a.example"))
    assert not await site.refuses()
    assert await site.refuses(stranger)


async def test_an_authority_that_is_not_self_signed_is_trusted_as_it_is_named(
    serve: Serve, tmp_path: Path
) -> None:
    """As in Go; the one above it is not."""
    root = Pki()
    below = Pki()
    below.ca = root.ca.create_child_ca()
    site = await serve(CLIENTS)
    (tmp_path / "ca.pem").write_bytes(below.ca.cert_pem.bytes())
    one, other = (each.client("a.example") for each in (below, root))
    for context in (one, other):
        site.pki.ca.configure_trust(context)

    assert not await site.refuses(one)
    assert await site.refuses(other)


@pytest.mark.parametrize(
    ("allowed", "name"),
    [
        ("prometheus.example", "prometheus.example"),
        ("team@example.org", "team@example.org"),
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8::5", "2001:db8:0:0::5"),
        ("spiffe://example.org/prometheus", "spiffe://example.org/prometheus"),
    ],
)
async def test_a_client_is_let_in_by_a_name_of_each_kind(
    serve: Serve, said: Callable[[], list[str]], allowed: str, name: str
) -> None:
    """DNS, e-mail, IPv4, IPv6 and URI: exactly the one that the file names."""
    site = await serve(CLIENTS + f"  client_allowed_sans: [never.example, '{allowed}']\n")
    uri = name.startswith("spiffe:")
    client = (
        site.pki.client_of_uri(name, site.folder) if uri else site.pki.client("x.example", name)
    )
    other = (
        site.pki.client_of_uri(name + "/x", site.folder)
        if uri
        else site.pki.client(
            "x.example", name.replace("5", "6").replace("e", "f").replace("3", "4")
        )
    )

    assert not await site.refuses(client)
    assert not said()
    assert await site.refuses(other)
    assert said() == ["client certificate refused"]
    assert await site.refuses()


async def test_a_name_is_let_in_as_it_stands(serve: Serve) -> None:
    """No part of it, no wildcard, and no common name."""
    site = await serve(CLIENTS + "  client_allowed_sans: [prometheus.example]\n")
    for name in ("example", "a.prometheus.example", "*.example", "prometheus.example.org"):
        assert await site.refuses(site.pki.client(name))
    context = site.pki.trust()
    site.pki.ca.issue_cert("x.example", common_name="prometheus.example").configure_cert(context)

    assert await site.refuses(context)


def test_names_of_other_kinds_are_none() -> None:
    """A directory name or a registered ID is not asked about."""
    found = {"subjectAltName": (("DirName", "x"), ("DNS", "a"), ("Registered ID", "1.2"))}

    assert sans(found) == ["a"]
    assert sans({}) == []


# What a change of a file does.


async def test_a_renewed_certificate_is_that_of_the_next_handshake(
    serve: Serve, said: Callable[[], list[str]]
) -> None:
    """Without a restart, and connections that there are stay."""
    site = await serve()
    before = await site.certificate()
    async with aiohttp.ClientSession() as session:
        url = f"https://{HOST}:{site.port}/"
        async with session.get(url, ssl=site.pki.trust()) as answer:
            assert answer.status == 200
        site.pki.write(site.folder)
        after = await site.certificate()
        async with session.get(url, ssl=site.pki.trust()) as answer:
            assert answer.status == 200

    assert after != before
    assert await site.certificate() == after
    assert said() == ["web configuration reloaded"]


async def test_a_renewed_certificate_is_seen_through_links(serve: Serve, tmp_path: Path) -> None:
    """Kubernetes swaps a link to a folder."""
    site = await serve()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        site.pki.write(tmp_path / name)
    (tmp_path / "now").symlink_to("one")
    linked = CERT.replace("server.", "now/server.")
    site.write(linked)
    before = await site.certificate()
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "now")

    assert await site.certificate() != before


async def test_a_certificate_before_its_key_changes_nothing_until_the_key_comes(
    serve: Serve, said: Callable[[], list[str]], tmp_path: Path
) -> None:
    """It is written in two steps; between them the last good pair is served."""
    site = await serve()
    before = await site.certificate()
    (tmp_path / "next").mkdir()
    site.pki.write(tmp_path / "next")
    shutil.copy(tmp_path / "next/server.pem", tmp_path / "server.pem")
    for _ in range(3):
        assert await site.certificate() == before
    assert len(said()) == 1
    assert said()[0].endswith("are not a certificate and its key: key values mismatch")
    shutil.copy(tmp_path / "next/server.key", tmp_path / "server.key")

    assert await site.certificate() != before
    assert said()[1:] == ["web configuration reloaded"]


async def test_another_authority_counts_from_the_next_handshake_on(serve: Serve) -> None:
    """Clients of the old one are out."""
    site = await serve(CLIENTS)
    other = Pki()
    old, new = site.pki.client("a.example"), other.client("a.example")
    site.pki.ca.configure_trust(new)
    assert (await site.refuses(old), await site.refuses(new)) == (False, True)
    (site.folder / "ca.pem").write_bytes(other.ca.cert_pem.bytes())

    assert (await site.refuses(old), await site.refuses(new)) == (True, False)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_ends_with_the_authority_that_vouched_for_it(
    serve: Serve, version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves a client the certificate, and so must not outlive a change of who is trusted."""
    site = await serve(CLIENTS)
    client = only(site.pki.client("a.example"), version)

    def ask(session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
        with (
            socket.create_connection((HOST, site.port), timeout=60) as plain,
            client.wrap_socket(plain, server_hostname=HOST, session=session) as secure,
        ):
            secure.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: secure.recv(1000), b""))
            if not answer.endswith(b"page"):
                raise ConnectionResetError
            return bool(secure.session_reused), secure.session

    # Not while the file is so young that it is read for each handshake.
    monkeypatch.setattr(watched_config, "_TICK_NS", 0)
    first, session = await asyncio.to_thread(ask, None)
    again, session = await asyncio.to_thread(ask, session)
    assert (first, again) == (False, True)
    (site.folder / "ca.pem").write_bytes(Pki().ca.cert_pem.bytes())

    with pytest.raises(REFUSED):
        await asyncio.to_thread(ask, session)


async def test_a_file_that_is_put_right_elsewhere_is_read_again(
    serve: Serve, said: Callable[[], list[str]]
) -> None:
    """A certificate that comes after the file that names it is waited for."""
    site = await serve()
    before = await site.certificate()
    site.write(CERT.replace("server.", "later."))
    assert await site.certificate() == before
    (site.folder / "next").mkdir()
    site.pki.write(site.folder / "next")
    for kind in ("pem", "key"):
        (site.folder / f"next/server.{kind}").rename(site.folder / f"later.{kind}")

    assert await site.certificate() != before
    assert [line.partition(":")[0] for line in said()] == [
        "web configuration not reloaded",
        "web configuration reloaded",
    ]


@pytest.mark.parametrize("broken", ["tls_server_config: 7\n", "{", CERT + "  min_version: TLS9\n"])
async def test_a_broken_file_keeps_what_was(
    serve: Serve, said: Callable[[], list[str]], broken: str
) -> None:
    """It is logged once, and again when it is broken in another way."""
    site = await serve(CLIENTS)
    client = site.pki.client("a.example")
    for text in (broken, "nonsense\n"):
        site.write(text)
        for _ in range(3):
            assert not await site.refuses(client)
            assert await site.refuses()

    assert len(said()) == 2
    assert all(line.startswith("web configuration not reloaded: ") for line in said())


async def test_a_file_that_is_gone_keeps_what_was(
    serve: Serve, said: Callable[[], list[str]]
) -> None:
    """Until it comes back."""
    site = await serve()
    (site.folder / "web.yml").unlink()
    assert not await site.refuses()
    assert said() == [
        f"web configuration not reloaded: {site.folder}/web.yml: No such file or directory"
    ]
    site.write(CERT)
    assert not await site.refuses()
    assert said()[1:] == ["web configuration reloaded"]
