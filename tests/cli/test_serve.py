"""The command line: each mistake is one clear line and an exit code, never a traceback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import aiohttp
import pytest

from exporter import __version__
from exporter.cli import entry, serve_flags
from tests.conftest import samples, series
from tests.disks import Disk, plug
from tests.fakeqmp import FakeQmp, until
from tests.messages import tells
from tests.pki import Pki, hashed
from tests.program import COMMAND, exporter

WRONG = Path(__file__).parent.parent / "data/config/wrong"
GOOD = Path(__file__).parent.parent / "data/config/good.yml"
BEGIN = "qemu-block-exporter: "


def run(*flags: str | bytes) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [*COMMAND, *flags], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(autouse=True)
def _logger_put_back(root_logger: logging.Logger) -> None:
    """Undo what `main` does to the log."""


@pytest.fixture
async def vm(sockets: Path) -> AsyncIterator[FakeQmp]:
    """A VM with a disk."""
    async with FakeQmp(str(sockets / "web.sock")) as server:
        plug(server, Disk())
        yield server


# What is wrong is said.


@pytest.mark.parametrize("name", ["duplicate-key", "unknown-key", "wrong-type", "tag-of-a-date"])
def test_a_wrong_file_is_one_line_and_exit_code_1(name: str) -> None:
    """For every mistake see test_config."""
    path = WRONG / f"{name}.yml"
    said = path.read_text().partition("\n")[0].removeprefix("# FILE")
    done = run(f"--config.file={path}")

    assert (done.returncode, done.stdout) == (1, "")
    assert tells(done.stderr, f"{BEGIN}{path}{said}\n")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.file=/gone.yml"], "/gone.yml: No such file or directory"),
        (["--config.file=/"], "/: Is a directory"),
        (["--web.config.file=/gone.yml"], "/gone.yml: No such file or directory"),
        (
            ["--web.config.file=/gone.yml", "demo"],
            "--web.config.file: the demo has neither TLS nor users",
        ),
        (["--qmp.sockets="], "--qmp.sockets: ... ''"),
        (["--qmp.sockets=/run/"], "--qmp.sockets: ... '/run/'"),
        (["--qmp.sockets=/[a"], "--qmp.sockets: ... '['... '/[a'"),
        (["--web.telemetry-path=m"], "--web.telemetry-path: ... /... 'm'"),
        (["--web.telemetry-path=/sd"], "--web.telemetry-path: ... page... '/sd'"),
        (["--web.telemetry-path=/api/v1/vms"], "--web.telemetry-path: ... page... '/api/v1/vms'"),
        (
            ["--web.enable-admin-api"],
            "--web.enable-admin-api: requires users in --web.config.file",
        ),
        (
            ["--web.telemetry-path=/{a"],
            "--web.telemetry-path: ... '/{a'",
        ),
        (["--web.route-prefix=a?b"], "--web.route-prefix: ... '/a?b'"),
        (["--web.max-requests=-1"], "--web.max-requests: ... -1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_one_line_and_exit_code_1(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the flag; --config.check finds it too."""
    code = entry.main([*flags, "--config.check"])
    captured = capsys.readouterr()

    assert (code, captured.out) == (1, "")
    assert tells(captured.err, f"{BEGIN}{said}\n"), captured.err


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("9709", "'9709' is not host:port"),
        ("", "'' is not host:port"),
        ("localhost:http", "'localhost:http' is not host:port"),
        ("localhost:65536", "'localhost:65536' is not host:port"),
        ("localhost:\u00b2", "'localhost:\u00b2' is not host:port"),
        ("localhost:-1", "'localhost:-1' is not host:port"),
        ("unix:/run/x:1", "'unix:/run/x:1' is not host:port"),
        ("192.0.2.1:9709", "192.0.2.1:9709: Cannot assign requested address"),
        ("a..b:9709", "a..b:9709: is not a host name"),
        ("host.invalid:9709", "host.invalid:9709: "),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_exit_code_1(
    address: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything else is done."""
    code = entry.main([f"--web.listen-address={address}"])
    captured = capsys.readouterr()

    assert code == 1
    assert captured.err.startswith(f"{BEGIN}--web.listen-address: {said}")
    assert captured.err.count("\n") == 1


def test_a_port_in_use_is_one_line_and_exit_code_1() -> None:
    """The commonest mistake of all."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run(f"--web.listen-address={address}")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{BEGIN}--web.listen-address: {address}: Address already in use\n"


def test_systemd_without_a_socket_is_exit_code_1() -> None:
    """The flag belongs into a unit."""
    done = run("--web.systemd-socket")

    assert done.returncode == 1
    assert tells(done.stderr, f"{BEGIN}--web.systemd-socket: ...\n")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--web.listen=:1"], "unrecognized arguments: --web.listen=:1"),
        (["nonsense"], "argument COMMAND: invalid choice: 'nonsense'"),
        (["--qmp.timeout"], "argument --qmp.timeout: expected one argument"),
        (["--qmp.timeout=0"], "argument --qmp.timeout: ... '0'"),
        (["--qmp.timeout=-1"], "argument --qmp.timeout: ... '-1'"),
        (["--qmp.timeout=nan"], "argument --qmp.timeout: ... 'nan'"),
        (["--qmp.timeout=5s"], "argument --qmp.timeout: ... '5s'"),
        (
            ["--collector.topology.max-age=inf"],
            "argument --collector.topology.max-age: ... 'inf'",
        ),
        (["--qmp.connection=x"], "argument --qmp.connection: invalid choice: 'x'"),
        (["--collector.topology=x"], "argument --collector.topology: invalid choice: 'x'"),
        (["--collector.smart"], "unrecognized arguments: --collector.smart"),
        (["--web.max-requests=many"], "argument --web.max-requests: invalid int value: 'many'"),
        (["--log.level=loud"], "argument --log.level: invalid choice: 'loud'"),
        (["--log.format=xml"], "argument --log.format: invalid choice: 'xml'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the flag, and where all flags are listed."""
    with pytest.raises(SystemExit) as caught:
        entry.main(flags)
    captured = capsys.readouterr()

    assert (caught.value.code, captured.out) == (2, "")
    assert tells(captured.err, f"{BEGIN}{said}...; --help lists all flags\n"), captured.err


def test_a_wrong_flag_ends_the_process_with_code_2() -> None:
    """As a process too."""
    done = run("--nonsense")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{BEGIN}unrecognized arguments: --nonsense; --help lists all flags\n"


# The admin API.


@pytest.fixture
def admin(tmp_path: Path) -> list[str]:
    """The flags of an exporter with one user, who may pause jobs."""
    (tmp_path / "web.yml").write_text(f"basic_auth_users: {{a: {hashed('secret')}}}\n")
    grant = "{users: [a], verbs: [pause], vms: ['*']}"
    (tmp_path / "config.yml").write_text(f"admin: {{grants: [{grant}]}}\n")
    return [
        "--web.enable-admin-api",
        f"--web.config.file={tmp_path / 'web.yml'}",
        f"--config.file={tmp_path / 'config.yml'}",
        f"--admin.state-directory={tmp_path / 'state'}",
    ]


def test_the_admin_api_is_refused_without_users(
    admin: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A web config file of nothing but headers has none; without the flag nobody needs any."""
    assert entry.main([*admin, "--config.check"]) == 0
    (tmp_path / "web.yml").write_text("http_server_config: {http2: true}\n")
    codes = [entry.main([*admin, "--config.check"]), entry.main(admin)]
    said = capsys.readouterr().err
    assert entry.main([*admin[1:], "--config.check"]) == 0

    assert codes == [1, 1]
    assert said == f"{BEGIN}--web.enable-admin-api: requires users in --web.config.file\n" * 2
    assert not (tmp_path / "state").exists()


def test_a_grant_for_nobody_is_refused(
    admin: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is most likely misspelt; --config.check finds it too."""
    grants = "[{users: [a], verbs: [pause], vms: ['*']}, {users: [b, a], verbs: [pause], vms: [x]}]"
    (tmp_path / "config.yml").write_text(f"admin: {{grants: {grants}}}\n")

    assert entry.main([*admin, "--config.check"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{BEGIN}admin.grants[1]: ")
    assert "'b'" in said


def test_the_state_directory_is_where_systemd_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one, if there are several; a flag beats it."""

    def chosen(*flags: str) -> str:
        return str(serve_flags.parser().parse_args(flags).admin_state_directory)

    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert chosen() == "/var/lib/qemu-block-exporter"
    monkeypatch.setenv("STATE_DIRECTORY", "")
    assert chosen() == "/var/lib/qemu-block-exporter"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    assert chosen() == "/var/lib/one"
    assert chosen("--admin.state-directory=/x:y") == "/x:y"


def test_a_state_directory_that_cannot_be_used_is_one_line_and_exit_code_1(
    admin: list[str], tmp_path: Path
) -> None:
    """It is none, or what is in it is no account: to go on without could start a job twice."""
    folder = tmp_path / "state"
    folder.touch()
    none = run(*admin)
    folder.unlink()
    folder.mkdir()
    (folder / "vm@qbe-1.json").write_text("{}")
    odd = run(*admin)
    begin = f"{BEGIN}--admin.state-directory: {folder}"

    assert (none.returncode, none.stderr) == (1, f"{begin}: File exists\n")
    assert odd.returncode == 1
    assert odd.stderr.startswith(f"{begin}/vm@qbe-1.json: Object missing required field")
    assert odd.stderr.count("\n") == 1


async def test_a_reload_takes_grants_and_refuses_those_for_nobody(
    admin: list[str], sockets: Path, tmp_path: Path
) -> None:
    """Those before stay."""
    config = tmp_path / "config.yml"
    async with exporter(*admin, f"--qmp.sockets={sockets}/*.sock") as running:
        user = {"Authorization": aiohttp.encode_basic_auth("a", "secret")}
        async with aiohttp.ClientSession(f"http://{running.address}", headers=user) as client:

            async def problem(verb: str) -> str:
                path = f"/api/v1/admin/vms/vm/block-jobs/j/{verb}"
                async with client.post(path, json={}) as answer:
                    return str((await answer.json(content_type=None))["type"]).rpartition("/")[2]

            async def reloaded(text: str, said: str) -> list[str]:
                before = len(running.log)
                config.write_text(text)
                running.process.send_signal(signal.SIGHUP)
                await until(lambda: any(said in line for line in running.log[before:]))
                return [await problem(verb) for verb in ("pause", "resume")]

            text = "admin: {grants: [{users: [USER], verbs: [resume], vms: ['*']}]}\n"
            seen = [
                [await problem(verb) for verb in ("pause", "resume")],
                await reloaded(text.replace("USER", "b"), "configuration not reloaded"),
                await reloaded(text.replace("USER", "a"), "configuration reloaded"),
            ]

    assert seen == [
        ["unknown-vm", "not-granted"],
        ["unknown-vm", "not-granted"],
        ["not-granted", "unknown-vm"],
    ]


# What is asked is told.


def test_the_version_is_told_as_prometheus_does() -> None:
    """In the first words of the first line."""
    done = run("--version")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"qemu-block-exporter, version {__version__}\n")


def test_the_help_has_every_flag_with_its_default() -> None:
    """And fits a narrow terminal."""
    done = run("--help")

    assert (done.returncode, done.stderr) == (0, "")
    for flag in ("--web.listen-address", "--qmp.sockets", "--no-collector.io", "--config.check"):
        assert flag in done.stdout
    assert "127.0.0.1:9709" in done.stdout
    assert "once" in done.stdout


def test_a_good_file_is_valid() -> None:
    """--config.check opens no socket and no port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"--web.listen-address=127.0.0.1:{taken.getsockname()[1]}"
        done = run(f"--config.file={GOOD}", "--config.check", address)

    assert (done.returncode, done.stdout, done.stderr) == (0, "configuration is valid\n", "")


def test_flags_are_settings() -> None:
    """Each flag has its place."""
    flags = serve_flags.parser().parse_args(
        [
            "--qmp.timeout=3",
            "--qmp.connection=per-scrape",
            "--no-collector.io",
            "--collector.nodes",
            "--collector.topology=always",
            "--collector.topology.max-age=7",
        ]
    )
    settings = serve_flags.settings(flags)

    assert settings.timeout_seconds == 3.0
    assert settings.connection == "per-scrape"
    assert settings.without == {"io"}
    assert settings.nodes
    assert (settings.topology, settings.topology_max_age_seconds) == ("always", 7.0)


def test_addresses_given_replace_the_default() -> None:
    """And may be several."""
    parse = serve_flags.parser().parse_args

    assert parse([]).web_listen_address == ["127.0.0.1:9709"]
    assert parse(["--web.listen-address=:1", "--web.listen-address=:2"]).web_listen_address == [
        ":1",
        ":2",
    ]
    assert parse([]).web_listen_address == ["127.0.0.1:9709"]


@pytest.mark.parametrize(
    ("flags", "prefix"),
    [
        ([], ""),
        (["--web.external-url=http://host"], ""),
        (["--web.external-url=http://host/"], ""),
        (["--web.external-url=http://host/qemu/blocks/"], "/qemu/blocks"),
        (["--web.external-url=http://host/qemu", "--web.route-prefix=/"], ""),
        (["--web.route-prefix=x"], "/x"),
    ],
)
def test_the_route_prefix_is_that_of_the_external_url(flags: list[str], prefix: str) -> None:
    """Unless it is given."""
    assert serve_flags.web(serve_flags.parser().parse_args(flags)).route_prefix == prefix


# once


async def once(*flags: str) -> tuple[int | None, str, str]:
    """Run `once` while the test's own loop serves the VM."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        "once",
        *flags,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


async def test_once_prints_one_sweep(vm: FakeQmp, sockets: Path) -> None:
    """Metrics to standard output, log lines to standard error."""
    # Always: a mount of this machine that hangs is not what this is about.
    code, out, err = await once(f"--qmp.sockets={sockets}/*.sock", "--collector.topology=always")

    assert code == 0
    assert series(out, "qemu_vm_up") == {'qemu_vm_up{vm="web"}': "1"}
    assert series(out, "qemu_block_device_inserted", device="disk0")
    assert samples(out)["qemu_exporter_targets"] == "1"
    assert all(line.startswith("time=") for line in err.splitlines())
    assert re.search(r' level=INFO source=vm.py:\d+ msg="vm is up" vm=web ', err)
    assert vm.commands.count("query-blockstats") == 1


async def test_once_prints_vms_that_are_down(sockets: Path) -> None:
    """They are no error of the program."""
    (sockets / "a.sock").touch()
    code, out, _ = await once(f"--qmp.sockets={sockets}/*.sock", "--web.disable-exporter-metrics")

    assert code == 0
    assert series(out, "qemu_vm_scrape_error", vm="a", reason="refused")
    assert "qemu_exporter" not in out


async def test_once_says_that_no_socket_was_found(sockets: Path) -> None:
    """A glob with a mistake in it must not look like a host without VMs."""
    code, _, err = await once(f"--qmp.sockets={sockets}/*.sock")

    assert code == 0
    assert re.fullmatch(
        rf'time=\S+ level=WARN source=serve.py:\d+ msg="no socket found" sockets={sockets}/\*.sock\n',
        err,
    )


def once_onto(out: IO[Any] | int) -> subprocess.CompletedProcess[str]:
    """Run `once` with another standard output."""
    return subprocess.run(
        [*COMMAND, "once"],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


def test_once_into_a_pipe_that_nobody_reads_is_exit_code_1() -> None:
    """As `once | head` leaves it."""
    reading, writing = os.pipe()
    os.close(reading)
    done = once_onto(writing)
    os.close(writing)

    assert done.returncode == 1
    assert done.stderr.endswith(f"\n{BEGIN}standard output: Broken pipe\n")


def test_once_onto_a_full_disk_is_exit_code_1() -> None:
    """A textfile that was cut off must not look like a whole one."""
    with open("/dev/full", "wb") as full:
        done = once_onto(full)

    assert done.returncode == 1
    assert done.stderr.endswith(f"\n{BEGIN}standard output: No space left on device\n")


# serve


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_ends_in_order_when_it_is_told_to(
    vm: FakeQmp, sockets: Path, number: signal.Signals
) -> None:
    """With exit code 0, and without a word of complaint."""
    async with exporter(f"--qmp.sockets={sockets}/*.sock") as running:
        status, text = await running.get("/metrics")
        running.process.send_signal(number)
        code = await asyncio.wait_for(running.process.wait(), 60)

    assert (status, code) == (200, 0)
    assert series(text, "qemu_vm_up") == {'qemu_vm_up{vm="web"}': "1"}
    assert "Traceback" not in "".join(running.log)
    assert not [line for line in running.log if "level=ERROR" in line]


async def test_sighup_reads_the_file_again(sockets: Path, tmp_path: Path) -> None:
    """A wrong one changes nothing, and is told by a metric."""
    config = tmp_path / "config.yml"
    config.write_text(f"groups: [{{name: one, sockets: ['{sockets}/*.sock']}}]\n")
    async with exporter(f"--config.file={config}") as running:

        async def reloaded(said: str) -> str:
            before = len(running.log)
            running.process.send_signal(signal.SIGHUP)
            await until(lambda: any(said in line for line in running.log[before:]))
            return (await running.get("/config"))[1]

        assert "name: one" in await reloaded("configuration reloaded")
        config.write_text("groups: 7\n")
        assert "name: one" in await reloaded("configuration not reloaded")
        text = (await running.get("/metrics"))[1]
        assert samples(text)["qemu_exporter_config_last_reload_successful"] == "0"
        config.write_text(f"groups: [{{name: two, sockets: ['{sockets}/*.sock']}}]\n")
        assert "name: two" in await reloaded("configuration reloaded")
        text = (await running.get("/metrics"))[1]
        assert samples(text)["qemu_exporter_config_last_reload_successful"] == "1"


async def test_the_web_config_file_is_read_before_anything_is_listened_on(
    sockets: Path, tmp_path: Path
) -> None:
    """A wrong one is one line, and no port was open without users."""
    web = tmp_path / "web.yml"
    web.write_text("basic_auth_users: {a: secret}\n")
    done = run(f"--web.config.file={web}", "--web.listen-address=127.0.0.1:0")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{BEGIN}{web}: basic_auth_users: password of 'a' is not a bcrypt hash\n"


async def test_users_of_the_web_config_file_are_asked_for(sockets: Path, tmp_path: Path) -> None:
    """A file that breaks keeps them, and the metric of the last reload tells."""
    web = tmp_path / "web.yml"
    good = f"basic_auth_users: {{a: {hashed('secret')}}}\n"
    web.write_text(good)
    flags = (
        f"--qmp.sockets={sockets}/*.sock",
        f"--web.config.file={web}",
        "--web.enable-lifecycle",
    )
    user = {"Authorization": aiohttp.encode_basic_auth("a", "secret")}
    async with (
        exporter(*flags) as running,
        aiohttp.ClientSession(f"http://{running.address}", headers=user) as client,
    ):

        async def successful() -> str:
            async with client.get("/metrics") as answer:
                text = await answer.text()
            return samples(text)["qemu_exporter_config_last_reload_successful"]

        assert (await running.get("/metrics"))[0] == 401
        assert await successful() == "1"
        web.write_text("nonsense\n")
        assert await successful() == "0"
        assert (await running.get("/metrics"))[0] == 401
        async with client.post("/-/reload") as answer:
            assert answer.status == 500
            assert await answer.text() == (
                f"failed to reload config: {web}: Expected `object`, got `str`\n"
            )
        running.process.send_signal(signal.SIGHUP)
        await until(
            lambda: sum('msg="configuration not reloaded"' in line for line in running.log) == 2
        )
        web.write_text(good.replace("a:", "b:"))
        running.process.send_signal(signal.SIGHUP)
        await until(lambda: any('msg="configuration reloaded"' in line for line in running.log))
        async with client.get("/metrics") as answer:
            assert answer.status == 401
        web.write_text(good)
        assert await successful() == "1"


async def test_tls_of_the_web_config_file_is_spoken(sockets: Path, tmp_path: Path) -> None:
    """On the port that would have no TLS without it."""
    pki = Pki()
    pki.write(tmp_path)
    web = tmp_path / "web.yml"
    web.write_text("tls_server_config: {cert_file: server.pem, key_file: server.key}\n")
    async with (
        exporter(f"--qmp.sockets={sockets}/*.sock", f"--web.config.file={web}") as running,
        aiohttp.ClientSession(f"https://{running.address}") as client,
        client.get("/-/healthy", ssl=pki.trust()) as answer,
    ):
        assert answer.status == 200
    assert any(" tls=on" in line for line in running.log)


async def test_systemd_is_told_and_hands_its_socket_over(sockets: Path) -> None:
    """Readiness, a reload, and the end; requests come in by its socket."""
    script = (
        "import os, sys\n"
        "os.dup2(int(sys.argv[1]), 3)\n"
        "os.environ |= {'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())}\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'exporter', *sys.argv[2:]])\n"
    )
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.create_server(("127.0.0.1", 0)) as listening,
    ):
        manager.bind(str(sockets / "notify"))
        manager.setblocking(False)
        told: list[str] = []

        def hear(word: str) -> bool:
            with contextlib.suppress(BlockingIOError):
                told.extend(manager.recv(1000).decode().splitlines())
            return word in told

        os.set_inheritable(listening.fileno(), True)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            str(listening.fileno()),
            "--web.systemd-socket",
            f"--qmp.sockets={sockets}/*.sock",
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[listening.fileno()],
            env={**os.environ, "NOTIFY_SOCKET": str(sockets / "notify")},
        )
        await until(lambda: hear("READY=1"))
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(b"GET /-/healthy HTTP/1.0\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        told.clear()
        process.send_signal(signal.SIGHUP)
        await until(lambda: hear("RELOADING=1"))
        await until(lambda: hear("READY=1"))
        process.terminate()
        await until(lambda: hear("STOPPING=1"))
        await asyncio.wait_for(process.communicate(), 60)

    assert answer.startswith(b"HTTP/1.0 200 OK")
    assert answer.endswith(b"QEMU Block Exporter is Healthy.\n")
    assert process.returncode == 0


async def test_the_watchdog_is_fed(sockets: Path) -> None:
    """While the loop goes round."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(sockets / "notify"))
        manager.setblocking(False)
        env = {"NOTIFY_SOCKET": str(sockets / "notify"), "WATCHDOG_USEC": "100000"}
        heard: list[bytes] = []

        def fed() -> bool:
            with contextlib.suppress(BlockingIOError):
                heard.append(manager.recv(1000))
            return heard.count(b"WATCHDOG=1") >= 2

        async with exporter(f"--qmp.sockets={sockets}/*", env=env):
            await until(fed)


async def test_log_lines_can_be_json(sockets: Path) -> None:
    """From the first on."""
    async with exporter("--log.format=json", f"--qmp.sockets={sockets}/*") as running:
        pass

    assert running.log
    assert all(line.startswith('{"time": "') for line in running.log)
