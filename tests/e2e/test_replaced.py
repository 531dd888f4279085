"""QEMUs that take over one path from each other: the exporter sees, and changes, the one that has it."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.api import Admin, Answer, admin
from tests.e2e.lab import (
    PATIENCE_SECONDS,
    Disk,
    Exporter,
    Lab,
    Monitor,
    Qemu,
    drive,
    wait_until,
)
from tests.e2e.reading import labels_of, value

#: How often another QEMU takes the path over.
ROUNDS = 25
#: Some reasons show only once the VM was waited for.
HASTY = "--qmp.timeout=2"
TAKEN_OVER = "another process has taken the path of the socket over"
MODES = pytest.mark.parametrize("mode", ["persistent", "per-scrape"])


class Shared:
    """A path for the exporter's monitor that one QEMU after the other listens on."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.path = lab.folder / "vm.sock"
        self.names: list[str] = []

    def start(self, name: str) -> Qemu:
        """Start a QEMU that takes the path over, whoever has it."""
        self.names.append(name)
        command = self.lab.qemu_command(name, *drive("disk0", self.lab.image(name)))
        own = f"unix:{self.lab.folder}/{name}.sock,server=on,wait=off"
        path = f"unix:{self.path},server=on,wait=off"
        vm = self.lab.start(name, [path if part == own else part for part in command])
        vm.socket = self.path
        return vm


@pytest.fixture
def shared(lab: Lab) -> Shared:
    """A path in a folder of its own."""
    return Shared(lab)


def layers(vm: Qemu) -> list[str]:
    """Return the images of the disk, by QEMU's own word."""
    image = Disk(vm, "disk0").entry["inserted"]["image"]
    found = []
    while image:
        found.append(Path(image["filename"]).name)
        image = image.get("backing-image")
    return found


def names(exposition: str) -> list[str]:
    """Return the names of the QEMUs that an exposition is of."""
    return [labels["name"] for labels in labels_of(exposition, "qemu_vm_info")]


def files(exposition: str) -> set[str]:
    """Return the images that it tells of."""
    return {Path(each["file"]).stem for each in labels_of(exposition, "qemu_block_node_info")}


def reasons(exposition: str) -> list[str]:
    """Return why the VM is down."""
    return [labels["reason"] for labels in labels_of(exposition, "qemu_vm_scrape_error")]


@contextmanager
def client_of(vm: Qemu) -> Iterator[Monitor]:
    """Have another client be served on the exporter's monitor."""
    client = Monitor(vm.socket)
    try:
        yield client
    finally:
        client.close()


@MODES
@pytest.mark.parametrize("state", ["runs", "is stopped", "was stopped"])
def test_the_one_that_takes_the_path_over_is_seen_in_the_next_scrape(
    shared: Shared, mode: str, state: str
) -> None:
    """Whether or not the first one answers; what it was is not told of the second."""
    one = shared.start("one")
    exporter = shared.lab.exporter(f"--qmp.connection={mode}", HASTY)
    assert names(exporter.fresh()) == ["one"]
    if state != "runs":
        one.stop()
    if state == "was stopped":
        assert reasons(exporter.fresh()) == ["stopped"]
    shared.start("two")
    for _ in range(2):
        text = exporter.fresh()
        assert names(text) == ["two"]
        assert files(text) == {"two"}
    assert len(re.findall(TAKEN_OVER, exporter.said())) == 1
    assert f"pid_before={one.pid}" in exporter.said()


def test_a_scrape_that_joins_others_sees_it_too(shared: Shared) -> None:
    """However young the sweep is that saw the first one."""
    shared.start("one")
    exporter = shared.lab.exporter()
    for name in ("two", "three", "four"):
        exporter.metrics()
        shared.start(name)
        assert names(exporter.metrics()) == [name]


@MODES
def test_an_action_goes_to_neither_until_it_is_asked_for_again(shared: Shared, mode: str) -> None:
    """It was meant for the first; the second is named when it is looked at."""
    one = shared.start("one")
    user = admin(shared.lab, flags=(f"--qmp.connection={mode}",))
    user.exporter.metrics()
    two = shared.start("two")
    overlay = shared.lab.folder / "overlay.qcow2"

    def snapshot() -> Answer:
        return user.snapshot("vm", "disk0", overlay)

    refused = snapshot()
    assert (refused.status, refused.problem) == (409, "another-vm")
    assert not overlay.exists()
    assert layers(one) == ["one.qcow2"]
    assert layers(two) == ["two.qcow2"]
    assert snapshot().status == 201
    assert layers(one) == ["one.qcow2"]
    assert layers(two) == ["overlay.qcow2", "two.qcow2"]
    audited = [line for line in user.exporter.said().splitlines() if "action=snapshot" in line]
    assert re.findall(r"result=(\w+)", "\n".join(audited)) == ["refused", "done"]


def test_a_first_one_that_quits_takes_the_path_with_it_and_that_is_said(shared: Shared) -> None:
    """QEMU unlinks what it once bound, whoever has it: the second runs out of sight."""
    one = shared.start("one")
    exporter = shared.lab.exporter()
    exporter.fresh()
    shared.start("two")
    exporter.fresh()
    one.quit()
    assert not shared.path.exists()
    text = exporter.fresh()
    assert value(text, "qemu_exporter_targets") == 0
    [line] = [line for line in exporter.said().splitlines() if "vm is no longer a target" in line]
    assert "level=INFO" in line
    assert f"vm=vm socket={shared.path}" in line


@MODES
def test_a_client_of_the_first_does_not_make_the_second_busy(shared: Shared, mode: str) -> None:
    """It is connected to another socket, which had the same path; a client of the second does."""
    one = shared.start("one")
    with client_of(one):
        two = shared.start("two")
        exporter = shared.lab.exporter(f"--qmp.connection={mode}", HASTY)
        for _ in range(3):
            assert names(exporter.fresh()) == ["two"]
        exporter.signal(signal.SIGTERM)
        exporter.wait()
        with client_of(two):
            again = shared.lab.exporter(f"--qmp.connection={mode}", HASTY)
            assert reasons(again.fresh()) == ["busy"]
        assert names(again.until(names)) == ["two"]


@MODES
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_vm_is_stopped_after_each_restart_of_the_exporter(
    shared: Shared, mode: str, how: signal.Signals
) -> None:
    """The connections of those before fill its queue: nobody else uses it."""
    vm = shared.start("one")
    flags = (f"--qmp.connection={mode}", HASTY)
    exporter = shared.lab.exporter(*flags)
    assert names(exporter.fresh()) == ["one"]
    vm.stop()
    for _ in range(4):
        for _ in range(2):
            assert reasons(exporter.fresh()) == ["stopped"]
        if how is signal.SIGKILL:
            exporter.crash()
        else:
            exporter.signal(how)
            exporter.wait()
        exporter = shared.lab.exporter(*flags)
    vm.signal(signal.SIGCONT)
    exporter.until(lambda text: names(text) == ["one"])


def test_a_vm_that_quits_is_never_busy(shared: Shared) -> None:
    """Its end of the connection is there for as long as it takes to end."""
    exporter = shared.lab.exporter(HASTY)
    seen: list[str] = []
    for number in range(10):
        vm = shared.start(f"vm{number}")
        exporter.until(names)
        vm.monitor.send("quit")
        while vm.exit_code is None:
            seen += reasons(exporter.get("/probe?target=vm")) if shared.path.exists() else []
    assert "busy" not in seen
    assert "level=ERROR" not in exporter.said()


#: A server that greets, and after its client has hung up, or it has, takes its time to end.
QUITTING = """
import json, os, socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(1)
print("listening", flush=True)
client, _ = server.accept()
version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
client.sendall(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\\n")
client.recv(1000)
client.sendall(b'{"return": {}}\\n')
client.recv(1000)
client.shutdown(socket.SHUT_RDWR)
print("shut down", flush=True)
sys.stdin.readline()
"""


def test_a_server_that_shut_its_end_down_and_is_still_there_is_not_busy(shared: Shared) -> None:
    """No other client is connected."""
    command = ["python3", "-c", QUITTING, str(shared.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"listening\n"
            exporter = shared.lab.exporter(HASTY)
            assert reasons(exporter.fresh()) == ["protocol"]
            assert server.stdout.readline() == b"shut down\n"
            for _ in range(2):
                assert reasons(exporter.fresh()) == ["greeting_timeout"]
        finally:
            server.kill()


class Asking:
    """Somebody who scrapes and snapshots all the time; when each began and ended is noted."""

    def __init__(self, shared: Shared, user: Admin, exporter: Exporter) -> None:
        self._shared, self._user, self._exporter = shared, user, exporter
        #: (began, ended, names of the QEMUs that were seen).
        self.scrapes: list[tuple[float, float, list[str]]] = []
        #: (began, ended, answer, file).
        self.actions: list[tuple[float, float, Answer, str]] = []
        self._ended = threading.Event()
        self._failures: list[Exception] = []
        self._threads = [
            threading.Thread(target=self._run, args=(ask,)) for ask in (self._scrape, self._act)
        ]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _run(self, ask: Callable[[], None]) -> None:
        try:
            while not self._ended.is_set():
                ask()
        except Exception as error:  # noqa: BLE001  # raised where the thread is joined
            self._failures.append(error)

    def _scrape(self) -> None:
        began = time.monotonic()
        text = self._exporter.get("/probe?target=vm")
        self.scrapes.append((began, time.monotonic(), names(text)))

    def _act(self) -> None:
        file = f"layer-{len(self.actions)}.qcow2"
        began = time.monotonic()
        answer = self._user.snapshot("vm", "disk0", self._shared.lab.folder / file)
        self.actions.append((began, time.monotonic(), answer, file))
        time.sleep(0.05)


@MODES
def test_nothing_ever_goes_to_or_comes_from_one_that_the_path_does_not_lead_to(
    shared: Shared, mode: str
) -> None:
    """Each takes the path over from one that lives, while others scrape and act."""
    vms = [shared.start("vm0")]
    #: When each was started, and when it had the path at the latest.
    had = [(0.0, 0.0)]
    user = admin(shared.lab, flags=(f"--qmp.connection={mode}",))
    wait_until(lambda: names(user.exporter.metrics()), "the first one is seen")
    held = {}
    with Asking(shared, user, user.exporter) as asking:
        for number in range(1, ROUNDS + 1):
            began = time.monotonic()
            vms.append(shared.start(f"vm{number}"))
            had.append((began, time.monotonic()))
            before = vms[-2]
            held[before.name] = layers(before)
            # In turn: the next scrape and the next actions, with the one before alive.
            assert names(user.exporter.metrics()) == [f"vm{number}"]
            deadline = time.monotonic() + PATIENCE_SECONDS
            while len(layers(vms[-1])) == 1:
                assert time.monotonic() < deadline, asking.actions[-1][2]
                time.sleep(0.02)
            # Whatever was asked for, nothing of it has reached the one before.
            assert layers(before) == held[before.name]
            before.kill()
        held[vms[-1].name] = []
    held[vms[-1].name] = layers(vms[-1])

    owner = {file: name for name, found in held.items() for file in found}
    for scraped, ended, seen in asking.scrapes:
        assert set(seen) <= possible(had, scraped, ended)
    for acted, ended, answer, file in asking.actions:
        if answer.status == 201:
            assert owner[file] in possible(had, acted, ended)
        else:
            assert (answer.status, answer.problem) in {(409, "another-vm"), (503, "vm-down")}, (
                answer
            )
            assert file not in owner
    assert len(asking.scrapes) > ROUNDS
    assert {answer.status for _, _, answer, _ in asking.actions} >= {201, 409}


def possible(had: list[tuple[float, float]], began: float, ended: float) -> set[str]:
    """Return who may have had the path between two instants."""
    return {
        f"vm{number}"
        for number, (start, _) in enumerate(had)
        if start <= ended and (number + 1 == len(had) or had[number + 1][1] >= began)
    }
