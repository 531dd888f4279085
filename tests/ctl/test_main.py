"""The operators' commands as processes: signals, terminals, pipes, and what the program loads."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from exporter.api.types import JobList
from exporter.ctl.commands import OPERATING
from exporter.ctl.main import _overheard
from tests.fakeapi import FakeApi, ended, job, problem, ready, vm
from tests.shell import FAST, Shell, Terminal, program, ran


def test_the_help_lists_all_commands() -> None:
    """Those for serving and those for operating."""
    done = subprocess.run(
        [sys.executable, "-m", "exporter", "--help"], capture_output=True, text=True, check=True
    )
    _, _, listed = done.stdout.partition("\nserving:\n")
    serving, _, operating = listed.partition("\noperating, ")

    assert [line.split()[0] for line in serving.splitlines() if line] == ["serve", "once", "demo"]
    assert [line.split()[0] for line in operating.splitlines()[1:]] == list(OPERATING)


def test_the_serving_process_loads_none_of_it() -> None:
    """A scrape pays for no table."""
    code = (
        "import sys, exporter.cli.serve; print([m for m in sys.modules if m.split('.')[0] == 'rich'"
        " or m.startswith('exporter.ctl.') and m != 'exporter.ctl.commands'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


async def test_a_command_runs_as_a_process(api: FakeApi) -> None:
    """From the first word to the exit code."""
    assert await ran("vms", "--url", api.url) == (
        0,
        (
            "VM   UP   STATUS   QEMU    MANAGER  DISKS  DEPTH  JOBS\n"
            "web  yes  running  10.0.2  -            1      2     0\n"
        ),
        "",
    )
    api.posts = [problem("device-busy", 409)]
    code, out, err = await ran("commit", "web", "disk0", "--url", api.url)
    assert (code, out) == (1, "")
    assert "\nrefused: It is device-busy: all about device-busy\n" in err


async def test_wrong_usage_is_code_2() -> None:
    """In one line."""
    code, out, err = await ran("commit", "web")

    assert (code, out) == (2, "")
    assert err == (
        "qemu-block-exporter commit: the following arguments are required: DEVICE;"
        " --help lists all flags\n"
    )


async def test_a_wrong_file_is_code_1() -> None:
    """As that of the exporter itself."""
    code, out, err = await ran("vms", "--http.config.file=/gone.yml")

    assert (code, out) == (1, "")
    assert err == "qemu-block-exporter: /gone.yml: No such file or directory\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
async def test_a_signal_while_waiting_leaves_the_job_alone(
    number: int, code: int, api: FakeApi
) -> None:
    """And says how to go on."""
    api.life = [job()]
    arguments = ("commit", "web", "disk0", "--job-id=qbe-x", "--wait", f"--url={api.url}", FAST)
    async with program(*arguments) as process:
        await api.until(lambda: api.polls() > 2)
        process.send_signal(number)
        out, err = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == code
    assert out.decode() == "accepted: commit of disk0 of web (job qbe-x)\n"
    assert err.decode().splitlines()[-1] == (
        f'the job goes on: see it with "qemu-block-exporter jobs --url={api.url} web",'
        f' complete it with "qemu-block-exporter complete --url={api.url} --when-ready web qbe-x"'
    )
    assert api.verbs() == ["block-jobs"]


async def test_a_signal_before_the_answer_says_that_nothing_is_known(api: FakeApi) -> None:
    """The request has left."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()

    asked = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, program("cancel", "web", "j", f"--url={url}") as process:
        await asked.wait()
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 130
    assert err.decode().startswith("the request may have been carried out: see ")


async def test_a_signal_between_two_tries_leaves_the_job_alone(api: FakeApi) -> None:
    """As between two polls."""
    api.lives = {"qbe-1": [ready()]}
    api.posts = [problem("storage-hangs", 503)] * 1000
    arguments = ("complete", "web", "qbe-1", "--when-ready", f"--url={api.url}", "--interval=60")
    async with program(*arguments) as process:
        assert process.stderr is not None
        while b"retrying" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 130
    assert err.startswith(b"the job goes on: ")


async def test_a_signal_ends_a_watch_without_a_word(api: FakeApi) -> None:
    """There is nothing to say."""
    api.lives = {"qbe-1": [job()]}
    async with program("jobs", "--watch", "--json", f"--url={api.url}", FAST) as process:
        await api.until(lambda: api.polls() > 2)
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 60)

    assert (process.returncode, err) == (130, b"")
    assert all(msgspec.json.decode(line, type=JobList).jobs for line in out.splitlines())


# Terminals and pipes.


async def test_a_terminal_shows_progress_in_one_line(api: FakeApi) -> None:
    """With a bar, a speed and what is left, and in colours."""
    api.life = [job(offset_bytes=n * 1024**3 // 8) for n in range(32)] + [ready()]
    terminal = Terminal()
    code = await terminal.run(
        "commit", "web", "disk0", "--complete-when-ready", f"--url={api.url}", FAST
    )

    assert code == 0
    assert "━" in terminal.text
    assert "\x1b[3" in terminal.text
    assert "iB/s" in terminal.plain
    assert "ETA 0:00" in terminal.plain
    assert terminal.plain.rstrip().endswith("is completed")
    assert "Traceback" not in terminal.plain
    # The cursor was hidden, and is back.
    assert terminal.text.count("\x1b[?25l") == terminal.text.count("\x1b[?25h") == 2


async def test_a_terminal_shows_what_fails_below_the_bar(api: FakeApi) -> None:
    """Until it works again."""
    api.life = [job(), ended("failed", error="No space left")]
    api.gets = [problem("vm-down", 503)]
    terminal = Terminal()
    code = await terminal.run("commit", "web", "disk0", "--wait", f"--url={api.url}", FAST)

    assert code == 3
    assert "retrying: It is vm-down: all about vm-down" in terminal.plain
    assert "failed: No space left" in terminal.plain


async def test_a_terminal_shows_tables_that_fit(api: FakeApi) -> None:
    """No name is cut, whatever it holds; NO_COLOR is honoured."""
    api.vms = [vm("[red]" + "w" * 100 + "\x1b[2J")]
    terminal = Terminal(columns=80, NO_COLOR="1")
    assert await terminal.run("vms", f"--url={api.url}") == 0

    assert "\x1b[2J" not in terminal.text
    assert "\x1b[3" not in terminal.text
    assert "[red]" in terminal.plain
    assert max(map(len, terminal.plain.splitlines())) <= 80
    assert terminal.plain.count("w") >= 100


@pytest.mark.parametrize("columns", [60, 200])
async def test_a_name_can_be_copied_from_a_narrow_terminal(api: FakeApi, columns: int) -> None:
    """Where a table does not fit, each value has a line of its own; what is not known has none."""
    job_id = "qbe-virtio-disk0-20261125T015011-205890"
    api.lives = {job_id: [job(job_id)], "qbe-2": [ready("qbe-2")]}
    terminal = Terminal(columns, NO_COLOR="1")
    assert await terminal.run("jobs", f"--url={api.url}") == 0
    lines = [line.split() for line in terminal.plain.splitlines()]

    if columns == 60:
        assert [line for line in lines if "JOB" in line] == [["JOB", "qbe-2"], ["JOB", job_id]]
        assert lines[0] == ["VM", "web"]
        assert ["STATUS", "running"] in lines
        assert not [line for line in lines if "ERROR" in line]
    else:
        assert lines[0][:2] == ["VM", "JOB"]
        assert [line[1] for line in lines[1:]] == ["qbe-2", job_id]


async def test_the_files_of_a_chain_can_be_copied_from_a_narrow_terminal(api: FakeApi) -> None:
    """One layer below the other."""
    terminal = Terminal(columns=50, NO_COLOR="1")
    assert await terminal.run("chain", "web", f"--url={api.url}") == 0
    lines = [line.split() for line in terminal.plain.splitlines()]

    files = [line[1] for line in lines if line[:1] == ["FILE"]]
    assert files == ["/images/0.qcow2", "/images/1.qcow2", "/images/2.qcow2"]


async def test_a_terminal_refreshes_jobs_in_place(api: FakeApi) -> None:
    """Until Ctrl-C, which the terminal turns into a signal."""
    api.lives = {
        "qbe-1": [job(offset_bytes=n * 1024**2) for n in range(100)],
        "qbe-2": [ready("qbe-2")],
    }
    terminal = Terminal()
    running = asyncio.create_task(terminal.run("jobs", "--watch", f"--url={api.url}", FAST))
    await api.until(lambda: api.polls() > 4)
    api.gets = [problem("vm-down", 503)] * 2
    await api.until(lambda: not api.gets)
    assert terminal.process is not None
    terminal.process.send_signal(signal.SIGINT)

    assert await running == 130
    assert "ready" in terminal.plain
    assert "iB/s" in terminal.plain
    assert "retrying: It is vm-down" in terminal.plain
    assert "\x1b[1A" in terminal.text


async def test_a_terminal_that_can_do_nothing_gets_lines(api: FakeApi) -> None:
    """As Emacs and serial consoles."""
    api.life = [job(), ready()]
    terminal = Terminal(TERM="dumb")
    assert await terminal.run("commit", "web", "disk0", "--wait", f"--url={api.url}", FAST) == 0

    assert "\x1b" not in terminal.text
    assert ": running 25%, ETA -" in terminal.text


async def test_a_pipe_gets_lines_where_something_changed(shell: Shell, api: FakeApi) -> None:
    """A log of a night is not a line a second."""
    api.life = [job(offset_bytes=n, length_bytes=1000) for n in range(0, 400, 10)] + [ready()]

    assert await shell("commit", "web", "disk0", "--job-id=qbe-x", "--wait", FAST) == 0
    lines = [line.partition(",")[0] for line in shell.err.splitlines()]
    assert lines == [
        "qbe-x: running 0%", "qbe-x: running 10%", "qbe-x: running 20%", "qbe-x: running 30%",
        "qbe-x: ready",
    ]  # fmt: skip


async def test_a_pipe_that_nobody_reads_is_code_1(api: FakeApi) -> None:
    """As `jobs | head` leaves it; a watch ends."""
    for arguments in (["vms"], ["jobs", "--watch", FAST]):
        reading, writing = os.pipe()
        os.close(reading)
        async with program(*arguments, f"--url={api.url}", out=writing) as process:
            os.close(writing)
            _, err = await asyncio.wait_for(process.communicate(), 60)

        assert process.returncode == 1
        assert err == b"qemu-block-exporter: standard output: Broken pipe\n"


async def test_a_job_is_seen_through_without_a_reader(api: FakeApi) -> None:
    """Whoever asked for its completion gets it."""
    full = os.open("/dev/full", os.O_WRONLY)
    arguments = ("commit", "web", "disk0", "--complete-when-ready", f"--url={api.url}", FAST)
    async with program(*arguments, out=full) as process:
        os.close(full)
        _, err = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 1
    assert api.verbs() == ["block-jobs", "complete"]
    assert err.count(b"standard output: No space left on device\n") == 1


async def test_standard_output_may_be_closed(api: FakeApi) -> None:
    """As cron jobs have it at times: the exit code is all that is told."""
    script = f"{sys.executable} -m exporter pause web j --url={api.url} >&- 2>&-"
    process = await asyncio.create_subprocess_shell(script)

    assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_a_locale_without_these_characters_is_no_error(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are shown by their numbers."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    api.vms = [vm("wäb")]
    code, out, _ = await ran("vms", f"--url={api.url}")

    assert code == 0
    assert "w\\xe4b" in out


# Passwords.


@pytest.mark.parametrize(
    ("url", "overheard"),
    [
        ("http://localhost:9709", False),
        ("http://127.0.0.2", False),
        ("http://[::1]:9709", False),
        ("https://host", False),
        ("http://host", True),
        ("http://192.0.2.1:9709", True),
        ("http://localhost.example", True),
    ],
)
def test_a_password_in_clear_is_for_this_host_only(url: str, overheard: bool) -> None:
    """Others may listen on the way."""
    assert _overheard(url) == overheard


async def test_a_password_that_others_may_hear_is_warned_of(
    shell: Shell, api: FakeApi, tmp_path: Path
) -> None:
    """Not without a password, nor on this host."""
    file = tmp_path / "http.yml"
    file.write_text("basic_auth: {username: me, password: s3cret}")

    await shell("vms", "--url=http://host.invalid", f"--http.config.file={file}")
    assert shell.err.startswith(
        "warning: the password is sent to http://host.invalid in clear text: use https\n"
    )
    await shell("vms", f"--http.config.file={file}")
    assert shell.err == ""
    assert api.headers[-1]["Authorization"].startswith("Basic ")
