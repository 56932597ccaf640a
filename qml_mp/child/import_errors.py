"""Worker and client: why the app does not import, told by the user's own lines: those of the import system
and of qml-mp between them say nothing."""

from __future__ import annotations

import os
import re
import sys
from traceback import StackSummary, TracebackException

from qml_mp.core.failure_kinds import OURS, TRACEBACK

_LIBRARIES = tuple({os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix)})
_INSTALLED = ("site-packages", "dist-packages")
_NO_NAME = re.compile(r"cannot import name '(\w+)'")  # Python 3.12 has it as `name_from`
_OF_IMPORTS = ("<frozen importlib", os.path.dirname(os.__file__) + "/importlib/")


def import_error_text(error: BaseException) -> str:
    """The traceback, with those of its causes, of several lines."""
    told = TracebackException.from_exception(error)
    _leave_out(told)
    text = "".join(told.format())
    return text if TRACEBACK in text else f"{TRACEBACK}\n{text}"  # Python begins none without a frame so


def files_in_error(error: BaseException) -> set[str]:
    """Source files of the user's that the error names, such as one that is no Python; those in which a module
    would be found that there is not, and the folder that would be one without `__init__.py`."""
    told = TracebackException.from_exception(error)
    files = {frame.filename for frame in told.stack}
    if isinstance(error, SyntaxError) and error.filename:
        files.add(error.filename)
    missing = _missing_module(error)
    places = _places_of(missing) if missing else ()
    return {*filter(is_users, files), *filter(_is_among_users, places)}


def files_of_user() -> set[str]:
    """Of the modules that are imported now."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return {file for file in files if isinstance(file, str) and is_users(file)}


def _missing_module(error: BaseException) -> str | None:
    """What is missing may be no module, where it was to be imported from one."""
    if isinstance(error, ModuleNotFoundError):
        return error.name
    if isinstance(error, ImportError) and error.name and (found := _NO_NAME.match(str(error))):
        return f"{error.name}.{found[1]}"
    return None


def _places_of(module: str) -> set[str]:
    path = module.replace(".", os.sep)
    ends = "", ".py", f"{os.sep}__init__.py"
    folders = [each for each in sys.path if isinstance(each, str)]  # what else there is, import passes over
    return {os.path.join(folder, path + end) for folder in folders for end in ends}


def is_users(file: str) -> bool:
    """Whether the source file is; those of the standard library and of installed packages are not."""
    return file.endswith(".py") and _is_among_users(file)


def _is_among_users(path: str) -> bool:
    return (
        os.path.isabs(path)
        and not path.startswith((OURS, *_LIBRARIES))
        and not any(folder in path.split(os.sep) for folder in _INSTALLED)
    )


def _leave_out(told: TracebackException) -> None:
    told.stack = StackSummary.from_list(
        frame for frame in told.stack if not frame.filename.startswith((OURS, *_OF_IMPORTS))
    )
    for other in (told.__cause__, told.__context__):
        if other is not None:
            _leave_out(other)
