"""Tests: a server in a pid namespace of its own, as in a container, of which no process can be seen."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.processes.harness import Server, is_gone, wait_until

CONTAINER = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")
"""The start of a command that runs as process 1 of such a namespace."""

_OWN = ("unshare", "--fork", "--pid", "--mount", "--propagation", "private", "--kill-child", "sh", "-c")
NAMELESS = {
    "pids only": "mount -t proc -o subset=pid proc /proc",  # systemd's ProcSubset=pid
    "no proc": "mount -t tmpfs none /proc",
}
"""How such a namespace does not tell on which kernel it is, although its host has the same name."""


def nameless(hiding: str, *, after_pids: int = 0, outlive: bool = False) -> tuple[str, ...]:
    """The start of a command that runs in one, there with a pid that so many others come before.
    `outlive`: what else is in there is not ended with the command."""
    others = f"for _ in $(seq {after_pids}); do /bin/true; done"
    end = "while sleep 0.1; do :; done" if outlive else "exit $?"
    return (*_OWN, f'{NAMELESS[hiding]} && {others} && "$@"; {end}', "sh")


def need_namespaces(prefix: tuple[str, ...] = CONTAINER) -> None:
    """Fail, saying what is needed, where a test cannot make a pid namespace."""
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.fail(
            "This test makes pid namespaces: run it as root on Linux, in a container with CAP_SYS_ADMIN. "
            f"It got {tried.returncode}: {tried.stderr}"
        )


def first_process(server: Server) -> int:
    """Its supervisor, which is process 1 in there, as it is known out here."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    (supervisor,) = map(int, children)
    return supervisor


def kill_container(server: Server) -> None:
    """SIGKILL its supervisor, so that the kernel ends everything in there."""
    supervisor = first_process(server)
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: is_gone(supervisor), what="the end of the container")
    server.wait()
