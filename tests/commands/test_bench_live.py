import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soxr

from avatard.commands.bench_client import Arrivals
from avatard.commands.bench_live import (
    ALIGN_SAMPLES,
    AUDIO_TICKS,
    MOST_LATENCY_SECONDS,
    BenchError,
    _latencies,
    _offsets,
    daemon,
    measure,
    table,
)
from avatard.media.pcm import to_pcm16
from tests.support.paths import ROOT
from tests.support.serving import STREAM, running_server


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def speech(seconds: float) -> np.ndarray:
    """Syllables of noise: unlike a tone it matches itself in one place only."""
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * 16000)) / 16000
    return (0.2 * rng.normal(size=len(time)) * (np.sin(2 * np.pi * 3 * time) > 0)).astype(np.float32)


async def test_a_live_session_is_measured_by_a_client():
    async with running_server() as (_, url):
        report = await measure(url, os.getpid(), speech(20), 4.0, interrupts=2)
        # How long it takes is the machine's affair, but no picture can come before its speech was captured.
        latency = report["audio_to_photon_ms"]
        assert latency["p5"] <= latency["p50"] <= latency["p95"] < 1000 * MOST_LATENCY_SECONDS
        assert STREAM.lookahead_ms < latency["p50"]
        assert set(report["av_skew_ms"]) == {"p5", "p50", "p95"}
        assert 0 < report["frames_per_second"] and 0 < report["server_frames"]["played"]
        assert report["server_mouth_closed_ms"]["count"] == 2
        assert report["memory_mb"] > 10 and report["server_cpu_cores"] > 0
        text = table(report)
        assert "speech to picture, ms" in text and "p95" in text


@pytest.mark.parametrize("late", [0.25, 0.7, 1.9])
def test_latency_and_skew_are_those_of_the_arrivals(late):
    """Packets of one frame, each when it is due, with the sound of `late` seconds before; pictures 12 ms earlier."""
    rate, seconds, offer_at, first_pts = 48_000, 8, 0.5, 777
    said = speech(20)
    heard = soxr.resample(np.concatenate([np.zeros(round((late - offer_at) * 16_000 + 16_000)), said]), 16_000, rate)
    heard = heard[rate:]  # what arrives `offer_at` seconds after the speech began was captured `late` seconds before
    client: Any = SimpleNamespace(voice_started_at=100.0, sound={}, audio=Arrivals(), video=Arrivals())
    for n in range(25 * seconds):
        at = AUDIO_TICKS * n
        client.sound[at] = to_pcm16(heard[at : at + AUDIO_TICKS])
        client.audio.at[first_pts + at] = 100.0 + offer_at + n / 25
        client.video.at[3600 * n] = 100.0 + offer_at + n / 25 - 0.012
    latency, skew = _latencies(client, said)
    assert len(latency) > 100
    assert np.abs(latency - (1000 * late - 12)).max() < 1
    assert np.abs(skew - 12).max() < 1


def test_what_is_heard_is_found_in_what_was_said():
    said = speech(40)
    late = [10_000, 10_000, 6_800, None]  # samples; the third stretch was caught up with, the last one is silent
    heard = np.zeros(4 * ALIGN_SAMPLES, np.float32)
    for n, offset in enumerate(late):
        first = n * ALIGN_SAMPLES
        if offset is not None:
            from_, to = max(0, first - offset), first + ALIGN_SAMPLES - offset
            heard[first + ALIGN_SAMPLES - (to - from_) : first + ALIGN_SAMPLES] = 500 * said[from_:to]
    assert _offsets(heard, said, began=0.3) == [10_000, 10_000, 6_800, 6_800]
    assert _offsets(heard[3 * ALIGN_SAMPLES :], said, began=0.3) == [None]


async def test_a_daemon_that_does_not_start_says_why(tmp_path):
    with pytest.raises(BenchError, match=r"^avatard: .*none\.png cannot be read"):
        async with daemon(["--identity", str(tmp_path / "none.png")]):
            pass
