"""A traceback taken apart for people."""

from __future__ import annotations

import pytest

from qml_mp.views.frames import Frame, user_frames

_JOB = Frame(where="shop/tasks.py:12 in thumb", code="img = load(path)")


@pytest.mark.parametrize(
    ("traceback", "frames"),
    [
        (None, []),
        ("", []),
        ("killed by SIGSEGV", []),
        ('  File "/srv/shop/tasks.py", line 12, in thumb', [Frame(where=_JOB.where, code="")]),
        ('  File "/srv/shop/tasks.py", line 12, in thumb\n    img = load(path)\nX: no', [_JOB]),
        (
            '  File "/srv/shop/tasks.py", line 12, in thumb\n    img = load(path)\n'
            '  File "shop/fast.pyx", line 7, in shop.fast.load\n    return image[4]\n'
            '  File "numpy/random/_generator.pyx", line 861, in numpy.random._generator.Generator.choice\n'
            '  File "<string>", line 4, in __lt__\nX: no',
            [Frame(where="shop/fast.pyx:7 in shop.fast.load", code="return image[4]"), _JOB],
        ),
    ],
    ids=["none", "nothing", "no frame", "no source", "one", "others between"],
)
def test_the_users_own_frames_are_told_with_their_lines_the_nearest_to_the_error_first(
    traceback: str | None, frames: list[Frame]
) -> None:
    assert user_frames(traceback) == frames
