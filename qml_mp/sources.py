"""Client, supervisor: where settings come from; the one place that reads the environment.

Each setting is looked up in turn in: the command line's flags, what the code gave, the environment
(`QML_MP_URL`, `QML_MP_APP`, `QML_MP_WORKERS`, `QML_MP_<FIELD>` for every field of `ServerConfig`),
the nearest settings file, the default. An environment variable that is empty counts as not set.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from qml_mp.errors import ConfigurationError, about_field
from qml_mp.settings import SETTINGS, ServerConfig
from qml_mp.settings_file import ALIASES, nearest_file

DEFAULT_URL = "sqlite:///qml.db"
_THE_DEFAULT = "the default"
_NAME_NO_FILE = ("", ":memory:")  # which is told when they are opened
_ENV_PREFIX = "QML_MP_"
_OF_TESTS = "QML_MP_TEST_"
WEB_TOKEN_VARIABLE = "QML_MP_WEB_TOKEN"  # with what people sign in on the page
_KEPT: dict[str, str] = {}  # that, where an import in this process has taken it out of the environment
_OF_KUBERNETES = re.compile(
    r"QML_MP_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageUrl:
    """The URL of the storage, and where it comes from."""

    text: str = field(repr=False)
    source: str

    @property
    def is_default(self) -> bool:
        """Whether nobody has named it."""
        return self.source == _THE_DEFAULT

    @contextmanager
    def told(self) -> Iterator[str]:
        """The URL; an error about settings within says where it comes from."""
        try:
            yield self.text
        except ConfigurationError as error:
            told = f"{error} The URL comes from {self.source}."
            raise ConfigurationError(told, field=error.field) from error.__cause__


def load_url(*, flag: str | None = None, code: str | None = None, directory: str | None = None) -> StorageUrl:
    """The storage's URL: the flag's, that of the code, the environment's, the settings file's, the default.

    A relative SQLite path in a settings file is meant from the file's directory and comes back
    absolute; from anywhere else it is meant from the current directory and comes back as it is. With a
    `directory` all but that of the code, which may change it, are meant from there and come back absolute,
    and the settings file is the nearest of that one.
    Raises `ConfigurationError` for one that is empty, save in the environment.
    """
    found = _found_url(flag, code, directory)
    if directory is None or (flag is None and code is not None):
        return found
    return replace(found, text=anchored(found.text, Path(directory)))


def _found_url(flag: str | None, code: str | None, directory: str | None) -> StorageUrl:
    if flag is not None:
        return StorageUrl(text=_named(flag, "--url"), source="--url")
    if code is not None:
        return StorageUrl(text=_named(code, "The URL that the code gives"), source="the code")
    from_environment = os.environ.get("QML_MP_URL")
    if from_environment:
        return StorageUrl(text=from_environment, source="QML_MP_URL")
    file = nearest_file(directory)
    if file is None or "url" not in file.values:
        return StorageUrl(text=DEFAULT_URL, source=_THE_DEFAULT)
    source = f"url in {file.path}"
    return StorageUrl(text=anchored(_text(file.values["url"], source), file.path.parent), source=source)


def anchored(url: str, directory: Path) -> str:
    """The URL with a relative SQLite path made absolute, if it names a file."""
    prefix = "sqlite:///"
    path = url.removeprefix(prefix)
    if not url.startswith(prefix) or unquote(path).startswith("/") or path in _NAME_NO_FILE:
        return url
    return f"{prefix}{quote(os.fsencode(directory)).rstrip('/')}/{path}"


def is_url_in_environment() -> bool:
    """Whether the environment names the storage: what code sets by `setdefault` changes nothing then."""
    return bool(os.environ.get("QML_MP_URL"))


def unknown_variables(
    environment: Mapping[str, str] | None = None, *, besides: Collection[str] = ()
) -> list[str]:
    """A sentence for each variable of the environment (None: this process's) that looks like a setting and is
    none, `besides` those that were looked at; of those not that Kubernetes sets for a Service which is called
    as this is."""
    environment = os.environ if environment is None else environment
    known = {_ENV_PREFIX + name.upper() for name in ("url", "app", "web_token", *ALIASES, *SETTINGS)}
    sentences = []
    for name in sorted(set(environment).difference(known, besides)):
        if name.startswith(_ENV_PREFIX) and not _is_of_others(name, environment[name]):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            sentences.append(f"{name} in the environment is no setting and has no effect{hint}")
    return sentences


def load_web_token() -> str | None:
    """With what people sign in on the page, as the environment says or has said; None: neither."""
    return os.environ.get(WEB_TOKEN_VARIABLE) or _KEPT.get(WEB_TOKEN_VARIABLE)


def keep_web_token(token: str | None) -> None:
    """Have this one, if there is one, where an import has taken it out of the environment; and what the
    program has set there since, which is taken out here, as that import does not run again."""
    if _KEPT and os.environ.get(WEB_TOKEN_VARIABLE):
        token = os.environ.pop(WEB_TOKEN_VARIABLE)
    if token is not None and not os.environ.get(WEB_TOKEN_VARIABLE):
        _KEPT[WEB_TOKEN_VARIABLE] = token


def load_app_spec(flag: str | None, *, directory: str | None = None) -> str | None:
    """The user's app, `module:attribute`: the flag, `QML_MP_APP`, the settings file; None: nobody says.

    The file is that of `directory`, as in `load_url`. Raises `ConfigurationError` for another form.
    """
    if flag is not None:
        spec, origin = flag, "-A"
    elif from_environment := os.environ.get("QML_MP_APP"):
        spec, origin = from_environment, "QML_MP_APP"
    elif (file := nearest_file(directory)) is not None and "app" in file.values:
        origin = f"app in {file.path}"
        spec = _text(file.values["app"], origin)
    else:
        return None
    if not all(spec.partition(":")):
        raise ConfigurationError(
            f'{origin} is {spec!r}; an app is named as "module:attribute", e.g. "tasks:app".', field="app"
        )
    return spec


def file_that_names_app(flag: str | None, *, directory: str | None) -> Path | None:
    """The settings file from which `load_app_spec` has the app; None: from elsewhere, or nobody says."""
    if flag is not None or os.environ.get("QML_MP_APP"):
        return None
    file = nearest_file(directory)
    return file.path if file is not None and "app" in file.values else None


def load_config(
    *,
    flags: Mapping[str, object],
    code: ServerConfig | None,
    directory: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> ServerConfig:
    """The settings of a server. `flags` has names of `ServerConfig` fields; None there means not given.

    Of `code`, the fields that were written count, also when they are written as the default is. The settings
    file is that of `directory`, as in `load_url`. Without an `environment` that of this process counts.
    Raises `ConfigurationError` that names the setting, the bound and where the value comes from.
    """
    environment = os.environ if environment is None else environment
    given = {**_from_file(directory), **_from_environment(environment)}
    for name in code.given if code is not None else ():
        given[name] = _Setting(
            value=getattr(code, name), source="the ServerConfig in the code", place="the code"
        )
    for name, value in flags.items():
        if value is not None:
            given[name] = _Setting(value=value, source="the command line", place="the command line")
    try:
        sources = {name: setting.place for name, setting in given.items()}
        return ServerConfig(**{name: setting.value for name, setting in given.items()}, sources=sources)
    except ConfigurationError as error:
        if error.field not in given:
            raise
        raise ConfigurationError(
            f"{error} It comes from {given[error.field].source}.", field=error.field
        ) from None


def load_boot_timeout(*, flags: Mapping[str, object]) -> timedelta:
    """What is known of it before the app's own settings are."""
    try:
        return load_config(flags=flags, code=None).boot_timeout
    except ConfigurationError:
        return ServerConfig().boot_timeout  # told when the settings are complete, which may mend it


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifySocket:
    """Where the service manager that started this process (systemd) is told how it does."""

    path: str
    """Of a Unix datagram socket; one that begins with NUL has no file."""
    watchdog: timedelta | None
    """It takes the process to hang when it hears nothing for so long; None: never."""


def take_notify_socket() -> NotifySocket | None:
    """What the environment says of it, taken out of it: what this process starts is another service."""
    path = os.environ.pop("NOTIFY_SOCKET", "")
    watchdog, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
    if not path.startswith(("/", "@")):
        return None
    counts = watchdog.isdigit() and int(watchdog) > 0 and pid in ("", str(os.getpid()))
    return NotifySocket(
        path="\0" + path[1:] if path.startswith("@") else path,
        watchdog=timedelta(microseconds=int(watchdog)) if counts else None,
    )


def settings_in_environment() -> dict[str, str]:
    """The variables of the environment that are ours."""
    return {name: value for name, value in os.environ.items() if name.startswith(_ENV_PREFIX)}


def settings_after_import(given: Mapping[str, str]) -> dict[str, str]:
    """Those that were `given` to an import of the app, with what it has put into the environment of this
    process since. What it has taken out or emptied there, as a token that jobs are not to see, counts as it
    was given: that is not to open the page, or to send a server to another storage."""
    found = settings_in_environment()
    return {**given, **{name: value for name, value in found.items() if value or name not in given}}


def replace_settings(variables: Mapping[str, str]) -> None:
    """Have these in the environment of this process, in place of all that are ours there."""
    for name in settings_in_environment().keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def environment_without_settings() -> dict[str, str]:
    """The environment for a process that the user's settings must not reach."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_ENV_PREFIX)}


def colour_wanted() -> bool | None:
    """False when `NO_COLOR` is set to anything (no-color.org); None: decide by whether it is a terminal."""
    return False if os.environ.get("NO_COLOR") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    value: Any
    source: str
    place: str
    """The same without a path, for pages that others read."""


def _from_environment(environment: Mapping[str, str]) -> dict[str, _Setting]:
    found: dict[str, _Setting] = {}
    for key in (*ALIASES, *SETTINGS):
        variable = _ENV_PREFIX + key.upper()
        if not (text := environment.get(variable)):
            continue
        name = ALIASES.get(key, key)
        if name in found:
            raise ConfigurationError(f"{found[name].source} and {variable} are both set; unset one of them.")
        with about_field(name):
            value = SETTINGS[name].from_text(text, variable)
            found[name] = _Setting(value=value, source=variable, place=variable)
    return found


def _from_file(directory: str | None) -> dict[str, _Setting]:
    file = nearest_file(directory)
    if file is None:
        return {}
    found: dict[str, _Setting] = {}
    for key, value in file.values.items():
        name = ALIASES.get(key, key)
        if name not in SETTINGS:
            continue  # url and app, which have readers of their own
        what = f"{key} in {file.path}"
        if name in found:
            raise ConfigurationError(f"{found[name].source} is set twice, also as {key}; keep one of them.")
        wanted, types = SETTINGS[name].in_file
        if type(value) not in types:  # a bool is no number here
            raise ConfigurationError(f"{what} is {value!r}; it must be {wanted}.", field=name)
        found[name] = _Setting(value=value, source=what, place=file.path.name)
    return found


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        # The value is not shown: it may be a URL with its password.
        raise ConfigurationError(f"{what} is of type {type(value).__name__}; it must be text and not empty.")
    return value


def _is_of_others(name: str, value: str) -> bool:
    """Whether it is the tests' own variable, or one of those by which a pod finds a Service."""
    if name.startswith(_OF_TESTS) or _OF_KUBERNETES.fullmatch(name):
        return True
    return name.endswith("_PORT") and "://" in value  # a person would write a number


def _named(url: str, what: str) -> str:
    if not url:
        raise ConfigurationError(
            f"{what} is empty and names no storage. Leave it out, and QML_MP_URL, the settings file or the "
            f"default ({DEFAULT_URL}) does.",
            field="url",
        )
    return url
