"""The image: built from the Dockerfile, run as a container beside real VMs, and what it can see there.

Three containers run: a narrow one, which has the folder of the sockets and nothing else; a middle one,
which has the processes of the host too, and asks for chains by the clock; and a wide one, which has its
network as well, and the image files at their own paths.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter import __version__
from tests.e2e.container import BASE, Container, Engine
from tests.e2e.lab import HASTY, Lab, Monitor, drive
from tests.e2e.reading import labels_of, value

UID = 65532
BUILD = (f"--build-arg=VERSION={__version__}", "--build-arg=REVISION=abc", "--timestamp=0")
MAX_AGE_SECONDS = 1
FLAGS = (HASTY, f"--collector.topology.max-age={MAX_AGE_SECONDS}")
NARROW = ("--network=none", "--cap-drop=all", "--security-opt=no-new-privileges", "--read-only")
MIDDLE = (*NARROW, "--pid=host")
WIDE = ("--network=host", "--pid=host", "--cap-drop=all", "--read-only")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine with the image in its store."""
    with tempfile.TemporaryDirectory(prefix="qbe-image-") as folder, ExitStack() as stack:
        parts = Engine(Path(folder))
        stack.callback(parts.close)
        parts.build(*BUILD)
        yield parts


@dataclass
class Views:
    """What three containers said of the same VMs, one after the other: a socket has one client.

    At first, and when what was first said of chains has grown old.
    """

    from_wide: str
    first_of_middle: str
    from_middle: str
    narrow: Container
    first: str
    from_narrow: str
    lab: Lab


@pytest.fixture(scope="module")
def views(engine: Engine, shared_lab: Lab) -> Iterator[Views]:
    """VMs that are up, busy, stopped, and forbidden, and the three containers."""
    with ExitStack() as stack:
        folder = shared_lab.folder / "sockets"
        folder.mkdir()
        lab = Lab(folder, stack)
        up = lab.qemu("up", *drive("disk0", shared_lab.chain("up", 2)[0]))
        up.socket.chmod(0o666)
        lab.qemu("forbidden").socket.chmod(0o755)

        at = f"--volume={shared_lab.folder}:{shared_lab.folder}:ro"
        own = [f"--qmp.sockets={folder}/*.sock", "--web.listen-address=127.0.0.1:0"]
        wide = engine.run("wide", *WIDE, at, flags=[*own, *FLAGS])
        with silent(lab), closing(wide):
            from_wide = wide.until(lambda text: is_up(text) and asked(text) > 1)

        at = f"--volume={folder}:/run/qemu-block-exporter:ro"
        own = ["--web.listen-address=0.0.0.0:9709"]
        always = "--collector.topology=always"
        middle = engine.run("middle", *MIDDLE, at, flags=[*own, *FLAGS, always])
        with silent(lab), closing(middle):
            first_of_middle = middle.until(is_up)
            from_middle = middle.until(lambda text: is_up(text) and asked(text) > 1)

        narrow = engine.run("narrow", *NARROW, at, flags=[*own, *FLAGS])
        with silent(lab), closing(narrow):
            first = narrow.until(is_up)
            old = narrow.until(
                lambda text: is_up(text) and not labels_of(text, "qemu_block_node_info", vm="up")
            )
            yield Views(from_wide, first_of_middle, from_middle, narrow, first, old, lab)


@contextmanager
def silent(lab: Lab) -> Iterator[None]:
    """A VM that another client talks to, and one that is stopped.

    New ones: those who waited for a VM stay in its queue, and a full queue is `busy` to everybody.
    """
    vms = [lab.qemu("busy"), lab.qemu("stopped")]
    for vm in vms:
        vm.socket.chmod(0o666)
    with closing(Monitor(vms[0].socket)), vms[1].stopped():
        yield
    for vm in vms:
        vm.quit()
        vm.socket.unlink(missing_ok=True)


def is_up(exposition: str) -> bool:
    return value(exposition, "qemu_vm_up", vm="up") == 1


def asked(exposition: str) -> float:
    """Return how often query-block was asked."""
    return value(exposition, "qemu_exporter_qmp_commands_total", command="query-block") or 0


def reason(exposition: str, vm: str) -> str:
    """Return why a VM is down."""
    return labels_of(exposition, "qemu_vm_scrape_error", vm=vm)[0]["reason"]


def test_the_image_says_what_it_is_and_runs_as_nobody(engine: Engine) -> None:
    """A user by number, so that Kubernetes can see that it is not root; labels of the OCI."""
    image = engine.inspect()
    config = image["Config"]
    labels = {name.rpartition(".")[2]: text for name, text in config["Labels"].items()}

    assert config["User"] == f"{UID}:{UID}"
    assert config["ExposedPorts"].keys() == {"9709/tcp"}
    assert config["Entrypoint"] == ["qemu-block-exporter"]
    assert labels["title"] == "qemu-block-exporter"
    assert labels["licenses"] == "Apache-2.0"
    assert labels.keys() >= {"description", "documentation", "source", "vendor"}
    assert config["Labels"]["org.opencontainers.image.base.name"] == BASE
    assert (labels["revision"], labels["version"]) == ("abc", __version__)
    assert image["Healthcheck"]["Test"][0] == "CMD"


def test_two_builds_make_the_same_layers(engine: Engine) -> None:
    """Bit for bit, with no time in them."""
    first = engine.inspect()
    engine.build(*BUILD)

    assert engine.inspect()["RootFS"] == first["RootFS"]
    assert engine.inspect()["Config"] == first["Config"]


def test_a_vm_is_seen_from_a_container(views: Views) -> None:
    """Through its socket alone, on a read-only mount, with no capability."""
    assert value(views.first, "qemu_vm_up", vm="up") == 1
    assert value(views.first, "qemu_block_device_backing_depth", vm="up", device="disk0") == 1
    assert len(labels_of(views.first, "qemu_block_node_info", vm="up", role="format")) == 2


def test_vms_come_and_go_in_the_folder_that_is_mounted(views: Views) -> None:
    """A socket that is made later is there too, and one that is taken away is not."""
    late = views.lab.qemu("late")
    late.socket.chmod(0o666)
    views.narrow.until(lambda text: value(text, "qemu_vm_up", vm="late") == 1)
    late.quit()
    late.socket.unlink(missing_ok=True)

    text = views.narrow.until(lambda text: 'vm="late"' not in text)
    assert is_up(text)


def test_it_is_not_root_on_the_host_either(views: Views) -> None:
    """Whoever breaks out of it has no rights."""
    status = Path(f"/proc/{views.narrow.pid_on_host()}/status").read_text()

    assert re.search(rf"^Uid:\t{UID}\t{UID}\t{UID}\t{UID}$", status, re.MULTILINE)
    assert re.search(rf"^Gid:\t{UID}\t{UID}\t{UID}\t{UID}$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)


def test_a_socket_that_is_not_shared_with_its_user_is_said_to_be(views: Views) -> None:
    """The most likely mistake: the folder is mounted, and the sockets are only QEMU's own."""
    assert reason(views.first, "forbidden") == "permission"


def test_the_health_check_of_the_image_tells_well_from_ill(views: Views, engine: Engine) -> None:
    """0 where it listens, and 1 where it does not, such as at another port."""
    assert views.narrow.get("/-/healthy")
    assert views.narrow.healthcheck() == 0
    other = engine.run("other", "--network=none", flags=["--web.listen-address=127.0.0.1:9710"])
    assert other.get("/-/healthy")
    assert other.healthcheck() == 1
    other.close()


def test_a_container_cannot_tell_busy_from_stopped(views: Views) -> None:
    """/proc shows it neither the sockets nor the processes of the host."""
    assert reason(views.first, "busy") == "greeting_timeout"
    assert reason(views.first, "stopped") == "greeting_timeout"


def test_with_the_processes_of_the_host_it_knows_who_is_stopped(views: Views) -> None:
    """And still not who is busy."""
    assert reason(views.first_of_middle, "busy") == "greeting_timeout"
    assert reason(views.first_of_middle, "stopped") == "stopped"


def test_with_network_and_processes_of_the_host_it_can(views: Views) -> None:
    """As long as the sockets are mounted where QEMU made them."""
    assert reason(views.from_wide, "busy") == "busy"
    assert reason(views.from_wide, "stopped") == "stopped"


def test_a_container_without_the_images_does_not_ask_for_chains_by_the_clock(views: Views) -> None:
    """It cannot see whether the storage answers. What query-block said grows old, and is gone: file
    names and sizes. Requests, jobs, and how deep the chains are come with every scrape."""
    text = views.from_narrow

    assert value(text, "qemu_vm_up", vm="up") == 1
    assert value(text, "qemu_vm_storage_responding", vm="up") is None
    assert not labels_of(text, "qemu_block_device_info", vm="up")
    assert asked(text) == 1
    assert value(text, "qemu_block_device_backing_depth", vm="up", device="disk0") == 1
    assert value(text, "qemu_block_reads_completed_total", vm="up", device="disk0") is not None


def test_it_does_where_it_is_told_to(views: Views) -> None:
    """By --collector.topology=always, for storage that cannot hang."""
    assert value(views.from_middle, "qemu_vm_storage_responding", vm="up") is None
    assert len(labels_of(views.from_middle, "qemu_block_node_info", vm="up", role="format")) == 2


def test_with_the_images_at_their_own_paths_it_does(views: Views) -> None:
    """Read-only, so that it still can change none of them."""
    text = views.from_wide
    layer = {"vm": "up", "device": "disk0", "layer": "0", "role": "format"}

    assert value(text, "qemu_vm_storage_responding", vm="up") == 1
    assert value(text, "qemu_block_node_storage_size_bytes", **layer)
    assert len(labels_of(text, "qemu_block_node_info", vm="up", role="format")) == 2
