"""Three exporters, two shards that share their VMs, an agent on one host, and a central Prometheus.

The shards run on shard-by-vm.yml as it is shipped, with the hosts, times and addresses of this lab,
and with everything sent instead of the sums. The agent has agent.yml, its list of names included.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from bench.fleets import record
from tests.e2e.lab import ROOT, Exporter, Lab, blockdev, drive, wait_until
from tests.e2e.prometheus import EVERY_SECOND, SHIPPED, Server, free_address
from tests.e2e.test_prometheus import OPENMETRICS

#: A sample of a series: the series are those of the exporters and what Prometheus says of targets.
OURS = '{job=~"qemu-block-.+"}'
#: Those that the agent sends: its job is another, and its host has the name of the file.
OF_AGENT = '{job="qemu-block"}'
#: How many VMs a host has that are simulated by what a real one said.
FAKES = 2

Series = frozenset[tuple[str, str]]
Samples = dict[Series, dict[float, str]]


class Host(NamedTuple):
    """A folder of VMs, and the exporter on them."""

    exporter: Exporter
    vms: set[str]

    @property
    def instance(self) -> str:
        return str(self.exporter.url.removeprefix("http://"))

    def series(self) -> set[Series]:
        """Return what it exposes, as Prometheus should have it."""
        text = self.exporter.get(Accept=OPENMETRICS)
        found = set()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                job = "qemu-block-vm" if "vm" in sample.labels else "qemu-block-exporter"
                labels = {name: each for name, each in sample.labels.items() if each}
                found.add(self._of_target({"__name__": sample.name, **labels, "job": job}))
        return found

    def of_targets(self) -> set[Series]:
        """Return what Prometheus itself says of each scrape."""
        names = ["up", "scrape_duration_seconds", "scrape_samples_scraped", "scrape_series_added"]
        names += ["scrape_samples_post_metric_relabeling"]
        targets = [{"job": "qemu-block-vm", "vm": vm} for vm in self.vms]
        targets += [{"job": "qemu-block-exporter"}]
        return {self._of_target({"__name__": name, **each}) for name in names for each in targets}

    def _of_target(self, labels: Mapping[str, str]) -> Series:
        labels = {**labels, "instance": self.instance, "cluster": "one", "replica": "a"}
        return frozenset(labels.items())


class Lot:
    """All servers, each to be ended and started again on what it has on disk."""

    def __init__(self, folder: Path, hosts: list[Host], stack: ExitStack) -> None:
        self._folder = folder
        self.hosts = hosts
        self._stack = stack
        self._addresses = {name: free_address() for name in ("central", "0", "1")}
        self.servers: dict[str, Server] = {}
        for name in self._addresses:
            self.start(name)
        self._start_agent()

    def start(self, name: str) -> Server:
        """Start a server, or start it again."""
        folder = self._folder / f"prometheus-{name}"
        folder.mkdir(exist_ok=True)
        settings = central() if name == "central" else self._shard(name)
        flags = ["--web.enable-remote-write-receiver"] if name == "central" else []
        server = Server(folder, settings, *flags, address=self._addresses[name])
        self._stack.callback(server.close)
        self.servers[name] = server
        return server

    def _start_agent(self) -> None:
        folder = self._folder / "agent"
        folder.mkdir()
        settings: dict[str, Any] = yaml.safe_load((SHIPPED / "scale" / "agent.yml").read_text())
        settings["global"] |= EVERY_SECOND
        settings["scrape_configs"][0]["static_configs"][0]["targets"] = [self.hosts[0].instance]
        settings["remote_write"][0]["url"] = f"http://{self._addresses['central']}/api/v1/write"
        agent = Server(folder, settings, "--enable-feature=agent", storage="agent")
        self._stack.callback(agent.close)

    def _shard(self, number: str) -> dict[str, Any]:
        instances = [host.instance for host in self.hosts]
        settings: dict[str, Any] = yaml.safe_load((SHIPPED / "scale/shard-by-vm.yml").read_text())
        settings["global"] |= EVERY_SECOND
        del settings["alerting"], settings["rule_files"]
        by_vm, own = settings["scrape_configs"]
        by_vm["http_sd_configs"] = [{"url": f"http://{each}/sd"} for each in instances]
        own["scrape_interval"] = "1s"
        own["static_configs"] = [{"targets": instances}]
        for job in (by_vm, own):
            assert job["relabel_configs"][-1]["regex"] == "0"
            job["relabel_configs"][-1]["regex"] = number
        (write,) = settings["remote_write"]
        del write["write_relabel_configs"]
        write["url"] = f"http://{self._addresses['central']}/api/v1/write"
        write["queue_config"] |= {"batch_send_deadline": "1s", "max_backoff": "500ms"}
        return settings

    def targets(self, name: str) -> set[tuple[str, str, str]]:
        """Return the targets of a shard: job, instance, VM."""
        active = self.servers[name].api("targets", state="active")["activeTargets"]
        labels = [target["labels"] for target in active]
        return {(each["job"], each["instance"], each.get("vm", "")) for each in labels}

    def series(self, name: str, selector: str = OURS) -> set[Series]:
        """Return every series that goes on in a server.

        One that was there for a moment is none of these: a VM may have been late for a scrape.
        """
        more = {} if name == "central" else {"cluster": "one", "replica": "a"}
        found = self.servers[name].series(selector)
        return {frozenset((each["metric"] | more).items()) for each in found}

    def samples(self, name: str) -> Samples:
        """Return every sample of every series that a server has, by its time."""
        found = self.servers[name].series(f"{OURS}[1h]")
        more = {} if name == "central" else {"cluster": "one", "replica": "a"}
        return {
            frozenset((each["metric"] | more).items()): dict(map(tuple, each["values"]))
            for each in found
        }

    def latest(self, name: str) -> float:
        """Return the time until which a server knows all targets, 0 where it knows nothing yet."""
        try:
            found = self.servers[name].series(f"min(timestamp(up{OURS}))")
        except OSError:
            return 0.0
        return float(found[0]["value"][1]) if found else 0.0

    def _is_later(self, name: str, then: float) -> bool:
        return self.latest(name) > then

    def scrapes_on(self, name: str) -> None:
        """Wait until a server has scraped, or was sent, every target two more times."""
        for _ in range(2):
            then = time.time()
            wait_until(partial(self._is_later, name, then), f"{name} goes on")

    def go_on(self, name: str, series: set[Series], since: float) -> None:
        """Wait until a server has samples of all these series of after a time."""

        def all_do() -> bool:
            return within(self.samples(name), since, time.time()).keys() >= series

        wait_until(all_do, f"all series of {name} go on")

    def answers(self, name: str) -> None:
        """Wait until a server that was started answers."""
        wait_until(lambda: self.latest(name), f"{name} answers")

    def has_all_of(self, name: str) -> None:
        """Wait until the central server has every sample that a shard has now."""
        now = self.samples(name)
        wait_until(lambda: not missing(now, self.samples("central")), f"all of {name} is sent")


def central() -> dict[str, Any]:
    """Return the central configuration as it is shipped, without rules."""
    settings: dict[str, Any] = yaml.safe_load((SHIPPED / "scale" / "central.yml").read_text())
    del settings["rule_files"]
    return settings


def within(
    samples: Samples, begin: float, end: float, of: Collection[Series] | None = None
) -> Samples:
    """Return the samples of a time, of some series or all: those that have one."""
    chosen = {
        series: {at: each for at, each in times.items() if begin < at <= end}
        for series, times in samples.items()
        if of is None or series in of
    }
    return {series: times for series, times in chosen.items() if times}


def missing(these: Samples, there: Samples) -> Samples:
    """Return the samples that are not there, or are another value there."""
    less = {
        series: {at: each for at, each in samples.items() if there.get(series, {}).get(at) != each}
        for series, samples in these.items()
    }
    return {series: samples for series, samples in less.items() if samples}


def host(folder: Path, number: int, stack: ExitStack) -> Host:
    """Start a host with real VMs of two disks, and simulated ones; all hosts have the same names."""
    folder.mkdir()
    lab = Lab(folder, stack)
    vm = lab.qemu("web", *drive("disk0", lab.chain("disk0", 1)[0]), *drive("disk1", lab.image("b")))
    replies = folder / "replies.json"
    replies.write_text(json.dumps(record(str(vm.socket))))
    if number == 0:
        lab.qemu("db", *blockdev("disk0", *lab.chain("db", 2)), machine="pc")
    command = [sys.executable, "-m", "bench.fakes", str(folder), str(FAKES), str(replies)]
    fakes = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    stack.callback(fakes.wait)
    stack.callback(fakes.kill)
    assert fakes.stdout is not None
    with fakes.stdout:
        assert fakes.stdout.readline() == b"ready\n"
    exporter = lab.exporter()
    return Host(exporter, {path.stem for path in folder.glob("*.sock")})


@pytest.fixture(scope="module")
def lot(shared_lab: Lab) -> Iterator[Lot]:
    """Three hosts, two shards, one central server, and some seconds of samples."""
    with ExitStack() as stack:
        hosts = [host(shared_lab.folder / f"h{n}", n, stack) for n in range(3)]
        everything = Lot(shared_lab.folder, hosts, stack)
        for name in ("0", "1", "central"):
            everything.answers(name)
        yield everything


def test_each_target_falls_to_one_shard(lot: Lot) -> None:
    """VMs of one name on three hosts are three targets, and neither shard has them all."""
    expected = {("qemu-block-vm", host.instance, vm) for host in lot.hosts for vm in host.vms}
    expected |= {("qemu-block-exporter", host.instance, "") for host in lot.hosts}
    wait_until(lambda: lot.targets("0") | lot.targets("1") == expected, "all hosts name their VMs")
    shares = [lot.targets("0"), lot.targets("1")]

    assert not shares[0] & shares[1]
    assert all(shares)
    assert len(expected) == 3 * (1 + FAKES + 1) + 1


def test_every_series_is_in_the_central_store_exactly_once(lot: Lot) -> None:
    """All that the exporters expose and what Prometheus says of its scrapes; no more and no less."""

    def expected() -> set[Series]:
        return set().union(*(host.series() | host.of_targets() for host in lot.hosts))

    # More may come at any time: the first command of a kind, say.
    wait_until(lambda: lot.series("central") == expected(), "all series, and no others, arrive")
    wait_until(
        lambda: len(lot.series("0")) + len(lot.series("1")) == len(expected()), "each has one shard"
    )


def test_an_agent_sends_the_names_of_its_list_and_nothing_else(lot: Lot) -> None:
    """With the host's own name on them, where it scrapes the exporter beside it."""
    target = {"job": "qemu-block", "instance": "host1.example:9709"}
    (write,) = yaml.safe_load((SHIPPED / "scale" / "agent.yml").read_text())["remote_write"]
    kept = re.compile(write["write_relabel_configs"][0]["regex"])

    def expected() -> set[Series]:
        here = [dict(series) | target for series in lot.hosts[0].series()]
        here += [{"__name__": "up", "cluster": "one"} | target]
        here += [{"__name__": "scrape_duration_seconds", "cluster": "one"} | target]
        for labels in here:
            labels.pop("replica", None)
        return {frozenset(each.items()) for each in here if kept.fullmatch(each["__name__"])}

    wait_until(lambda: lot.series("central", OF_AGENT) == expected(), "the list arrives")
    assert len(expected()) < len(lot.hosts[0].series())


def test_a_shard_that_is_killed_loses_its_downtime_and_what_it_had_not_sent(lot: Lot) -> None:
    """Its own store has all from before it; the other shard has no gap, there and in the centre."""
    lot.scrapes_on("central")
    sent = {series: max(times) for series, times in lot.samples("central").items()}
    before = lot.series("0"), lot.series("1")
    lot.servers["0"].kill()
    down = time.time()
    lot.go_on("1", before[1], down)
    up = time.time()
    lot.start("0")
    lot.answers("0")
    lot.go_on("0", before[0], up)
    lot.has_all_of("1")
    lot.go_on("central", before[0], up)

    own, other, centre = lot.samples("0"), lot.samples("1"), lot.samples("central")
    # Nothing that was scraped is lost to the shard itself, nor does a series begin anew, ...
    assert not missing(within(centre, 0, down, of=before[0]), own)
    for series in before[0]:
        assert min(own[series]) < down
        assert max(own[series]) > up
        assert not within(own, down, up).get(series)
        assert max(centre[series]) > up
    # ... and in the centre nothing that had been sent. What had not is lost there: after a start
    # Prometheus sends what is scraped from then on (prometheus/prometheus#8809).
    for series, times in missing(within(own, 0, down, of=before[0]), centre).items():
        assert min(times) > sent[series]
    # The other shard scraped all the while.
    assert within(other, down, up).keys() >= before[1]


def test_a_shard_that_is_ended_sends_what_it_has_first(lot: Lot) -> None:
    """An upgrade loses its downtime, and in the centre at most the scrape of the last instant."""
    began = time.time()
    lot.scrapes_on("0")
    lot.servers["0"].signal(signal.SIGTERM)
    assert lot.servers["0"].wait() == 0
    ended = time.time()
    centre = lot.samples("central")
    lot.start("0")
    lot.answers("0")
    own = within(lot.samples("0"), began, ended)

    assert own
    for series, times in missing(own, centre).items():
        assert [*times] == [max(own[series])]


def test_a_central_store_that_is_down_is_sent_everything_later(lot: Lot) -> None:
    """The shards keep it for that long, and lose nothing."""
    lot.scrapes_on("0")
    began = time.time()
    lot.scrapes_on("0")
    lot.servers["central"].kill()
    down = time.time()
    for name in ("0", "1"):
        lot.scrapes_on(name)
    up = time.time()
    have = within(lot.samples("0") | lot.samples("1"), began, up)
    lot.start("central")
    lot.answers("central")

    wait_until(lambda: not missing(have, lot.samples("central")), "all is sent")
    assert within(have, began, down)
    assert within(have, down, up)
