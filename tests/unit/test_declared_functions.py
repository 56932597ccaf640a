"""Which functions can be declared as jobs, and what a job function takes over from them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from qml_mp.app import QmlApp
from qml_mp.errors import ConfigurationError


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


@pytest.fixture
def app() -> Iterator[QmlApp]:
    with closing(QmlApp("memory://")) as app:
        yield app


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


class Stub:
    """Has names that are none, as those have that answer whatever they are asked for."""

    def __getattr__(self, name: str) -> int:
        if name in ("__name__", "__qualname__"):
            return 5
        raise AttributeError(name)

    def __call__(self, size: int) -> int:
        return size


def test_what_answers_to_every_name_can_be_a_job(app: QmlApp) -> None:
    assert app.job("stub")(Stub()).method_name == "stub"


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


def test_what_hangs_on_the_function_takes_nothing_away_from_the_job(app: QmlApp) -> None:
    def scale(size: int) -> int:
        return size

    vars(scale).update(handle="theirs", job="theirs", using="theirs", enqueue="theirs", note="theirs")

    declared = app.job()(scale)

    assert vars(declared)["note"] == "theirs"
    assert declared.job(5).payload == {"size": 5}
    assert declared.using(priority=5).job(5).priority == 5
    assert declared.handle(declared.enqueue(5).id).id
