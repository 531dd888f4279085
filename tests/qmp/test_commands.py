"""Every command that can leave this process: why it may, who may send it, and what is on the wire."""

from __future__ import annotations

import ast
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast, get_origin, get_type_hints

import msgspec
import pytest

from exporter.errors import CommandRefused
from exporter.qmp import commands, queries
from exporter.qmp.client import CommandStats
from exporter.qmp.commands import Command, DiskName, LayerName, Qemu
from exporter.qmp.queries import Query
from exporter.qmp.session import Session
from tests.fakeqmp import FakeQmp

EXPORTER = Path(__file__).parent.parent.parent / "exporter"
PATIENCE = 20.0

#: Query -> why it may leave this process. By hand: whoever adds one says here what for.
QUERIES = {
    "qmp_capabilities": "ends the negotiation, before which QEMU answers nothing",
    "query-status": "whether the VM runs; touches no file",
    "query-blockstats": "the counters of each device; touches no file",
    "query-block-jobs": "the jobs and their progress; touches no file",
    "query-jobs": "the jobs that are no block jobs, once a connection and on an unknown id",
    "query-block-exports": "what is served to others, on connecting and now and then; touches no file",
    "query-block": "images and limits; stats each image file, so the storage is asked first",
    "query-name": "the VM's name, once a connection",
    "query-uuid": "the VM's UUID, once a connection",
    "query-migrate": "whether the disks are about to be another QEMU's, before they are changed",
    "query-migrate-capabilities": "whether disks that came by a migration wait until the VM runs",
    "query-commands": "which commands this QEMU has, once a connection that changes something",
    "x-debug-query-block-graph": "which disk a job works on, once for each job; touches no file",
    "qom-get": "the limits of a throttle group, and no other property",
}


# What may leave.


def test_each_query_has_a_reason_to_leave_this_process() -> None:
    """And a reason without its query is gone too."""
    assert QUERIES.keys() == queries.READ_COMMANDS


def test_each_command_that_changes_something_has_a_reason_of_its_own() -> None:
    """A sentence beside its name, and none that says what a query is for."""
    reasons = list(commands.WRITE_COMMANDS.values())

    assert all(len(reason.split()) >= 3 for reason in reasons)
    assert not commands.WRITE_COMMANDS.keys() & queries.READ_COMMANDS


def test_these_commands_can_change_a_vm_and_no_others() -> None:
    """One that is added is seen in a review: of this list too."""
    assert sorted(commands.WRITE_COMMANDS) == [
        "block-commit",
        "block-job-cancel",
        "block-job-complete",
        "block-job-dismiss",
        "block-job-finalize",
        "block-job-pause",
        "block-job-resume",
        "block-job-set-speed",
        "block-latency-histogram-set",
        "blockdev-snapshot-sync",
        "job-complete",
        "job-dismiss",
        "job-finalize",
        "job-pause",
        "job-resume",
    ]


def test_every_query_of_the_program_is_one_of_those() -> None:
    """The list of those that may leave is not shorter than what is asked."""
    asked = {each.name for each in vars(queries).values() if isinstance(each, Query)}

    assert asked | {"qom-get", "qmp_capabilities"} == queries.READ_COMMANDS


@pytest.mark.parametrize("group", ["", "../x", "a/b", "a b", "0a", 'a"', "a\n", "ä"])
def test_no_name_of_a_throttle_group_leads_to_another_property(group: str) -> None:
    """qom-get reads the limits of one object below /objects and nothing else."""
    query = queries.throttle_limits("group-0.a")

    assert query is not None
    assert json.loads(query.wire)["arguments"] == {
        "path": "/objects/group-0.a",
        "property": "limits",
    }
    assert queries.throttle_limits(group) is None


# Who may send it.


@pytest.fixture
async def fake(sockets: Path) -> AsyncIterator[FakeQmp]:
    """A monitor."""
    async with FakeQmp(str(sockets / "vm.sock")) as server:
        yield server


@pytest.fixture
async def session(fake: FakeQmp) -> AsyncIterator[Session]:
    """A session with it."""
    session = Session(fake.path, CommandStats(), lambda name, data: None)
    await session.connect(PATIENCE, keep_waiting=True)
    yield session
    await session.close()


def bare(name: str) -> Command:
    """A command as nobody builds it."""
    decoder: Any = msgspec.json.Decoder(queries.Message[Any])
    return Command(name, decoder, msgspec.json.encode({"execute": name}), {})


@pytest.mark.parametrize("name", [*commands.WRITE_COMMANDS, "quit", "human-monitor-command", ""])
async def test_a_query_is_never_one_that_changes_something(
    fake: FakeQmp, session: Session, name: str
) -> None:
    """`ask` refuses it, and also what was to be asked with it."""
    with pytest.raises(CommandRefused):
        await session.ask(queries.STATUS, cast(Any, bare(name)), timeout_seconds=PATIENCE)
    # The wire is empty: whatever had left would have been received before this.
    await session.ask(queries.NAME, timeout_seconds=PATIENCE)

    assert fake.commands == ["query-name"]


@pytest.mark.parametrize(
    "name", [*sorted(queries.READ_COMMANDS), "quit", "human-monitor-command", ""]
)
async def test_what_is_executed_is_never_anything_else(
    fake: FakeQmp, session: Session, name: str
) -> None:
    """`execute` refuses queries and all that is on no list."""
    with pytest.raises(CommandRefused):
        await session.execute(bare(name), PATIENCE)
    await session.ask(queries.NAME, timeout_seconds=PATIENCE)

    assert fake.commands == ["query-name"]


def test_what_reads_and_what_writes_are_of_two_types() -> None:
    """So that the type checker refuses a command where a query is asked for, and the other way."""
    asked = get_type_hints(Session.ask)["queries"]
    executed = get_type_hints(Session.execute)["command"]

    assert get_origin(asked) is queries.Query
    assert executed is Command
    assert not issubclass(Command, queries.Query)
    assert not issubclass(queries.Query, Command)


def test_no_command_is_built_that_is_on_no_list() -> None:
    """Not even by its own module."""
    with pytest.raises(AssertionError):
        commands._command("quit", {})


#: Names by which something could be written to a socket.
WRITERS = {
    "_do_send", "execute", "execute_msg", "_execute", "_raw", "send", "send_fd_scm", "sendall",
    "sendmsg", "sendto", "write", "writelines",
}  # fmt: skip
#: Where each is called -> what it writes to.
CALLS = {
    ("admin.requests", "mine.send"): "QEMU, by way of Session.execute",
    ("qmp.library", "self._writer.write"): "QEMU, for Client.ask: queries, or one command; both against their lists",
    ("admin.commit", "mine.send"): "QEMU, by way of Session.execute",
    ("demo.disks", "monitor.execute"): "QEMU of the demo's own",
    ("demo.simulated_vm", "self._chain.write"): "a simulated disk",
    ("demo.simulated_vm", "self._life.send"): "a generator",
    ("demo.simulation", "self._client.write"): "the client of a simulated VM",
    ("demo.simulation", "writer.write"): "the same",
    ("demo.vms", "self._writer.write"): "QEMU of the demo's own",
    ("demo.vms", "self.execute"): "the same",
    ("admin.reconciler", "mine.send"): "QEMU, by way of Session.execute",
    ("admin.atomic_file", "file.write"): "a file",
    ("admin.record_store", "atomic_file.write"): "a file",
    ("admin.overlay_file", "opened.write"): "a file",
    ("process.logs", "sock.sendto"): "systemd",
    ("qmp.sockdiag", "netlink.send"): "the kernel",
    ("cli.serve", "sys.stdout.buffer.write"): "the terminal",
    ("ctl.screen", "stream.write"): "the terminal",
    ("admin.lease", "self._vm.execute"): "QEMU, by way of Session.execute",
    ("collect.vm", "self._session.execute"): "QEMU, by way of Session.execute",
    ("web.responses", "request.writer.write"): "the client of the HTTP API",
    ("web.sending", "writer.write"): "a client of HTTP",
    ("web.tls", "os.write"): "a file in memory",
}


def calls() -> set[tuple[str, str]]:
    """Return the module and the text of each call of something that could write to a socket."""
    found = set()
    for path in EXPORTER.rglob("*.py"):
        module = ".".join(path.relative_to(EXPORTER).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in WRITERS:
                found.add((module, ast.unparse(node)))
    return found


def test_nothing_else_writes_to_a_monitor() -> None:
    """Every mention of what can write to a socket, in the whole program, is accounted for."""
    assert calls() == CALLS.keys()


def test_one_place_alone_lets_more_than_queries_leave() -> None:
    """`Client.ask` sends queries where it is not told otherwise, and only `execute` tells it."""
    told = {
        f"{path.stem}.{function.name}"
        for path in EXPORTER.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "ask"
        if any(isinstance(each, ast.Name) and each.id == "WRITE_COMMANDS" for each in call.args)
        or any(each.arg == "allowed" for each in call.keywords)
    }

    assert told == {"session.execute"}


# What is on the wire.

OLD_JOBS = frozenset(
    f"block-job-{v}" for v in ("cancel", "complete", "pause", "resume", "set-speed")
)
KEPT_JOBS = OLD_JOBS | {"block-job-finalize", "block-job-dismiss"}
NEW_JOBS = KEPT_JOBS | {f"job-{v}" for v in ("complete", "pause", "resume", "finalize", "dismiss")}
QEMUS = {
    "2.0": Qemu((2, 0, 0), OLD_JOBS),
    "2.6": Qemu((2, 6, 0), OLD_JOBS),
    "2.12": Qemu((2, 12, 0), KEPT_JOBS),
    "3.0": Qemu((3, 0, 0), NEW_JOBS),
    "7.2": Qemu((7, 2, 22), NEW_JOBS),
    "10.1": Qemu((10, 1, 0), NEW_JOBS),
}
DRIVE = DiskName("disk0", "#block1")
BLOCKDEV = DiskName("", "n-0")
TOP, MIDDLE, BASE = (LayerName(f"n-{layer}", f"/i/{layer}.qcow2") for layer in range(3))
UNNAMED = [LayerName("", image.filename) for image in (TOP, MIDDLE, BASE)]


def wire(command: Command | None) -> Mapping[str, Any]:
    """Return what is sent, as JSON that is as short as it may be."""
    assert command is not None
    sent: Mapping[str, Any] = json.loads(command.wire)
    assert command.wire == json.dumps(sent, separators=(",", ":")).encode()
    assert sent.keys() == {"execute", "arguments"}
    assert (sent["execute"], sent["arguments"]) == (command.name, command.arguments)
    return sent


NODES = {"top-node": "n-0", "base-node": "n-2"}
ACTIVE_COMMITS: dict[str, dict[str, Any]] = {
    "2.0": {"device": "disk0", "top": "/i/0.qcow2", "base": "/i/2.qcow2"},
    "2.6": {"device": "disk0", "base": "/i/2.qcow2"},
    "2.12": {"device": "disk0", "job-id": "qbe-1", "base": "/i/2.qcow2"},
    "3.0": {"device": "disk0", "job-id": "qbe-1", "base": "/i/2.qcow2"},
    "7.2": {"device": "disk0", "job-id": "qbe-1", **NODES, "auto-dismiss": False},
    "10.1": {"device": "disk0", "job-id": "qbe-1", **NODES, "auto-dismiss": False},
}
LOWER_NODES = {"top-node": "n-1", "base-node": "n-2"}
LOWER_FILES = {"top": "/i/1.qcow2", "base": "/i/2.qcow2"}
LOWER_COMMITS = {
    "2.0": {"device": "disk0", **LOWER_FILES},
    "2.6": {"device": "disk0", **LOWER_FILES},
    "2.12": {"device": "disk0", "job-id": "qbe-1", **LOWER_FILES},
    "3.0": {"device": "disk0", "job-id": "qbe-1", **LOWER_FILES},
    "7.2": {"device": "disk0", "job-id": "qbe-1", **LOWER_NODES, "auto-dismiss": False},
    "10.1": {"device": "disk0", "job-id": "qbe-1", **LOWER_NODES, "auto-dismiss": False},
}
by_version = pytest.mark.parametrize("version", QEMUS)


@by_version
def test_a_commit_of_the_whole_chain(version: str) -> None:
    """By node where that is known, else by file; never without saying what it ends in."""
    command = commands.commit(QEMUS[version], DRIVE, "qbe-1", TOP, BASE, active=True, speed=None)

    assert wire(command) == {"execute": "block-commit", "arguments": ACTIVE_COMMITS[version]}


@by_version
def test_a_commit_of_lower_layers_says_both_ends(version: str) -> None:
    """Without `top` it would be one of the active layer."""
    command = commands.commit(
        QEMUS[version], DRIVE, "qbe-1", MIDDLE, BASE, active=False, speed=None
    )

    assert wire(command) == {"execute": "block-commit", "arguments": LOWER_COMMITS[version]}


@by_version
def test_a_limit_of_a_commit_is_a_number(version: str) -> None:
    """Beside all else, up to the largest that QEMU takes."""
    qemu, largest = QEMUS[version], 2**63 - 1
    command = commands.commit(qemu, DRIVE, "qbe-1", TOP, BASE, active=True, speed=largest)

    assert wire(command)["arguments"] == {**ACTIVE_COMMITS[version], "speed": largest}


def test_a_disk_without_a_name_is_called_by_its_root_node() -> None:
    """As `-blockdev` ones are, of which QEMU says an empty `device`."""
    command = commands.commit(QEMUS["7.2"], BLOCKDEV, "qbe-1", TOP, BASE, active=True, speed=None)

    assert wire(command)["arguments"] == {
        "device": "n-0", "job-id": "qbe-1", **NODES, "auto-dismiss": False
    }  # fmt: skip


def test_layers_whose_nodes_have_no_name_are_called_by_their_files() -> None:
    """Both: one by node and one by file is refused by QEMU."""
    top, middle, base = UNNAMED
    whole = commands.commit(QEMUS["7.2"], DRIVE, "qbe-1", top, base, active=True, speed=None)
    lower = commands.commit(QEMUS["7.2"], DRIVE, "qbe-1", middle, BASE, active=False, speed=None)

    common = {"device": "disk0", "job-id": "qbe-1", "auto-dismiss": False}
    assert wire(whole)["arguments"] == {**common, "base": "/i/2.qcow2"}
    assert wire(lower)["arguments"] == {**common, **LOWER_FILES}


VERBS = ("complete", "pause", "resume")


@by_version
@pytest.mark.parametrize("verb", VERBS)
def test_a_job_is_changed_by_the_newer_command_where_it_is_known(version: str, verb: str) -> None:
    """job-* from 3.0 on, and block-job-* before."""
    new = {"execute": f"job-{verb}", "arguments": {"id": "qbe-1"}}
    old = {"execute": f"block-job-{verb}", "arguments": {"device": "qbe-1"}}
    command = commands.change(QEMUS[version], verb, "qbe-1")

    assert wire(command) == (new if version in ("3.0", "7.2", "10.1") else old)


@by_version
@pytest.mark.parametrize("verb", ["finalize", "dismiss"])
def test_a_job_cannot_be_let_go_of_before_2_12(version: str, verb: str) -> None:
    """Jobs of older QEMUs end by themselves."""
    command = commands.change(QEMUS[version], verb, "qbe-1")
    wires = {
        "2.0": None,
        "2.6": None,
        "2.12": {"execute": f"block-job-{verb}", "arguments": {"device": "qbe-1"}},
    }
    new = {"execute": f"job-{verb}", "arguments": {"id": "qbe-1"}}

    assert (command and wire(command)) == wires.get(version, new)


@pytest.mark.parametrize("verb", ["complete", "pause", "resume", "finalize", "dismiss"])
def test_a_job_is_not_changed_where_no_command_for_it_is_known(verb: str) -> None:
    """A QEMU that tells of no commands is sent none."""
    assert commands.change(Qemu((10, 1, 0), ()), verb, "qbe-1") is None


@pytest.mark.parametrize("force", [True, False])
def test_a_job_is_cancelled_as_was_said_aloud(force: bool) -> None:
    """The same in every version: job-cancel has no `force`."""
    assert wire(commands.cancel("disk0", force=force)) == {
        "execute": "block-job-cancel",
        "arguments": {"device": "disk0", "force": force},
    }


@pytest.mark.parametrize("speed", [0, 1, 2**63 - 1])
def test_a_speed_is_set_in_bytes_a_second(speed: int) -> None:
    """0 is no limit and is said too."""
    assert wire(commands.set_speed("disk0", speed)) == {
        "execute": "block-job-set-speed",
        "arguments": {"device": "disk0", "speed": speed},
    }


def test_a_snapshot_uses_the_file_that_exists() -> None:
    """QEMU never makes one, and names the node of a disk that it knows by node alone."""
    common = {"snapshot-file": "/i/new.qcow2", "format": "qcow2", "mode": "existing"}
    drive = commands.snapshot(DRIVE, "/i/new.qcow2", "qcow2", "qbe-n")
    blockdev = commands.snapshot(BLOCKDEV, "/i/new.qcow2", "qcow2", "qbe-n")

    assert wire(drive) == {
        "execute": "blockdev-snapshot-sync",
        "arguments": {**common, "device": "disk0"},
    }
    assert wire(blockdev) == {
        "execute": "blockdev-snapshot-sync",
        "arguments": {**common, "node-name": "n-0", "snapshot-node-name": "qbe-n"},
    }


def test_boundaries_of_a_histogram_are_whole_nanoseconds() -> None:
    """Of all kinds of requests at once."""
    assert wire(commands.latency_histogram("/machine/peripheral/d", [1e-6, 0.001, 1.5])) == {
        "execute": "block-latency-histogram-set",
        "arguments": {
            "id": "/machine/peripheral/d",
            "boundaries": [1000, 1_000_000, 1_500_000_000],
        },
    }


@pytest.mark.parametrize("text", ['"', "\\", "\n", "\0", "é", "\u2028", '"},{"execute":"quit"}'])
def test_no_text_ends_a_command_and_begins_another(text: str) -> None:
    """Whatever a file or a job is called, it stays one string."""
    qemu, image = QEMUS["2.0"], LayerName("", f"/i/{text}")
    command = commands.commit(qemu, DiskName(text, ""), "", image, image, active=True, speed=None)
    sent = json.loads(command.wire)

    assert sent["arguments"] == {"device": text, "top": f"/i/{text}", "base": f"/i/{text}"}
    assert json.loads(commands.cancel(text, force=True).wire)["arguments"]["device"] == text
