"""Worker: our loggers. An app or a job that configures logging by `dictConfig` or `fileConfig` disables all
loggers there are, unless it says otherwise: ours too, and with them what is told of failures."""

from __future__ import annotations

import logging

OUR_NAME = "qml_mp"
ABOVE_ALL = logging.getLogger(OUR_NAME)
"""Such a configuration disables this one whenever it disables any of ours: those below are left alone where
it is named."""


def our_loggers() -> list[logging.Logger]:
    """Those that there are now."""
    found = list(logging.root.manager.loggerDict.items())
    ours = [each for name, each in found if name.partition(".")[0] == OUR_NAME]
    return [each for each in ours if isinstance(each, logging.Logger)]  # others stand in for a name above one
