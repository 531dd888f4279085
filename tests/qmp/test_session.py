"""The session: whatever a VM says or does not say, it ends in an answer or in one clear reason."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from qemu.qmp import QMPError

from exporter.errors import (
    CommandRefused,
    ProtocolError,
    TargetError,
    TargetTimeout,
    Unreachable,
)
from exporter.qmp import connections, queries, schema, socket_file
from exporter.qmp.client import CommandStats, PendingReplies
from exporter.qmp.limits import SessionLimits
from exporter.qmp.line_protocol import LINE_LIMIT_BYTES
from exporter.qmp.queries import BLOCK_JOBS, BLOCKSTATS, NAME, STATUS, UUID, Query
from exporter.qmp.session import Session
from tests.fakeqmp import GREETING, SAFE_SET, FakeQmp, dying, until

SECRET = "SECRETPW"
PATIENCE = 20.0


def wire(*messages: object) -> bytes:
    """Messages as QEMU writes them."""
    return b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)


def event(name: str, **data: object) -> dict[str, object]:
    """An event as QEMU sends it."""
    return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}}


def deaf(name: str, data: bytes) -> None:
    """Take no notice of an event."""


@pytest.fixture
async def fake(sockets: Path) -> AsyncIterator[FakeQmp]:
    """A monitor that answers."""
    async with FakeQmp(str(sockets / "vm.sock")) as server:
        yield server


@pytest.fixture
async def session(sockets: Path) -> AsyncIterator[Session]:
    """A session that is not connected yet."""
    session = Session(str(sockets / "vm.sock"), CommandStats(), deaf)
    yield session
    await session.close()


async def connect(session: Session) -> None:
    """Connect with patience."""
    await session.connect(PATIENCE, keep_waiting=True)


async def ask(session: Session, *queries: Query[Any]) -> PendingReplies:
    """Ask with patience."""
    return await session.ask(*queries, timeout_seconds=PATIENCE)


def is_served(path: str) -> bool:
    """Whether a client is connected to a socket."""
    return connections.is_served(path, socket_file.look(path))


async def works(session: Session) -> bool:
    """Whether the session connects, if need be, and is answered."""
    # One that it has just left is served until the other end has seen that.
    await until(lambda: session.connected or not is_served(session.path))
    await connect(session)
    answers = await ask(session, STATUS)
    return answers.get(STATUS) == schema.Status(running=True, status="running")


# What goes well.


async def test_queries_leave_in_one_write_and_are_answered_in_order(
    fake: FakeQmp, session: Session
) -> None:
    """Each answer is found by its query; QEMU's version is that of the greeting."""
    await connect(session)
    answers = await ask(session, NAME, STATUS, BLOCKSTATS)

    assert fake.commands == ["query-name", "query-status", "query-blockstats"]
    assert answers.get(NAME) == schema.Name(name="fake")
    assert answers.get(STATUS) == schema.Status(running=True, status="running")
    assert answers.get(BLOCKSTATS) == []
    assert (session.version, session.package) == ((7, 2, 0), "fake")


async def test_a_reply_that_comes_byte_by_byte_is_read(fake: FakeQmp, session: Session) -> None:
    """From the greeting on: QEMU may write as it likes."""
    fake.piece_bytes = 1
    await connect(session)

    assert (await ask(session, NAME, UUID)).get(NAME) == schema.Name(name="fake")


async def test_events_before_the_greeting_and_its_answer_are_no_end(
    fake: FakeQmp, session: Session
) -> None:
    """A QEMU that is just starting tells of it to a client that it has not greeted yet."""
    early = wire({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"})
    fake.greeting = early + wire(GREETING) + early
    fake.replies["qmp_capabilities"] = early + wire({"return": {}})

    assert await works(session)


async def test_events_come_before_between_and_after_answers(fake: FakeQmp, sockets: Path) -> None:
    """Each is handed over in order, and no answer is mistaken for another."""
    seen: list[tuple[str, object]] = []
    fake.replies["qmp_capabilities"] = wire({"return": {}}, event("A"))
    fake.replies["query-status"] = wire(event("B", n=1), SAFE_SET["query-status"], event("C"))
    fake.replies["query-name"] = wire(SAFE_SET["query-name"], event("D"))
    session = Session(
        str(sockets / "vm.sock"),
        CommandStats(),
        lambda name, data: seen.append((name, json.loads(data or b"null"))),
    )
    await connect(session)
    answers = await ask(session, STATUS, NAME)
    await fake.event("E", n=2)
    await until(lambda: len(seen) == 5)

    assert answers.get(STATUS) == schema.Status(running=True, status="running")
    assert answers.get(NAME) == schema.Name(name="fake")
    assert seen == [("A", {}), ("B", {"n": 1}), ("C", {}), ("D", {}), ("E", {"n": 2})]
    await session.close()


async def test_an_event_without_data_is_an_event(fake: FakeQmp, sockets: Path) -> None:
    """STOP and RESUME have none."""
    seen: list[tuple[str, bytes]] = []
    session = Session(str(sockets / "vm.sock"), CommandStats(), lambda *event: seen.append(event))
    await connect(session)
    await fake.send({"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}})
    await until(lambda: seen)

    assert seen == [("RESUME", b"")]
    await session.close()


async def test_integers_above_2_53_are_exact(fake: FakeQmp, session: Session) -> None:
    """A float would round them."""
    stats = {"wr_highest_offset": 1152921504604815361, "rd_bytes": 2**64 - 1}
    fake.replies["query-blockstats"] = {"return": [{"device": "d", "stats": stats}]}
    await connect(session)
    [entry] = (await ask(session, BLOCKSTATS)).get(BLOCKSTATS) or []

    told: Any = entry.stats  # its members are those of the table
    assert told.wr_highest_offset == 1152921504604815361
    assert told.rd_bytes == 18446744073709551615


async def test_no_queries_need_no_answer(fake: FakeQmp, session: Session) -> None:
    """A QEMU that knows none of a batch is not asked."""
    await connect(session)
    await ask(session)

    assert fake.commands == []


async def test_commands_and_errors_are_counted(fake: FakeQmp, sockets: Path) -> None:
    """The tally is of all sessions; the negotiation is a command too."""
    del fake.replies["query-name"]
    tally = CommandStats()
    session = Session(str(sockets / "vm.sock"), tally, deaf)
    await connect(session)
    await ask(session, NAME, STATUS)
    await ask(session, STATUS)

    assert tally.commands == {"qmp_capabilities": 1, "query-name": 1, "query-status": 2}
    assert tally.errors == {("query-name", "CommandNotFound"): 1}
    await session.close()


# What a VM may refuse.


async def test_a_command_that_qemu_does_not_know_costs_only_itself(
    fake: FakeQmp, session: Session
) -> None:
    """The storage daemon has no query-status."""
    del fake.replies["query-status"]
    await connect(session)
    answers = await ask(session, STATUS, NAME)

    assert answers.get(STATUS) is None
    assert answers.refused(STATUS)
    assert answers.unknown() == {STATUS}
    assert answers.get(NAME) == schema.Name(name="fake")


async def test_another_error_class_is_a_protocol_error(fake: FakeQmp, session: Session) -> None:
    """Its text names the query and the class, and nothing that QEMU said."""
    fake.replies["query-block-jobs"] = {"error": {"class": "GenericError", "desc": SECRET}}
    await connect(session)
    answers = await ask(session, BLOCK_JOBS, NAME)
    with pytest.raises(ProtocolError) as caught:
        answers.get(BLOCK_JOBS)

    assert str(caught.value) == "query-block-jobs was refused with GenericError"
    assert answers.get(NAME) == schema.Name(name="fake")


async def test_an_error_class_that_is_none_of_qemus_goes_nowhere(
    fake: FakeQmp, sockets: Path
) -> None:
    """It would be a label value and a log line of the VM's choice."""
    fake.replies["query-name"] = {"error": {"class": SECRET, "desc": ""}}
    tally = CommandStats()
    session = Session(str(sockets / "vm.sock"), tally, deaf)
    await connect(session)
    answers = await ask(session, NAME)
    with pytest.raises(ProtocolError) as caught:
        answers.get(NAME)

    assert SECRET not in str(caught.value)
    assert tally.errors == {("query-name", "unknown"): 1}
    await session.close()


async def test_an_answer_of_the_wrong_type_costs_this_answer_and_not_the_session(
    fake: FakeQmp, session: Session
) -> None:
    """It is still one whole line; the error says where it is wrong, not what was there."""
    fake.replies["query-status"] = {"return": {"running": SECRET, "status": "running"}}
    await connect(session)
    answers = await ask(session, STATUS, NAME)
    with pytest.raises(ProtocolError) as caught:
        answers.get(STATUS)

    assert str(caught.value).startswith("answered query-status badly: Expected `bool`")
    assert SECRET not in str(caught.value)
    assert answers.get(NAME) == schema.Name(name="fake")
    fake.replies["query-status"] = SAFE_SET["query-status"]
    assert await works(session)
    assert fake.connections == 1


@pytest.mark.parametrize("answer", [{}, {"id": 7}, {"return": None}, [], "x", 7, None])
async def test_what_is_neither_an_answer_nor_an_event_costs_this_answer(
    fake: FakeQmp, session: Session, answer: object
) -> None:
    """JSON, but no QMP."""
    fake.replies["query-status"] = wire(answer)
    await connect(session)
    answers = await ask(session, STATUS, NAME)
    with pytest.raises(ProtocolError, match="^answered query-status badly: "):
        answers.get(STATUS)

    assert answers.get(NAME) == schema.Name(name="fake")


# What a VM should not say.


@pytest.mark.parametrize(
    "greeting",
    [
        f"{SECRET}\r\n".encode(),
        f"220 {SECRET} ESMTP\r\n".encode(),
        b"\xff\xfe\r\n",
        b"\r\n",
        b"null\r\n",
        b"[]\r\n",
        b"{}\r\n",
        wire({"QMP": SECRET}),
        wire({"QMP": {"version": SECRET, "capabilities": []}}),
        wire({"QMP": {"version": {"qemu": SECRET}, "capabilities": []}}),
        wire({"QMP": {"version": {}, "capabilities": []}}),
        wire({"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}),
        wire({"QMP": {"version": {"qemu": {"major": SECRET}}, "capabilities": []}}),
        wire(
            {
                "QMP": {
                    "version": {"qemu": {"major": float("inf"), "minor": 0, "micro": 0}},
                    "capabilities": [],
                }
            }
        ),
        wire({"QMP": {"version": {"qemu": {}}, "capabilities": 7}}),
        wire({"error": {"class": "GenericError", "desc": SECRET}}),
        b'{"QMP": ' + b"[" * 100_000 + b"\r\n",
        b"x" * (LINE_LIMIT_BYTES + 1) + b"\r\n",
    ],
    ids=lambda greeting: repr(greeting[:70]),
)
async def test_garbage_instead_of_a_greeting(
    fake: FakeQmp, session: Session, greeting: bytes
) -> None:
    """The connection is given up, without a word of what came, and the next one is a new one."""
    fake.greeting = greeting
    with pytest.raises(ProtocolError) as caught:
        await connect(session)

    assert str(caught.value) in ("does not speak QMP", "sent a greeting without a version")
    await until(lambda: not fake.serves)
    fake.greeting = GREETING
    assert await works(session)


@pytest.mark.parametrize(
    "answer",
    [{"error": {"class": "GenericError", "desc": SECRET}}, {"x": 1}, 7],
    ids=repr,
)
async def test_a_refused_negotiation_is_no_session(
    fake: FakeQmp, session: Session, answer: object
) -> None:
    """QMP wants qmp_capabilities answered before anything else."""
    fake.replies["qmp_capabilities"] = wire(answer)
    with pytest.raises(ProtocolError, match="^does not speak QMP$"):
        await connect(session)

    del fake.replies["qmp_capabilities"]
    assert await works(session)


@pytest.mark.parametrize(
    "garbage",
    [
        f"{SECRET}\r\n".encode(),
        b"\xff\xfe\r\n",
        b'{"return": {"name": "\xff"}}\r\n',
        b"\r\n",
        b'{"return": {"name": "a"}\r\n',
        b'{"return": {"name": "a"}} {}\r\n',
    ],
    ids=repr,
)
async def test_garbage_instead_of_an_answer_ends_the_session(
    fake: FakeQmp, session: Session, garbage: bytes
) -> None:
    """Nobody knows what the next line would answer; the next session is a new one."""
    fake.replies["query-name"] = garbage
    await connect(session)
    with pytest.raises(ProtocolError) as caught:
        (await ask(session, STATUS, NAME)).get(NAME)

    assert str(caught.value) == "sent something that is not JSON"
    await until(lambda: not session.connected)
    assert await works(session)
    assert fake.connections == 2


@pytest.mark.parametrize("answer", [{"return": {}}, {"error": {"class": SECRET}}, {}, 7], ids=repr)
async def test_an_answer_that_nobody_asked_for_ends_the_session(
    fake: FakeQmp, session: Session, answer: object
) -> None:
    """It might be taken for the answer to the next query."""
    await connect(session)
    await fake.send(wire(answer))
    await until(lambda: not session.connected)
    with pytest.raises(ProtocolError, match="^hung up$"):
        await ask(session, STATUS)

    assert await works(session)


async def test_a_second_answer_to_one_query_ends_the_session(
    fake: FakeQmp, session: Session
) -> None:
    """The first one counts."""
    fake.replies["query-name"] = wire(SAFE_SET["query-name"], {"return": {"name": SECRET}})
    await connect(session)
    answers = await ask(session, NAME)

    assert answers.get(NAME) == schema.Name(name="fake")
    await until(lambda: not session.connected)
    assert await works(session)


async def test_eof_at_every_point_is_a_protocol_error(fake: FakeQmp, session: Session) -> None:
    """In the greeting, in the negotiation, between answers and in the middle of one."""
    queries = (STATUS, NAME)
    replies: tuple[object, ...] = (
        GREETING,
        {"return": {}},
        SAFE_SET["query-status"],
        SAFE_SET["query-name"],
    )
    whole = sum(len(wire(reply)) for reply in replies)
    texts = set()
    for cut in range(whole):
        fake.close_after_bytes = cut
        with pytest.raises(ProtocolError) as caught:
            await connect(session)
            await ask(session, *queries)
        texts.add(str(caught.value))

    assert fake.connections == whole
    assert texts <= {"hung up before its greeting", "hung up before it answered", "hung up"}
    fake.close_after_bytes = None
    assert await works(session)


async def test_a_connection_that_is_reset_is_a_protocol_error(
    fake: FakeQmp, session: Session
) -> None:
    """A killed QEMU leaves what it had not read."""
    fake.replies["query-status"] = dying(fake)
    await connect(session)
    with pytest.raises(ProtocolError, match="^hung up before it answered$"):
        await ask(session, STATUS, NAME)


async def test_a_reply_of_16_mib_is_read(fake: FakeQmp, session: Session) -> None:
    """The limit is above what the largest VM says."""
    name = "x" * (LINE_LIMIT_BYTES - 1000)
    fake.replies["query-name"] = {"return": {"name": name}}
    await connect(session)

    assert (await ask(session, NAME)).get(NAME) == schema.Name(name=name)


async def test_a_line_of_over_16_mib_is_refused(fake: FakeQmp, session: Session) -> None:
    """It ends this session and nothing else."""
    fake.replies["query-name"] = {"return": {"name": SECRET * (LINE_LIMIT_BYTES // 8)}}
    await connect(session)
    with pytest.raises(ProtocolError, match="^sent a line of more than 16777216 bytes$"):
        await ask(session, NAME)

    assert await works(session)


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "answer",
    [
        b'{"return": ' + DEEP + b"}\r\n",
        b'{"return": {"name": "a", "x": ' + DEEP + b"}}\r\n",
        b'{"return": {"name": "a"}, "x": ' + DEEP + b"}\r\n",
        b'{"return": {"name": ' + DEEP + b"}}\r\n",
    ],
    ids=lambda answer: repr(answer[:40]),
)
async def test_an_answer_nested_100000_deep_is_refused(
    fake: FakeQmp, session: Session, answer: bytes
) -> None:
    """It costs this answer, and not the process its stack."""
    fake.replies["query-name"] = answer
    await connect(session)
    answers = await ask(session, NAME, STATUS)
    with pytest.raises(ProtocolError, match="^answered query-name badly: "):
        answers.get(NAME)

    assert answers.get(STATUS) == schema.Status(running=True, status="running")


@pytest.mark.parametrize("asking", [False, True], ids=["unasked", "while asking"])
async def test_an_event_nested_100000_deep_does_not_take_the_process_down(
    fake: FakeQmp, session: Session, asking: bool
) -> None:
    """What cannot be read is no event; the VM is asked again on a new connection at worst."""
    deep = b'{"event": "A", "data": ' + DEEP + b"}\r\n"
    await connect(session)
    if asking:
        fake.replies["query-name"] = deep
        with contextlib.suppress(ProtocolError):
            (await ask(session, NAME)).get(NAME)
    else:
        await fake.send(deep)
        await until(lambda: not session.connected)

    assert await works(session)


async def test_400_layers_are_read(fake: FakeQmp, session: Session) -> None:
    """A chain of snapshots may be that long."""
    entry: dict[str, object] = {"node-name": "n0", "stats": {}}
    image: dict[str, object] = {"filename": "/0", "format": "qcow2"}
    for number in range(1, 400):
        entry = {"node-name": f"n{number}", "stats": {}, "backing": entry}
        image = {"filename": f"/{number}", "format": "qcow2", "backing-image": image}
    inserted = {"file": "/399", "drv": "qcow2", "ro": False, "image": image}
    fake.replies["query-blockstats"] = {"return": [entry]}
    fake.replies["query-block"] = {"return": [{"device": "d", "inserted": inserted}]}
    await connect(session)
    answers = await ask(session, BLOCKSTATS, queries.BLOCK)
    [node] = answers.get(BLOCKSTATS) or []
    [info] = answers.get(queries.BLOCK) or []
    assert info.inserted is not None
    depths = [0, 0]
    below_node, below_image = node.backing, info.inserted.image.backing_image
    while below_node is not None and below_image is not None:
        depths = [depths[0] + 1, depths[1] + 1]
        below_node, below_image = below_node.backing, below_image.backing_image

    assert (below_node, below_image, depths) == (None, None, [399, 399])


# What the session itself refuses to say.


async def test_the_session_refuses_what_is_no_query(fake: FakeQmp, session: Session) -> None:
    """Nothing leaves, not even the queries beside it, and the session goes on."""
    commit: Query[object] = Query(
        "block-commit",
        msgspec.json.Decoder(queries.Message[object]),
        b'{"execute":"block-commit","arguments":{"device":"disk0"}}',
    )
    await connect(session)
    with pytest.raises(CommandRefused, match="^block-commit may not be sent here$"):
        await ask(session, STATUS, commit)

    assert not session.owes_answers
    assert await works(session)
    assert fake.commands == ["query-status"]


async def test_the_library_below_cannot_send_a_command_either(
    fake: FakeQmp, session: Session
) -> None:
    """Whoever gets hold of the qemu.qmp client is refused by its own hook."""
    await connect(session)
    assert session._client is not None
    with pytest.raises(QMPError):
        await session._client.execute("quit")

    await until(lambda: not session.connected)
    assert fake.commands == []
    assert await works(session)


async def test_every_query_reads_and_none_writes() -> None:
    """The list is short enough to be read here."""
    assert sorted(queries.READ_COMMANDS) == [
        "qmp_capabilities",
        "qom-get",
        "query-block",
        "query-block-exports",
        "query-block-jobs",
        "query-blockstats",
        "query-commands",
        "query-jobs",
        "query-migrate",
        "query-migrate-capabilities",
        "query-name",
        "query-status",
        "query-uuid",
        "x-debug-query-block-graph",
    ]


# Silence.


async def test_nothing_more_is_sent_while_answers_are_owed(fake: FakeQmp, session: Session) -> None:
    """Commands pile up in a QEMU that hangs, and run later; when it answers, all is as before."""
    await connect(session)
    fake.answering.clear()
    with pytest.raises(TargetTimeout) as caught:
        await session.ask(STATUS, NAME, timeout_seconds=0.05)
    assert (caught.value.reason, str(caught.value)) == ("timeout", "does not answer query-status")
    assert session.owes_answers
    for _ in range(3):
        with pytest.raises(TargetTimeout):
            await ask(session, BLOCKSTATS)
    fake.answering.set()
    await until(lambda: not session.owes_answers)

    assert (await ask(session, NAME, STATUS)).get(NAME) == schema.Name(name="fake")
    assert fake.commands == ["query-status", "query-name", "query-name", "query-status"]
    assert fake.connections == 1


async def test_a_vm_that_hangs_up_while_it_owes_answers_is_no_news(
    fake: FakeQmp, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asked has given up; nobody is told twice."""
    await connect(session)
    fake.answering.clear()
    with pytest.raises(TargetTimeout):
        await session.ask(STATUS, timeout_seconds=0.05)
    fake.hang_up()
    await until(lambda: not session.connected)
    fake.answering.set()

    assert await works(session)
    assert caplog.records == []


async def test_a_greeting_that_never_comes_is_waited_for_and_costs_nothing(
    fake: FakeQmp, session: Session
) -> None:
    """A QEMU that starts greets when its images are open: one connection waits, at no cost."""
    fake.greeting = None
    with pytest.raises(Unreachable) as caught:
        await session.connect(0.05, keep_waiting=True)
    assert caught.value.reason == "greeting_timeout"
    for _ in range(3):
        async with asyncio.timeout(PATIENCE / 2):
            with pytest.raises(Unreachable, match="^does not greet$"):
                await session.connect(PATIENCE, keep_waiting=True)
    assert fake.connections == 1
    await fake.send(GREETING)
    await until(lambda: session.connected)

    assert await works(session)
    assert fake.connections == 1


async def test_a_greeting_that_never_comes_is_not_waited_for_on_a_shared_socket(
    fake: FakeQmp, session: Session
) -> None:
    """To stay in the backlog is to keep another tool out."""
    fake.greeting = None
    with pytest.raises(Unreachable) as caught:
        await session.connect(0.05, keep_waiting=False)
    assert caught.value.reason == "greeting_timeout"
    await until(lambda: not fake.serves)
    fake.greeting = GREETING

    assert await works(session)
    assert fake.connections == 2


async def test_a_connection_that_ended_between_scrapes_is_made_anew(
    fake: FakeQmp, session: Session
) -> None:
    """A QEMU that was killed before it greeted says nothing of the one that runs now."""
    fake.greeting = None
    with pytest.raises(Unreachable):
        await session.connect(0.05, keep_waiting=True)
    fake.hang_up()
    await until(lambda: session._greeting is None or session._greeting.done())
    fake.greeting = GREETING

    assert await works(session)


async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(
    fake: FakeQmp, session: Session
) -> None:
    """No task and no descriptor, however far it has come."""
    tasks, descriptors = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
    fake.greeting = None
    for rounds in range(20):
        connecting = asyncio.create_task(session.connect(PATIENCE, keep_waiting=True))
        for _ in range(rounds):
            await asyncio.sleep(0)
        connecting.cancel()
        await asyncio.wait((connecting,))
        await session.close()
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    await until(lambda: len(os.listdir("/proc/self/fd")) == descriptors)


@pytest.mark.parametrize("steps", range(6))
async def test_who_leaves_a_vm_that_has_gone_leaves_no_error_unread(
    fake: FakeQmp, session: Session, caplog: pytest.LogCaptureFixture, steps: int
) -> None:
    """A target that is dropped while its session is closed: asyncio would log it as an error of ours."""
    await connect(session)
    fake.hang_up()
    with pytest.raises(ProtocolError):
        await ask(session, STATUS)
    closing = asyncio.create_task(session.close())
    for _ in range(steps):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait((closing,))
    del closing
    gc.collect()
    await until(lambda: len(asyncio.all_tasks()) == 1 + fake.serves)
    gc.collect()

    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert await works(session)


# Sockets that cannot be had.


@pytest.fixture
def listener(sockets: Path) -> Iterator[socket.socket]:
    """A socket that listens with QEMU's backlog, and is accepted from by hand."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(sockets / "vm.sock"))
        server.listen(1)
        yield server


@contextlib.contextmanager
def client(path: Path) -> Iterator[socket.socket]:
    """Another client of a monitor socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        sock.connect(str(path))
        yield sock


@pytest.mark.parametrize("keep_waiting", [True, False])
async def test_a_socket_that_serves_another_client_is_busy(
    listener: socket.socket, session: Session, sockets: Path, keep_waiting: bool
) -> None:
    """And its backlog is left alone: a connection that was dropped stays in it until the end."""
    with client(sockets / "vm.sock"):
        served, _ = listener.accept()
        with served, pytest.raises(Unreachable) as caught:
            await session.connect(0.3, keep_waiting=keep_waiting)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()

    assert (caught.value.reason, str(caught.value)) == ("busy", "another client uses this socket")


async def test_a_tool_that_leaves_in_a_moment_is_waited_for(
    fake: FakeQmp, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared socket is busy for the milliseconds of one question."""
    monkeypatch.setattr(connections, "is_served", lambda *_: False)
    limits = SessionLimits(greeting_patience_seconds=0.01, busy_patience_seconds=PATIENCE)
    session = Session(str(sockets / "vm.sock"), CommandStats(), deaf, limits=limits)
    with client(sockets / "vm.sock") as other:
        await until(lambda: fake.serves)
        connecting = asyncio.create_task(session.connect(PATIENCE, keep_waiting=False))
        await asyncio.sleep(0.05)
        assert not connecting.done()
        other.shutdown(socket.SHUT_RDWR)
        await connecting

    assert session.connected
    await session.close()


async def test_a_full_backlog_is_busy(
    listener: socket.socket, session: Session, sockets: Path
) -> None:
    """The kernel says EAGAIN, at once."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(BlockingIOError):
            for _ in range(10):
                stack.enter_context(client(sockets / "vm.sock"))
        with pytest.raises(Unreachable) as caught:
            await connect(session)

    assert caught.value.reason == "busy"
    assert str(caught.value) == "too many clients wait for this socket"


async def test_a_full_backlog_of_clients_that_left_is_not_busy(
    listener: socket.socket, session: Session, sockets: Path
) -> None:
    """Nobody uses it; it just accepts nobody, as a process that hangs does."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(10):
            with client(sockets / "vm.sock"):
                pass
    with pytest.raises(Unreachable) as caught:
        await connect(session)

    assert (caught.value.reason, str(caught.value)) == ("greeting_timeout", "accepts nobody")


@pytest.mark.parametrize("keep_waiting", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_server_that_speaks_no_qmp_and_keeps_its_end_is_that_each_time(
    sockets: Path, session: Session, keep_waiting: bool, at_once: bool
) -> None:
    """Our own connection of before is no other client; it may serve one after the other, too."""
    path = str(sockets / "vm.sock")
    kept: list[asyncio.StreamWriter] = []

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.append(writer)
        if at_once or len(kept) == 1:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n\0\xff\r\n")

    async with await asyncio.start_unix_server(serve, path):
        for _ in range(4):
            with pytest.raises(ProtocolError, match="^does not speak QMP$"):
                await session.connect(0.3, keep_waiting=keep_waiting)
        for writer in kept:
            writer.close()
        await until(lambda: not session.open)
    async with FakeQmp(path):
        assert await works(session)


@pytest.mark.parametrize("keep_waiting", [True, False])
async def test_a_vm_that_quits_is_not_busy(
    listener: socket.socket, session: Session, sockets: Path, keep_waiting: bool
) -> None:
    """Its end of our connection of before is there for as long as it takes to end."""
    first = Session(session.path, CommandStats(), deaf)
    connecting = asyncio.create_task(connect(first))
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    served, _ = await loop.sock_accept(listener)
    with served:
        await loop.sock_sendall(served, wire(GREETING))
        assert b"qmp_capabilities" in await loop.sock_recv(served, 1000)
        await loop.sock_sendall(served, wire({"return": {}}))
        await connecting
        served.shutdown(socket.SHUT_RDWR)
        await until(lambda: not first.connected)
        for each in (first, session):
            with pytest.raises(TargetError) as caught:
                await each.connect(0.3, keep_waiting=keep_waiting)
            assert caught.value.reason == "greeting_timeout"
    await first.close()


async def test_a_lack_of_descriptors_is_no_fault_of_a_vm(
    fake: FakeQmp, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody listens, and could be connected to."""

    def refuse(sock: socket.socket, path: str) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    monkeypatch.setattr(socket_file, "connect", refuse)
    with pytest.raises(Unreachable) as caught:
        await connect(session)

    assert (caught.value.reason, str(caught.value)) == (
        "internal",
        "no descriptor left: too many open files",
    )


async def test_a_socket_that_is_not_there(session: Session) -> None:
    """The VM is gone, or was never there."""
    with pytest.raises(Unreachable) as caught:
        await connect(session)

    assert caught.value.reason == "no_socket"
    assert str(caught.value) == "is not there: no such file or directory"


async def test_a_folder_that_is_a_file_has_no_socket(sockets: Path) -> None:
    """ENOTDIR is no reason of its own."""
    (sockets / "file").touch()
    with pytest.raises(Unreachable) as caught:
        await connect(Session(str(sockets / "file" / "vm.sock"), CommandStats(), deaf))

    assert caught.value.reason == "no_socket"


async def test_a_socket_that_nobody_listens_on(listener: socket.socket, session: Session) -> None:
    """A QEMU that was killed leaves its socket file."""
    listener.close()
    with pytest.raises(Unreachable) as caught:
        await connect(session)

    assert caught.value.reason == "refused"
    assert str(caught.value) == "nobody listens: connection refused"


async def test_a_socket_that_may_not_be_opened(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU's socket is its user's; root, who may run this test, would be let in."""

    def refuse(sock: socket.socket, path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(socket_file, "connect", refuse)
    with pytest.raises(Unreachable) as caught:
        await connect(session)

    assert (caught.value.reason, str(caught.value)) == (
        "permission",
        "cannot be opened: permission denied",
    )


async def test_a_path_too_long_for_a_socket_address_is_connected_to(sockets: Path) -> None:
    """sun_path has 108 bytes; libvirt's paths with a UUID come near."""
    folder = sockets / ("long-" * 20) / ("path-" * 20)
    folder.mkdir(parents=True)
    here = os.open(folder, os.O_PATH)
    async with FakeQmp(f"/proc/self/fd/{here}/vm.sock"):
        session = Session(str(folder / "vm.sock"), CommandStats(), deaf)
        assert await works(session)
        await session.close()
    os.close(here)


async def test_a_path_of_107_bytes_is_connected_to(sockets: Path) -> None:
    """The longest that needs no detour."""
    path = str(sockets / "x") + "y" * (107 - len(str(sockets / "x")))
    async with FakeQmp(path):
        session = Session(path, CommandStats(), deaf)
        assert await works(session)
        await session.close()


async def test_refused_connections_leave_no_descriptor(session: Session) -> None:
    """A fleet of a thousand dead sockets is tried every few seconds."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(TargetError):
            await connect(session)

    assert len(os.listdir("/proc/self/fd")) == before
