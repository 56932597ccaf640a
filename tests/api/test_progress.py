"""How far a job says that it has come: `ctx.progress`, and what a handle tells of it."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest

from qml_mp import JobFailed, Progress, QmlApp, WorkerContext


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((1,), Progress(done=1)),
        ((True, 2.5, "a"), Progress(done=1, total=2.5, note="a")),
        ((Decimal("1.5"), 3), Progress(done=1.5, total=3)),
        ((5, 4), Progress(done=5, total=4)),
        ((2**53, 2**53, "ä" * 150), Progress(done=2**53, total=2**53, note="ä" * 150)),
    ],
)
@pytest.mark.parametrize("fails", [False, True], ids=["succeeded", "failed"])
def test_what_a_job_said_last_is_read_of_its_handle_however_it_ended(
    app: QmlApp, given: tuple[Any, ...], said: Progress, fails: bool
) -> None:
    @app.job()
    def work(ctx: WorkerContext) -> None:
        ctx.progress(0, 1, "begin")
        ctx.progress(*given)
        if fails:
            raise ValueError("no")

    with app.inline():
        handle = work.using(max_retries=0).enqueue()

        assert handle.progress == said


@pytest.mark.parametrize(
    "given",
    [(-1,), (math.nan,), (math.inf,), ("1",), (None,), (1, "2"), (1, -1), (2**53 + 1,), (1, 2, b"x"), (1j,)],
    ids=str,
)
def test_what_is_no_progress_is_said_in_the_job_and_changes_nothing(
    app: QmlApp, given: tuple[Any, ...]
) -> None:
    @app.job()
    def work(ctx: WorkerContext) -> None:
        ctx.progress(1, 2)
        ctx.progress(*given)

    with app.inline():
        handle = work.using(max_retries=0).enqueue()

        with pytest.raises(JobFailed, match=r"ctx\.progress was given done"):
            handle.wait(0)
        assert handle.progress == Progress(done=1, total=2)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (Progress(done=3), "3"),
        (Progress(done=1, total=3, note="crops"), "1 of 3 (33 %), crops"),
        (Progress(done=5, total=4), "5 of 4 (100 %)"),
        (Progress(done=0, total=0), "0 of 0 (100 %)"),
    ],
)
def test_it_reads_as_people_say_it(said: Progress, text: str) -> None:
    assert str(said) == text
