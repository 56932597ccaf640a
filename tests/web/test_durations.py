"""Tests: how the page shows durations."""

from __future__ import annotations

import pytest

from qml_mp.web.rendering import make_environment


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0 s"),
        (0.0123, "12 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (-0.9996, "-1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (64.0, "1 min 4 s"),
        (-7384.0, "-2 h 3 min"),
    ],
)
def test_a_duration_that_rounds_up_to_a_larger_unit_is_shown_in_it(seconds: float, shown: str) -> None:
    template = make_environment().from_string("{{ seconds | duration }}")

    assert template.render(seconds=seconds) == shown
