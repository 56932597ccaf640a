"""Tests: the Chromium of this machine, and how it is started.

python -m tests.web.chromium     print the program, or say what to install and exit with 1
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

VARIABLE = "QML_MP_TEST_CHROMIUM"
"""Names the program, where it is none of those that are looked for."""
_PROGRAMS = (
    # Chromium without what draws a window: the same page takes less of a processor.
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)
_APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
_HOW_TO_INSTALL = (
    "The tests of the page need Chromium or Chrome, and none is found here. Install one (Debian: apt-get "
    "install --no-install-recommends chromium-headless-shell fonts-liberation, or chromium where that is no "
    "package, which scripts/test does as root; macOS: brew install --cask chromium), or name the program in "
    f"${VARIABLE}."
)


class NoChromium(Exception):
    """There is none; the text says what to do."""


def find_chromium() -> str:
    """The path of the program. Raises `NoChromium`."""
    given = os.environ.get(VARIABLE)
    if given:
        if (found := shutil.which(given)) is None:
            raise NoChromium(f"${VARIABLE} is {given}, which is no program that can be run.")
        return found
    for name in _PROGRAMS:
        if (found := shutil.which(name)) is not None:
            return found
    homes = (Path(application) for application in _APPLICATIONS)
    found = next((str(each) for each in homes if os.access(each, os.X_OK)), None)
    if found is None:
        raise NoChromium(_HOW_TO_INSTALL)
    return found


def arguments() -> list[str]:
    """What it is started with: root can have no sandbox, and containers have a small /dev/shm."""
    shared_memory = ["--disable-dev-shm-usage"] if sys.platform == "linux" else []
    return ["--no-sandbox", *shared_memory] if os.geteuid() == 0 else shared_memory


if __name__ == "__main__":
    try:
        print(find_chromium())
    except NoChromium as error:
        sys.exit(str(error))
