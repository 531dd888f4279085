"""The project's pages as Markdown: their links, their blocks of code, and the commands in these."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
PROJECT = "https://github.com/qemu-block-exporter/qemu-block-exporter"
#: Where GitHub shows a file, a folder, or a file as it is.
IN_TREE = (
    f"{PROJECT}/blob/main/",
    f"{PROJECT}/tree/main/",
    f"{PROJECT}/raw/main/",
    f"{PROJECT.replace('github.com', 'raw.githubusercontent.com')}/main/",
)
PROGRAM = "qemu-block-exporter"
_MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A fenced or indented block of code."""

    #: What stands behind the fence; empty for an indented block.
    language: str
    text: str


class Page:
    """One page, by its path from the root of the project."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = ROOT / name
        self.text = self.path.read_text()
        self._tokens = _MARKDOWN.parse(self.text)

    def links(self) -> Iterator[str]:
        """Yield where each link and each picture leads."""
        for token in self._inline():
            for attribute in ("href", "src"):
                if attribute in token.attrs:
                    yield str(token.attrs[attribute])

    def blocks(self, *languages: str) -> list[Block]:
        """Return the blocks of code; of the given languages, if there are any."""
        found = [
            Block(token.info.strip(), token.content)
            for token in self._tokens
            if token.type in {"fence", "code_block"}
        ]
        return [block for block in found if not languages or block.language in languages]

    def code(self) -> list[str]:
        """Return what stands between backquotes in its sentences and tables."""
        return [token.content for token in self._inline() if token.type == "code_inline"]

    def column(self, header: str) -> list[str]:
        """Return what stands between backquotes below this header of a table."""
        found: list[str] = []
        headers: list[str] = []
        at = 0
        for before, token in zip(self._tokens, self._tokens[1:], strict=False):
            if before.type == "thead_open":
                headers = []
            if before.type == "tr_open":
                at = 0
            if before.type == "th_open":
                headers.append(token.content)
            if before.type == "td_open":
                if headers[at] == header:
                    found += [
                        part.content for part in token.children or () if part.type == "code_inline"
                    ]
                at += 1
        return found

    def anchors(self) -> set[str]:
        """Return the anchors that GitHub makes from the headings."""
        headings = [
            "".join(part.content for part in inline.children or ())
            for token, inline in zip(self._tokens, self._tokens[1:], strict=False)
            if token.type == "heading_open"
        ]
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def commands(self) -> Iterator[list[str]]:
        """Yield every command of its blocks, and each of ours and of make in its sentences, as words."""
        for block in self.blocks("sh"):
            yield from commands(block.text)
        for block in self.blocks("console"):
            prompts = re.findall(r"^\$ (.*)", block.text, re.MULTILINE)
            assert prompts, f"{self.name}: nothing is typed in {block.text}"
            yield from commands("\n".join(prompts))
        for code in self.code():
            if code.startswith((f"{PROGRAM} ", "make ", "curl ")):
                yield from commands(code)

    def _inline(self) -> Iterator[Token]:
        for token in self._tokens:
            yield from token.children or ()


def commands(script: str) -> Iterator[list[str]]:
    """Yield each command of a simple shell script as words; a variable's value is put in its place."""
    values: dict[str, str] = {}
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(_put_in(line, values), posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("|&;"):
                while words and (set_ := re.fullmatch(r"(\w+)=(.*)", words[0], re.DOTALL)):
                    values[set_[1]] = set_[2]
                    words.pop(0)
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def ours(words: list[str]) -> list[str] | None:
    """Return what stands behind the name of our program; None for a command of another one."""
    if words[0].rpartition("/")[2] == PROGRAM:
        return words[1:]
    if words[:2] == ["docker", "run"]:
        return words[words.index(PROGRAM) + 1 :]
    return None


def in_tree(link: str, page: Page) -> tuple[Path, str] | None:
    """Return the file and the anchor that a link leads to; None if it leads out of the project."""
    place, _, anchor = link.partition("#")
    for start in IN_TREE:
        if place.startswith(start):
            return ROOT / place.removeprefix(start), anchor
    if re.match(r"\w+:", place):
        return None
    return (page.path.parent / place if place else page.path), anchor


def _put_in(line: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        line = line.replace(f"${name}", value)
    return line
