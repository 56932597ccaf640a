"""Every process: where the program comes from (by name, imported after the fork, or handed over in memory),
and what it gives. The supervisor of `qml-mp start` learns the latter from a child that lives only for that,
without running a line of user code itself.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from qml_mp import host
from qml_mp.child.import_errors import files_in_error, files_of_user, import_error_text
from qml_mp.child.own_loggers import our_loggers
from qml_mp.core.answers import ReloadedCode
from qml_mp.core.limits import Limit, LimitKind, Rate
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import AppImportError
from qml_mp.processing.program import Program
from qml_mp.settings import DEFAULT_QUEUE, ServerConfig
from qml_mp.sources import (
    anchored,
    replace_settings,
    settings_after_import,
    settings_in_environment,
)
from qml_mp.storage.memory_folder import url_for_others

_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",  # Numba passes over OMP_NUM_THREADS
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",  # of libraries in Rust
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedProgram:
    """An app named "module:attribute", found with the current directory importable."""

    spec: str
    settings: Mapping[str, str] | None = field(default=None, repr=False)
    """Those that the import finds in the environment, whatever an import before has put there and processes
    have inherited: `load_dotenv()` overrides nothing. None: as the environment is."""

    @property
    def label(self) -> str:
        """What process titles show: "tasks:app"."""
        return self.spec

    @property
    def is_of_main(self) -> bool:
        """Whether another program could not import it."""
        return self.spec.partition(":")[0] == "__main__"

    @property
    def is_imported(self) -> bool:
        """Whether this process has imported its module, so that its copies do not read it anew."""
        return self.spec.partition(":")[0] in sys.modules

    def load(self) -> Program:
        """Import the module and return the app's program; `AppImportError` when it is no app.

        Raises whatever the user's module raises when it is imported. Called once in each worker.
        """
        if self.settings is not None:
            replace_settings(self.settings)
        found = import_named(self.spec)
        program = found if isinstance(found, Program) else getattr(found, "program", None)
        if not isinstance(program, Program):
            raise AppImportError(f"{self.spec!r} is a {type(found).__name__}, not a QmlApp.")
        return program


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedProgram:
    """A program in memory, which a fork hands to the worker."""

    program: Program
    label: str = "program"

    def load(self) -> Program:
        """The program. Called once in each worker."""
        return self.program


@dataclass(frozen=True, slots=True, kw_only=True)
class PickledProgram:
    """A program by value, as its host has sent it through a pipe: that of a notebook, which no name finds.

    What a storage holds never gets here: nothing of it is ever unpickled.
    """

    data: bytes = field(repr=False)
    label: ClassVar[str] = "notebook"

    def load(self) -> Program:
        """Make the program anew. Raises whatever the modules raise that it needs. Once in each worker."""
        program = pickle.loads(self.data)
        if not isinstance(program, Program):
            raise AppImportError(f"The host has sent a {type(program).__name__}, not a program.")
        return program


ProgramSource = NamedProgram | LoadedProgram | PickledProgram
"""Gives a worker its program."""


def code_at_reload(source: ProgramSource) -> ReloadedCode:
    """What those run that this process forks from now on."""
    if isinstance(source, PickledProgram):
        return ReloadedCode.CELLS_OF_START
    is_in_memory = source.is_imported if isinstance(source, NamedProgram) else True
    return ReloadedCode.OF_START if is_in_memory else ReloadedCode.NEW


def import_named(spec: str) -> object:
    """What "module:attribute" names, found with the current directory importable.

    Raises `AppImportError` where it names nothing, and whatever the user's module raises at its import.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise AppImportError(f'The app {spec!r} is not of the form "module:attribute", e.g. "tasks:app".')
    here = host.current_directory()
    if here is not None and here not in sys.path:
        sys.path.insert(0, here)
    if "/" in module_name:
        raise _names_a_file(spec)
    try:
        with _own_loggers_kept():
            found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if module_name.endswith(".py") and error.name in (module_name, module_name.removesuffix(".py")):
            raise _names_a_file(spec) from None
        raise
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            told = f"The module {module_name!r} has no attribute {attribute!r}.{_whose(module_name)}"
            raise AppImportError(told) from None
    return found


def _whose(module_name: str) -> str:
    """Of a module of the standard library that was found in place of a file of the user's: a sentence."""
    name = module_name.partition(".")[0]
    file = getattr(sys.modules.get(name), "__file__", None)
    of_python = os.path.dirname(os.__file__) + os.sep
    if name not in sys.stdlib_module_names or (file is not None and not file.startswith(of_python)):
        return ""
    return f" It is Python's own ({file or 'built in'}): give a file of yours that is called so another name."


def _names_a_file(spec: str) -> AppImportError:
    file, _, attribute = spec.partition(":")
    path = os.path.normpath(file).removesuffix(".py")
    module = os.path.basename(path) if path.startswith(("/", "..")) else path.replace("/", ".")
    return AppImportError(
        f"{file!r} is the path of a file: name the module, `{module}:{attribute}`, not its file."
    )


@contextmanager
def _own_loggers_kept() -> Iterator[None]:
    """An app that configures logging leaves ours as they were. Who wants less sets a level."""
    enabled = [logger for logger in our_loggers() if not logger.disabled]
    try:
        yield
    finally:
        for logger in enabled:
            logger.disabled = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AppFacts:
    """What the code gives. `error` is the traceback when it does not import."""

    url: str | None = None
    config: ServerConfig | None = None
    name: str = ""
    """What tells its templates from those of other apps; "": nothing does."""
    spec: str = ""
    """The "module:attribute" that it was found by."""
    recurring: tuple[RecurringJob, ...] = ()
    misfits: Mapping[str, str] = field(default_factory=dict)
    """Of those whose payload does not fit their function: id to why. `probe` alone looks: it runs code."""
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    methods: tuple[str, ...] | None = None
    """None: not known."""
    wants_failures: bool = False
    """Whether it is to be called when jobs have failed."""
    traces: bool = False
    """Whether it traces its attempts."""
    flush_timeout: timedelta = timedelta()
    """What a worker may take to export its spans before it leaves."""
    limits: tuple[Limit, ...] = ()
    """Of those of its methods that are limited."""
    files: tuple[str, ...] = ()
    """The source files that the code was read from, without those of installed packages."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The settings that were given to the import, with those that it puts into the environment of its process
    as `load_dotenv()` does."""
    threads: tuple[str, ...] = ()
    """The names of the threads of Python that the import has started."""
    error: str | None = None


def probe(source: ProgramSource) -> str:
    """Import the app and describe it as JSON text (in the child)."""
    files: set[str] = set()
    given = _given_to(source)
    try:
        program = source.load()
        facts = _named(facts_of(program), source)
        facts = dataclasses.replace(facts, url=_url_from_here(facts.url), misfits=program.misfits())
    except AppImportError as error:
        facts = AppFacts(error=str(error))
    except BaseException as error:  # user code: even SystemExit at import is a failure
        facts = AppFacts(error=import_error_text(error))
        files |= files_in_error(error)
    files |= files_of_user()
    facts = dataclasses.replace(
        facts,
        files=tuple(sorted(files)),
        environment=settings_after_import(given),
        threads=tuple(host.other_python_threads()),
    )
    config = None if facts.config is None else facts.config.plain()
    return json.dumps({**dataclasses.asdict(facts), "config": config}, default=_plain)


def read_facts(text: str) -> AppFacts:
    """Read `probe`'s text back (in the supervisor)."""
    facts: dict[str, Any] = json.loads(text)
    if facts["config"] is not None:
        facts["config"] = ServerConfig(**facts["config"])
    facts["flush_timeout"] = timedelta(seconds=facts["flush_timeout"])
    facts["recurring"] = tuple(map(_template, facts["recurring"]))
    facts["limits"] = tuple(map(_limit, facts["limits"]))
    for name in ("queues", "methods", "files", "threads"):
        facts[name] = None if facts[name] is None else tuple(facts[name])
    return AppFacts(**facts)


def facts_of(program: Program) -> AppFacts:
    """What the code of a program in memory gives."""
    return AppFacts(
        url=program.url,
        config=program.config,
        name=program.name or "",
        recurring=program.recurring,
        queues=program.queues,
        methods=program.registry.methods(),
        wants_failures=program.on_failure is not None,
        traces=program.tracing is not None,
        flush_timeout=timedelta() if program.tracing is None else program.tracing.flush_timeout,
        limits=tuple(program.registry.limits().values()),
    )


def _given_to(source: ProgramSource) -> Mapping[str, str]:
    """The settings that its import finds."""
    own = source.settings if isinstance(source, NamedProgram) else None
    return settings_in_environment() if own is None else own


def _named(facts: AppFacts, source: ProgramSource) -> AppFacts:
    """An app without a name is known by what it was found by, and in which folder: many are "tasks:app"."""
    if not isinstance(source, NamedProgram):
        return facts
    file = getattr(sys.modules.get(source.spec.partition(":")[0]), "__file__", None)
    folder = os.path.dirname(os.path.realpath(file)) if file else host.shown_directory()
    return dataclasses.replace(facts, spec=source.spec, name=facts.name or f"{source.spec} in {folder}")


def _url_from_here(url: str | None) -> str | None:
    """The URL as others have to open it: they are not in the directory to which the code may have changed."""
    here, url = host.current_directory(), url_for_others(url)
    return url if url is None or here is None else anchored(url, Path(here))


def _plain(value: datetime | timedelta) -> str | float:
    return value.isoformat() if isinstance(value, datetime) else value.total_seconds()


def _template(fields: dict[str, Any]) -> RecurringJob:
    for name in ("created_at", "next_run_at"):
        if fields[name] is not None:
            fields[name] = datetime.fromisoformat(fields[name])
    return RecurringJob(**{**fields, "jitter": timedelta(seconds=fields["jitter"])})


def _limit(fields: dict[str, Any]) -> Limit:
    rate = fields["rate"] and Rate(fields["rate"]["count"], timedelta(seconds=fields["rate"]["per"]))
    return Limit(**{**fields, "kind": LimitKind(fields["kind"]), "rate": rate})


def cap_native_threads(workers: int) -> None:
    """Give each worker its share of the cores; a variable that the user has set stays as it is.

    Eight workers whose BLAS starts a thread per core run 64 threads on eight cores, and slower than
    eight. The libraries read these variables when they are loaded, so they are set before the app is.
    """
    share = max(1, host.core_count() // max(1, workers))
    for name in _VARIABLES:
        os.environ.setdefault(name, str(share))
