"""Tests, as a plugin of pytest: what it compiles to collect the tests is kept, whatever the environment says.

To compile all of them takes a processor 9 s, in each run that shares the suite. What tests write and import
by themselves is none of its business.
"""

from __future__ import annotations

import sys

_AS_GIVEN = sys.dont_write_bytecode
sys.dont_write_bytecode = False


def pytest_collection_finish() -> None:
    """From now on as the environment says."""
    sys.dont_write_bytecode = _AS_GIVEN
