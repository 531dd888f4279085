"""What of a file name may leave the process: the image, and never a credential."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.redact import (
    data_file,
    is_on_device,
    local_path,
    redact_filename,
    redact_text,
    throttle_group,
)
from tests.conftest import series
from tests.disks import block_job
from tests.fakeqmp import Answer, FakeQmp
from tests.program import exporter

RECORDINGS = Path(__file__).parent / "recordings"
#: What the recorded VMs had in the names of their images.
RECORDED_SECRETS = ("SECRETPW", "SECRETCOOKIE", "SECRETKEY")


@pytest.mark.parametrize(
    ("filename", "shown"),
    [
        # Paths are what they are, colons and all.
        ("", ""),
        ("/images/a.qcow2", "/images/a.qcow2"),
        ("//images/a.qcow2", "//images/a.qcow2"),
        ("/images/x:y@z?a=b.img", "/images/x:y@z?a=b.img"),
        ("./a:b.img", "./a:b.img"),
        ("../a:b.img", "../a:b.img"),
        ("relative.img", "relative.img"),
        ('w\ufffd\u0001"\\\n\t.img', 'w\ufffd\u0001"\\\n\t.img'),
        ("file:a.img", "a.img"),
        ("file:/images/a.img", "/images/a.img"),
        # URLs lose their user and their query.
        ("http://host/a.img", "http://host/a.img"),
        ("http://user:PW@host/a.img", "http://host/a.img"),
        ("HTTP://user:PW@host/a.img", "HTTP://host/a.img"),
        ("http://PW@host/a.img", "http://host/a.img"),
        ("http://user:P@W@host/a.img", "http://host/a.img"),
        ("http://user:P\nW@host/a.img", "http://host/a.img"),
        ("http://host/a.img?token=PW", "http://host/a.img"),
        ("http://host/a.img#PW", "http://host/a.img"),
        # Is it a password with a slash, or a path with an "@"?
        ("http://user:P/W@host/a.img", "http:"),
        ("http://user:P?W@host/a.img", "http:"),
        ("http://user:P#W@host/a.img", "http:"),
        ("http://host/a@b.img", "http:"),
        ("http://host/a.img?user=bob@example.org&token=PW", "http:"),
        ("iscsi://user%PW@10.0.0.1/iqn.2001:x/0", "iscsi://10.0.0.1/iqn.2001:x/0"),
        ("ssh://user@host/a.img", "ssh://host/a.img"),
        ("gluster+tcp://host:24007/volume/a.img", "gluster+tcp://host:24007/volume/a.img"),
        ("nbd://host:10809/export", "nbd://host:10809/export"),
        ("nbd+unix:///exp?socket=/run/nbd.sock", "nbd+unix:///exp?socket=/run/nbd.sock"),
        ("nbd+unix:///exp?socket=/run/nbd.sock&x=PW", "nbd+unix:///exp?socket=/run/nbd.sock"),
        # Names of the old style.
        ("rbd:pool/image:id=admin:key=PW==:mon_host=h", "rbd:pool/image"),
        ("rbd:pool/image@snapshot:key=PW", "rbd:pool/image"),
        ("rbd:pool/image", "rbd:pool/image"),
        ("rbd:key=PW", "rbd:key"),
        ("nbd:unix:/run/nbd.sock", "nbd:unix:/run/nbd.sock"),
        ("nbd:unix:/run/nbd.sock:exportname=a", "nbd:unix:/run/nbd.sock:exportname=a"),
        ("nbd:localhost:10809:exportname=a", "nbd:localhost:10809:exportname=a"),
        ("nbd:[::1]:10809", "nbd:"),
        ("nbd:host:1:password=PW", "nbd:"),
        ("blkdebug:conf:rbd:pool/image:key=PW", "blkdebug:"),
        ("fat:rw:/folder", "fat:"),
        ("unheard-of:PW", "unheard-of:"),
    ],
)
def test_a_name_shows_which_image_it_is(filename: str, shown: str) -> None:
    """And nothing that opens it."""
    assert redact_filename(filename) == shown


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"driver": "file", "filename": "/a.img"}, "/a.img"),
        ({"driver": "qcow2", "file": {"driver": "file", "filename": "/a.qcow2"}}, "/a.qcow2"),
        ({"driver": "raw", "file": {"driver": "host_device", "filename": "/dev/x"}}, "/dev/x"),
        (
            {
                "driver": "raw",
                "file": {"driver": "http", "url": "http://u:PW@h/b?PW", "cookie": "PW"},
            },
            "http://h/b",
        ),
        ({"driver": "raw", "file": {"driver": "http", "url": "PW", "password": "PW"}}, "http:"),
        ({"driver": "rbd", "pool": "p", "image": "i", "key": "PW", "filename": "PW"}, "rbd:"),
        ({"driver": "iscsi", "user": "u", "password": "PW", "portal": "h"}, "iscsi:"),
        ({"driver": "null-co", "size": "1"}, "null-co:"),
        ({"driver": "quorum", "children": [{"file": {"filename": "PW"}}]}, "quorum:"),
        ({"driver": "P W"}, "json:"),
        ({"driver": 7}, "json:"),
        ({"driver": "file", "filename": 7}, "file:"),
        ({"driver": "raw", "file": "node-PW"}, "raw:"),
        ({"file.driver": "http", "file.url": "http://u:PW@h/"}, "json:"),
        ({}, "json:"),
        ([], "json:"),
        ("PW", "json:"),
    ],
)
def test_a_json_name_shows_the_file_that_it_opens_or_its_driver(
    options: object, shown: str
) -> None:
    """Its other options may hold anything."""
    assert redact_filename("json:" + json.dumps(options)) == shown
    assert redact_filename("json: " + json.dumps(options)) == shown


@pytest.mark.parametrize(
    "text", ["", "{", '{"password": "PW"', "PW", "[" * 100_000, '{"file": ' * 100_000]
)
def test_a_json_name_that_is_no_json_shows_nothing(text: str) -> None:
    """QEMU cuts names that are too long."""
    assert redact_filename("json:" + text) == "json:"


@pytest.mark.parametrize(
    ("filename", "path"),
    [
        ("/a.img", "/a.img"),
        ("a.img", "a.img"),
        ("file:/a.img", "/a.img"),
        ('json:{"driver": "file", "filename": "/a.img"}', "/a.img"),
        ("http://host/a.img", None),
        ("rbd:pool/image", None),
        ("nbd:unix:/run/nbd.sock", None),
        ('json:{"driver": "null-co"}', None),
    ],
)
def test_only_a_file_has_a_path(filename: str, path: str | None) -> None:
    """The canary looks at paths and at nothing else."""
    assert local_path(filename) == path


@pytest.mark.parametrize(
    ("options", "group"),
    [
        ({"driver": "throttle", "throttle-group": "tg0"}, "tg0"),
        ({"driver": "throttle", "throttle-group": 7}, None),
        ({"driver": "throttle"}, None),
    ],
)
def test_a_throttle_filter_names_its_group(options: object, group: str | None) -> None:
    """In its name; no query tells it."""
    assert throttle_group("json:" + json.dumps(options)) == group


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("No space left on device", "No space left on device"),
        ("Could not open '/a b.img': No such file",) * 2,
        ("Node 'disk0' is busy: block device is in use by block job: commit",) * 2,
        (
            "Could not open 'http://user:PW@host/a.img': Connection refused",
            "Could not open 'http://host/a.img': Connection refused",
        ),
        ("http://u:it's PW@host/a.img: refused", "http://host/a.img: refused"),
        ('see "http://u:say "PW"@host/a.img": refused', 'see "http://host/a.img": refused'),
        ("curl: http://host/a?token=it's PW", "curl: http://host/a"),
        ("curl: http://host/a?token=it@ PW", "curl: http:"),
        ("curl: http://u:P W?@host/a: failed", "curl: http:"),
        ("curl: http://host/a: mail root@host", "curl: http:"),
        ("mail root@host or http://host/a failed", "mail root@host or http://host/a failed"),
        ("iscsi://user%PW@10.0.0.1/iqn: login failed", "iscsi://10.0.0.1/iqn: login failed"),
        ("first http://a:PW@one/x then http://b:PW@two/y failed", "first http:"),
        ("rbd: no such image", "rbd: no such image"),
        ("cannot open rbd:pool/image:id=x:key=PW: ended", "cannot open rbd:pool/image"),
        ("cannot open rbd:pool/image:key=P W", "cannot open rbd:pool/image"),
        ('cannot open json:{"password": "PW"} \'PW\'', "cannot open json:"),
        ('cannot open json: {"password": "PW"}', "cannot open json:"),
        ("nbd+unix:///e?socket=/x' or http://h/a?PW", "nbd+unix:///e?socket=/x"),
        ("failed with password=PW and more", "failed with password=... and more"),
        ("auth_password = PW", "auth_password=..."),
        ("password=\"P W\" passwd='P W' cookie=PW;", "password=... passwd=... cookie=...;"),
        ("Password=PW,Key=PW", "Password=...,Key=..."),
    ],
)
def test_an_error_text_keeps_its_reason_and_loses_credentials(text: str, shown: str) -> None:
    """Rather too little is shown than too much."""
    assert redact_text(text) == shown


def test_a_long_error_text_is_cut() -> None:
    """At 200 characters, of the text as it is shown."""
    assert redact_text("x" * 200) == "x" * 200
    assert redact_text("x" * 201) == "x" * 197 + "..."
    assert redact_text("http://u:" + "P" * 1500 + "@host/a failed") == "http://host/a failed"


@pytest.mark.parametrize(
    "text", ["a" * 5_000_000, "a." * 2_000_000, "a://" * 1_000_000, "'" * 10**6]
)
def test_a_text_of_megabytes_takes_no_time(text: str) -> None:
    """A VM that lies must not stop the process for the others."""
    started = time.process_time()
    for _ in range(100):
        assert len(redact_text(text)) <= 200

    assert time.process_time() - started < 10


# Properties.

BEGIN, END = "SeCrEt", "tErCeS"
SECRETS = st.text(max_size=30).map(lambda text: BEGIN + text + END)
SCHEMES = st.sampled_from(["http", "https", "ftp", "iscsi", "ssh", "gluster+tcp", "X-y.z+1"])
#: What stands around a name in an error text.
AROUND = st.sampled_from(["", "'", '"', "(", "file=", "Could not open '", "x: "])


def is_hidden(text: str) -> bool:
    """Whether neither end of a secret is shown."""
    return BEGIN not in text and END not in text


@given(SCHEMES, SECRETS, AROUND)
def test_a_password_in_a_url_is_never_shown(scheme: str, secret: str, before: str) -> None:
    """Whatever characters it has."""
    for user in (f"user:{secret}", f"user%{secret}", secret, f"{secret}:x"):
        url = f"{scheme}://{user}@host/a.img"
        assert is_hidden(redact_filename(url))
        assert is_hidden(redact_filename(json_name({"driver": "http", "url": url})))
        assert is_hidden(redact_text(f"{before}{url}': failed"))


@given(SCHEMES, SECRETS, AROUND, st.sampled_from(["?", "#"]))
def test_a_token_in_a_url_is_never_shown(scheme: str, secret: str, before: str, mark: str) -> None:
    """Queries and fragments go."""
    url = f"{scheme}://host/a.img{mark}token={secret}"
    assert is_hidden(redact_filename(url))
    assert is_hidden(redact_filename(json_name({"driver": "http", "url": url})))
    assert is_hidden(redact_text(f"{before}{url}': failed"))


def json_name(options: object) -> str:
    """A json: name as QEMU writes it."""
    return "json:" + json.dumps({"driver": "raw", "file": options})


@given(
    st.sampled_from(["http", "https", "rbd", "iscsi", "ssh", "nbd", "quorum"]),
    st.sampled_from(["cookie", "password", "key", "user", "key-secret", "x", "filename", "server"]),
    SECRETS,
    AROUND,
)
def test_an_option_of_a_json_name_is_never_shown(
    driver: str, option: str, secret: str, before: str
) -> None:
    """Only a file's name is, and a URL's host and path."""
    name = json_name({"driver": driver, option: secret, "more": {"deep": [secret]}})
    assert is_hidden(redact_filename(name))
    assert is_hidden(redact_text(f"{before}{name}': failed"))


@given(
    st.sampled_from(["rbd:pool/image:id=a:", "rbd:pool/image@s:", "rbd:p/i:conf=/c:"]),
    SECRETS,
    AROUND,
)
def test_an_rbd_key_is_never_shown(name: str, secret: str, before: str) -> None:
    """In a name of the old style, as a qcow2 header may hold it."""
    assert is_hidden(redact_filename(f"{name}key={secret}"))
    assert is_hidden(redact_text(f"{before}{name}key={secret}': failed"))


@given(
    st.sampled_from(["password", "PASSWORD", "auth-password", "key", "cookie", "secret", "token"]),
    st.text(st.characters(exclude_categories=["Z", "C"], exclude_characters="'\",;"), max_size=30),
)
def test_a_credential_in_an_error_text_is_never_shown(name: str, text: str) -> None:
    """Written as an option."""
    assert is_hidden(redact_text(f"failed: {name}={BEGIN}{text}{END}, sorry"))


@given(st.text())
def test_any_name_is_shown_somehow(text: str) -> None:
    """Whatever a header holds."""
    assert isinstance(redact_filename(text), str)
    assert isinstance(redact_text(text), str)
    assert throttle_group(text) is None or text.startswith(("json:", "{"))


# The whole program.


@pytest.mark.parametrize("version", ["7.2", "10.0"])
async def test_no_recorded_secret_leaves_the_process(version: str, sockets: Path) -> None:
    """Not by a page, not by a log line at level debug, whatever a VM says and does."""
    folder = RECORDINGS / version / "f01-odd-values"
    replies = {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}
    assert all(secret in str(replies) for secret in RECORDED_SECRETS)
    said = " ".join(RECORDED_SECRETS)
    names = [info["inserted"]["file"] for info in replies["query-block"]["return"]]
    jobs = [block_job(f"job{n}", error=f"Could not open '{name}'") for n, name in enumerate(names)]
    liars: dict[str, Answer] = {
        "refuses": {"error": {"class": said, "desc": said}},
        "mistypes": {"return": said},
        "mumbles": f"{said}\r\n".encode(),
    }
    async with (
        FakeQmp(str(sockets / "odd.sock")) as odd,
        FakeQmp(str(sockets / "refuses.sock")) as refuses,
        FakeQmp(str(sockets / "mistypes.sock")) as mistypes,
        FakeQmp(str(sockets / "mumbles.sock")) as mumbles,
        exporter(
            f"--qmp.sockets={sockets}/*.sock",
            "--collector.topology=always",
            "--log.level=debug",
        ) as running,
    ):
        odd.replies |= {**replies, "query-block-jobs": {"return": jobs}}
        for liar in (refuses, mistypes, mumbles):
            liar.replies["query-block-jobs"] = liars[Path(liar.path).stem]
        pages = [
            await running.get(path)
            for path in (
                "/metrics",
                "/sd",
                "/config",
                "/",
                *(f"/probe?target={name}&debug=true" for name in ("odd", *liars)),
            )
        ]

    assert {status for status, _ in pages} == {200}
    assert series(pages[0][1], "qemu_vm_up") == {
        f'qemu_vm_up{{vm="{name}"}}': str(int(name == "odd")) for name in ("odd", *liars)
    }
    assert series(pages[0][1], "qemu_block_device_info", device="http1")
    assert len(series(pages[0][1], "qemu_block_job_info")) == len(jobs)
    assert len([line for line in running.log if "vm is down" in line]) == len(liars)
    everything = "\n".join([text for _, text in pages] + running.log)
    for secret in RECORDED_SECRETS:
        assert secret not in everything


@pytest.mark.parametrize(
    ("filename", "path"),
    [
        ("blkdebug::/images/a.qcow2", "/images/a.qcow2"),
        ("blkdebug:/etc/faults.conf:/images/a.qcow2", "/images/a.qcow2"),
        ("blkdebug::nbd://user:PW@host/x", None),
        ("blkdebug::" * 3 + "/a", None),
        ('json:{"file":{"driver":"blkdebug","image":{"driver":"file","filename":"/a"}}}', "/a"),
        ('json:{"driver":"blkverify","raw":{"driver":"file","filename":"/r"},"test":{}}', "/r"),
    ],
)
def test_the_file_below_a_debugging_filter_is_found(filename: str, path: str | None) -> None:
    """Its storage is that of the image; the label stays the filter's."""
    assert local_path(filename) == path
    assert "PW" not in redact_filename(filename)


def test_a_data_file_is_found_in_the_options_of_a_name() -> None:
    """A name of another kind says none."""
    options = '{"driver":"qcow2","data-file":{"driver":"file","filename":"/data"},"file":{}}'

    assert data_file(f"json:{options}") == "/data"
    assert data_file('json:{"driver":"qcow2","data-file":"node"}') is None
    assert data_file("/data") is None
    assert data_file("json:[1]") is None


@pytest.mark.parametrize(
    ("filename", "on_device"),
    [
        ("/dev/vg/lv", True),
        ("/dev/shm/a.raw", False),
        ("/images/a.raw", False),
        ('json:{"driver":"quorum","children":[{"file":{"driver":"host_device"}}]}', True),
        ('json:{"driver":"qcow2","file":{},"backing":{"driver":"host_device"}}', False),
        ("json:{", False),
    ],
)
def test_an_image_on_a_block_device_is_known_by_its_name(filename: str, on_device: bool) -> None:
    """Its backing files are other images."""
    assert is_on_device(filename) is on_device
