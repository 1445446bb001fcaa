"""Messages with file descriptors over a SOCK_SEQPACKET socket, between pytest, the keeper and what the keeper forks.

A message is a marshalled value: both ends are the same interpreter, and marshal needs no import. Descriptors arrive
close-on-exec, which `socket.recv_fds` does not see to: it ignores its flags.
"""

from __future__ import annotations

import array
import marshal
import socket
from typing import Any

_SIZE = 1 << 19
_DESCRIPTORS = 16


def send(link: socket.socket, value: Any, descriptors: list[int] | None = None) -> None:
    """Send one message; BrokenPipeError when nobody is there to read it."""
    socket.send_fds(link, [marshal.dumps(value)], descriptors or [])


def receive(link: socket.socket) -> tuple[Any, list[int]]:
    """The next message and its descriptors; (None, []) at end of file."""
    found = array.array("i")
    room = socket.CMSG_LEN(_DESCRIPTORS * found.itemsize)
    data, ancillary, _, _ = link.recvmsg(_SIZE, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return (marshal.loads(data) if data else None), list(found)
