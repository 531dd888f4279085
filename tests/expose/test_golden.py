"""Each recorded step has one exposition, to the letter. `pytest --update-golden` writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import samples
from tests.replay import assembled, exposition, replay, scenarios, steps

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = [
    (version, scenario) for version in ("2.0", "7.2", "10.0") for scenario in scenarios(version)
]


def _lines(text: str) -> str:
    """Leave the heads out: METRICS.md has them, once."""
    return "".join(line + "\n" for line in text.split("\n") if line and line[0] != "#")


each_case = pytest.mark.parametrize(
    ("version", "scenario"), CASES, ids=["-".join(case) for case in CASES]
)


@each_case
def test_every_step_has_its_golden_exposition(
    version: str, scenario: str, request: pytest.FixtureRequest
) -> None:
    """What Prometheus gets in each recorded step is what it got when somebody last looked."""
    update = request.config.getoption("--update-golden")
    for step, state in assembled(version, steps(version, scenario)):
        text = exposition(state)
        assert samples(text)
        path = GOLDEN / version / f"{step}.prom"
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_lines(text))
        assert path.read_text() == _lines(text), f"{step} is not its golden exposition"


@each_case
async def test_a_collector_gets_the_same_through_a_socket(
    version: str, scenario: str, sockets: Path
) -> None:
    """It asks for all that the assembler wants, and passes all of it on."""
    async for step, snapshot, text in replay(version, steps(version, scenario), sockets):
        assert snapshot.up, f"{step}: {snapshot.reason}"
        assert (GOLDEN / version / f"{step}.prom").read_text() == _lines(text), step


def test_every_golden_exposition_belongs_to_a_step() -> None:
    """A golden file that no step is compared with is a check that is not made."""
    expected = {f"{v}/{step}.prom" for v, scenario in CASES for step in steps(v, scenario)}

    assert expected == {str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*.prom")}
