"""What is measured while serving, for `/metrics`, the page's panel and ZeroMQ's `stats`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from avatard.inference.ipc import FramesReady, QualityLevel
from avatard.session.load import STAGES, StageLoad, seconds_of
from avatard.timebase import FPS

LATENCY_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
INTERRUPT_BUCKETS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 1.0)
RTF_PARTS = 80  # parts of clips that the real-time factor is the mean of
WINDOW = 250  # frames that the panel's medians look back

#: Families whose values are counted elsewhere and read when they are scraped: by label.
Family: TypeAlias = Literal[
    "frames", "stage_seconds", "queue_depth", "underruns", "worker_resident_bytes", "outputs", "output_losses"
]
Reader: TypeAlias = Callable[[], Mapping[str, float]]
_DESCRIPTIONS: Mapping[Family, tuple[str, str]] = {
    "frames": ("fate", "Frames by what became of them"),
    "stage_seconds": ("stage", "Seconds spent"),
    "queue_depth": ("queue", "What waits"),
    "underruns": ("", "Gaps because speech came too late"),
    "worker_resident_bytes": ("", "Memory of the inference process"),
    "outputs": ("state", "Pushes and recordings"),
    "output_losses": ("kind", "Connections of pushes, and files of recordings, that ended in an error"),
}
_GAUGES: frozenset[Family] = frozenset({"queue_depth", "worker_resident_bytes", "outputs"})


class _Watched(Collector):
    """Reads counters when they are scraped."""

    def __init__(self) -> None:
        self.readers: dict[Family, list[Reader]] = {family: [] for family in _DESCRIPTIONS}

    def collect(self) -> Iterable[Metric]:
        for name, readers in self.readers.items():
            label, description = _DESCRIPTIONS[name]
            kind = GaugeMetricFamily if name in _GAUGES else CounterMetricFamily
            family = kind(f"avatard_{name}", description, labels=[label] if label else [])
            for reader in readers:
                for value_of, value in reader().items():
                    family.add_metric([value_of] if label else [], value)
            yield family


class Metrics:
    """One registry for each session, so that two of them in one process do not meet."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._watched = _Watched()
        self.rtf = Gauge(
            "avatard_rtf",
            "Seconds that a second of video takes: those of the slowest stage, or of all of them shared by the cores",
            registry=registry,
        )
        self.first_frame = Histogram(
            "avatard_first_frame_seconds",
            "From a client's offer to the first frame sent to it",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.audio_to_photon = Histogram(
            "avatard_audio_to_photon_seconds",
            "From the arrival of speech to the sending of its frame",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.interrupt = Histogram(
            "avatard_interrupt_seconds",
            "From an interrupt to a closed mouth",
            buckets=INTERRUPT_BUCKETS,
            registry=registry,
        )
        self.skew = Gauge(
            "avatard_av_skew_seconds", "Sent sound minus sent picture of the same frame", registry=registry
        )
        self.sessions = Gauge("avatard_sessions", "Connected clients", ["kind"], registry=registry)
        self.restarts = Counter("avatard_worker_restarts", "Inference processes lost", registry=registry)
        self.steps = Gauge("avatard_denoising_steps", "As decided by load", ["network"], registry=registry)
        self.picture_rate = Gauge(
            "avatard_picture_rate",
            "Pictures rendered a second: 25, by decision under overload 12.5 or 6.25",
            registry=registry,
        )
        self.picture_scale = Gauge(
            "avatard_picture_scale",
            "Sides of pictures as composed, beside those shown: 1, by decision under overload 0.5",
            registry=registry,
        )
        self.rtf_now = self.skew_now = 0.0
        self.recent_latency: deque[float] = deque(maxlen=WINDOW)
        self.recent_live_latency: deque[float] = deque(maxlen=WINDOW)  # pushed speech waits for its turn, too
        self.load = StageLoad(RTF_PARTS)
        self._spent = dict.fromkeys(STAGES, 0.0)
        self.watch("stage_seconds", lambda: self._spent)
        registry.register(self._watched)

    def watch(self, family: Family, read: Reader) -> None:
        """Read values by label whenever the metrics are scraped; a family without a label has one under any name."""
        self._watched.readers[family].append(read)

    def frames_ready(self, ready: FramesReady) -> None:
        """Account for a clip, or a part of one."""
        self.load.add(ready)
        for stage, seconds in zip(STAGES, seconds_of(ready), strict=True):
            self._spent[stage] += seconds
        self.rtf_now = self.load.rtf
        self.rtf.set(self.rtf_now)

    def quality(self, level: QualityLevel) -> None:
        """Note the quality level from now on."""
        self.load.clear()
        self.steps.labels("motion").set(level.motion_steps)
        self.steps.labels("video").set(level.video_steps)
        self.picture_rate.set(FPS / level.frame_stride)
        self.picture_scale.set(level.picture_scale)

    def skewed(self, seconds: float) -> None:
        """Account for one frame's sound that left so much after its picture."""
        self.skew_now += 0.05 * (seconds - self.skew_now)
        self.skew.set(self.skew_now)

    def latency(self, seconds: float, live: bool) -> None:
        """Account for a frame of speech, `live` where a microphone heard it."""
        self.audio_to_photon.observe(seconds)
        self.recent_latency.append(seconds)
        if live:
            self.recent_live_latency.append(seconds)

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
