"""Beside a server: the program of the process that serves its metrics or its page."""

from __future__ import annotations

import logging
import sys

import setproctitle

from qml_mp.errors import QmlError
from qml_mp.side.link import SupervisorLink


def main(kind: str) -> int:
    """Serve until the supervisor is gone; returns only when that cannot be done, after saying why."""
    link = SupervisorLink()
    if sys.platform != "darwin":
        setproctitle.setproctitle(f"qml-mp: {kind}")
    arguments = link.arguments()
    logging.basicConfig(level=arguments.log_level, handlers=[link.log_handler()])
    try:
        match kind:
            case "metrics":
                from qml_mp.side.metrics import serve_metrics

                serve_metrics(arguments, link)
            case "page":
                from qml_mp.side.page import serve_page

                serve_page(arguments, link)
            case _:
                link.cannot(f"there is no such thing as {kind!r} to serve.")
    except QmlError as error:
        link.cannot(" ".join(str(error).split()))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
