"""What all benchmarks print: a JSON line for each figure, with the machine it was taken on, and a table at the end."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROUNDS = 5
"""How often a figure is taken; its median is quoted."""


def machine() -> dict[str, Any]:
    """Return what has to be known about where a figure was taken."""
    model = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processor": model[0] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        **{name: metadata.version(name) for name in ("openoutcry", "pynng", "pykka", "msgpack")},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


class Report:
    """Collects figures: prints each as a JSON line on standard output, and all as a table on standard error."""

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark
        self._machine = machine()
        self._rows: list[tuple[str, str, str]] = []

    def add(self, figure: str, unit: str, values: Sequence[float], **details: Any) -> float:
        """Report one figure, taken ``len(values)`` times, and return its median."""
        median = statistics.median(values)
        line = {
            "benchmark": self._benchmark,
            "figure": figure,
            "unit": unit,
            "median": round(median, 4),
            "values": [round(value, 4) for value in values],
            **details,
            "machine": self._machine,
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        spread = f"{_shown(min(values))} to {_shown(max(values))}" if len(values) > 1 else ""
        self._rows.append((figure, f"{_shown(median)} {unit}", spread))
        return median

    def finish(self) -> None:
        """Print the table."""
        widths = [max([len(row[at]) for row in self._rows], default=0) for at in range(2)]
        for figure, median, spread in self._rows:
            sys.stderr.write(f"{figure:<{widths[0]}}  {median:>{widths[1]}}  {spread}\n")


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def numbers(text: str) -> list[int]:
    """Return the numbers of a comma-separated list: the type of an argument."""
    return [int(number) for number in text.split(",")]


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return p50, p99, p99.9 and the largest of ``values``."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        name: round(ordered[min(last, int(len(ordered) * share))], 4)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0))
    }
