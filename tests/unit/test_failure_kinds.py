"""What failures are told apart by."""

from __future__ import annotations

import pytest

from qml_mp.core.failure_kinds import failure_key, user_frame

_HEAD = "Traceback (most recent call last):\n"
_JOB = '  File "/srv/shop/tasks.py", line 12, in thumb\n    img = load(path)\n'
_HELPER = '  File "/srv/shop/images.py", line 3, in load\n    return Image.open(path)\n'
_LIBRARY = '  File "/venv/lib/python3.11/site-packages/PIL/Image.py", line 9, in open\n    raise X\n'
_STDLIB = '  File "/usr/lib/python3.12/json/decoder.py", line 355, in raw_decode\n'
_OF_DATACLASS = '  File "<string>", line 4, in __lt__\n'
_OF_ATTRS = '  File "<attrs generated methods shop.orders.Order>", line 9, in __lt__\n'
_OF_NUMPY = '  File "numpy/random/_generator.pyx", line 861, in numpy.random._generator.Generator.choice\n'
_OF_CYTHON = '  File "<stringsource>", line 2, in numpy.random._generator.Generator.__reduce_cython__\n'
_OF_PYX = '  File "/srv/shop/fast.pyx", line 7, in thumb\n'
_BUILT_IN_PLACE = '  File "shop/fast.pyx", line 7, in shop.fast.thumb\n    return image[4]\n'
_EXECUTED = '  File "<string>", line 8, in job\n  File "<string>", line {}, in validate\n'
_CAUSED = (
    f"{_HEAD}{_HELPER}KeyError: 1\n\nThe above exception was the direct cause of the following exception:\n\n"
)


@pytest.mark.parametrize(
    ("traceback", "frame"),
    [
        (_HEAD + _JOB + "ValueError: no\n", "shop/tasks.py:12 in thumb"),
        (_HEAD + _JOB + _HELPER + _LIBRARY + "X: no\n", "shop/images.py:3 in load"),
        (_HEAD + _JOB + _STDLIB + "X: no\n", "shop/tasks.py:12 in thumb"),
        (_HEAD + _JOB + _OF_DATACLASS + "X: no\n", "shop/tasks.py:12 in thumb"),
        (_HEAD + _JOB + _OF_ATTRS + "X: no\n", "shop/tasks.py:12 in thumb"),
        (_HEAD + _JOB + _OF_NUMPY + "X: no\n", "shop/tasks.py:12 in thumb"),
        (_HEAD + _JOB + _OF_CYTHON + "X: no\n", "shop/tasks.py:12 in thumb"),
        (_HEAD + _OF_PYX + _OF_NUMPY + "X: no\n", "shop/fast.pyx:7 in thumb"),
        (_HEAD + _JOB + _BUILT_IN_PLACE + _OF_NUMPY + "X: no\n", "shop/fast.pyx:7 in shop.fast.thumb"),
        (_HEAD + _EXECUTED.format(6) + _LIBRARY + _OF_DATACLASS + "X: no\n", "<string>:6 in validate"),
        (_HEAD + _EXECUTED.format(6) + _STDLIB + "X: no\n", "<string>:6 in validate"),
        (_HEAD + _JOB + _EXECUTED.format(6) + "X: no\n", "shop/tasks.py:12 in thumb"),
        (_HEAD + _LIBRARY + _OF_DATACLASS + "X: no\n", "PIL/Image.py:9 in open"),
        (_HEAD + _OF_DATACLASS + _STDLIB + "X: no\n", "<string>:4 in __lt__"),
        (_HEAD + '  File "<stdin>", line 1, in run\n' + _STDLIB + "X: no\n", "<stdin>:1 in run"),
        (_HEAD + _LIBRARY + _STDLIB + "X: no\n", "PIL/Image.py:9 in open"),
        (_CAUSED + _HEAD + _JOB + "X: no\n", "shop/tasks.py:12 in thumb"),
        (_CAUSED + _HEAD + _STDLIB + "X\n", "json/decoder.py:355 in raw_decode"),
        ('  File "tasks.py", line 1, in <module>', "tasks.py:1 in <module>"),
        ("killed by SIGSEGV", None),
        ("", None),
        (None, None),
    ],
)
def test_the_frame_is_the_users_nearest_to_the_error(traceback: str | None, frame: str | None) -> None:
    assert user_frame(traceback) == frame


def test_a_frame_is_bounded() -> None:
    frame = user_frame(f'  File "{"x" * 500}/{"y" * 500}", line 1, in f')

    assert frame is not None
    assert len(frame) == 200
    assert frame.endswith("yyy:1 in f")


def test_failures_of_one_kind_have_one_key_and_others_another() -> None:
    of_one_kind = {failure_key("thumb", "X", _HEAD + _JOB + line) for line in (_STDLIB, _LIBRARY, "X: no\n")}

    others = {
        failure_key("other", "X", _HEAD + _JOB), failure_key("thumb", "Y", _HEAD + _JOB),
        failure_key("thumb", "X", _HEAD + _JOB + _HELPER), failure_key("thumb", "X", None),
    }  # fmt: skip

    assert len(of_one_kind) == 1
    assert len(others | of_one_kind) == 5


@pytest.mark.parametrize("met", [_OF_DATACLASS, _OF_NUMPY], ids=["a method of a dataclass", "compiled code"])
def test_faults_on_two_lines_that_meet_in_what_is_nobodys_line_are_of_two_kinds(met: str) -> None:
    keys = {failure_key("thumb", "X", _HEAD + line + met + "X: no\n") for line in (_JOB, _HELPER)}

    assert len(keys) == 2


def test_faults_on_two_lines_of_a_program_that_is_no_file_are_of_two_kinds() -> None:
    keys = {failure_key("job", "X", _HEAD + _EXECUTED.format(line) + "X: no\n") for line in (4, 6)}

    assert len(keys) == 2
