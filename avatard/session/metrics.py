"""What is measured while serving, for `/metrics` and the page's panel."""

from __future__ import annotations

from collections import deque

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from avatard.timebase import FPS

LATENCY_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
INTERRUPT_BUCKETS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 1.0)
WINDOW = 250  # frames that the panel's medians look back


class Metrics:
    """One registry for each session, so that two of them in one process do not meet."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.rtf = Gauge(
            "avatard_rtf",
            "Seconds that the slower of the two networks, side by side, takes for a second of video",
            registry=registry,
        )
        self.stage = Counter("avatard_stage_seconds", "Seconds spent", ["stage"], registry=registry)
        self.frames = Counter("avatard_frames", "Frames by what became of them", ["fate"], registry=registry)
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
        self.queue = Gauge("avatard_queue_depth", "What waits", ["queue"], registry=registry)
        self.sessions = Gauge("avatard_sessions", "Connected clients", ["kind"], registry=registry)
        self.underruns = Counter("avatard_underruns", "Gaps because speech came too late", registry=registry)
        self.restarts = Counter("avatard_worker_restarts", "Inference processes lost", registry=registry)
        self.resident = Gauge("avatard_worker_resident_bytes", "Memory of the inference process", registry=registry)
        self.steps = Gauge("avatard_denoising_steps", "As decided by load", ["network"], registry=registry)
        self.picture_rate = Gauge(
            "avatard_picture_rate",
            "Pictures made a second: 25, by decision under overload 12.5 or 6.25",
            registry=registry,
        )
        self.rtf_now = self.skew_now = 0.0
        self._totals: dict[str, float] = {}
        self.recent_latency: deque[float] = deque(maxlen=WINDOW)
        self._recent: deque[tuple[int, float, float]] = deque(maxlen=80)  # pictures, seconds of motion and of video

    def made(self, count: int, motion_seconds: float, video_seconds: float) -> None:
        """Account for a clip of `count` frames."""
        self.frames.labels("generated").inc(count)
        self.stage.labels("motion").inc(motion_seconds)
        self.stage.labels("video").inc(video_seconds)
        self._recent.append((count, motion_seconds, video_seconds))
        frames, motion, video = np.sum(self._recent, axis=0)
        self.rtf_now = float(max(motion, video) / (frames / FPS))
        self.rtf.set(self.rtf_now)

    def effort(self, motion_steps: int, video_steps: int, pictures_per_second: float) -> None:
        """How much work is put in from now on."""
        self.steps.labels("motion").set(motion_steps)
        self.steps.labels("video").set(video_steps)
        self.picture_rate.set(pictures_per_second)

    def skewed(self, seconds: float) -> None:
        """Account for one frame's sound that left so much after its picture."""
        self.skew_now += 0.05 * (seconds - self.skew_now)
        self.skew.set(self.skew_now)

    def total(self, counter: Counter, name: str, value: float) -> None:
        """Bring a counter up to a total that is counted elsewhere."""
        counter.inc(value - self._totals.get(name, 0))
        self._totals[name] = value

    def latency(self, seconds: float) -> None:
        """Account for a frame of speech."""
        self.audio_to_photon.observe(seconds)
        self.recent_latency.append(seconds)

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
