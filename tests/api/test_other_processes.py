"""What goes to other processes and hosts: job functions, errors, pipes, and what an import brings along."""

from __future__ import annotations

import copy
import functools
import inspect
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from qml_mp import QmlApp, errors
from qml_mp.embedding.by_value import by_value
from qml_mp.errors import JobFailed, QmlError, WaitTimeout
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


INTO_THE_PIPE_OF_A_DEAD_WORKER = """
from qml_mp.ipc.pipe import Kind, Message, open_pipe, send
from qml_mp.supervisor.parts.signals import SignalInbox

with SignalInbox():
    reading, writing = open_pipe()
    os.close(reading)
    assert not send(writing, Message(kind=Kind.WAKE))
"""
A_STOP_OF_A_SERVER_THAT_HAS_ENDED = """
from qml_mp.embedding.remote import fork_supervisor

server = fork_supervisor(lambda host_fds, on_ready: 6)
os.waitid(os.P_PID, server.child.pid, os.WEXITED | os.WNOWAIT)
assert server.stop(timeout_s=30) == 6
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(INTO_THE_PIPE_OF_A_DEAD_WORKER, id="worker"),
        pytest.param(A_STOP_OF_A_SERVER_THAT_HAS_ENDED, id="server"),
    ],
)
def test_a_pipe_that_nobody_reads_ends_no_host_and_its_handler_stays(code: str) -> None:
    begin = "import os, signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
    end = "\nassert signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL\n"
    end += "assert signal.SIGPIPE not in signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"

    ended = subprocess.run([sys.executable, "-c", begin + code + end], timeout=60, check=False)

    assert ended.returncode == 0


_OF_DRIVERS = {"sqlite3", "psycopg", "ssl", "socket"}
_OF_COROUTINES = {"asyncio", "ssl", "concurrent.futures", "subprocess"}
_OF_COMMANDS = {"click", "croniter", "psycopg"}


def _modules_after(code: str) -> set[str]:
    code = f"import sys\n{code}\nprint(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def test_the_package_alone_imports_nothing_of_its_own() -> None:
    modules = _modules_after("import qml_mp")

    assert {name for name in modules if name.startswith("qml_mp")} == {"qml_mp"}
    assert not modules & (_OF_DRIVERS | _OF_COROUTINES | _OF_COMMANDS | {"logging", "dataclasses"})


def test_an_app_brings_in_no_event_loop_and_no_driver_that_it_does_not_use() -> None:
    modules = _modules_after("from qml_mp import QmlApp\napp = QmlApp()\n@app.job()\ndef job(): ...")

    assert not modules & (_OF_COROUTINES | _OF_COMMANDS)


def test_the_event_loop_of_coroutines_is_imported_with_them() -> None:
    modules = _modules_after("from qml_mp import QmlApp\napp = QmlApp()\n@app.job()\nasync def job(): ...")

    assert "asyncio" in modules


@pytest.mark.parametrize("module", ["qml_mp.cli.commands.start", "qml_mp.embedding.start"])
def test_a_supervisor_has_no_event_loop(module: str) -> None:
    assert not _modules_after(f"import {module}") & (_OF_COROUTINES | {"psycopg"})
