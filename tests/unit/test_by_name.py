"""Tests: a job function goes to another process as any function does; what cannot go says so."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from qml_mp import QmlApp
from qml_mp.embedding.by_value import by_value
from qml_mp.processing.registry import FunctionWorker

app = QmlApp("memory://")


@app.job()
def square(n: int) -> int:
    return n * n


class Shapes:
    @staticmethod
    @app.job("cube")
    def cube(n: int) -> int:
        return n**3


def plain(n: int) -> int:
    return n


named_otherwise = app.job("named_otherwise")(plain)


@pytest.fixture(autouse=True)
def without_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cloudpickle", raising=False)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [square, Shapes.cube], ids=["of a module", "of a class"])
def test_a_pickle_has_its_name(function: object, protocol: int) -> None:
    assert pickle.loads(pickle.dumps(function, protocol)) is function


def test_it_is_not_copied() -> None:
    assert copy.deepcopy({"f": square})["f"] is square


def test_other_processes_call_it() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(square, [2, 3])) == [4, 9]


def test_a_function_that_is_found_by_its_name_stays_itself_under_another() -> None:
    back = pickle.loads(pickle.dumps(named_otherwise))

    assert back is not named_otherwise
    assert back(3) == 3
    assert pickle.loads(pickle.dumps(plain)) is plain


def test_what_is_sent_from_a_notebook_stays_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qml_mp.processing.by_name.is_notebook", lambda: True)

    @app.job()
    def lead() -> object:
        return square

    sent = by_value(app.program).load().registry

    workers = [sent.get("lead"), sent.get("square")]
    assert isinstance(workers[0], FunctionWorker)
    sent_square = workers[0].function()
    assert sent_square is not square  # whose app would not be that of the server
    assert sent_square.worker is workers[1]
    app.close()


@pytest.mark.parametrize("pickled", [pickle.dumps, functools.partial(pickle.dumps, protocol=0)])
def test_a_handle_says_what_to_pass_instead(pickled: Callable[[Any], bytes], app: QmlApp) -> None:
    handle = app.job()(plain).enqueue(1)

    with pytest.raises(TypeError, match=r"pass `handle\.id`"):
        pickled(handle)
    assert copy.copy(handle) == handle


@pytest.mark.parametrize("pickled", [pickle.dumps, functools.partial(pickle.dumps, protocol=0)])
def test_an_app_with_job_functions_says_what_to_do_instead(pickled: Callable[[Any], bytes]) -> None:
    with pytest.raises(TypeError, match="import it where it is needed"):
        pickled(app)
    assert copy.deepcopy(app) is app


def test_an_app_without_the_code_goes_as_it_is() -> None:
    back = pickle.loads(pickle.dumps(QmlApp("sqlite:///jobs.db", name="producer")))

    assert (back.program.url, back.program.name) == ("sqlite:///jobs.db", "producer")
