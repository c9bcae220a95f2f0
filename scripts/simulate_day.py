"""Live through a day of the avatar in minutes, on a virtual clock, and check what must hold in every frame.

    python scripts/simulate_day.py                       # 24 hours
    python scripts/simulate_day.py --hours 1 --seed 7 --report day.json

Three agents and a microphone (200 ppm fast) speak, viewers come and go, portraits are swapped, speech is interrupted;
the inference process dies, stalls and is overloaded; the machine hangs, is suspended, and its clock steps by a second.
Checked: sound and picture of a frame belong together, frame numbers have no gap, every sample that was accepted is
heard once unless it is interrupted, every utterance is queued, started and ended once and in this order, frames leave
when they are due, queues are bounded, memory does not grow. The exit code is 1 where one of them does not hold.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
MOST_GROWTH_MB = 1.0  # an hour
MOST_SKEW_MS = 40.0


def main(
    hours: Annotated[int, typer.Option(min=1, help="How long.")] = 24,
    seed: Annotated[int, typer.Option(help="The same one gives the same day.")] = 1,
    report: Annotated[Path | None, typer.Option(help="File for the figures, JSON.")] = None,
) -> None:
    """Simulate a day."""
    sys.path.insert(0, str(ROOT))
    from tests.support.day import BrokenInvariant, run_day

    try:
        day = run_day(hours, seed, on_hour=lambda day: print(f"hour {day.hours:.1f}", file=sys.stderr, flush=True))
    except BrokenInvariant as broken:
        print(f"seed {seed}: {broken}", file=sys.stderr)
        raise SystemExit(1) from None
    figures = {
        "hours": day.hours,
        "cpu_seconds": round(day.cpu_seconds, 1),
        "skew_ms": day.skew_ms,
        "lateness_ms": [round(late, 4) for late in day.lateness_ms],
        "lateness_trend_ms_per_hour": round(day.lateness_trend_ms_per_hour, 6),
        "resident_mb": [round(size, 1) for size in day.resident_mb],
        "resident_mb_per_hour": round(day.resident_mb_per_hour, 3),
        "longest_repeat_frames": day.longest_repeat,
        "counts": dict(sorted(day.counts.items())),
        "longest_queues": dict(day.most),
    }
    for name, value in figures.items():
        print(f"{name:<28}{value}")
    if report is not None:
        report.write_text(json.dumps(figures, indent=1) + "\n")
    grows = hours > 2 and day.resident_mb_per_hour > MOST_GROWTH_MB
    raise SystemExit(grows or day.skew_ms > MOST_SKEW_MS)


if __name__ == "__main__":
    typer.run(main)
