"""Flags: mistakes are told before anything is sent."""

from __future__ import annotations

import pytest

from exporter.ctl import options
from exporter.ctl.commands import OPERATING
from tests.messages import tells


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vms", "web"], "unrecognized arguments: web"),
        (["vms", "--url=localhost:9709"], "argument --url: ... 'localhost:9709'"),
        (["vms", "--url=http://"], "argument --url: ... 'http://'"),
        (["vms", "--url=http://h:x"], "argument --url: ... 'http://h:x'"),
        (["vms", "--url=http://h/?a=b"], "argument --url: ... 'http://h/?a=b'"),
        (["vms", "--url=http://me:secret@h"], "argument --url: ... user... --http.config.file"),
        (["vms", "--timeout=0"], "argument --timeout: ... '0'"),
        (["jobs", ""], "argument VM: ... empty"),
        (["jobs", "\udcff"], "argument VM: ... UTF-8... '\\udcff'"),
        (["chain"], "the following arguments are required: VM"),
        (["commit", "web"], "the following arguments are required: DEVICE"),
        (["commit", "web", "d", "--job-id=x"], "argument --job-id: ... qbe- ... 'x'"),
        (["commit", "web", "d", "--speed=-1"], "argument --speed: ... '-1'"),
        (["commit", "web", "d", "--wai"], "unrecognized arguments: --wai"),
        (["speed", "web", "j", "1M"], "argument BYTES: ... '1M'"),
        (["cancel", "web"], "the following arguments are required: JOB"),
        (["snapshot", "web", "d"], "the following arguments are required: FILE"),
        (["snapshot", "web", "d", "x.qcow2"], "argument FILE: ... 'x.qcow2'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the command; a password is never repeated."""
    with pytest.raises(SystemExit) as caught:
        options.parse(arguments[0], arguments[1:])
    captured = capsys.readouterr()

    assert (caught.value.code, captured.out) == (2, "")
    assert tells(captured.err, f"qemu-block-exporter {arguments[0]}: {said}...\n"), captured.err
    assert "secret" not in captured.err


@pytest.mark.parametrize("command", OPERATING)
def test_each_command_has_a_help_of_its_own(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its exit codes; the pace of polls is nobody's business but for --watch."""
    with pytest.raises(SystemExit) as caught:
        options.parse(command, ["--help"])
    out = capsys.readouterr().out

    assert caught.value.code == 0
    assert out.startswith(f"usage: qemu-block-exporter {command} ")
    assert OPERATING[command][1:] in " ".join(out.split())
    for flag in ("--url URL", "--http.config.file FILE", "--json", "--timeout SECONDS", "  4  "):
        assert flag in out
    assert ("--interval" in out) == (command == "jobs")
    assert ("--dry-run" in out) == (command not in {"vms", "jobs", "chain"})


def test_every_command_has_flags() -> None:
    """And every one is listed."""
    assert set(options._OWN) == set(OPERATING)


def test_the_next_command_asks_the_same_exporter() -> None:
    """By the flags that were given."""
    plain = options.prompt(options.parse("vms", []))
    other = options.prompt(options.parse("vms", ["--url=https://h/x", "--http.config.file=f"]))

    assert plain.line("vms") == "qemu-block-exporter vms"
    assert other.line("vms") == "qemu-block-exporter vms --url=https://h/x --http.config.file=f"
