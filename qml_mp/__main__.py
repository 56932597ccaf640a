"""Client, supervisor: `python -m qml_mp` is the command `qml-mp`."""

from __future__ import annotations

from qml_mp.cli.main import main

if __name__ == "__main__":
    main()
