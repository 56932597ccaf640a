"""What an app declares and looks up, and which functions can be its jobs, middleware and hooks."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qml_mp import (
    ConfigurationError,
    ErrorInfo,
    InvalidJob,
    Job,
    JobHandle,
    Program,
    QmlApp,
    RetryPolicy,
    ServerConfig,
    StateName,
    TracingMiddleware,
    WorkerContext,
    WorkerRegistry,
)
from qml_mp.child.source import LoadedProgram, NamedProgram, probe, read_facts
from qml_mp.core.payload import JsonValue
from qml_mp.errors import AppImportError
from qml_mp.loading import load_app
from qml_mp.processing.middleware import CallNext
from qml_mp.storage.open import open_storage
from qml_mp.storage.values import JobFilter
from tests.api.app_case import digest, on_day, resize

iscoroutinefunction = (
    inspect.iscoroutinefunction if sys.version_info >= (3, 12) else asyncio.iscoroutinefunction
)


def test_a_job_function_is_still_called_directly(app: QmlApp) -> None:
    job_function = app.job()(on_day)

    assert job_function(date(2025, 3, 1)) is None
    assert job_function.__name__ == "on_day"
    assert job_function.method_name == "on_day"


async def double(n: int) -> int:
    return 2 * n


class Doubler:
    async def __call__(self, n: int) -> int:
        return 2 * n


@pytest.mark.parametrize(
    "function", [double, functools.partial(double), Doubler()], ids=["function", "partial", "object"]
)
def test_an_async_job_function_is_seen_to_be_one(app: QmlApp, function: Callable[..., Any]) -> None:
    job = app.job("double")(function)

    for each in (job, copy.deepcopy(job)):
        assert iscoroutinefunction(each)
        assert asyncio.run(each(4)) == 8
    assert not iscoroutinefunction(app.job()(digest))


def test_an_async_job_function_runs_in_the_background_of_a_response(app: QmlApp) -> None:
    ran: list[int] = []

    @app.job()
    async def welcome(n: int) -> None:
        ran.append(n)

    tasks = pytest.importorskip("starlette.background").BackgroundTasks()
    tasks.add_task(welcome, 1)
    asyncio.run(tasks())

    assert ran == [1]


def test_enqueuing_from_an_event_loop_stores_the_job(app: QmlApp) -> None:
    job_function = app.job()(resize)

    async def produce() -> list[JobHandle]:
        return [
            await job_function.aenqueue("a"),
            await job_function.using(priority=1).aenqueue("b"),
            await app.aenqueue("resize", {"path": "c"}),
            *await app.aenqueue_many([job_function.job("d")]),
        ]

    handles = asyncio.run(produce())

    assert [handle.job().payload for handle in handles] == [{"path": p} for p in "abcd"]


def test_a_recurring_function_is_a_template_and_a_job(app: QmlApp) -> None:
    job_function = app.recurring("0 9 * * MON-FRI", tz="Europe/Berlin", queue="reports")(digest)

    (template,) = app.program.recurring
    assert (template.id, template.method, template.queue) == ("digest", "digest", "reports")
    assert (template.cron, template.tz) == ("0 9 * * MON-FRI", "Europe/Berlin")
    assert job_function.enqueue().job().queue == "reports"


def count_letters(a: int, b: int) -> None: ...


@pytest.mark.parametrize("payload", [Counter("aab"), defaultdict(int, a=2, b=1)])
def test_the_payload_of_a_template_is_as_json_has_it_whatever_kind_of_dict_it_was(
    app: QmlApp, payload: dict[str, JsonValue]
) -> None:
    app.recurring("@daily", payload=payload)(count_letters)
    payload.clear()  # it is the caller's own

    (template,) = read_facts(probe(LoadedProgram(program=app.program))).recurring

    assert template.payload == {"a": 2, "b": 1}


def test_an_app_whose_template_has_fired_for_the_last_time_is_imported_all_the_same(app: QmlApp) -> None:
    app.recurring("1 52 0 28 11 * 2020", id="once")(digest)

    (template,) = read_facts(probe(LoadedProgram(program=app.program))).recurring

    assert (template.id, template.next_run_at) == ("once", None)


@pytest.mark.parametrize("expression", ["0 0 31 2 *", "0 0 0 31 4 * 2020-2030"])
def test_a_template_that_never_fires_at_all_is_refused(app: QmlApp, expression: str) -> None:
    for tz in ("UTC", "Europe/Berlin"):
        with pytest.raises(ConfigurationError, match="never fires"):
            app.recurring(expression, tz=tz)(app.job(tz)(digest))


def test_a_zone_that_this_machine_does_not_know_is_a_warning_with_the_nearest_name(app: QmlApp) -> None:
    with pytest.warns(
        UserWarning, match=r"'digest'.*'Europe/Berlni'.*Did you mean Europe/Berlin\?"
    ) as warned:
        app.recurring("0 3 * * *", tz="Europe/Berlni")(digest)

    (template,) = read_facts(probe(LoadedProgram(program=app.program))).recurring
    assert (template.tz, template.next_run_at) == ("Europe/Berlni", None)
    assert [each.filename for each in warned] == [__file__]


def test_in_a_zone_that_this_machine_does_not_know_the_expression_is_looked_at_all_the_same(
    app: QmlApp,
) -> None:
    for expression in ("0 25 * * *", "0 0 31 2 *"):
        with pytest.raises(ConfigurationError, match="cron expression"):
            app.recurring(expression, tz="Europe/Atlantis")(app.job(expression)(digest))


def test_an_app_without_a_name_is_known_by_what_it_was_found_by_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nameless_tasks.py").write_text("from qml_mp import QmlApp\napp = QmlApp()\n")
    monkeypatch.syspath_prepend(tmp_path)

    in_memory = read_facts(probe(LoadedProgram(program=QmlApp().program)))
    found = read_facts(probe(NamedProgram(spec="nameless_tasks:app")))

    assert (in_memory.name, in_memory.spec) == ("", "")
    assert found.spec == "nameless_tasks:app"
    assert found.name == f"nameless_tasks:app in {tmp_path.resolve()}"


@pytest.mark.parametrize("name", ["", "a b", "?", 5])
def test_an_app_cannot_have_any_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match="name of the app"):
        QmlApp(name=name)


def test_a_job_function_may_recur_at_several_times(app: QmlApp) -> None:
    job_function = app.job(queue="reports")(on_day)

    app.recurring("0 9 * * *", id="new-year", payload={"day": "2025-01-01"})(job_function)
    app.recurring("0 9 * * *", id="labour-day", payload={"day": "2025-05-01"}, queue="other")(job_function)

    assert [(t.id, t.queue) for t in app.program.recurring] == [
        ("new-year", "reports"),
        ("labour-day", "other"),
    ]
    assert app.registry.methods() == ("on_day",)


def test_a_recurring_declaration_that_cannot_work_is_refused(app: QmlApp) -> None:
    with pytest.raises(ConfigurationError, match="cron"):
        app.recurring("every day")(digest)
    for options in ({"misfire": "never"}, {"overlap": "no"}, {"jitter": "2d"}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            app.recurring("@daily", **options)(app.job(str(options))(digest))
    with pytest.raises(InvalidJob, match="missing a required argument: 'day'"):
        app.recurring("0 9 * * *")(on_day)
    app.recurring("0 9 * * *", id="x")(app.job("d1")(digest))
    with pytest.raises(ConfigurationError, match="declared twice"):
        app.recurring("0 9 * * *", id="x")(app.job("d2")(digest))


class Pair(NamedTuple):
    n: int


class OddPair(Pair):
    @classmethod
    def _make(cls, *_: object) -> Any:
        raise LookupError("there is none")


@dataclass
class Batch:
    names: list[str]

    def __post_init__(self) -> None:
        self.names.clear()


def send_in_batches(batch: Batch, day: FurtherDown) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def send_odd(pair: OddPair) -> None: ...


def test_a_payload_of_wrong_types_is_told_once_the_import_is_over(
    app: QmlApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.recurring("@daily", payload={"day": 5})(on_day)
    app.recurring("@daily", payload={"pair": [1]})(send_odd)
    fitting: JsonValue = {"batch": {"names": ["a"]}, "day": "2025-01-01"}
    batches = app.recurring("@daily", payload=fitting)(send_in_batches)
    app.recurring("@daily", id="later", payload=[{"names": []}, "soon"])(batches)
    monkeypatch.setitem(globals(), "FurtherDown", date)

    facts = read_facts(probe(LoadedProgram(program=app.program)))

    assert {each: why.partition(" '")[0] for each, why in facts.misfits.items()} == {
        "on_day": "on_day: the argument",
        "send_odd": "there is none",
        "later": "send_in_batches: the argument",
    }
    assert app.program.recurring[2].payload == fitting  # whatever the class has made of it


def test_a_name_can_be_declared_once(app: QmlApp) -> None:
    app.job()(digest)

    with pytest.raises(ConfigurationError, match="registered twice"):
        app.job()(digest)
    app.job("digest_2")(digest)

    assert app.registry.methods() == ("digest", "digest_2")


def test_a_job_function_that_is_declared_once_more_is_told_the_order_that_works(app: QmlApp) -> None:
    with pytest.raises(ConfigurationError, match=r"write @app\.recurring\(\.\.\.\) above @app\.job"):
        app.job(timeout="5m")(app.recurring("0 9 * * *")(digest))

    other = QmlApp()
    other.recurring("0 9 * * *")(other.job(timeout="5m")(digest))

    assert other.registry.methods() == ("digest",)
    assert [template.method for template in other.program.recurring] == ["digest"]


def test_the_decorator_without_parentheses_is_refused_with_a_hint(app: QmlApp) -> None:
    with pytest.raises(ConfigurationError, match="parentheses"):
        app.job(digest)  # type: ignore[call-overload]  # what is tested
    with pytest.raises(ConfigurationError, match=r"Write @app\.recurring\(.* cron expression"):
        app.recurring(digest)  # type: ignore[arg-type]  # what is tested


def test_policy_and_limit_of_a_function_reach_its_worker(app: QmlApp) -> None:
    app.job(retry=RetryPolicy.none(), timeout="2m")(resize)

    worker = app.program.registry.get("resize")
    assert worker is not None
    assert worker.retry_policy == RetryPolicy.none()
    assert worker.timeout == timedelta(minutes=2)


def test_the_program_carries_all_that_the_code_says() -> None:
    config = ServerConfig(worker_count=2)
    app = QmlApp(
        "sqlite:///x.db", config=config, retry_policy=RetryPolicy.none(), middleware=[], on_state_change=print
    )

    program = app.program

    assert (program.url, program.config, program.retry_policy) == (
        "sqlite:///x.db",
        config,
        RetryPolicy.none(),
    )
    assert (program.middleware, program.on_state_change) == ((), print)


def test_tracing_is_the_default_middleware_and_no_url_is_the_default() -> None:
    program = QmlApp().program

    assert [type(layer) for layer in program.middleware] == [TracingMiddleware]
    assert program.url is None


def test_an_app_in_memory_names_the_one_database_it_stands_for() -> None:
    app = QmlApp("memory://")
    handle = app.enqueue("anything")

    url = app.program.url
    assert url is not None
    other = QmlApp(url)

    assert other.handle(handle.id).state is StateName.ENQUEUED
    other.close()
    app.close()


def test_the_url_is_looked_up_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QML_MP_URL", f"sqlite:///{tmp_path}/from_env.db")
    app = QmlApp()

    app.enqueue("anything")

    assert (tmp_path / "from_env.db").exists()
    app.close()


def test_an_attached_app_enqueues_where_its_worker_takes_jobs_from(app: QmlApp, tmp_path: Path) -> None:
    app.enqueue("before")

    url = f"sqlite:///{tmp_path}/other.db"
    with closing(open_storage(url)) as of_the_server:
        of_the_server.migrate()

    attach = app.program.attach
    assert attach is not None
    attach(url)
    app.enqueue("after")

    assert [job.method for job in app.storage.list_jobs(JobFilter()).jobs] == ["after"]


def test_an_app_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "named_app.py").write_text("from qml_mp import QmlApp\napp = QmlApp()\nnot_one = 3\n")
    (tmp_path / "broken_app.py").write_text("import no_such_module_anywhere\n")

    assert isinstance(load_app("named_app:app"), QmlApp)
    for spec, told in [
        ("named_app", "module:attribute"),
        ("named_app:nothing", "nothing"),
        ("named_app:not_one", "is a int, not a QmlApp"),
        ("broken_app:app", "ModuleNotFoundError"),
        ("absent_app:app", "ModuleNotFoundError"),
    ]:
        with pytest.raises(AppImportError, match=told):
            load_app(spec)


def test_every_public_name_is_found() -> None:
    import qml_mp

    assert {name for name in qml_mp.__all__ if getattr(qml_mp, name, None) is None} == set()
    assert set(qml_mp.__all__) <= set(dir(qml_mp))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qml_mp.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_generator_function_is_refused_as_a_job(app: QmlApp) -> None:
    def values(n: int) -> Iterator[int]:
        yield n

    async def later(n: int) -> AsyncIterator[int]:
        yield n

    for function in (values, later):
        with pytest.raises(ConfigurationError, match="is a generator function"):
            app.job()(function)


class Scale:
    """Has what is a job, and what is none."""

    def by_object(self, size: int) -> int:
        return size

    def by_class(cls, size: int) -> int:  # noqa: N805  # as it is within @classmethod
        return size

    @staticmethod
    def by_nothing(size: int) -> int:
        return size


def by_class(cls: type, size: int) -> int:
    return size


@pytest.mark.parametrize(
    "function",
    [Scale.by_object, Scale.by_class, classmethod(by_class)],
    ids=["self", "cls", "classmethod"],
)
def test_a_method_is_refused_as_it_has_no_object_in_a_worker(
    app: QmlApp, function: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigurationError, match="is a method, and a worker has no object"):
        app.job("scale")(function)


@pytest.mark.parametrize("function", [Scale.by_nothing, Scale().by_object], ids=["static", "bound"])
def test_what_needs_no_object_may_stand_in_a_class(app: QmlApp, function: Callable[..., Any]) -> None:
    assert app.job("scale")(function).job(5).payload == {"size": 5}


def test_a_method_of_a_class_of_pythons_own_takes_any_object(app: QmlApp) -> None:
    assert app.job("upper")(str.upper).method_name == "upper"


def test_what_is_wrapped_is_the_function_that_was_given(app: QmlApp) -> None:
    def scale(size: int) -> int:
        return size

    @functools.wraps(scale)
    def twice(size: int) -> int:
        return 2 * scale(size)

    assert app.job()(twice).__wrapped__(5) == 10  # type: ignore[attr-defined]  # as functools has it


def test_what_has_no_name_of_its_own_is_given_one(app: QmlApp) -> None:
    small = functools.partial(Scale.by_nothing, size=5)

    with pytest.raises(ConfigurationError, match=r"has no name of its own.*app\.job\(\"name\"\)"):
        app.job()(small)

    assert app.job("small")(small).method_name == "small"


def layer(job: Job, context: WorkerContext, call_next: CallNext) -> object:
    return call_next(job, context)


class Layer:
    def __call__(self, job: Job, context: WorkerContext, call_next: CallNext, more: int = 1) -> object:
        return call_next(job, context)

    def method(self, job: Job, context: WorkerContext, call_next: CallNext) -> object:
        return call_next(job, context)


def takes_four(one: Any, two: Any, three: Any, four: Any) -> None: ...


def takes_by_name(*, job: Any, context: Any, call_next: Any, change: Any, error: Any) -> None: ...


@pytest.mark.parametrize("middleware", [layer, "layer", 7], ids=["a function", "a text", "a number"])
def test_middleware_that_is_no_list_is_refused(middleware: Any) -> None:
    for take in (QmlApp, partial(Program, registry=WorkerRegistry())):
        with pytest.raises(ConfigurationError, match=r"middleware is .*; it must be a list of functions"):
            take(middleware=middleware)


@pytest.mark.parametrize(
    "hook",
    [lambda: None, takes_four, takes_by_name, partial(takes_four, 1, 2, 3, 4), Layer],
    ids=["takes nothing", "takes four", "by name alone", "all is given", "a class"],
)
def test_what_cannot_be_called_as_it_will_be_is_refused(hook: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"middleware\[1\] is .*; it is called with \(job, context"):
        QmlApp(middleware=[layer, hook])
    with pytest.raises(ConfigurationError, match=r"on_state_change is .*; it is called with \(change\)"):
        QmlApp(on_state_change=hook)
    with pytest.raises(ConfigurationError, match=r"on_failure is .*; it is called with \(job, error\)"):
        QmlApp().on_failure(hook)


def test_what_can_be_called_so_is_taken_whatever_it_is() -> None:
    def needs_more(job: Job, context: WorkerContext, call_next: CallNext, more: int) -> object:
        return call_next(job, context)

    @wraps(needs_more)
    def gives_more(job: Job, context: WorkerContext, call_next: CallNext) -> object:
        return needs_more(job, context, call_next, 1)

    layers = [layer, gives_more, Layer(), Layer().method, partial(needs_more, more=1)]

    app = QmlApp(middleware=iter(layers), on_state_change=[].append)  # type: ignore[arg-type]

    assert app.program.middleware == tuple(layers)
    assert QmlApp(middleware=[]).program.middleware == ()


def test_an_app_has_one_function_for_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a program that is a file, as a worker of pytest-xdist is not; a cell of a notebook may run again."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    app = QmlApp("memory://")

    @app.on_failure
    def first(job: Job, error: ErrorInfo) -> None: ...

    assert app.program.on_failure is first
    with pytest.raises(ConfigurationError, match="call both from one function"):
        app.on_failure(first)


def test_a_coroutine_function_is_refused() -> None:
    async def later(job: Job, error: ErrorInfo) -> None: ...

    with pytest.raises(ConfigurationError, match="it must be a plain function"):
        QmlApp("memory://").on_failure(later)  # type: ignore[arg-type]
