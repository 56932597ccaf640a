"""Tests: a /proc that shows a user only the user's own processes, as systemd's ProtectProc=invisible does."""

from __future__ import annotations

import subprocess

import pytest

OTHER_USER = 54321
"""Needs no entry in the password file."""
_RIGHTS = "+dac_override"  # to read the code and write the journal wherever those are
# A /proc of its own: the options of the one that is there would change for the whole machine.
_MOUNT = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'


def as_another_user(user: int = OTHER_USER) -> tuple[str, ...]:
    """The start of a command that runs as a user to whom /proc hides the processes of all others."""
    own_proc = ("unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNT, "sh")
    unprivileged = (
        "setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups",
        "--inh-caps", _RIGHTS, "--ambient-caps", _RIGHTS, "--bounding-set", "-all," + _RIGHTS,
    )  # fmt: skip
    return (*own_proc, *unprivileged)


def need_another_user() -> None:
    """Fail, saying what is needed, where a test cannot have a /proc that hides processes."""
    tried = subprocess.run([*as_another_user(), "test", "-r", "/proc/1/stat"], capture_output=True, text=True)
    if tried.returncode != 1 or tried.stderr:
        pytest.fail(
            "This test mounts a /proc in a namespace of its own and becomes another user: run it as root on "
            f"Linux, in a container with CAP_SYS_ADMIN. It got {tried.returncode}: {tried.stderr}"
        )
