"""YAML files, read strictly: what stands twice, or is no value of its type, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from exporter.errors import ConfigError

T = TypeVar("T")


def read(path: str, kind: type[T]) -> T:
    """Return the file at `path` as a `kind`, which has a default for an empty file.

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
    """Return a tree of plain values as YAML, its keys in their order."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


class _StrictLoader(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys; the first was meant as well.

    And where a value is not of its tag, such as a date that is none, it raises whatever it meets.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (AttributeError, KeyError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} is no {kind}", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float, bool)) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands here a second time", key_node.start_mark
                )
            seen.add(key) if isinstance(key, str) else None
        return super().construct_mapping(node, deep)
