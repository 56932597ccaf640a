"""Benchmark: the tables, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from tests.bench.scenario import Sample, Samples, Scenario, Target
from tests.bench.system import Backend, System

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that was measured."""

    machine: Mapping[str, str]
    systems: Sequence[System]
    scenarios: Sequence[Scenario]
    samples: Samples
    left_out: Mapping[str, str]
    """Name to reason."""
    failures: Sequence[str]

    def text(self) -> str:
        """For people."""
        parts = [
            "\n".join(f"{what}: {value}" for what, value in self.machine.items()),
            aligned(
                ("system", "version", "backend", "settings", "durability"), map(_described, self.systems)
            ),
            *(self._table(*of) for of in self._tables()),
            *self._targets_text(),
        ]
        parts += [f"left out: {name}: {why}" for name, why in self.left_out.items()]
        parts += [f"FAILED: {failure}" for failure in self.failures]
        return "\n\n".join(parts)

    def as_json(self) -> Json:
        """For programs: every run, the medians and the targets."""
        return {
            "machine": dict(self.machine),
            "systems": [_as_json(system) for system in self.systems],
            "left_out": dict(self.left_out),
            "failures": list(self.failures),
            "runs": [asdict(sample) for sample in self.samples.items],
            "medians": [row for of in self._tables() for row in self._median_rows(*of)],
            "targets": [_target_json(*each) for each in self._targets()],
        }

    def _tables(self) -> Iterator[tuple[Scenario, str, Backend]]:
        for scenario in self.scenarios:
            for case in scenario.cases:
                for backend in (Backend.POSTGRES, Backend.SQLITE):
                    if any(system.backend is backend for system in self.systems):
                        yield scenario, case, backend

    def _median_rows(self, scenario: Scenario, case: str, backend: Backend) -> Iterator[Json]:
        for system in self.systems:
            samples = self.samples.of(scenario.name, case, system.name, backend)
            if system.backend not in (backend, Backend.NONE) or not samples:
                continue
            medians = {
                column.metric: self.samples.median(samples, column.metric) for column in scenario.columns
            }
            ratios = {}
            for ratio in scenario.ratios:
                base = self.samples.of(scenario.name, case, ratio.base, backend)
                pair = (base, samples) if ratio.inverted else (samples, base)
                ratios[ratio.heading] = self.samples.ratio(*pair, ratio.metric)
            yield {
                "scenario": scenario.name, "case": case, "compared_on": backend, "system": system.name,
                "medians": medians, "ratios": ratios, "rounds": len(samples),
            }  # fmt: skip

    def _table(self, scenario: Scenario, case: str, backend: Backend) -> str:
        headings = [column.heading for column in scenario.columns]
        headings += [ratio.heading for ratio in scenario.ratios]
        rows = []
        for row in self._median_rows(scenario, case, backend):
            medians, ratios = row["medians"], row["ratios"]
            assert isinstance(medians, dict)
            assert isinstance(ratios, dict)
            cells = [_shown(medians[column.metric], column.digits) for column in scenario.columns]
            cells += [_shown(value, 2) for value in ratios.values()]
            rows.append((str(row["system"]), *cells))
        title = ", ".join(filter(None, (scenario.title, case, f"beside {backend}")))
        return f"{title}\n{aligned(('system', *headings), rows)}"

    def _targets(self) -> Iterator[tuple[Scenario, Target, float]]:
        for scenario in self.scenarios:
            for target in scenario.targets:
                value = self._value(scenario, target)
                if value is not None:
                    yield scenario, target, value

    def _value(self, scenario: Scenario, target: Target) -> float | None:
        own = self.samples.of(scenario.name, target.case, target.system, target.backend)
        if target.over is None:
            return self.samples.median(own, target.metric)
        base = self.samples.of(scenario.name, target.case, target.over, target.backend)
        return self.samples.ratio(own, base, target.metric)

    def _targets_text(self) -> Iterator[str]:
        rows = [_target_row(*each) for each in self._targets()]
        if rows:
            yield aligned(("target", "backend", "of", "wanted", "measured", "verdict"), rows)


def aligned(headings: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """Columns of equal width."""
    lines = [tuple(headings), *map(tuple, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _described(system: System) -> Sequence[str]:
    return (system.name, system.version(), system.backend, system.settings, system.durability)


def _as_json(system: System) -> Json:
    keys = ("name", "version", "backend", "settings", "durability")
    return dict(zip(keys, _described(system), strict=True)) | {"kind": system.kind}


def _is_met(target: Target, value: float) -> bool:
    return (target.at_least is None or value >= target.at_least) and (
        target.at_most is None or value <= target.at_most
    )


def _target_row(scenario: Scenario, target: Target, value: float) -> Sequence[str]:
    what = f"{target.metric} of {target.system}" + (f" ÷ {target.over}" if target.over else "")
    wanted = f"≥ {target.at_least:g}" if target.at_least is not None else f"≤ {target.at_most:g}"
    of = ", ".join(filter(None, (scenario.name, target.case)))
    verdict = "met" if _is_met(target, value) else "missed"
    return (what, target.backend, of, wanted, f"{value:.3g}" if value < 1000 else f"{value:.0f}", verdict)


def _target_json(scenario: Scenario, target: Target, value: float) -> Json:
    return {"scenario": scenario.name, **asdict(target), "value": value, "met": _is_met(target, value)}


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def line_of(sample: Sample) -> str:
    """One run, for whoever waits for the end."""
    metrics = ", ".join(f"{name} {value:,.2f}" for name, value in sample.metrics.items())
    where = ", ".join(filter(None, (sample.scenario, sample.case, sample.backend)))
    return f"round {sample.round}: {where}: {sample.system}: {metrics}"
