"""Tests: errors of qml-mp go through pickles and copies, as those of a process pool must."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest

from qml_mp import errors
from qml_mp.errors import JobFailed, QmlError, WaitTimeout

KINDS = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, BaseException)]


class OfTheUser(WaitTimeout):
    def __init__(self, waited_s: float, *, queue: str) -> None:
        super().__init__(f"{queue}: {waited_s} s")
        self.queue = queue


def through_a_pickle(error: BaseException) -> BaseException:
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, BaseException)
    return again


def made(kind: type[BaseException]) -> BaseException:
    """With some value for whatever it wants."""
    wanted = [
        name
        for name, each in inspect.signature(kind.__init__).parameters.items()
        if each.kind is each.KEYWORD_ONLY and each.default is each.empty
    ]
    return kind("what it says", **dict.fromkeys(wanted, "x"))


@pytest.mark.parametrize("again", [through_a_pickle, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_back_as_it_was(
    kind: type[BaseException], again: Callable[[BaseException], BaseException]
) -> None:
    error = made(kind)
    error.add_note("seen at noon")

    back = again(error)

    assert type(back) is kind
    assert (str(back), back.args, vars(back)) == (str(error), error.args, vars(error))


def test_one_of_the_users_own_comes_back_too() -> None:
    back = through_a_pickle(OfTheUser(1.5, queue="mail"))

    assert isinstance(back, OfTheUser)
    assert (str(back), back.queue) == ("mail: 1.5 s", "mail")


def fail(job_id: str) -> None:
    raise JobFailed("it failed", job_id=job_id, state="failed")


def test_a_process_pool_raises_it_and_goes_on() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(JobFailed, match="it failed") as caught:
            pool.submit(fail, "7").result()
        assert pool.submit(len, "goes on").result() == 7

    assert isinstance(caught.value, QmlError)
    assert (caught.value.job_id, caught.value.state) == ("7", "failed")
