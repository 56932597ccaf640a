"""Tests: disks that are full or fail, for a server on an SQLite file.

As root a small tmpfs is mounted, and where this user may trace its processes, strace makes the
kernel refuse. Elsewhere a library is preloaded that fails the very same calls; a C compiler builds it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.until import PATIENCE_S, wait_until

_TMPFS_BYTES = 4 * 1024 * 1024

_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int marked(const char *variable) {
    const char *path = getenv(variable);
    return path != NULL && access(path, F_OK) == 0;
}
static int is_log(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    return n > 4 && strncmp(path + n - 4, "-wal", 4) == 0;
}
#define FULL(fd) if (marked("QML_TEST_DISK_FULL") && is_log(fd)) { errno = ENOSPC; return -1; }
#define FAILS(fd) if (marked("QML_TEST_DISK_FAILS") && is_log(fd)) { errno = EIO; return -1; }
#define NEXT(name, type) ((type)dlsym(RTLD_NEXT, name))

ssize_t write(int fd, const void *data, size_t n) {
    FULL(fd) return NEXT("write", ssize_t (*)(int, const void *, size_t))(fd, data, n);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    FULL(fd) return NEXT("pwrite", ssize_t (*)(int, const void *, size_t, off_t))(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    FULL(fd) return NEXT("pwrite64", ssize_t (*)(int, const void *, size_t, off64_t))(fd, data, n, at);
}
int fsync(int fd) { FAILS(fd) return NEXT("fsync", int (*)(int))(fd); }
int fdatasync(int fd) { FAILS(fd) return NEXT("fdatasync", int (*)(int))(fd); }
"""


@dataclass(kw_only=True)
class BadDisk:
    """A folder on a disk that can be made full, or made to fail, while a server runs there."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the server needs in its environment."""
    marks: Path | None = None
    """Where the preloaded library looks; None: the disk is a real one."""

    @contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte more fits until the end of the block."""
        if self.marks is None:
            with _filled(self.folder):
                yield
        else:
            with _marked(self.marks / "full"):
                yield

    @contextmanager
    def failing(self, pid: int) -> Iterator[None]:
        """The process is told EIO for each fsync until the end of the block."""
        if self.marks is None:
            with _traced(pid):
                yield
        else:
            with _marked(self.marks / "fails"):
                yield


@contextmanager
def small_disk(folder: Path) -> Iterator[BadDisk]:
    """A disk that can be full."""
    if os.geteuid() == 0 and _mounts(folder):
        try:
            yield BadDisk(folder=folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    else:
        yield preloaded(folder)


def failing_disk(folder: Path) -> BadDisk:
    """A disk whose fsync can fail."""
    return BadDisk(folder=folder) if _may_trace() else preloaded(folder)


def preloaded(folder: Path) -> BadDisk:
    """A disk that is bad by word of a preloaded library; raises when there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise AssertionError(
            "This test needs root and mount, or strace, or a C compiler, and found none of them."
        )
    marks = folder.parent / "marks"
    marks.mkdir()
    library = marks / "bad_disk.so"
    source = marks / "bad_disk.c"
    source.write_text(_SHIM)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, source, "-ldl"], check=True, timeout=60
    )
    environment = {
        "LD_PRELOAD": str(library),
        "QML_TEST_DISK_FULL": str(marks / "full"),
        "QML_TEST_DISK_FAILS": str(marks / "fails"),
    }
    return BadDisk(folder=folder, environment=environment, marks=marks)


def _mounts(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}", "qml-mp-test", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def _filled(folder: Path) -> Iterator[None]:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    yield
    ballast.unlink()


@contextmanager
def _marked(mark: Path) -> Iterator[None]:
    mark.touch()
    yield
    mark.unlink()


def _may_trace() -> bool:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with _traced(sleeper.pid):
            return True
    except (OSError, AssertionError):
        return False
    finally:
        sleeper.kill()
        sleeper.wait()


@contextmanager
def _traced(pid: int) -> Iterator[None]:
    calls = "fsync,fdatasync"
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-p", str(pid)]
    command += ["-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO"]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _is_traced(pid, tracer), what="strace at the process")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # it lets go of the process, which goes on
        tracer.wait(PATIENCE_S)


def _is_traced(pid: int, tracer: subprocess.Popen[bytes]) -> bool:
    assert tracer.poll() is None, "strace may not attach"
    return "\nTracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
