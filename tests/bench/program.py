"""Benchmark, a program of a system: `python -m tests.bench.program MODULE FUNCTION`.

Imports the module by its name, because a job's name may be that of its function, and calls the function.
`produce` is answered here: it serves the requests of the benchmark with the module's `producer()`.
"""

from __future__ import annotations

import importlib
import json
import sys
import time

from tests.bench.system import Producer
from tests.bench.work import Work


def main() -> None:
    """See above."""
    module = importlib.import_module(sys.argv[1])
    if sys.argv[2] == "produce":
        _serve(module.producer())
    else:
        getattr(module, sys.argv[2])(*sys.argv[3:])


def _serve(producer: Producer) -> None:
    """One line of JSON for each request until standard input ends: when each call began and returned."""
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        how, first, count, kinds = json.loads(line)
        works = [
            Work(seq=first + turn, ms=ms, how=kind)
            for turn, (ms, kind) in enumerate(kinds * (count // len(kinds)))
        ]
        stamps = []
        if how == "bulk":
            began = time.monotonic_ns()
            producer.bulk(works)
            stamps.append((began, time.monotonic_ns()))
        else:
            for work in works:
                began = time.monotonic_ns()
                producer.single(work)
                stamps.append((began, time.monotonic_ns()))
        print(json.dumps(stamps), flush=True)
    producer.close()


if __name__ == "__main__":
    main()
