"""`avatard bench serve`: measure a live session with a WebRTC client on the same machine.

The client sends speech at the pace of a microphone and records when RTP packets arrive, before any jitter buffer. It
finds the moment of the speech that a packet carries by aligning the received sound with the sent one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import psutil
import soxr
from numpy.typing import NDArray

from avatard.clock import monotonic
from avatard.commands.bench_client import LiveClient
from avatard.errors import UserError
from avatard.frame import Samples
from avatard.timebase import PLAYBACK_RATE_HZ, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

SETTLE_SECONDS = 3.0  # at the start and at the end: not measured
MEMORY_SECONDS = 5.0
INTERRUPT_GAP_SECONDS = 4.0
ALIGN_SAMPLES = SAMPLE_RATE_HZ  # the clock of a busy machine is corrected every few seconds
SURE_MATCH = 0.5  # correlation; Opus keeps more than 0.9
MOST_LATENCY_SECONDS = 5.0
AUDIO_TICKS = 1920  # of 48 kHz a frame

Report = dict[str, Any]


#: Labels of the report's keys in the table.
ROWS = {
    "first_frame_seconds": "first frame after the offer, s",
    "frames_per_second": "pictures per second",
    "audio_to_photon_ms": "speech to picture, ms",
    "av_skew_ms": "sound minus picture, ms",
    "interrupt_answered_ms": "interrupt to its answer, ms",
    "server_mouth_closed_ms": "interrupt to a closed mouth (server), ms",
    "server_rtf": "real-time factor (server)",
    "server_cpu_cores": "CPU cores used by the daemon",
    "server_frames": "frames (server)",
    "video_kbps": "video, kbit/s",
    "memory_mb": "memory of the daemon, MB",
    "memory_growth_mb_per_minute": "memory growth, MB a minute",
    "seconds": "measured for, s",
}


class BenchError(UserError):
    """A measurement that cannot be made."""


@asynccontextmanager
async def daemon(arguments: Sequence[str]) -> AsyncIterator[tuple[str, int]]:
    """An `avatard serve` of its own with these arguments: its URL and its process id.

    Raises:
        BenchError: it did not start.
    """
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "avatard", "serve", "--port", "0", "--print-url", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        assert process.stdout is not None
        try:
            url = (await process.stdout.readline()).decode().strip().rstrip("/")
            if not url:
                await process.wait()
                text = os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace")
                raise BenchError((text.strip().splitlines() or ["avatard serve ended"])[-1])
            yield url, process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def measure(url: str, pid: int, speech: Samples, seconds: float, interrupts: int = 20) -> Report:
    """Speak, then interrupt. All figures are the client's, except those named `server`.

    Args:
        url: of the daemon, without a slash at its end.
        pid: of the daemon, for memory and CPU time.
        speech: 16 kHz; repeated as long as needed.
        seconds: length of the speech.
        interrupts: number of interrupts after it.
    """
    said = np.resize(speech, round((seconds + 2 * SETTLE_SECONDS) * SAMPLE_RATE_HZ)).astype(np.float32)
    client = LiveClient(url, said)
    memory: list[tuple[float, int]] = []
    try:
        first = await client.connect()
        await asyncio.sleep(SETTLE_SECONDS)
        before, cpu_before, since = await _figures(url), _cpu_seconds(pid), monotonic()
        while monotonic() - since < seconds:
            await asyncio.sleep(min(MEMORY_SECONDS, max(0.1, since + seconds - monotonic())))
            memory.append((monotonic() - since, _resident_bytes(pid)))
        elapsed = monotonic() - since
        cpu, after = _cpu_seconds(pid) - cpu_before, await _figures(url)
        latency, skew = _latencies(client, said)
        report: Report = {
            "seconds": round(elapsed, 1),
            "first_frame_seconds": round(first, 3),
            "frames_per_second": round(_rate(list(client.video.at.values()), since, since + elapsed), 2),
            "audio_to_photon_ms": _percentiles(latency),
            "av_skew_ms": _percentiles(skew),
            "server_rtf": after["rtf"],
            "server_cpu_cores": round(cpu / elapsed, 2),
            "server_frames": {
                name: after[f"frames_{name}"] - before[f"frames_{name}"]
                for name in ("played", "repeated", "late", "skipped")
            },
            "video_kbps": round(client.video.bytes * 8 / 1000 / (monotonic() - since + SETTLE_SECONDS)),
            **_slope(memory),
        }
    finally:
        await client.close()
    if interrupts:
        report |= await _interrupts(url, speech, interrupts)
    return report


async def _interrupts(url: str, speech: Samples, count: int) -> Report:
    """From sending an interrupt to its answer, and to a closed mouth."""
    loud = np.resize(speech, round((count + 2) * INTERRUPT_GAP_SECONDS * SAMPLE_RATE_HZ)).astype(np.float32)
    client = LiveClient(url)
    sound: list[float] = []
    try:
        await client.connect()
        async with aiohttp.ClientSession() as http:
            for n in range(count):
                async with http.ws_connect(f"{url}/ws/audio") as socket:
                    await socket.send_json({"sample_rate": SAMPLE_RATE_HZ})
                    part = loud[n * 4 * SAMPLE_RATE_HZ :][: 4 * SAMPLE_RATE_HZ]
                    await socket.send_bytes((part * 32767).astype("<i2").tobytes())
                    await asyncio.sleep(2.0 + 0.037 * (n % 10))
                    asked, seen = monotonic(), len(client.events)
                    client.send({"type": "interrupt"})
                    async with asyncio.timeout(5):
                        # A poll is as exact as this needs.
                        while not any(kind == "bot-interrupted" for _, kind, _ in client.events[seen:]):  # noqa: ASYNC110
                            await asyncio.sleep(0.001)
                    sound.append(1000 * (client.events[-1][0] - asked))
                    await asyncio.sleep(1.0)
            async with http.get(f"{url}/metrics") as response:
                text = await response.text()
    finally:
        await client.close()
    return {
        "interrupt_answered_ms": _percentiles(np.array(sound)),
        "server_mouth_closed_ms": _histogram(text, "avatard_interrupt_seconds"),
    }


def _latencies(client: LiveClient, said: Samples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Speech to picture, and sound minus picture, in milliseconds, of each frame.

    Raises:
        BenchError: no sound was received.
    """
    arrived = sorted(client.audio.at)
    positions = sorted(client.sound)
    if not positions:
        raise BenchError("no sound was received")
    length = positions[-1] + AUDIO_TICKS
    heard = np.zeros(length, np.float32)
    for at, samples in client.sound.items():
        heard[at : at + len(samples)] = samples
    began = client.audio.at[arrived[0]] - client.voice_started_at
    offsets = _offsets(soxr.resample(heard, PLAYBACK_RATE_HZ, SAMPLE_RATE_HZ), said, began)
    videos = np.array(sorted(client.video.at.values()))
    latency, skew = [], []
    for at in range(positions[0], length, AUDIO_TICKS):
        came = client.audio.at.get((arrived[0] + at) % (1 << 32))
        offset = offsets[min(at // 3 // ALIGN_SAMPLES, len(offsets) - 1)]
        if offset is None:
            continue
        first = at // 3 - offset  # sample of the speech that this packet begins with
        captured = client.voice_started_at + first / SAMPLE_RATE_HZ
        if came is None or not 0 <= first < len(said) - SAMPLES_PER_FRAME:
            continue
        if came - client.voice_started_at < SETTLE_SECONDS:
            continue
        nearest = videos[np.argmin(np.abs(videos - came))]
        latency.append(1000 * (nearest - captured))
        skew.append(1000 * (came - nearest))
    return np.array(latency), np.array(skew)


def _offsets(heard: Samples, said: Samples, began: float) -> list[int | None]:
    """Samples by which each stretch of `heard` is behind `said`, by cross-correlation.

    A stretch that is too quiet to match has the offset of the one before. Stretches are matched separately, because the
    daemon corrects a microphone's clock from time to time. The speech must not repeat itself within
    `MOST_LATENCY_SECONDS`.

    Args:
        heard: the received sound, 16 kHz.
        said: the sent sound, 16 kHz.
        began: when `heard` began to arrive, in seconds from the start of the speech.
    """
    most = round(MOST_LATENCY_SECONDS * SAMPLE_RATE_HZ)
    before = np.concatenate([np.zeros(most, np.float32), said])
    offsets: list[int | None] = []
    for start in range(0, max(1, len(heard) - ALIGN_SAMPLES + 1), ALIGN_SAMPLES):
        stretch = heard[start : start + ALIGN_SAMPLES]
        now = round(began * SAMPLE_RATE_HZ) + start
        part = before[now : now + most + len(stretch)]
        size = 1 << (len(part) + len(stretch)).bit_length()
        match = np.fft.irfft(np.fft.rfft(part, size) * np.conj(np.fft.rfft(stretch, size)), size)
        best = int(np.argmax(match[: most + 1]))
        energy = np.linalg.norm(part[best : best + len(stretch)]) * np.linalg.norm(stretch)
        sure = match[best] > SURE_MATCH * energy > 0
        offsets.append(start - (now + best - most) if sure else offsets[-1] if offsets else None)
    return offsets


def _rate(times: list[float], start: float, end: float) -> float:
    return sum(start <= at < end for at in times) / (end - start)


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        raise BenchError("nothing was measured")
    return {name: round(float(np.percentile(values, p)), 1) for name, p in (("p5", 5), ("p50", 50), ("p95", 95))}


def _histogram(text: str, name: str) -> dict[str, float]:
    """Upper bounds, in milliseconds, of the buckets that hold the median and the 95th percentile."""
    buckets = [(float(le), float(n)) for le, n in re.findall(rf'{name}_bucket{{le="([\d.]+)"}} ([\d.e+]+)', text)]
    total = float((re.search(rf"{name}_count ([\d.e+]+)", text) or ["", "0"])[1])
    bound = {p: next((le for le, n in buckets if n >= p * total), float("inf")) for p in (0.5, 0.95)}
    return {"count": total, "p50_at_most": 1000 * bound[0.5], "p95_at_most": 1000 * bound[0.95]}


async def _figures(url: str) -> dict[str, float]:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/api/status") as response:
        figures: dict[str, float] = (await response.json())["figures"]
        return figures


def _family(pid: int) -> list[psutil.Process]:
    """The process and all its children."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _resident_bytes(pid: int) -> int:
    total = 0
    for member in _family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += member.memory_info().rss
    return total


def _cpu_seconds(pid: int) -> float:
    total = 0.0
    for member in _family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += times.user + times.system
    return total


def _slope(memory: list[tuple[float, int]]) -> Report:
    """Resident memory, and its growth after the first minute."""
    settled = [sample for sample in memory if sample[0] > 60] or memory
    times, sizes = np.array(settled, np.float64).T
    grows = float(np.polyfit(times, sizes, 1)[0]) if len(settled) > 2 else 0.0
    return {
        "memory_mb": round(memory[-1][1] / 2**20, 1),
        "memory_growth_mb_per_minute": round(grows * 60 / 2**20, 3),
    }


def table(report: Report) -> str:
    """The report in two columns."""
    width = max(map(len, ROWS.values()))
    lines = []
    for key, label in ROWS.items():
        value = report.get(key)
        if isinstance(value, dict):
            value = ", ".join(f"{name} {number:g}" for name, number in value.items())
        if value is not None:
            lines.append(f"{label:<{width}}  {value}")
    return "\n".join(lines)
