"""Client: the import of the user's app for a command, and the settings that it puts into the environment."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from qml_mp.cli.output import note, stdout_for_data
from qml_mp.core.failure_kinds import place_of_error
from qml_mp.errors import AppImportError, ConfigurationError
from qml_mp.sources import (
    file_that_names_app,
    load_app_spec,
    load_boot_timeout,
    replace_settings,
    settings_after_import,
    settings_in_environment,
    unknown_variables,
)

if TYPE_CHECKING:
    from qml_mp.app import QmlApp
    from qml_mp.child.source import AppFacts


def import_app(spec: str) -> QmlApp:
    """The app, imported into this process. Raises `AppImportError`."""
    from qml_mp.child.import_errors import import_error_text
    from qml_mp.loading import load_app

    given = settings_in_environment()
    try:
        with stdout_for_data():
            app = load_app(spec)
    except SystemExit as left:
        place = place_of_error(import_error_text(left))
        told = f"its module exits with {left.code!r}" + (f" ({place})" if place else "")
        raise AppImportError(f"The app {spec!r} cannot be imported: {told}.") from left
    replace_settings(settings_after_import(given))
    note_unknown_settings(besides=given)
    return app


def import_facts(spec: str) -> AppFacts:
    """What the app gives. A process of its own imports it, which has `boot_timeout` for that; where none can
    be forked, this process does, without a limit of time. Raises `AppImportError`."""
    from qml_mp.child.source import NamedProgram, facts_of
    from qml_mp.supervisor.probe import probe_app

    timeout = load_boot_timeout(flags={})
    try:
        with stdout_for_data():
            facts = probe_app(NamedProgram(spec=spec), timeout=timeout)
    except (OSError, ConfigurationError):  # no room for a process, or a thread in this one
        return facts_of(import_app(spec).program)
    take_over_settings(facts)
    return facts


def who_names_app(error: BaseException, *, flag: str | None, directory: str | None) -> str:
    """`where_to_call`, of the error that the app is not found; of another ""."""
    if not isinstance(error, AppImportError) or directory is None:
        return ""
    module = (load_app_spec(flag, directory=directory) or "").partition(":")[0]
    if not any(f"No module named {name!r}" in str(error) for name in (module, module.partition(".")[0])):
        return ""
    return where_to_call(flag=flag, directory=directory)


def where_to_call(*, flag: str | None, directory: str | None) -> str:
    """Of an app that is not found, where a settings file of another folder names it: a sentence that says
    which, and what to do. Else ""."""
    file = None if directory is None else file_that_names_app(flag, directory=directory)
    if file is None or str(file.parent) == directory:
        return ""
    return (
        f"The app is named in {file}, and imported from the current directory (or by PYTHONPATH), not from "
        f"the file's: call this in {file.parent}."
    )


def take_over_settings(facts: AppFacts) -> None:
    """Have the settings in the environment that an import in another process has put there."""
    given = settings_in_environment()
    replace_settings(facts.environment)
    note_unknown_settings(besides=given)


def note_unknown_settings(*, besides: Collection[str] = ()) -> None:
    """Say so of variables that are written wrong: they would pass unseen otherwise."""
    for sentence in unknown_variables(besides=besides):
        note(sentence)
