"""Mutants: applies each to a copy of the project and shows which test notices it.

    python -m tests.mutants [NAME …] [--list] [--check] [--jobs N] [--limit S] [--json FILE]

Each line is the name, what came of it, and the seconds. Exits with 1 if any mutant has survived.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from tests.mutants.mutant import Mutant
from tests.mutants.run import Ended, Verdict, adopt_orphans, run_mutant
from tests.mutants.table import MUTANTS
from tests.postgres_cluster import URL_VARIABLE, throwaway_cluster

_LIMIT_S = 30.0
_SHOWN_LINES = 25


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := [name for name in given.names if name not in by_name]:
        print(f"No such mutant: {', '.join(unknown)}. --list shows them.", file=sys.stderr)
        return 2
    mutants = [by_name[name] for name in given.names] or list(MUTANTS)
    if given.list:
        for mutant in mutants:
            print(f"{mutant.name}: {mutant.promise}")
        return 0
    began = time.monotonic()
    wanted = Verdict.PASSED if given.check else Verdict.KILLED
    ended = _run_all(mutants, jobs=given.jobs, limit_s=given.limit, is_check=given.check)
    _print_table(ended, wanted, time.monotonic() - began)
    if given.json is not None:
        given.json.write_text(json.dumps([_to_json(by_name[each.name], each) for each in ended], indent=1))
    return int(any(each.verdict is not wanted for each in ended))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/mutants", description="Show which test notices each mutant."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutants")
    parser.add_argument("--list", action="store_true", help="print the names and promises")
    parser.add_argument(
        "--check", action="store_true", help="run the tests without the changes: all must pass"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="so many at a time (2)")
    parser.add_argument("--limit", type=float, default=_LIMIT_S, metavar="S", help="seconds for each (30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    return parser


@contextmanager
def _postgres() -> Iterator[str]:
    """One server for all runs: to make one would take a good part of the time that a run has."""
    given = os.environ.get(URL_VARIABLE)
    if given:
        yield given
    else:
        with throwaway_cluster() as url:
            yield url


def _run_all(mutants: Sequence[Mutant], *, jobs: int, limit_s: float, is_check: bool) -> list[Ended]:
    """In the order of the table; each is printed as soon as it has ended."""
    ended: dict[str, Ended] = {}
    with _postgres() as url, ProcessPoolExecutor(jobs, initializer=adopt_orphans) as pool:
        futures = [pool.submit(run_mutant, each, url, limit_s, is_check=is_check) for each in mutants]
        for future in as_completed(futures):
            one = future.result()
            ended[one.name] = one
            print(f"{one.name}: {one.verdict} {one.test} {one.seconds:.1f} s", flush=True)
            if one.verdict is not (Verdict.PASSED if is_check else Verdict.KILLED):
                print(
                    "\n".join(f"    {line}" for line in one.output.splitlines()[-_SHOWN_LINES:]), flush=True
                )
    return [ended[mutant.name] for mutant in mutants]


def _print_table(ended: Sequence[Ended], wanted: Verdict, seconds: float) -> None:
    width = max(len(each.name) for each in ended)
    print()
    for each in ended:
        print(f"{each.name:<{width}}  {each.seconds:5.1f} s  {each.verdict:<18}  {each.test}")
    others = [each.name for each in ended if each.verdict is not wanted]
    print(f"\n{len(ended) - len(others)} of {len(ended)} {wanted} in {seconds:.0f} s.")
    if others:
        print(f"Not {wanted}: {', '.join(others)}")


def _to_json(mutant: Mutant, ended: Ended) -> dict[str, object]:
    return {
        "name": mutant.name,
        "promise": mutant.promise,
        "verdict": str(ended.verdict),
        "test": ended.test,
        "seconds": round(ended.seconds, 1),
    }


if __name__ == "__main__":
    raise SystemExit(main())
