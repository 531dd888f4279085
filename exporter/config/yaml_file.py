"""Reads YAML files strictly: duplicate keys and values of a wrong type are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from exporter.errors import ConfigError

T = TypeVar("T")


def read(path: str, kind: type[T]) -> T:
    """Return the file at `path` as a `kind`; an empty file gives the defaults of `kind`.

    Raises:
        ConfigError: names the file, the place in it and what is wrong there.
    """
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error  # type: ignore[attr-defined]
    try:
        tree = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  # a SafeLoader
        return msgspec.convert({} if tree is None else tree, kind)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    except (msgspec.ValidationError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error


def text(tree: object) -> str:
    """Return a tree of plain values as YAML, keeping the order of keys."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML silently takes the last.

    Reports a value that does not match its tag, such as an impossible date, as a YAML error; PyYAML
    raises whatever error its parsing code runs into.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (AttributeError, KeyError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} is not a valid {kind}", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float, bool)) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}", key_node.start_mark
                )
            seen.add(key) if isinstance(key, str) else None
        return super().construct_mapping(node, deep)
