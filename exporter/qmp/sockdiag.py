"""The unix sockets of this network namespace, as the kernel tells of them by netlink.

Beside what /proc/net/unix has, it tells the peer of a connection and the file of a socket.
[sock_diag(7), linux/sock_diag.h, linux/unix_diag.h, linux/netlink.h]
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

#: States of a socket. [linux/tcp_states.h]
ESTABLISHED, LISTEN = 1, 10

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300
_SHOW_NAME, _SHOW_VFS, _SHOW_PEER, _SHOW_ICONS = 0x1, 0x2, 0x4, 0x8
_NAME, _VFS, _PEER, _ICONS = 0, 1, 2, 3
#: struct nlmsghdr, struct unix_diag_req, struct unix_diag_msg, struct nlattr, struct unix_diag_vfs.
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_MESSAGE = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")
_PAIR = struct.Struct("=II")
_NUMBER = struct.Struct("=I")
_ANY_COOKIE = 0xFFFFFFFF
_BUFFER_BYTES = 1 << 16


class UnixSocket(NamedTuple):
    """One end that has a path: a listener, or what it accepted."""

    #: Number of the socket, 0 for one that no process has open.
    inode: int
    #: The path as it was bound.
    path: str
    #: Numbers of the file, as the kernel has them (32 bits of the inode); 0 for none.
    file_device: int
    file_inode: int
    #: Number of the socket at the other end, 0 where that was closed.
    peer: int
    #: Of a listener, the numbers of the clients that wait to be accepted; 0 for one that left.
    waiting: tuple[int, ...]


def sockets(state: int) -> list[UnixSocket]:
    """Return the sockets in a state that are bound to a path.

    Raises:
        OSError: this kernel, or a sandbox, does not tell.
    """
    show = _SHOW_NAME | _SHOW_VFS | _SHOW_PEER | _SHOW_ICONS
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        body = _REQUEST.pack(socket.AF_UNIX, 0, 0, 1 << state, 0, show, _ANY_COOKIE, _ANY_COOKIE)
        size, flags = _HEADER.size + len(body), _NLM_F_REQUEST | _NLM_F_DUMP
        netlink.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, flags, 0, 0) + body)
        return list(_answers(netlink))


def _answers(netlink: socket.socket) -> Iterator[UnixSocket]:
    while True:
        data = netlink.recv(_BUFFER_BYTES)
        start = 0
        while start < len(data):
            size, kind, *_ = _HEADER.unpack_from(data, start)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                code = struct.unpack_from("=i", data, start + _HEADER.size)[0]
                raise OSError(-code, os.strerror(-code))
            if found := _read(data, start + _HEADER.size, start + size):
                yield found
            start += size + 3 & ~3


def _read(data: bytes, start: int, end: int) -> UnixSocket | None:
    inode = _MESSAGE.unpack_from(data, start)[4]
    start += _MESSAGE.size
    path, device, file_inode, peer = "", 0, 0, 0
    waiting: tuple[int, ...] = ()
    while start < end:
        size, kind = _ATTRIBUTE.unpack_from(data, start)
        value = start + _ATTRIBUTE.size
        if kind == _NAME:
            path = os.fsdecode(data[value : start + size].rstrip(b"\0"))
        elif not path:
            return None  # the name comes first: this is a client's end, which has none
        elif kind == _VFS:
            file_inode, device = _PAIR.unpack_from(data, value)
        elif kind == _PEER:
            peer = _NUMBER.unpack_from(data, value)[0]
        elif kind == _ICONS:
            waiting = tuple(n for (n,) in _NUMBER.iter_unpack(data[value : start + size]))
        start += size + 3 & ~3
    return UnixSocket(inode, path, device, file_inode, peer, waiting) if path else None
