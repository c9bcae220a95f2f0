import os

import numpy as np
import pytest

from avatard.commands.bench_live import ALIGN_SAMPLES, BenchError, _offsets, daemon, measure, table
from tests.support.paths import ROOT
from tests.support.serving import running_server


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def speech(seconds: float) -> np.ndarray:
    """Syllables of noise: unlike a tone it matches itself in one place only."""
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * 16000)) / 16000
    return (0.2 * rng.normal(size=len(time)) * (np.sin(2 * np.pi * 3 * time) > 0)).astype(np.float32)


async def test_a_live_session_is_measured_by_a_client():
    async with running_server() as (session, url):
        report = await measure(url, os.getpid(), speech(20), 4.0, interrupts=2)
        stated = 40 * session.scheduler.timing.delay_frames
        # What the server knows of: on a busy machine more than stated, because sound waits there.
        known = max(stated, session.figures()["live_latency_ms"])
        latency = report["audio_to_photon_ms"]
        # A packet, the client's and the server's jitter margins and the resampling come on top.
        assert 0.3 * stated < latency["p50"] < known + 600 and latency["p5"] <= latency["p50"] <= latency["p95"]
        assert abs(report["av_skew_ms"]["p50"]) < 40
        assert 15 < report["frames_per_second"] < 26
        assert report["server_mouth_closed_ms"]["count"] == 2
        assert report["memory_mb"] > 10 and report["server_cpu_cores"] > 0
        text = table(report)
        assert "speech to picture, ms" in text and "p95" in text


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
