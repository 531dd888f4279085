"""What users write into scripts, units and files beside the names of metrics: every word of it, as one list a kind."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from exporter.api.openapi import description
from exporter.api.problems import PROBLEMS
from exporter.config import settings
from exporter.ctl.commands import EXIT_CODES_HELP, OPERATING
from exporter.web import config as web_config
from exporter.web.app import OTHER_PATHS, Options
from tests.parsers import OPERATORS, serving_commands, serving_parser

_RULES = Path(__file__).parent.parent / "deploy" / "prometheus"


def interface() -> dict[str, list[str]]:
    """Return each kind of names, in order."""
    api = description("")
    found = {
        "flags": flags(),
        "configuration": keys(msgspec.json.schema(settings._File)),
        "web configuration": keys(msgspec.json.schema(web_config._File)),
        "pages": {*OTHER_PATHS, Options().telemetry_path},
        "operations": {
            f"{method.upper()} {path}"
            for path, methods in api["paths"].items()
            for method in methods
        },
        "fields": fields(api["components"]["schemas"]),
        "problems": set(PROBLEMS),
        "exit codes": set(re.findall(r"^  (\d+) ", EXIT_CODES_HELP, re.MULTILINE)),
        "alerts": ruled("alerts.yml", "alert"),
        "recorded": ruled("rules.yml", "record") | ruled("scale/rules.yml", "record"),
    }
    return {kind: sorted(names) for kind, names in found.items()}


def flags() -> set[str]:
    """Return the commands, and each one's flags and the words that a flag takes."""
    parsers = {"serve": serving_parser(), **OPERATORS}
    found = {*serving_commands(), *OPERATING}
    for command, parser in parsers.items():
        for action in parser._actions:
            if not isinstance(action, argparse._HelpAction):
                found |= {f"{command} {flag}" for flag in action.option_strings}
                found |= {
                    f"{command} {flag} {word}"
                    for flag in action.option_strings
                    for word in action.choices or ()
                }
    return found


def keys(schema: dict[str, Any], at: dict[str, Any] | None = None, path: str = "") -> set[str]:
    """Return the path of every key of a file, and the words that it takes."""
    at = schema if at is None else at
    if "$ref" in at:
        return keys(schema, schema["$defs"][at["$ref"].rpartition("/")[2]], path)
    found = {f"{path.rstrip('.')}: {word}" for word in at.get("enum", ())}
    for name, inside in at.get("properties", {}).items():
        found |= {f"{path}{name}"} | keys(schema, inside, f"{path}{name}.")
    for inside in (at.get("items"), *at.get("anyOf", ())):
        if isinstance(inside, dict):
            found |= keys(schema, inside, path)
    return found


def fields(schemas: dict[str, Any]) -> set[str]:
    """Return every field of what the HTTP API takes and answers."""
    return {
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field in schema.get("properties", ())
    }


def ruled(name: str, kind: str) -> set[str]:
    """Return the names that a file of rules gives."""
    return set(_names(yaml.safe_load((_RULES / name).read_text()), kind))


def _names(file: dict[str, Any], kind: str) -> Iterator[str]:
    return (rule[kind] for group in file["groups"] for rule in group["rules"] if kind in rule)
