"""Guardian, supervisor: the sign that the guardian of a dead supervisor still has work to do.

It is a name of a socket that the kernel keeps for as long as somebody has it open, so there is nothing to
clean up. Only Linux has such names; elsewhere nobody waits for a guardian.
"""

from __future__ import annotations

import hashlib
import socket
import sys

from qml_mp.core.server_info import ProcessIdentity


def hold_sign(supervisor: ProcessIdentity) -> socket.socket | None:
    """Hold it until this process and those that it forks with the socket have ended; None: another holds it,
    or there is none on this system."""
    if sys.platform != "linux":
        return None
    sign = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sign.bind(_name(supervisor))
    except OSError:
        sign.close()
        return None
    return sign


def is_held(supervisor: ProcessIdentity) -> bool:
    """Whether somebody holds it, as far as that can be told from here."""
    sign = hold_sign(supervisor)
    if sign is not None:
        sign.close()
    return sign is None and sys.platform == "linux"


def _name(supervisor: ProcessIdentity) -> str:
    who = f"{supervisor.host} {supervisor.pid} {supervisor.started_ticks}"
    return f"\0qml-mp-guardian-{hashlib.sha256(who.encode()).hexdigest()[:32]}"
