"""The man page and the completions say what the parsers do, and their programs take them."""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

import pytest

from exporter.ctl.commands import OPERATING
from tests.completions import PLACES, completions
from tests.manpage import exit_codes, manpage
from tests.parsers import OPERATORS, serving_commands, serving_parser

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
MAN = DEPLOY / "man" / "qemu-block-exporter.1"
COMMANDS = sorted({*serving_commands(), *OPERATING})


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def _compared(path: Path, text: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert path.read_text() == text


# The man page.


def test_the_man_page_is_what_the_parsers_say(request: pytest.FixtureRequest) -> None:
    """The page is generated: `pytest --update-golden` writes it anew."""
    _compared(MAN, manpage(), request)


def test_mandoc_and_man_find_nothing_in_the_man_page() -> None:
    """Neither a macro that is none nor a font that is not closed."""
    assert not _run("mandoc", "-T", "lint", "-W", "warning", str(MAN))
    assert "Speaks QMP" in _run("man", "--warnings", "-E", "UTF-8", "-l", str(MAN))


def test_a_reader_of_the_man_page_finds_every_flag_command_and_exit_code() -> None:
    """As it is shown, with hyphens that can be copied."""
    shown = re.sub(".\b", "", _run("mandoc", "-T", "ascii", "-O", "width=1000", str(MAN)))
    flags = {
        flag
        for made in [serving_parser(), *OPERATORS.values()]
        for action in made._actions
        for flag in action.option_strings
        if action.help != argparse.SUPPRESS
    }

    assert {
        flag for flag in flags if not re.search(rf"^ +([^ ]+, )?{flag}(,| |$)", shown, re.MULTILINE)
    } == set()
    assert {
        name for name in COMMANDS if not re.search(rf"^ +{name}( |$)", shown, re.MULTILINE)
    } == set()
    assert [code for code, _ in exit_codes()] == ["0", "1", "2", "3", "4", "130"]


# Completions.


@pytest.mark.parametrize("shell", PLACES)
def test_the_completions_are_what_the_parsers_say(
    shell: str, request: pytest.FixtureRequest
) -> None:
    """They are generated: `pytest --update-golden` writes them anew."""
    _compared(DEPLOY / "completions" / PLACES[shell][0], completions(shell), request)


def _bash(*words: str) -> list[str]:
    script = (
        "set -u; source $1; shift; complete -p qemu-block-exporter | grep -q -- -F; set +u;"
        'COMP_WORDS=(qemu-block-exporter "$@"); COMP_CWORD=$#; COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE};'
        "_shtab_qemu_block_exporter qemu-block-exporter; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    file = DEPLOY / "completions" / PLACES["bash"][0]
    return _run("bash", "-c", script, "bash", str(file), *words).split()


def _fish(line: str) -> list[str]:
    file = DEPLOY / "completions" / PLACES["fish"][0]
    script = f"source {file}; complete -C '{line}'"
    return [
        found.split("\t")[0] for found in _run("fish", "--no-config", "-c", script).splitlines()
    ]


def test_bash_completes_commands_flags_and_choices() -> None:
    """Of the serving commands, and of each of the operators'."""
    assert sorted(_bash("")) == COMMANDS
    assert _bash("--web.li") == ["--web.listen-address"]
    assert _bash("serve", "--web.li") == ["--web.listen-address"]
    assert _bash("commit", "--complete") == ["--complete-when-ready"]
    assert sorted(_bash("--log.format", "")) == ["json", "logfmt"]
    assert not _bash("commit", "--web.")


def test_fish_completes_commands_flags_and_choices() -> None:
    """The same."""
    assert sorted(_fish("qemu-block-exporter ")) == COMMANDS
    assert "--complete-when-ready" in _fish("qemu-block-exporter commit --comp")
    assert sorted(_fish("qemu-block-exporter --log.format ")) == ["json", "logfmt"]
    assert not [
        found for found in _fish("qemu-block-exporter commit --web.") if found.startswith("--")
    ]


def test_zsh_takes_its_completions_and_finds_them_by_the_name_of_the_program() -> None:
    """compinit reads the head of the file, and the function loads."""
    folder = DEPLOY / "completions"
    script = (
        f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -D -u;"
        "print $_comps[qemu-block-exporter]; autoload +X _qemu-block-exporter; whence -w _qemu-block-exporter"
    )

    said = _run("zsh", "-f", "-c", script).split("\n")
    assert said[:2] == ["_qemu-block-exporter", "_qemu-block-exporter: function"]
