"""Tests: a host that a SIGPIPE would end, as in programs that set it to its default, does not end by ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

INTO_THE_PIPE_OF_A_DEAD_WORKER = """
from qml_mp.ipc.pipe import Kind, Message, open_pipe, send
from qml_mp.supervisor.parts.signals import SignalInbox

with SignalInbox():
    reading, writing = open_pipe()
    os.close(reading)
    assert not send(writing, Message(kind=Kind.WAKE))
"""
A_STOP_OF_A_SERVER_THAT_HAS_ENDED = """
from qml_mp.embedding.remote import fork_supervisor

server = fork_supervisor(lambda host_fds, on_ready: 6)
os.waitid(os.P_PID, server.child.pid, os.WEXITED | os.WNOWAIT)
assert server.stop(timeout_s=30) == 6
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(INTO_THE_PIPE_OF_A_DEAD_WORKER, id="worker"),
        pytest.param(A_STOP_OF_A_SERVER_THAT_HAS_ENDED, id="server"),
    ],
)
def test_a_pipe_that_nobody_reads_ends_no_host_and_its_handler_stays(code: str) -> None:
    begin = "import os, signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
    end = "\nassert signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL\n"
    end += "assert signal.SIGPIPE not in signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"

    ended = subprocess.run([sys.executable, "-c", begin + code + end], timeout=60, check=False)

    assert ended.returncode == 0
