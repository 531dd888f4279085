"""What a PromQL expression asks for: its metrics, the labels it needs, and what stands around them."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: How a query sees the first count of a counter that begins with it: the increase, and what the
#: counter began with where it was not there before. One that comes back within an hour was there.
_FIRST = re.compile(
    r"increase\((?P<of>[^()\[\]]+)\[(?P<range>[^\]]+)\]\) \+ "
    r"\(min_over_time\((?P=of)\[(?P=range)\]\) "
    r"unless last_over_time\((?P=of)\[1h\] offset (?P=range)\)\) "
    r"or increase\((?P=of)\[(?P=range)\]\)"
)
_TOKEN = re.compile(
    r'\s*("(?:[^"\\]|\\.)*"|\[[^\]]*\]|[A-Za-z_][\w:]*|\d[\w.]*|=~|!~|!=|==|[<>]=|[-+*/%^(){},=<>])'
)
_OPERATORS = {"and", "or", "unless", "bool", "offset"}
_JOINS = {"on", "ignoring", "group_left", "group_right"}


@dataclass(frozen=True)
class Use:
    """One selector of an expression."""

    #: The name, or the pattern of a `__name__=~"..."`.
    name: str
    #: Labels that it selects by, and labels that an aggregation around it keeps.
    labels: frozenset[str]
    #: What stands between the brackets after it.
    range: str
    #: The function that is called with it.
    function: str


@dataclass(frozen=True)
class _Call:
    function: str
    by: tuple[str, ...]


def uses(expr: str) -> list[Use]:
    """Return every selector of an expression; what this does not understand is refused.

    An increase that sees a counter's first count is one use of it, by `increase`.
    """
    tokens = _tokens(_FIRST.sub(r"increase(\g<of>[\g<range>])", expr))
    found: list[Use] = []
    calls: list[_Call] = []
    by: tuple[str, ...] = ()
    function = ""
    at = 0
    while token := tokens[at]:
        after = tokens[at + 1]
        at += 1
        if token == "(":
            calls.append(_Call(function, by))
            function, by = "", ()
        elif token == ")":
            calls.pop()
        elif token in {"by", "without"}:
            by, at = _names(tokens, at)
        elif token in _JOINS:
            raise ValueError(f"{token}: not understood here")
        elif token == "{" or (token[0].isalpha() and token not in _OPERATORS):
            if after == "(" or after in {"by", "without"}:
                function = token
                continue
            use, at = _selector(tokens, at - 1)
            kept = {label for call in calls for label in call.by}
            within = calls[-1].function if calls else ""
            found.append(Use(use.name, use.labels | kept, use.range, within))
    assert not calls, expr
    return found


def seen_from_the_first(expr: str) -> list[str]:
    """Return the counters whose first count an expression sees, though they begin with it."""
    line = re.sub(r"(?<=\() | (?=\))", "", " ".join(expr.split()))
    return [use.name for match in _FIRST.finditer(line) for use in uses(match["of"])]


def kept(expr: str) -> set[str] | None:
    """Return the labels that the outermost aggregation keeps; None if there is none to say so."""
    groups = [set(re.findall(r"\w+", group)) for group in re.findall(r"\bby \(([^)]*)\)", expr)]
    return groups[0] if groups else None


def _tokens(expr: str) -> list[str]:
    found, at = [], 0
    while match := _TOKEN.match(expr, at):
        found.append(match[1])
        at = match.end()
    if expr[at:].strip():
        raise ValueError(f"not understood: {expr[at:]}")
    return [*found, ""]


def _names(tokens: list[str], at: int) -> tuple[tuple[str, ...], int]:
    """Read `(a, b)`; an aggregation whose operand does not follow is refused."""
    end = tokens.index(")", at)
    if tokens[at] != "(" or tokens[end + 1] != "(":
        raise ValueError("write the labels of an aggregation before its operand")
    return tuple(token for token in tokens[at + 1 : end] if token != ","), end + 1


def _selector(tokens: list[str], at: int) -> tuple[Use, int]:
    """Read `name{label="value"}[range]`."""
    name, labels = "", set()
    if tokens[at] != "{":
        name = tokens[at]
        at += 1
    if tokens[at] == "{":
        end = tokens.index("}", at)
        matchers = tokens[at + 1 : end]
        for label, value in zip(matchers[::4], matchers[2::4], strict=True):
            labels.add(label)
            if label == "__name__":
                name = value.strip('"')
        at = end + 1
    span = ""
    if tokens[at].startswith("["):
        span = tokens[at].strip("[]")
        at += 1
    return Use(name, frozenset(labels), span, ""), at
