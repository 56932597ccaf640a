"""Worker and client: the job of `qml-mp demo`: read a source file, parse it, compress it, hash the result."""

from __future__ import annotations

import ast
import hashlib
import lzma
import sysconfig
import warnings
from pathlib import Path

from qml_mp.app import QmlApp

app = QmlApp(middleware=())  # no tracing: two lines a job in a log that nobody reads cost up to 5 % here


@app.job()
def digest_source(path: str) -> dict[str, str | int]:
    """What is found in one file of the standard library, given relative to its folder."""
    return digest(path)


def digest(path: str) -> dict[str, str | int]:
    """Number of syntax nodes, sizes, and the SHA-256 of the LZMA-compressed bytes; the same on every run."""
    source = (stdlib() / path).read_bytes()
    packed = lzma.compress(source)
    return {
        "nodes": _count_nodes(source),
        "bytes": len(source),
        "packed": len(packed),
        "sha256": hashlib.sha256(packed).hexdigest(),
    }


def source_files() -> list[str]:
    """Every .py file of the running Python's standard library, without site-packages, in order."""
    root = stdlib()
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(str(path) for path in found if not {"site-packages", "dist-packages"} & set(path.parts))


def stdlib() -> Path:
    """The folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def _count_nodes(source: bytes) -> int:
    """0 for a file that is no valid Python, of which the library's own tests keep some."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in old test files
        try:
            return sum(1 for _ in ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError):
            return 0
