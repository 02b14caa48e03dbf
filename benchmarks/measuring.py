"""What the benchmarks share: a file of figures, medians of runs taken in turns, and a clock that other processes do not turn."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.files import write_json


class Results:
    """Figures by name, kept in a JSON file; `origin` is kept with each as what it was measured with."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

        self.origin: dict[str, str] = {}

    def set(self, name: str, value: Any) -> None:
        self.values[name] = value
        self.values["origins"] = self.values.get("origins", {}) | {name: self.origin}
        write_json(self.path, self.values)

    def add(self, section: str, name: str, value: Any) -> None:
        """Add to a section and keep what else is in it."""
        self.set(section, self.values.get(section, {}) | {name: value})


def medians(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turns after one run to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def core_pair_seconds() -> float:
    """Processor time of this process over 2: the time on 2 cores that it has to itself, whatever else runs beside it.

    Where one core alone is busy this runs at half the speed of a wall clock.
    """
    return time.process_time() / 2
