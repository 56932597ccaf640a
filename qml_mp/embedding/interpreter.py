"""Supervisor: the fresh interpreter that `BackgroundJobServer.start()` begins in a threaded host."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from qml_mp.child.prologue import unblock_signals
from qml_mp.child.source import NamedProgram, PickledProgram, ProgramSource
from qml_mp.embedding.log import StderrHandler
from qml_mp.embedding.remote import report, watch_host
from qml_mp.embedding.supervise import open_for_supervisor, supervise
from qml_mp.settings import ServerConfig
from qml_mp.sources import keep_web_token
from qml_mp.supervisor.parts.host_process import Host


def main(status_fd: int) -> int:
    """Read the arguments from standard input, supervise, and keep reading for the end of the host."""
    unblock_signals()  # a thread of the host that blocks some has handed that down
    host_fd = os.dup(0)
    with open(host_fd, "rb", buffering=0, closefd=False) as stream:  # a buffer would swallow what follows
        arguments = json.loads(stream.readline())
        source = _source(arguments, stream)
    keep_web_token(arguments["web_token"])
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=arguments["log_level"], handlers=[handler])

    def run(on_ready: Callable[[], None]) -> int:
        config = ServerConfig(**arguments["config"])
        storage = open_for_supervisor(arguments["url"])
        host_fds = [host_fd, *watch_host(arguments["host_pid"])]
        host = Host(fds=host_fds, on_ready=on_ready, ends_process=True)
        return supervise(config, storage, source, host=host)

    return report(status_fd, run)


def _source(arguments: dict[str, Any], stream: io.FileIO) -> ProgramSource:
    """The name of the app, or the program itself, which comes behind the arguments. It is not looked at here:
    that is for the workers."""
    if arguments["app"] is not None:
        return NamedProgram(spec=arguments["app"])
    left, parts = arguments["program_bytes"], []
    while left and (part := stream.read(left)):
        parts.append(part)
        left -= len(part)
    return PickledProgram(data=b"".join(parts))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
