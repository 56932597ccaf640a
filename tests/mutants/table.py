"""Mutants: all of them."""

from __future__ import annotations

from tests.mutants.mutant import Mutant
from tests.mutants.of_outside import MUTANTS as _OF_OUTSIDE
from tests.mutants.of_processes import MUTANTS as _OF_PROCESSES
from tests.mutants.of_storage import MUTANTS as _OF_STORAGE

MUTANTS: tuple[Mutant, ...] = (*_OF_STORAGE, *_OF_PROCESSES, *_OF_OUTSIDE)
