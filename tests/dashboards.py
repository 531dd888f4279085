"""The dashboards as data: their panels, their queries, and Grafana's schema for them.

Grafana publishes the schema of a dashboard, of each panel's options and of a Prometheus query as
CUE; grafana-foundation-sdk is the Python that Grafana generates from it, one release for each
version of Grafana. Its classes drop what they do not know and check no types: both is done here.
"""

from __future__ import annotations

import enum
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

GRAFANA = Path(__file__).parent.parent / "grafana"
FILES = sorted(GRAFANA.glob("*.json"))
#: What Grafana puts in the place of its variables, and each of ours when all is chosen.
VALUES = {
    "$__rate_interval": "1m",
    "$__interval": "15s",
    "$__range": "1h",
    "$job": ".*",
    "$instance": ".*",
    "$vm": ".*",
    "$device": ".*",
}


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    dashboard: str
    panel: dict[str, Any]
    target: dict[str, Any]

    @property
    def expr(self) -> str:
        return str(self.target["expr"])

    @property
    def where(self) -> str:
        return f"{self.dashboard}: {self.panel['title']}: {self.target['refId']}"


def load(path: Path) -> dict[str, Any]:
    """Return a dashboard."""
    return typing.cast("dict[str, Any]", json.loads(path.read_text()))


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels that show something: rows are headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    """Return every query of every panel."""
    return [
        Query(path.stem, panel, target)
        for path in FILES
        for panel in panels(load(path))
        for target in panel["targets"]
    ]


def filled(expr: str, **values: str) -> str:
    """Return an expression as Grafana sends it: all of everything, or what `values` chooses."""
    chosen = VALUES | {f"${name}": value for name, value in values.items()}
    for name in sorted(chosen, key=len, reverse=True):
        expr = expr.replace(name, chosen[name])
    assert "$" not in expr, expr
    return expr


def schema_errors(dashboard: dict[str, Any]) -> list[str]:
    """Return where a dashboard is not what Grafana's schema says."""
    register_default_plugins()
    return list(_errors(dashboard, Dashboard, ""))


def _errors(value: dict[str, Any], model: Any, where: str) -> Iterator[str]:
    """Read a value as Grafana's model of it, and look what did not fit."""
    read = model.from_json(value)
    yield from _unknown(value, json.loads(JSONEncoder().encode(read)), where)
    yield from _mistyped(read, model, where)


def _unknown(value: Any, back: Any, where: str) -> Iterator[str]:
    """What did not come back is not in the schema; a null need not."""
    if isinstance(value, dict) and isinstance(back, dict):
        for key, inner in value.items():
            if inner is not None and key not in back:
                yield f"{where}.{key} is unknown"
            elif inner is not None:
                yield from _unknown(inner, back[key], f"{where}.{key}")
    elif isinstance(value, list) and isinstance(back, list):
        for index, (inner, inner_back) in enumerate(zip(value, back, strict=True)):
            yield from _unknown(inner, inner_back, f"{where}[{index}]")
    elif value != back:
        yield f"{where} is {value!r} and was read as {back!r}"


def _mistyped(value: Any, hint: Any, where: str) -> Iterator[str]:
    """Whether a value is what its annotation says, all the way down."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        found = [list(_mistyped(value, one, where)) for one in inner]
        if all(found):  # none fits: the one that fits best is the one that was meant
            yield from max(found, key=lambda errors: len(errors[0].split(" ", 1)[0]))
    elif isinstance(value, list | dict) and type(value) is origin:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _mistyped(item, inner[-1], f"{where}[{key}]")
    elif isinstance(value, dict) and hasattr(hint, "from_json"):
        yield from _errors(value, hint, where)  # the model keeps some things as they came
    elif hasattr(value, "to_json") and (hint in {object, Any} or isinstance(value, hint)):
        for name, one in typing.get_type_hints(type(value)).items():
            yield from _mistyped(getattr(value, name), one, f"{where}.{name}")
    elif not _is(value, hint, origin, inner):
        yield f"{where} is {value!r} and not {hint}"


def _is(value: Any, hint: Any, origin: Any, inner: tuple[Any, ...]) -> bool:
    """Whether a value that holds no others is what its annotation says."""
    if hint in {object, Any}:
        return True
    if origin is typing.Literal:
        return value in inner
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in {one.value for one in hint}
    if isinstance(value, bool) or not isinstance(hint, type):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
