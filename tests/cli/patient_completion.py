"""Tests: `python -m tests.cli.patient_completion`: the command, which gives a shell all that there is, also
where a busy machine takes longer to find it than the second that a person is to wait."""

from __future__ import annotations

from qml_mp.cli import completion
from qml_mp.cli.main import main

if __name__ == "__main__":
    completion._PATIENCE_S = 60.0
    main()
