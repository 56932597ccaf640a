"""Worker: what storage refuses of the work between two jobs, told in the log once, until it works again."""

from __future__ import annotations

import logging

from qml_mp.errors import StorageError, StorageUnreachable

logger = logging.getLogger(__name__)


class ToldOnce:
    """Of one kind of such work."""

    def __init__(self, what: str) -> None:
        """`what` waits for storage, in words."""
        self._what = what
        self._is_told = False

    def worked(self) -> None:
        """The next refusal is news."""
        self._is_told = False

    def refused(self, error: StorageError) -> None:
        """Tell of it, if it is news. Of a storage that is away the claims tell."""
        is_news = not (self._is_told or isinstance(error, StorageUnreachable))
        level = logging.WARNING if is_news else logging.DEBUG
        logger.log(level, "%s wait for storage: %s", self._what, error)
        self._is_told = self._is_told or is_news
