"""Measure a viewer behind bad networks: do picture and sound go on, does the bit rate follow, do they stay in step.

    python scripts/network_weather.py                          # calm, lossy, narrow, and all of it
    python scripts/network_weather.py narrow --seconds 60 --report weather.json

Two real WebRTC peers on this machine, the daemon's and aiortc's, talk through a UDP relay. Pictures carry their number
and every second beeps; the skew is what a browser would play by the sender reports, sound minus picture.
"""

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

ROOT = Path(__file__).resolve().parent.parent
NARROW = 300_000


async def measure(weather: Any, seconds: float) -> dict[str, Any]:
    """The figures of one network."""
    from avatard.clock import monotonic
    from avatard.timebase import FPS
    from tests.support.weather import watching

    async with watching(weather) as viewer:
        began = monotonic()
        await asyncio.sleep(seconds)
        ended = monotonic()
        later = [at for at in viewer.shown_at if at > began + seconds / 2]
        gaps = np.diff([began + seconds / 2, *later, ended])
        second_half = sum(size for at, size in viewer.received if at > began + seconds / 2)
        skew = np.abs(viewer.skew_ms) if viewer.skew_ms else np.array([np.nan])
        return {
            "first_picture_s": round(viewer.shown_at[0] - began, 2) if viewer.shown_at else None,
            "pictures_per_second": round(len(later) / (seconds / 2), 1),
            "longest_freeze_s": round(float(gaps.max()), 2),
            "pictures_wrong": viewer.wrong,
            "sound_received": round(viewer.sound_packets / (seconds * FPS), 3),
            "sound_decoded": round(viewer.sounds / (seconds * FPS), 3),  # aiortc drops what comes late
            "video_kbps": round(8 * second_half / (seconds / 2) / 1000),
            "share_of_bitrate": viewer.share,
            "share_first_fell_s": next((round(at - began, 1) for at, share in viewer.shares if share < 1), None),
            "key_frames": viewer.key_frames,
            "key_frame_requests": viewer.key_requests,
            "packets_dropped": viewer.relay.dropped,
            "packets_passed": viewer.relay.passed,
            "skew_ms_p50": round(float(np.median(skew)), 1),
            "skew_ms_p95": round(float(np.percentile(skew, 95)), 1),
            "beeps": len(viewer.skew_ms),
        }


def main(
    networks: Annotated[
        list[str] | None, typer.Argument(help="Of calm, lossy, narrow, storm; all without one.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=5, help="For each.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of what happens to packets.")] = 1,
    report: Annotated[Path | None, typer.Option(help="File for the figures, JSON.")] = None,
) -> None:
    """Measure bad networks."""
    sys.path.insert(0, str(ROOT))
    from tests.support.weather import Weather

    logging.getLogger("aiortc").setLevel(logging.ERROR)
    known = {
        "calm": Weather(seed=seed),
        "lossy": Weather(loss=0.05, jitter_seconds=0.1, seed=seed),
        "narrow": Weather(bits_per_second=NARROW, seed=seed),
        "storm": Weather(loss=0.05, jitter_seconds=0.1, bits_per_second=NARROW, seed=seed),
    }
    unknown = [name for name in networks or () if name not in known]
    if unknown:
        print(f"got {unknown[0]}, expected of {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    rows = {name: asyncio.run(measure(known[name], seconds)) for name in networks or known}
    names = next(iter(rows.values()))
    print(f"{'':<22}" + "".join(f"{name:>10}" for name in rows))
    for figure in names:
        print(f"{figure:<22}" + "".join(f"{row[figure]!s:>10}" for row in rows.values()))
    if report is not None:
        report.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
