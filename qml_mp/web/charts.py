"""Web process: charts, as the numbers that a template draws an SVG with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from qml_mp.core.history import Ending
from qml_mp.views.history import WITHOUT_SUCCESS, HistoryView

WIDTH, HEIGHT = 720, 96
_GAP_PARTS = 5  # of a bar's width that lie between two


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What ended in one period: successes below, what did not succeed above. In units of the drawing."""

    x: float
    width: float
    good_y: float
    good_height: float
    bad_y: float
    bad_height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """The periods of a range."""

    bars: Sequence[Bar]
    """Those with something in them."""
    most: int
    """What the full height stands for."""
    begins_at: datetime
    ends_at: datetime


def bar_chart(view: HistoryView) -> BarChart:
    """One bar for each period, as high as what ended in it."""
    counts = [(point.count(Ending.SUCCEEDED), point.count(*WITHOUT_SUCCESS)) for point in view.points]
    most = max([good + bad for good, bad in counts], default=0)
    wide = WIDTH / max(1, len(counts))
    bars = [
        _bar(number * wide, wide, good, bad, most) for number, (good, bad) in enumerate(counts) if good or bad
    ]
    first, last = view.points[0], view.points[-1]
    return BarChart(bars=bars, most=most, begins_at=first.begins_at, ends_at=last.begins_at + view.step)


def _bar(x: float, wide: float, good: int, bad: int, most: int) -> Bar:
    """What there is little of is seen all the same."""
    good_height = max(1.0, HEIGHT * good / most) if good else 0.0
    bad_height = max(1.5, HEIGHT * bad / most) if bad else 0.0
    good_height = min(good_height, HEIGHT - bad_height)
    return Bar(
        x=round(x, 2),
        width=round(wide - wide / _GAP_PARTS, 2),
        good_y=round(HEIGHT - good_height, 2),
        good_height=round(good_height, 2),
        bad_y=round(HEIGHT - good_height - bad_height, 2),
        bad_height=round(bad_height, 2),
    )
