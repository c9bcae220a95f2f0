"""`avatard bench`: the cost of each stage of the pipeline on this machine, and its real-time factor."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from avatard.clock import monotonic, process_cpu, thread_cpu
from avatard.commands.render import play_out
from avatard.config import Config
from avatard.frame import Samples
from avatard.inference.engine_api import Engine, MakeEngine
from avatard.inference.pool import cores
from avatard.media.video_writer import VideoWriter
from avatard.portrait import Portrait
from avatard.timebase import FPS, SAMPLE_RATE_HZ

#: The paper's time for 5 s of video at 256², on an RTX 3090 Ti.
PAPER_SECONDS: Final = 125
PAPER_VIDEO_SECONDS: Final = 5
#: Frames at the start that are not counted: caches are cold.
WARM_UP_FRAMES: Final = 32
#: Parts of the stages that an engine times, in their order.
PARTS: Final = {
    "motion": ("speech features", "AToM-Net"),
    "generate": ("landmark encoder", "diffusion UNet", "decoder trunk"),
    "render": ("decoder", "compositor"),
}

Report = dict[str, Any]


def voice(seconds: float, seed: int = 0) -> Samples:
    """A signal like speech, 16 kHz: syllables of a pitched buzz and noise. Its content does not change the cost."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    pitch = 2 * np.pi * 120 * t
    buzz = sum(np.sin(k * pitch) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 3.5 * t), 0, None)
    samples: Samples = (0.15 * syllables * (buzz + 0.3 * rng.normal(size=len(t)))).astype(np.float32)
    return samples


def stages(engine: Engine, seconds: float) -> dict[str, dict[str, float]]:
    """Measure all stages one after the other, one hop at a time.

    Returns:
        CPU milliseconds per frame of each stage: of its parts, and of `the rest`; together they are the stage's.
    """
    spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def timer(part: str) -> Iterator[None]:
        began = thread_cpu()
        yield
        spent[part] += thread_cpu() - began

    before, engine.timer = engine.timer, timer
    stream = engine.begin(0)
    engine.timer = before
    frames = counted = 0
    for chunk in np.array_split(voice(seconds + WARM_UP_FRAMES / FPS), round(seconds * 10)):
        if frames < WARM_UP_FRAMES:
            spent.clear()
            counted = 0
        began = process_cpu()
        motions = list(stream.motion(chunk))
        moved = process_cpu()
        clips = [clip for motion in motions for clip in stream.generate(motion)]
        generated = process_cpu()
        rendered = sum(len(made) for clip in clips for _, made in stream.render(clip))
        spent["motion"] += moved - began
        spent["generate"] += generated - moved
        spent["render"] += process_cpu() - generated
        frames, counted = frames + rendered, counted + rendered
    cost = {name: 1000 * value / max(counted, 1) for name, value in spent.items()}
    parts = {stage: {part: cost[part] for part in names if part in cost} for stage, names in PARTS.items()}
    return {stage: {**known, "the rest": cost[stage] - sum(known.values())} for stage, known in parts.items()}


def throughput(engine: Engine, config: Config, seconds: float, size: tuple[int, int]) -> Report:
    """Measure all stages side by side, as they run live, together with the video encoder."""
    with tempfile.TemporaryDirectory(prefix="avatard-") as folder:
        began, used = monotonic(), process_cpu()
        frames = 0
        waited = None
        with VideoWriter(Path(folder) / "bench.mp4", size) as writer:
            for played in play_out(engine, np.array_split(voice(seconds), round(seconds * FPS)), config):
                assert played.picture is not None
                writer.write(played.picture.rgb)
                waited = monotonic() - began if waited is None else waited
                frames += 1
        wall = monotonic() - began
    return {
        "frames": frames,
        "wall_seconds": wall,
        "first_frame_seconds": waited,
        "rtf": wall / (frames / FPS),
        "cores_used": (process_cpu() - used) / wall,
    }


def hop_ms(engine: Engine, config: Config, hops: int = 8) -> float:
    """Milliseconds by the wall that a hop of one session takes in all stages, one after the other: the median."""
    stream = engine.begin(0)
    seconds: list[float] = []
    for chunk in np.split(voice((hops + 2) * config.stream.hop_frames / FPS), hops + 2):
        began = monotonic()
        clips = [clip for motion in stream.motion(chunk) for clip in stream.generate(motion)]
        if sum(len(made) for clip in clips for _, made in stream.render(clip)):
            seconds.append(monotonic() - began)
    return 1000 * float(np.median(seconds or [0.0]))


def memory_each(engine: Engine, portrait: Portrait, config: Config, count: int = 2) -> float:
    """MB of the processor's memory that one more session takes, on average of a few that speak."""
    import psutil

    process = psutil.Process()
    kept = []
    before = process.memory_info().rss
    for _ in range(count):
        engine.identify(portrait)
        kept.append(engine.begin(0))
        for motion in kept[-1].motion(voice(4 * config.stream.hop_frames / FPS)):
            for clip in kept[-1].generate(motion):
                list(kept[-1].render(clip))
    grown = int(process.memory_info().rss) - int(before)
    return max(0.0, grown / count / 1e6)


def sessions(engine: Engine, portrait: Portrait, config: Config, costs: dict[str, dict[str, float]]) -> Report:
    """How many sessions of 25 frames a second this machine keeps up with, and what each takes of its memory.

    On a processor, as many as their cost fits into its cores. On a GPU, as many as were measured to keep up, and as the
    compositor's cost fits into the cores.
    """
    from avatard.models.device import choose_device

    count, on_cpu = cores(), choose_device(config.inference.device).type == "cpu"
    composed = costs["render"].get("compositor", 0.0)
    cost = sum(sum(parts.values()) for parts in costs.values()) if on_cpu else composed
    fit = int(count * 1000 / FPS / cost) if cost else None
    report = {"cores": count, "by_cores": fit, "memory_mb_each": memory_each(engine, portrait, config)}
    if on_cpu:
        return {**report, "at_25_fps": fit, "device": None}
    from avatard.commands.bench_device import loads, summary
    from avatard.engine.engine import NeuralEngine
    from avatard.engine.identity import Identity
    from avatard.models.face.morphable import MorphableModel

    assert isinstance(engine, NeuralEngine)
    mean, stream = MorphableModel.load().mean_68, config.stream
    measured = summary(loads(engine.networks, Identity.find(portrait), mean, stream, voice(10)), stream)
    at_25_fps = measured["networks"] if fit is None else min(measured["networks"], fit)
    return {**report, "at_25_fps": at_25_fps, "device": measured}


def bench(config: Config, make_engine: MakeEngine, identity: Path, seconds: float = 10.0) -> Report:
    """Measure; `table` shows the contents of the report.

    Raises:
        UserError: the portrait, the weights or the configuration cannot be used.
    """
    from avatard.models.device import choose_device, device_name
    from avatard.models.precision import inference_dtype

    began = monotonic()
    device = choose_device(config.inference.device)
    given = Portrait.read(identity, config.portrait.face)
    engine = make_engine(config)
    _, portrait = engine.identify(given)
    list(play_out(engine, [voice(0.2)], config))
    start_seconds = monotonic() - began
    height, width, _ = portrait.pixels.shape
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    costs = stages(engine, seconds)
    return {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": _version("torch"),
            "device": str(device),
            "device_name": device_name(device),
            "precision": str(inference_dtype(device)).removeprefix("torch."),
            "load_before": load,
        },
        "stream": {
            key: getattr(config.stream, key)
            for key in ("clip_frames", "hop_frames", "fade_frames", "lookahead_ms", "motion_steps", "video_steps")
        },
        "size": [height, width],
        "seconds": seconds,
        "start_seconds": start_seconds,
        "core_ms_per_frame": costs,
        "hop_ms": hop_ms(engine, config),
        "render": throughput(engine, config, seconds, (height, width)),
        "peak_memory_mb": None if (peak := _peak_bytes()) is None else peak / 1e6,
        "sessions": sessions(engine, given, config, costs),
        "paper_rtf": PAPER_SECONDS / PAPER_VIDEO_SECONDS,
    }


def table(report: Report) -> str:
    """The report as text."""
    machine, stream, render, costs = (report[key] for key in ("machine", "stream", "render", "core_ms_per_frame"))
    hop = stream["hop_frames"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, load {_number(machine['load_before'])} before",
        f"pictures of {report['size'][1]}x{report['size'][0]} pixels, networks in {machine['precision']} on "
        f"{machine['device']}" + (f" ({machine['device_name']})" if machine["device"] != "cpu" else ""),
        "  ".join(f"{key} {value}" for key, value in stream.items()),
        "",
        f"{'stage':<20}{'core-ms a frame':>16}{'core-ms a hop':>16}{'of a core':>11}",
    ]
    for stage, parts in costs.items():
        for name, cost in [(stage, sum(parts.values())), *((f"  {part}", cost) for part, cost in parts.items())]:
            lines.append(f"{name:<20}{cost:>16.2f}{cost * hop:>16.1f}{cost * FPS / 1000:>10.0%} ")
    made, memory, many = render["frames"] / FPS, report["peak_memory_mb"], report["sessions"]
    rows = {
        "start to first frame": f"{report['start_seconds']:.1f} s; of a session, once started: "
        f"{1000 * render['first_frame_seconds']:.0f} ms",
        f"a hop of {hop} frames": f"{report['hop_ms']:.1f} ms, all stages of one session one after the other",
        f"sessions of {FPS} fps": _sessions(many),
        "memory of a session": f"{many['memory_mb_each']:.0f} MB" + _device_memory(many["device"]),
        f"{made:.0f} s of video": f"{render['wall_seconds']:.1f} s, {render['cores_used']:.2f} cores, H.264 included",
        "real-time factor": f"{render['rtf']:.2f} (the paper's: {report['paper_rtf']:.0f}, on an RTX 3090 Ti)",
        f"{PAPER_VIDEO_SECONDS} s of video at that rate": f"{PAPER_VIDEO_SECONDS * render['rtf']:.1f} s "
        f"(the paper's: {PAPER_SECONDS} s)",
        "peak memory": "unknown" if memory is None else f"{memory:.0f} MB",
    }
    lines += ["", *(f"{name:<28}{value}" for name, value in rows.items())]
    return "\n".join(lines)


def _sessions(report: Report) -> str:
    """How many, and why not more."""
    fit = "unknown" if report["by_cores"] is None else report["by_cores"]
    cores = f"{report['cores']} cores"
    if report["device"] is None:
        return f"{fit}, by their cost on {cores}"
    last = report["device"]["measured"][-1:]
    tried = f"; tried up to {last[0]['sessions']}, {last[0]['hop_ms']:.0f} ms a hop" if last else ""
    return f"{report['at_25_fps']}: networks {report['device']['networks']}{tried}; compositors {fit} on {cores}"


def _device_memory(device: Report | None) -> str:
    each = None if device is None else device["memory_mb_each"]
    return "" if each is None else f", {each:.0f} MB of the GPU"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"


def _processor() -> str:
    """The processor's name, if the system provides it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # not Unix
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
