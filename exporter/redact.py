"""Removes credentials from QEMU's file names and error texts.

QEMU shows passwords and keys in clear text: in URLs (`http://user:password@host`), in the options
of old-style names (`rbd:pool/image:key=...`), in `json:{...}` names and in the error texts
that quote them. Everything that becomes a label or a log line passes through here first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

_URL = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)$", re.DOTALL)
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_RBD = re.compile(r"^rbd:(?P<image>[^:?@=]*)")
_NBD = re.compile(r"^nbd:(unix:/[^:@?=]*|[\w.\[\]-]+:\d+)(:exportname=[\w./-]*)?$")
_NBD_UNIX = re.compile(r"^/[^?#]*\?socket=[^&\s'\"]*")
_DEVICE = re.compile(r"^/dev/(?!shm/)")
_DEBUGGED = re.compile(r"^blkdebug:[^:]*:(?P<image>.+)$", re.DOTALL)
#: The name of the child that holds the data: of most drivers; of blkdebug and blkreplay; of
#: blkverify.
_CHILDREN = ("file", "image", "raw")
#: QEMU's drivers of block devices.
DEVICE_DRIVERS = frozenset({"host_device", "host_cdrom"})
_FILE_DRIVERS = DEVICE_DRIVERS | {"file"}
_URL_IN_TEXT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://")
# A key may contain any character that could end a name, so everything up to the end of the text
# is redacted, except after a URL without a query.
_IN_TEXT = re.compile(
    r"""json:\s*\{.*
      | [A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s'"?\#]*(?:[?\#].*)?
      | \b(?:rbd|blkdebug|blkverify|nbd|vvfat|iscsi|sheepdog|ssh):\S.*""",
    re.VERBOSE | re.DOTALL,
)
_CREDENTIAL = re.compile(
    r"""(?i)(pass(?:word|wd)?|secret|key|cookie|token|user(?:name)?)\s*=\s*"""
    r"""("[^"]*"?|'[^']*'?|[^\s'",;]+)"""
)
#: Only this many characters of a longer text are examined.
_TEXT_LIMIT = 2048


def redact_filename(filename: str) -> str:
    """Return the part of a QEMU `filename` that identifies the image, without credentials.

    A path is returned as it is. A `json:{...}` name becomes the path of the file that it opens,
    or just its driver. A URL loses its user information and query.

    >>> redact_filename("http://user:password@host/a.img?token=1")
    'http://host/a.img'
    >>> redact_filename('json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/a.qcow2"}}')
    '/a.qcow2'
    """
    if filename.startswith("json:"):
        return _of_json(filename[5:])
    if url := _URL.match(filename):
        return _of_url(url["scheme"], url["rest"])
    if filename.startswith(("/", "./", "../")) or not _SCHEME.match(filename):
        return filename
    if rbd := _RBD.match(filename):
        return f"rbd:{rbd['image']}"
    if filename.startswith("file:"):
        return filename.removeprefix("file:")
    if _NBD.match(filename):
        return filename
    return filename.partition(":")[0] + ":"


def local_path(filename: str) -> str | None:
    """Return the path that QEMU opened for `filename`, None if it is not a file.

    The path may be relative to a directory that only QEMU knows. Below a debugging filter, as in
    `blkdebug:CONFIG:NAME`, it is the file that the filter reads. [blkdebug_parse_filename]
    """
    if debugged := _DEBUGGED.match(filename):
        filename = debugged["image"]
    is_json = filename.startswith("json:")
    name = _of_json(filename[5:], _CHILDREN) if is_json else redact_filename(filename)
    return None if _SCHEME.match(name) else name


def data_file(filename: str) -> str | None:
    """Return the path of the data file in a `json:` name, None if it has none."""
    child = _options(filename.removeprefix("json:")).get("data-file")
    return local_path(f"json:{json.dumps(child)}") if isinstance(child, dict) else None


def redact_text(text: str, limit: int = 200) -> str:
    """Return an error text of QEMU without credentials, at most `limit` characters long."""
    text = _without_user(text[:_TEXT_LIMIT])
    text = _IN_TEXT.sub(lambda match: redact_filename(match[0]), text)
    text = _CREDENTIAL.sub(lambda match: f"{match[1]}=...", text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _without_user(text: str) -> str:
    """Return a text without anything that may be the user information of a URL."""
    before, _, after = text.rpartition("@")
    url = _URL_IN_TEXT.search(before)
    if url is None:
        return text
    if re.search("[/?#]", before[url.end() :]):
        return f"{before[: url.start()]}{url[1]}:"
    return before[: url.end()] + after


def is_on_device(filename: str) -> bool:
    """Whether a name is a block device, or a `json:` name opens one other than as a backing file."""
    if not filename.startswith("json:"):
        return bool(_DEVICE.match(filename))
    waiting: list[object] = [_options(filename[5:])]
    while waiting:
        options = waiting.pop()
        if isinstance(options, list):
            waiting += options
        elif isinstance(options, dict):
            if options.get("driver") in DEVICE_DRIVERS:
                return True
            waiting += [child for name, child in options.items() if name != "backing"]
    return False


def throttle_group(filename: str) -> str | None:
    """Return the throttle group in a throttle filter's `json:` name, None if it has none."""
    options = _options(filename.removeprefix("json:"))
    group = options.get("throttle-group")
    return group if isinstance(group, str) else None


def _options(text: str) -> dict[str, object]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return options if isinstance(options, dict) else {}


def _of_json(text: str, children: Sequence[str] = ("file",)) -> str:
    top = options = _options(text)
    while child := next((c for n in children if isinstance(c := options.get(n), dict)), None):
        options = child
    driver, name = options.get("driver"), options.get("filename")
    if driver in _FILE_DRIVERS and isinstance(name, str):
        return name
    if isinstance(url := options.get("url"), str) and (match := _URL.match(url)):
        return _of_url(match["scheme"], match["rest"])
    named = driver if isinstance(driver, str) else top.get("driver")
    return f"{named}:" if isinstance(named, str) and named.replace("-", "").isalnum() else "json:"


def _of_url(scheme: str, rest: str) -> str:
    user, _, rest = rest.rpartition("@")
    if re.search("[/?#]", user):
        # Ambiguous: a password with one of these in it, or a path or query with an "@".
        return f"{scheme}:"
    if scheme == "nbd+unix" and (socket := _NBD_UNIX.match(rest)):
        return f"{scheme}://{socket[0]}"
    return f"{scheme}://{re.split('[?#]', rest)[0]}"
