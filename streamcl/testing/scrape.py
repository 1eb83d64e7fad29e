"""Reads what a run exports, as Prometheus does, while it runs."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

import httpx
from prometheus_client.parser import text_string_to_metric_families

EVERY_S = 0.5


class Scraper(threading.Thread):
    """Scrapes until `stop`. Mutable: `values`, all values of all series as they came, by the samples' name."""

    def __init__(self, exporters: Callable[[], Sequence[str]]) -> None:
        """`exporters`: the URLs to read, asked anew each time; none while nothing runs."""
        super().__init__(daemon=True)
        self.exporters = exporters
        self.values: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(EVERY_S):
            for url in self.exporters():
                try:
                    text = httpx.get(url, timeout=10.0).text
                except httpx.HTTPError:  # not there yet, or not any more
                    continue
                for family in text_string_to_metric_families(text):
                    for sample in family.samples:
                        self.values[sample.name].append((dict(sample.labels), sample.value))

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def of(self, name: str, **labels: str) -> list[float]:
        """The values of the series with these labels, as they came."""
        return [value for has, value in self.values[name] if labels.items() <= has.items()]
