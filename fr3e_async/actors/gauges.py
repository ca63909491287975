"""Samples to Prometheus by way of Ray: the driver's process hands them to Ray's agent on its node, which shows them on a page.

The only place of ``ray.util.metrics``. No thread of ours: Ray collects what was set, every few seconds, and forgets a gauge that
is not set again for some 20 s. So all of them are set again at every call, whatever the call brings: a step's metrics stay while
the heartbeats continue, and a driver that is stuck is seen by what is missing. Knows nothing of what the numbers mean; names and
labels are those of ``observe/prometheus.py``.
"""

import logging
import math
from collections.abc import Iterable
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from fr3e_async.observe.metrics import PrometheusMetric
from fr3e_async.observe.prometheus import EXPORTED, NAMESPACE, RUN, PrometheusSample

logger = logging.getLogger(__name__)

NOTHING = 5e-324  # Ray refuses to add 0; the least number makes a counter appear, so that its first increment is seen as one


class RayGauges:
    """Port ``Exporter``. Make it after the cluster was joined. The first failure is logged and ends the export, not the run."""

    def __init__(self, run: str) -> None:
        """``run``: value of the label that tells runs on one cluster apart."""
        self._run = _ascii(run)
        self._series: dict[str, Any] = {}  # Ray's objects, by name
        self._gauges: dict[tuple[str, tuple[tuple[str, str], ...]], PrometheusSample] = {}  # what they are, by name and labels
        self.failed = False

    def publish(self, samples: Iterable[PrometheusSample]) -> None:
        if self.failed:
            return
        try:
            for sample in samples:
                if EXPORTED[sample.name].kind == "gauge":
                    self._gauges[sample.name, sample.labels] = sample
                else:
                    self._record(sample)
            for key, gauge in list(self._gauges.items()):
                self._record(gauge)
                if math.isnan(gauge.value):  # once: then the series goes
                    del self._gauges[key]
        except Exception:  # any error of Ray's: a run must not depend on its gauges
            self.failed = True
            logger.exception("metrics are no longer exported to Prometheus; the run continues")

    def _record(self, sample: PrometheusSample) -> None:
        series = self._series.get(sample.name)
        if series is None:
            series = self._series[sample.name] = _series(EXPORTED[sample.name])
        tags = {RUN: self._run, **dict(sample.labels)}
        match EXPORTED[sample.name].kind:
            case "gauge":
                series.set(sample.value, tags)
            case "histogram":
                series.observe(sample.value, tags)
            case "counter":
                series.inc(max(sample.value, NOTHING), tags)


def _series(exported: PrometheusMetric) -> Counter | Gauge | Histogram:
    name, keys = NAMESPACE + exported.name, (RUN, *exported.labels)
    meaning = _ascii(f"{exported.meaning} ({exported.unit})" if exported.unit else exported.meaning)
    match exported.kind:
        case "gauge":
            return Gauge(name, meaning, keys)
        case "counter":
            return Counter(name, meaning, keys)
        case "histogram":
            return Histogram(name, meaning, list(exported.buckets), keys)


def _ascii(text: str) -> str:
    """Escape a text to ASCII, the only characters that Ray's metrics accept."""
    return text.replace("·", "*").encode("ascii", "backslashreplace").decode()
