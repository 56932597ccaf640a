"""Tests: servers that leave nothing to the next one, however slow their database is at their end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.failpoints import LEAVES_PATIENTLY
from tests.processes.harness import Server


def leaving_patiently(make: Callable[..., Server]) -> Callable[..., Server]:
    """Makes servers that wait for storage at their end as long as tests do."""

    def make_patient(*flags: str, **given: Any) -> Server:
        one = make(*flags, **{LEAVES_PATIENTLY: "1", **given})
        one.program = ("-m", "tests.failpoints", "")
        return one

    return make_patient
