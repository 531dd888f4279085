"""The page at the root: what this is and where to look."""

from __future__ import annotations

import html
from collections.abc import Iterable
from string import Template

from exporter import __version__

NAME = "QEMU Block Exporter"

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>$name</title>
<style>
body { font-family: system-ui, sans-serif; margin: 3rem auto; max-width: 42rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } li { margin: .4rem 0; } footer { color: #666; margin-top: 2rem; }
</style></head>
<body>
<h1>$name</h1>
<p>Block devices, backing layers and block jobs of QEMU virtual machines, for Prometheus.</p>
<p>$targets targets.</p>
<ul>$links</ul>
<footer>Version $version</footer>
</body>
</html>
""")


def landing_page(links: Iterable[tuple[str, str, str]], targets: int) -> str:
    """Return the page as HTML; each link is a path, its name, and a text without HTML."""
    items = "".join(
        f'<li><a href="{html.escape(path)}">{name}</a>: {text}</li>' for path, name, text in links
    )
    return _PAGE.substitute(name=NAME, version=__version__, links=items, targets=targets)
