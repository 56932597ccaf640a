"""Tests: a run of pytest that goes on as several, side by side, once it has collected the tests.

Tests wait more than they compute. The parts are processes and not threads, because tests fork theirs; and
copies, because it takes a processor ten seconds to collect the tests.

Each has its temporary folders in a place of its own. The place that pytest has for all runs is swept by each
that ends, and when two end together, one finds in what it removes the lock of the other, and fails.
"""

from __future__ import annotations

import gc
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import pytest

from qml_mp.child.prologue import send_sigterm_when_parent_dies

VARIABLE = "QML_MP_TEST_PARTS"
"""Set it to how many there are to be."""
TEMPORARY = "PYTEST_DEBUG_TEMPROOT"
"""Pytest reads from it below which folder a run has its temporary ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    number: int
    pid: int
    output: BinaryIO


_NUMBER = struct.Struct("I")

_others: list[_Part] = []
"""In the first part, which is this process: the others."""


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run what no other part has taken. The slow tests come first (tests/processes), so all end together."""
    count = int(os.environ.pop(VARIABLE, 1))  # for this run, and none that a test begins
    if count < 2 or session.testsfailed or session.config.option.collectonly:
        return None  # pytest's own loop
    groups = [list(group) for _, group in groupby(session.items, key=_shared_with)]
    with tempfile.TemporaryFile(buffering=0) as numbers:
        numbers.write(b"".join(map(_NUMBER.pack, range(len(groups)))))
        numbers.seek(0)  # all parts read on from the same place
        _begin_others(count, session.config)
        items = _items(groups, numbers)
        item = next(items, None)
        while item is not None:
            following = next(items, None)  # pytest keeps those fixtures that it shares with this one
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            item = following
    return True


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Wait for the other parts, and show what they say."""
    failed = []
    for part in _others:
        _, status = os.waitpid(part.pid, 0)
        if status:
            failed.append(str(part.number))
        print(f"\n── part {part.number} of {len(_others) + 1}", flush=True)
        with part.output:
            part.output.seek(0)
            shutil.copyfileobj(part.output, sys.stdout.buffer)
    if failed:
        print(f"\nFailed in part {', '.join(failed)}; see above.")
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
    if _others:
        folder = Path(os.environ[TEMPORARY]).parent
        if session.exitstatus == pytest.ExitCode.OK:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"\nThe folders of the tests are left in {folder}, those of a part in that of its number.")
        print("\n── part 1", flush=True)


def _begin_others(count: int, config: pytest.Config) -> None:
    """Returns in each of them too."""
    gc.collect()
    gc.freeze()  # no part goes through what all have in common, which would copy it
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    folder = Path(tempfile.mkdtemp(prefix="qml-mp-tests-", dir=os.environ.get(TEMPORARY)))
    _have_temporary_folders_in(folder / "1")
    for number in range(2, count + 1):
        output = tempfile.TemporaryFile()  # noqa: SIM115  # it is read at the end
        pid = os.fork()
        if pid == 0:
            _have_temporary_folders_in(folder / str(number))
            for part in _others:
                part.output.close()
            _others.clear()
            send_sigterm_when_parent_dies()
            with output:
                _write_to(output, config)
            return
        _others.append(_Part(number=number, pid=pid, output=output))


def _have_temporary_folders_in(folder: Path) -> None:
    folder.mkdir()
    os.environ[TEMPORARY] = str(folder)


def _write_to(output: BinaryIO, config: pytest.Config) -> None:
    """Whatever this process shows from now on. What pytest captures it gives back to where it began."""
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()
    for fd in (1, 2):
        os.dup2(output.fileno(), fd)
    capture.start_global_capturing()
    capture.suspend_global_capture()


def _items(groups: Sequence[Sequence[pytest.Item]], numbers: BinaryIO) -> Iterator[pytest.Item]:
    """Of the groups whose numbers no other part has read."""
    while number := numbers.read(_NUMBER.size):
        yield from groups[_NUMBER.unpack(number)[0]]


def _shared_with(item: pytest.Item) -> object:
    """Equal for neighbours that share what their module makes once, a browser or a page that is served: one
    part takes them all, or each would make its own."""
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009  # pytest tells it nowhere else
    shared = [name for name, (*_, own) in definitions.items() if own.scope == "module"]
    numbers = item.callspec.indices if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return (item.path, [numbers.get(name) for name in sorted(shared) if name in numbers]) if shared else item
