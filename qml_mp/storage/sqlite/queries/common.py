"""Every process: what several queries have in common."""

from __future__ import annotations

from typing import Final

ENDED: Final = "(state = 'succeeded' OR state = 'failed' OR state = 'deleted')"
"""As the indexes of ended jobs have it, word for word."""

KNOWN: Final = "(:methods IS NULL OR method IN (SELECT value FROM json_each(:methods)))"
"""Of the methods that were asked for."""

SERVED: Final = "(:queues = '[]' OR queue IN (SELECT value FROM json_each(:queues)))"
"""Of the queues that were asked for."""
