"""Tests: what faulthandler writes, as people read it."""

from __future__ import annotations

from pathlib import Path

import qml_mp
from qml_mp.core.failure_kinds import user_frame
from qml_mp.ipc.stack import as_traceback

OURS = Path(qml_mp.__file__).parent
OUTSIDE = f"""\
  File "{OURS}/processing/binding.py", line 90 in call
  File "{OURS}/processing/processor.py", line 248 in call
  File "{OURS}/child/runner.py", line 80 in run
  File "{OURS}/child/loop.py", line 78 in run
  File "{OURS}/cli/main.py", line 50 in main
  File "/env/lib/python3.11/site-packages/click/core.py", line 1400 in invoke
  File "/env/bin/qml-mp", line 8 in <module>
"""
CURRENT = "Current thread 0x00007f (most recent call first):\n"


def test_a_crash_is_told_from_the_jobs_function_to_the_innermost_frame() -> None:
    dump = f"""\
Fatal Python error: Segmentation fault

Thread 0x00007e (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
  File "/app/shop/pool.py", line 7 in watch

{CURRENT}  File "/usr/lib/python3.11/ctypes/__init__.py", line 517 in string_at
  File "/app/shop/images.py", line 31 in load
  File "/app/shop/tasks.py", line 9 in thumb
{OUTSIDE}
Extension modules: numpy.core (total: 1)
"""

    told = as_traceback(dump)

    assert (
        told
        == """\
Fatal Python error: Segmentation fault

Thread 0x00007e (most recent call last):
  File "/app/shop/pool.py", line 7, in watch
  File "/usr/lib/python3.11/threading.py", line 320, in wait

Current thread 0x00007f (most recent call last):
  File "/app/shop/tasks.py", line 9, in thumb
  File "/app/shop/images.py", line 31, in load
  File "/usr/lib/python3.11/ctypes/__init__.py", line 517, in string_at"""
    )
    assert user_frame(told) == "shop/images.py:31 in load"


def test_of_a_job_that_waits_in_our_own_code_that_is_told_too() -> None:
    wait = f'  File "{OURS}/child/commands.py", line 140 in wait\n'

    told = as_traceback(CURRENT + wait + '  File "/app/tasks.py", line 5 in poll\n' + OUTSIDE)

    assert told.splitlines()[1:] == [
        '  File "/app/tasks.py", line 5, in poll',
        f'  File "{OURS}/child/commands.py", line 140, in wait',
    ]


def test_of_a_worker_without_a_job_it_is_what_the_worker_does() -> None:
    told = as_traceback(CURRENT + OUTSIDE.partition("\n")[2].partition("\n")[2])

    assert [line.rpartition(" ")[2] for line in told.splitlines()[1:]] == ["run", "run"]


def test_a_job_of_an_installed_package_is_found() -> None:
    function = '  File "/env/lib/python3.11/site-packages/shop/tasks.py", line 5 in thumb\n'

    assert len(as_traceback(CURRENT + function + OUTSIDE).splitlines()) == 2


def test_what_is_too_deep_to_be_whole_is_told_as_it_is() -> None:
    deep = '  File "/app/tasks.py", line 5 in deeper\n' * 100 + "  ...\n"

    told = as_traceback(CURRENT + deep).splitlines()

    assert (len(told), told[1], told[-1]) == (102, "  ...", '  File "/app/tasks.py", line 5, in deeper')


def test_nothing_is_nothing() -> None:
    assert as_traceback("") == ""
