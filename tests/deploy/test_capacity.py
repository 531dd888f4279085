"""The capacity page: its tables follow from what was measured, by arithmetic that is done twice."""

from __future__ import annotations

import json
import math
import re

import pytest

from bench.sizing import DATA, PAGE, Sizing, read_tables, tables

CONSTANTS = json.loads(DATA.read_text())
PAGE_TEXT = PAGE.read_text()
TABLES = read_tables(PAGE_TEXT)
_UNITS = {None: 1, "k": 1e3, "M": 1e6, "G": 1e9, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def rows(name: str) -> list[list[str]]:
    """Return the cells of a table, its heading left out."""
    lines = [line for line in TABLES[name].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


def number(cell: str) -> float:
    """Read `1.5 GiB`, `20 k`, `1,490` or `5.2 Mbit/s`."""
    match = re.fullmatch(r"([\d.,]+) ?(MiB|GiB|TiB|k|M|G)?(?:bit/s)?", cell)
    assert match, cell
    return float(match[1].replace(",", "")) * _UNITS[match[2]]


def test_the_page_is_what_follows_from_the_constants() -> None:
    """`python -m bench.capacity --page` would change nothing."""
    assert {name: text.strip() for name, text in TABLES.items()} == {
        name: text.strip() for name, text in tables(CONSTANTS).items()
    }
    assert PAGE_TEXT.count("<!-- /") == len(TABLES)


@pytest.mark.parametrize("kind", CONSTANTS["grid"])
def test_the_model_of_a_vm_is_right_to_the_last_series(kind: str) -> None:
    """It was made from three of the VMs that were measured, and holds for all of them."""
    disks, layers = map(int, re.findall(r"\d+", kind))
    base, disk, layer = Sizing(CONSTANTS).model

    assert CONSTANTS["grid"][kind] == base + disks * (disk + layer * layers)


def test_the_vms_of_the_servers_are_those_that_were_counted() -> None:
    """The made-up hosts have a real VM's series, and each collector's are counted once."""
    of_model = CONSTANTS["grid"]["d2l3"]

    assert CONSTANTS["series_per_vm"]["everything"] == of_model
    assert sum(CONSTANTS["collectors"].values()) == of_model
    for server in CONSTANTS["servers"].values():
        assert server["series"] >= of_model * 300
        assert server["samples"] > 120, "a chunk of the head is full"


def test_ten_thousand_hosts_are_reckoned_right() -> None:
    """By hand, in another order than the page's own arithmetic."""
    per_vm, small, large = (
        CONSTANTS["series_per_vm"], CONSTANTS["servers"]["small"], CONSTANTS["servers"]["large"],
    )  # fmt: skip
    each = (large["resident_bytes"] - small["resident_bytes"]) / (large["series"] - small["series"])
    series = 1e6 * (per_vm["everything"] + per_vm["recorded"]) + 1e4 * CONSTANTS["own_series"]
    samples = next(
        row for row in rows("samples") if row[:2] == ["10,000 x 100", "shards, with rules"]
    )
    fleet = next(row for row in rows("fleets") if row[:2] == ["10,000 x 100", "shards, with rules"])

    assert number(samples[2]) == pytest.approx(series, rel=0.01)
    for cell, seconds in zip(samples[3:], (15, 30, 60), strict=True):
        assert number(cell) == pytest.approx(series / seconds, rel=0.01)
    assert number(fleet[2]) == pytest.approx(series * each, rel=0.01)
    assert int(fleet[3]) == pytest.approx(math.ceil(series * each / 2**35), abs=1)
    blocks = CONSTANTS["block_bytes_per_sample"]["busy"]["30"]
    assert number(fleet[5]) == pytest.approx(series / 30 * 86400 * 15 * blocks, rel=0.01)
    assert number(fleet[6]) == pytest.approx(6 * number(fleet[5]), rel=0.01)
    sent = 1e6 / 30 * CONSTANTS["gzip_bytes_per_vm"] * 8
    assert number(fleet[7]) == pytest.approx(sent, rel=0.01)


def test_each_list_keeps_less_than_the_one_before() -> None:
    """Otherwise there is no reason for it."""
    kept = CONSTANTS["series_per_vm"]

    assert kept["sums"] < kept["agents"] < kept["everything"]


def test_it_is_said_when_and_on_what_it_was_measured() -> None:
    """A number without them is hearsay."""
    made = CONSTANTS["made"]

    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", made["date"])
    for each in made.values():
        assert each in TABLES["made"]
