"""Guardian, supervisor: the sign that the guardian of a dead supervisor still has work to do.

It is a name of a socket that the kernel keeps for as long as somebody has it open, so there is nothing to
clean up. Only Linux has such names, and a sandbox may refuse them (systemd's `RestrictAddressFamilies`);
elsewhere nobody waits for a guardian.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import sys

from qml_mp.core.server_info import ProcessIdentity

_HELD_OR_NO_ROOM = (errno.EADDRINUSE, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Any other error is that of a system which refuses such sockets (EAFNOSUPPORT, EACCES): nobody has one."""


def hold_sign(supervisor: ProcessIdentity) -> socket.socket | None:
    """Hold it until this process and those that it forks with the socket have ended; None: another holds it,
    or there is none on this system, or none for a process that may not have such sockets."""
    return None if sys.platform != "linux" else _bind(supervisor)[0]


def is_held(supervisor: ProcessIdentity) -> bool:
    """Whether somebody holds it, as far as that can be told from here; True too while the system has no room
    for the look."""
    if sys.platform != "linux":
        return False
    sign, error = _bind(supervisor)
    if sign is not None:
        sign.close()
    return error in _HELD_OR_NO_ROOM


def _bind(supervisor: ProcessIdentity) -> tuple[socket.socket | None, int | None]:
    """The name, or the number of the error for which this process cannot have it."""
    try:
        sign = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except OSError as error:
        return None, error.errno
    try:
        sign.bind(_name(supervisor))
    except OSError as error:
        sign.close()
        return None, error.errno
    return sign, None


def _name(supervisor: ProcessIdentity) -> str:
    who = f"{supervisor.host} {supervisor.pid} {supervisor.started_ticks}"
    return f"\0qml-mp-guardian-{hashlib.sha256(who.encode()).hexdigest()[:32]}"
