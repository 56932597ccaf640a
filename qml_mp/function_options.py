"""Client and worker: what `@app.job` can say about all jobs of a function, beside what is said about one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from qml_mp.core.limits import Rate, check_max_running
from qml_mp.core.options import CommonOptions, Option, options_of, read_options
from qml_mp.errors import ConfigurationError, InvalidJob, about_field, shown
from qml_mp.processing.retry import RetryPolicy, check_policy


def _check_on_crash(value: str) -> str:
    if value not in ("retry", "fail"):
        raise ConfigurationError(f'on_crash is {shown(value)}; it must be "retry" or "fail".')
    return value


def _check_result(value: bool) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"result is {shown(value)}; it must be True or False.")
    return value


class _FunctionOptions(CommonOptions, total=False):
    """All but one."""

    # fmt: off
    retry: Annotated[RetryPolicy | None, Option(
        RetryPolicy, functools.partial(check_policy, what="retry"), "The retry policy; else the app's.")]
    on_crash: Annotated[Literal["retry", "fail"] | None, Option(
        str, _check_on_crash, '"fail": one crash ends it; an exception is still retried. Else "retry".')]
    max_running: Annotated[int | None, Option(
        int, check_max_running, "Most that run at a time, on all machines together.")]
    rate: Annotated[Rate | str | None, Option(
        str, Rate.parse, 'Most that begin per period, on all machines together: "50/s", "100/m".')]
    # fmt: on


class FunctionOptionsWithoutResult(_FunctionOptions):
    """The same where no result is kept."""

    result: Literal[False]


class FunctionOptions(_FunctionOptions, total=False):
    """What `@app.job` says about all jobs of a function."""

    # fmt: off
    result: Annotated[bool, Option(
        bool, _check_result, "False: what it returns is not stored, and `wait` gives None.")]
    # fmt: on


_FUNCTION_OPTIONS = options_of(FunctionOptions)
OF_THE_WORKER = frozenset({"retry", "timeout", "max_crashes", "max_running", "rate", "result"})
"""What is looked up when a job runs; the rest is written in each job's row. Of `max_retries` both: rows of
firings, and of producers without the code, say nothing."""


def read_function_options(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the decorator said, checked. `ConfigurationError` for what no job can have."""
    with about_field("result"):
        _check_result(given.get("result", True))  # None too, which reads as False and would be True
    try:
        read = read_options(given, _FUNCTION_OPTIONS)
    except InvalidJob as problem:
        raise ConfigurationError(str(problem), field=problem.field) from None
    if read.pop("on_crash", "retry") == "fail":
        max_crashes = read.get("max_crashes")
        if max_crashes not in (None, 1):
            raise ConfigurationError(
                f'on_crash="fail" means max_crashes=1, and max_crashes is {shown(max_crashes)}; give one.',
                field="on_crash",
            )
        read["max_crashes"] = 1
    return read
