"""Measure the ZeroMQ publisher: its cost in CPU time, the jitter that subscribers see, the sizes of messages.

    python scripts/bench_zmq.py me.png --seconds 20 --subscribers 10
    python scripts/bench_zmq.py --connect tcp://127.0.0.1:5556   # a running daemon

With a picture the publisher runs in this process with nothing else: its frames at 25 fps by the media clock, landmarks,
coefficients, sound. The subscribers are processes of their own on the same machine (one clock) that take every topic.
Lateness is the time between a frame's due time and its `face` message in the subscriber's hands.
"""

import asyncio
import json
import multiprocessing
import platform
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
import zmq

from avatard.clock import MediaClock, wall_us
from avatard.protocols.image import Encoding, ImageFormat
from avatard.protocols.messages import Face, Head, Meta, Topic, decode, split
from avatard.protocols.zmq_sockets import Publisher, Stamp
from avatard.timebase import FRAME_US


def subscribe(endpoint: str, results: Connection) -> None:
    """Read everything until asked to stop; send back lateness in ms, messages and bytes by topic."""
    late: list[float] = []
    size: dict[str, int] = {}
    count: dict[str, int] = {}
    lost = 0
    after: dict[str, int] = {}
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.subscribe("")
        socket.connect(endpoint)
        while not results.poll(0):
            if not socket.poll(100):
                continue
            parts = socket.recv_multipart()
            now = wall_us()
            topic, payload = split(parts)
            message = decode(payload)
            lost += max(message.seq - after.get(topic, message.seq), 0)
            after[topic] = message.seq + 1
            size[topic] = max(size.get(topic, 0), sum(map(len, parts)))
            count[topic] = count.get(topic, 0) + 1
            if isinstance(message, Face):
                late.append((now - message.cap_us) / 1e3)
    results.send({"late": late, "size": size, "count": count, "lost": lost})


async def publish(publisher: Publisher, picture: np.ndarray, frames: int) -> dict[str, float]:
    """Publish so many frames, each when it is due; CPU time of this process and how late its own timer woke it."""
    random = np.random.default_rng(0)
    landmarks = random.normal(size=(68, 3)).astype(np.float32)
    blendshapes = random.random(52, np.float32)
    pictures = [np.roll(picture, shift, axis=1).copy() for shift in range(8)]  # no two frames in a row are the same
    sound = random.integers(-3000, 3000, 640).astype(np.int16)
    clock, woke = MediaClock(), []
    while not all(publisher.wanted(topic) for topic in Topic):  # noqa: ASYNC110 -- the first of them, before the start
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    clock.start()
    begin, cpu = time.monotonic(), time.process_time()
    for frame in range(frames):
        late = await clock.until(frame)
        woke.append(late * 1e3)
        stamp = Stamp(frame * FRAME_US, wall_us() - round(late * 1e6))
        head = Head(q=(0.01, 0.02, 0.03, 0.99), t=(0.1, -0.2, 0), s=70.1)
        publisher.face(stamp, landmarks, blendshapes, head, speaking=True)
        publisher.audio(stamp, sound, 16_000)
        publisher.video(stamp, pictures[frame % len(pictures)])
    return {
        "cpu_percent_of_a_core": 100 * (time.process_time() - cpu) / (time.monotonic() - begin),
        "own_timer_late_ms_p95": float(np.percentile(woke, 95)),
    }


class Subscribers:
    """Processes that read one publisher."""

    def __init__(self, endpoint: str, count: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipes = []
        self._processes = []
        for _ in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=subscribe, args=(endpoint, theirs))
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def figures(self) -> dict[str, Any]:
        """End them; what they saw."""
        for pipe in self._pipes:
            pipe.send(None)
        results = [pipe.recv() for pipe in self._pipes]
        for process in self._processes:
            process.join()
        late = [ms for result in results for ms in result["late"]]
        if not late:
            sys.exit("bench_zmq: no face message came")
        return {
            "machine": f"{platform.machine()}, {multiprocessing.cpu_count()} cores",
            "subscribers": len(results),
            "face_late_ms": {f"p{p}": round(float(np.percentile(late, p)), 3) for p in (50, 95, 99, 100)},
            "face_messages_each": [result["count"].get(Topic.FACE, 0) for result in results],
            "messages_lost": sum(result["lost"] for result in results),
            "largest_bytes": results[0]["size"],
        }


async def measure(picture: np.ndarray, image: ImageFormat, seconds: float, subscribers: int) -> dict[str, Any]:
    """Run publisher and subscribers; the figures."""
    h, w = picture.shape[:2]
    meta = Meta(server="bench", identity="", fps=25, enc=image.enc, w=w, h=h, sr=16_000, arkit=["x"] * 52)
    async with Publisher(
        "tcp://127.0.0.1:*", sid="00000000", meta=meta, now=lambda: Stamp(0, wall_us()), image=image
    ) as publisher:
        readers = Subscribers(publisher.endpoint, subscribers)
        own = await publish(publisher, picture, round(25 * seconds))
        await asyncio.sleep(0.5)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {**own, "memory_mb": memory, "encoding": image.enc, **await asyncio.to_thread(readers.figures)}


def read_image(path: Path) -> np.ndarray:
    """The upper left square of a picture, uint8 RGB [256, 256, 3]."""
    loaded = cv2.imread(str(path))
    if loaded is None:
        sys.exit(f"bench_zmq: {path} is no picture")
    side = min(loaded.shape[:2])
    small = cv2.resize(loaded[:side, :side], (256, 256), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[:, :, ::-1])


def main(
    portrait: Annotated[Path | None, typer.Argument(exists=True, dir_okay=False, help="What to publish.")] = None,
    connect: Annotated[str, typer.Option(help="Measure this publisher instead.")] = "",
    seconds: float = 20,
    subscribers: Annotated[int, typer.Option(min=1)] = 1,
    encoding: Annotated[Encoding, typer.Option()] = "jpeg",
    quality: Annotated[int, typer.Option(min=1, max=100)] = 85,
) -> None:
    """Print the figures as JSON."""
    if connect:
        readers = Subscribers(connect, subscribers)
        time.sleep(seconds)
        figures = readers.figures()
    elif portrait is not None:
        figures = asyncio.run(measure(read_image(portrait), ImageFormat(encoding, quality), seconds, subscribers))
    else:
        sys.exit("bench_zmq: give a picture to publish, or --connect")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    typer.run(main)
