"""Tests: an exception as bounded, storable text, and what failures are told apart by."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qml_mp.child.source import NamedProgram, probe, read_facts
from qml_mp.core.failure_kinds import failure_key, user_frame
from qml_mp.core.payload import check_text
from qml_mp.errors import JobFailed, JobTimeout
from qml_mp.processing.errors_text import (
    clean,
    describe,
    describe_type,
)
from qml_mp.storage.storable import MAX_MESSAGE_BYTES, MAX_TRACEBACK_BYTES
from qml_mp.views.frames import Frame, user_frames


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_exception_is_told_by_type_message_and_traceback() -> None:
    info = describe(raised(ValueError("bad width")))

    assert (info.type, info.message) == ("ValueError", "bad width")
    assert info.traceback is not None
    assert info.traceback.startswith("Traceback (most recent call last):\n")
    assert "raise error" in info.traceback
    assert info.traceback.endswith("ValueError: bad width\n")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (Unprintable(), f"{__name__}.Unprintable"),
        (JobTimeout(), "JobTimeout"),
        (JobFailed("x", job_id="i", state="failed"), "JobFailed"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError(), "asyncio.exceptions.CancelledError"),
    ],
)
def test_the_type_is_named_as_python_prints_it(error: BaseException, name: str) -> None:
    assert describe(error).type == name


@pytest.mark.fault(32)
def test_an_exception_that_cannot_be_printed_is_told_all_the_same() -> None:
    info = describe(raised(Unprintable()))

    assert info.message == "(no message: __str__ raised RuntimeError)"
    assert info.traceback is not None


@pytest.mark.fault(31)
def test_an_enormous_message_is_cut_in_the_middle() -> None:
    info = describe(raised(ValueError("a" * 5_000_000 + "z")))

    assert len(info.message) <= MAX_MESSAGE_BYTES
    assert info.message.startswith("aaa")
    assert info.message.endswith("z")
    assert "characters left out" in info.message
    assert len(info.traceback or "") <= MAX_TRACEBACK_BYTES


def test_a_deep_recursion_leaves_a_bounded_traceback() -> None:
    def down(n: int) -> int:
        return down(n + 1)

    with pytest.raises(RecursionError) as caught:
        down(0)

    assert (describe(caught.value).traceback or "").count("in down") <= 40


def test_a_long_chain_of_causes_is_told_by_its_last_few() -> None:
    error: BaseException = ValueError("0")
    for number in range(1, 10_000):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following

    traceback = describe(error).traceback or ""

    assert traceback.count("direct cause of the following") == 3
    assert traceback.endswith("ValueError: 9999\n")


def test_causes_come_first_and_each_link_tells_its_kind() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904 - the implicit context is the point
    except ValueError as caught:
        traceback = describe(caught).traceback or ""

    assert (
        traceback.index("KeyError: 'first'") < traceback.index("During handling") < traceback.index("second")
    )


def test_a_group_tells_its_members_and_notes_are_kept() -> None:
    inner = KeyError("inside")
    inner.add_note("seen in row 7")

    traceback = describe(raised(ExceptionGroup("several", [inner, ValueError("other")]))).traceback or ""

    assert "[1 of 2]" in traceback
    assert "  | KeyError: 'inside'" in traceback
    assert "  | seen in row 7" in traceback
    assert "ValueError: other" in traceback


@pytest.mark.fault(28)
@pytest.mark.parametrize("text", ["a\0b", "lone \ud800", "x" * 100_000 + "\0"])
def test_cleaned_text_can_be_stored(text: str) -> None:
    assert check_text(clean(text, 1000), what="it")


def test_an_exception_can_be_told_without_asking_it_anything() -> None:
    info = describe_type(raised(Unprintable()), why="out of memory")

    assert info.message == "(no message: out of memory)"
    assert "raise error" in (info.traceback or "")


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


_JOB_FRAME = Frame(where="shop/tasks.py:12 in thumb", code="img = load(path)")


@pytest.mark.parametrize(
    ("traceback", "frames"),
    [
        (None, []),
        ("", []),
        ("killed by SIGSEGV", []),
        ('  File "/srv/shop/tasks.py", line 12, in thumb', [Frame(where=_JOB_FRAME.where, code="")]),
        ('  File "/srv/shop/tasks.py", line 12, in thumb\n    img = load(path)\nX: no', [_JOB_FRAME]),
        (
            '  File "/srv/shop/tasks.py", line 12, in thumb\n    img = load(path)\n'
            '  File "shop/fast.pyx", line 7, in shop.fast.load\n    return image[4]\n'
            '  File "numpy/random/_generator.pyx", line 861, in numpy.random._generator.Generator.choice\n'
            '  File "<string>", line 4, in __lt__\nX: no',
            [Frame(where="shop/fast.pyx:7 in shop.fast.load", code="return image[4]"), _JOB_FRAME],
        ),
    ],
    ids=["none", "nothing", "no frame", "no source", "one", "others between"],
)
def test_the_users_own_frames_are_told_with_their_lines_the_nearest_to_the_error_first(
    traceback: str | None, frames: list[Frame]
) -> None:
    assert user_frames(traceback) == frames


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_only_lines_of_the_user_are_shown(folder: Path) -> None:
    (folder / "inner_of_broken.py").write_text("import no_such_library\n")
    (folder / "broken_import.py").write_text(
        "try:\n    import inner_of_broken\n"
        "except ImportError as error:\n    raise RuntimeError('no') from error\n"
    )

    error = read_facts(probe(NamedProgram(spec="broken_import:app"))).error or ""

    assert error.count("File ") == 3
    assert "importlib" not in error
    assert "source.py" not in error
    assert error.startswith("Traceback (most recent call last):\n")
    assert "ModuleNotFoundError: No module named 'no_such_library'" in error
    assert error.endswith("RuntimeError: no\n")


@pytest.mark.parametrize(
    ("line", "made_before", "found_as"),
    [
        ("import missing_folder.part", None, "missing_folder"),
        ("from missing_folder import part", None, "missing_folder"),
        ("import missing_part.part", "missing_part", "missing_part/part.py"),
        ("from missing_part import part", "missing_part", "missing_part/part.py"),
        ("from missing_part import part", "missing_part/__init__.py", "missing_part/part.py"),
    ],
)
def test_where_a_module_that_is_missing_would_be_found_is_told(
    folder: Path, line: str, made_before: str | None, found_as: str
) -> None:
    name = "of_" + "".join(filter(str.isalnum, f"{line}{made_before}"))
    (folder / f"{name}.py").write_text(line)
    if made_before is not None:
        made = folder / made_before
        (made.parent if made.suffix else made).mkdir()
        if made.suffix:
            made.touch()

    files = read_facts(probe(NamedProgram(spec=f"{name}:app"))).files

    assert str(folder / found_as) in files


def test_a_line_that_is_no_python_is_shown(folder: Path) -> None:
    (folder / "broken_syntax.py").write_text("app = (\n")

    error = read_facts(probe(NamedProgram(spec="broken_syntax:app"))).error or ""

    assert "broken_syntax.py" in error
    assert "SyntaxError: '(' was never closed" in error
