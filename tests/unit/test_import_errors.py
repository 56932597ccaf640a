"""Why an app does not import, told by its own lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from qml_mp.child.source import NamedProgram, probe, read_facts


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_only_lines_of_the_user_are_shown(folder: Path) -> None:
    (folder / "inner_of_broken.py").write_text("import no_such_library\n")
    (folder / "broken_import.py").write_text(
        "try:\n    import inner_of_broken\n"
        "except ImportError as error:\n    raise RuntimeError('no') from error\n"
    )

    error = read_facts(probe(NamedProgram(spec="broken_import:app"))).error or ""

    assert error.count("File ") == 3
    assert "importlib" not in error
    assert "source.py" not in error
    assert error.startswith("Traceback (most recent call last):\n")
    assert "ModuleNotFoundError: No module named 'no_such_library'" in error
    assert error.endswith("RuntimeError: no\n")


@pytest.mark.parametrize(
    ("line", "made_before", "found_as"),
    [
        ("import missing_folder.part", None, "missing_folder"),
        ("from missing_folder import part", None, "missing_folder"),
        ("import missing_part.part", "missing_part", "missing_part/part.py"),
        ("from missing_part import part", "missing_part", "missing_part/part.py"),
        ("from missing_part import part", "missing_part/__init__.py", "missing_part/part.py"),
    ],
)
def test_where_a_module_that_is_missing_would_be_found_is_told(
    folder: Path, line: str, made_before: str | None, found_as: str
) -> None:
    name = "of_" + "".join(filter(str.isalnum, f"{line}{made_before}"))
    (folder / f"{name}.py").write_text(line)
    if made_before is not None:
        made = folder / made_before
        (made.parent if made.suffix else made).mkdir()
        if made.suffix:
            made.touch()

    files = read_facts(probe(NamedProgram(spec=f"{name}:app"))).files

    assert str(folder / found_as) in files


def test_a_line_that_is_no_python_is_shown(folder: Path) -> None:
    (folder / "broken_syntax.py").write_text("app = (\n")

    error = read_facts(probe(NamedProgram(spec="broken_syntax:app"))).error or ""

    assert "broken_syntax.py" in error
    assert "SyntaxError: '(' was never closed" in error
