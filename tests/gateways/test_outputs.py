"""Pushes and recordings beside a session: they are lost and come back, and the session never waits for them."""

import asyncio
import operator
import queue
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from avatard.config import Output as OutputConfig
from avatard.gateways import outputs
from avatard.gateways.outputs import ForbiddenOutputError, ManyOutputsError, Output, OutputError, Outputs
from avatard.media.live_writer import LiveWriterError, target_of
from avatard.media.writer_process import VanishedError
from tests.support.flashes import decoded, entry, offsets_ms
from tests.support.paths import ROOT
from tests.support.serving import said, until
from tests.support.still import StillSession

URL = "rtmp://live.example/app/secret"


class FakeWriter:
    """A writer process in memory; the test decides what becomes of it."""

    made: "queue.SimpleQueue[FakeWriter]"

    def __init__(self, setup: Any) -> None:
        self.setup = setup
        self.error: Exception | None = None
        self.may_connect, self.may_write = threading.Event(), threading.Event()
        self.written: list[int] = []
        self.finished = self.killed = False
        self.made.put(self)

    def connect(self) -> None:
        self.may_connect.wait()
        self._check()

    def write(self, index: int, pixels: Any, pcm: Any) -> None:
        self.may_write.wait()
        self._check()
        self.written.append(index)

    def finish(self) -> None:
        self.finished = True

    def kill(self) -> None:
        self.killed = True
        self.fail(VanishedError("it was ended"))

    def close(self) -> None:
        pass

    def fail(self, error: Exception) -> None:
        self.error = error
        self.may_connect.set()
        self.may_write.set()

    def run(self) -> None:
        self.may_connect.set()
        self.may_write.set()

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def writers(monkeypatch):
    FakeWriter.made = queue.SimpleQueue()
    monkeypatch.setattr(outputs, "WriterProcess", FakeWriter)
    return FakeWriter.made


@pytest.fixture
async def begin():
    session = StillSession()
    begun: list[Output] = []

    def make(target: str = URL, retry_seconds: tuple[float, ...] = (0.0,), **config: Any) -> tuple[Any, Output]:
        output = Output(session, "it", target_of(target), OutputConfig(**config), Counter(), retry_seconds)  # type: ignore[arg-type]
        begun.append(output)
        return session, output

    yield make
    for output in begun:
        await output.stop()


async def next_of(writers: "queue.SimpleQueue[FakeWriter]") -> FakeWriter:
    await until(lambda: not writers.empty())
    return writers.get()


async def test_a_receiver_that_is_lost_is_found_again_and_costs_nothing_meanwhile(writers, begin, caplog):
    caplog.set_level("INFO")
    session, output = begin()
    first = await next_of(writers)
    assert (output.state, session.sinks) == ("connecting", [])
    first.run()
    await until(lambda: session.sinks == [output])
    for index in range(3):
        output.play(entry(index))
    await until(lambda: first.written == [0, 1, 2])
    first.error = LiveWriterError("rtmp://live.example/app/***: Broken pipe")
    output.play(entry(3))
    second = await next_of(writers)
    await until(lambda: not session.sinks)
    for _ in range(3):  # the same reason again: one line is enough
        second.fail(LiveWriterError("rtmp://live.example/app/***: Connection refused"))
        second = await next_of(writers)
    second.run()
    await until(lambda: session.sinks == [output] and output.state == "connected")
    output.play(entry(9))
    await until(lambda: second.written == [9])
    assert (output.losses, output.written, output.dropped, output.error) == (4, 4, 0, "")
    assert said(caplog) == ["output connected", "output lost", "output lost", "output connected"]
    assert not any("secret" in str(vars(record)) for record in caplog.records)
    await output.stop()
    assert second.finished and not second.killed and output.state == "ended"


async def test_pauses_grow_and_begin_anew_after_a_steady_connection(writers, begin, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setattr(outputs, "STEADY_FRAMES", 2)
    session, output = begin(retry_seconds=(0.0, 0.001, 0.002))
    for _ in range(4):
        (await next_of(writers)).fail(LiveWriterError("no"))
    steady = await next_of(writers)
    steady.run()
    await until(lambda: session.sinks == [output])
    output.play(entry(0))
    output.play(entry(1))
    await until(lambda: len(steady.written) == 2)
    steady.error = LiveWriterError("no")
    output.play(entry(2))
    await next_of(writers)
    pauses = [record.retry_seconds for record in caplog.records if record.getMessage() == "output lost"]
    assert pauses == [0.0, 0.001, 0.002, 0.002, 0.0]


async def test_a_slow_receiver_loses_a_whole_stretch_and_is_told_once(writers, begin, monkeypatch, caplog):
    monkeypatch.setattr(outputs, "QUEUE_FRAMES", 4)
    session, output = begin()
    writer = await next_of(writers)
    writer.may_connect.set()
    await until(lambda: session.sinks)
    for index in range(30):
        output.play(entry(index))
        if index == 0:
            await until(lambda: output.queued == 0)  # frame 0 is being written, and takes its time
    assert (output.queued, output.dropped) == (4, 25)
    writer.may_write.set()
    await until(lambda: output.queued == 0)
    output.play(entry(30))
    await until(lambda: writer.written == [0, 1, 2, 3, 4, 30])
    assert said(caplog) == ["output too slow, frames left out"]


async def test_a_receiver_that_is_stuck_is_given_up(writers, begin, monkeypatch):
    monkeypatch.setattr(outputs, "QUEUE_FRAMES", 4)
    monkeypatch.setattr(outputs, "STUCK_FRAMES", 10)
    session, output = begin()
    writer = await next_of(writers)
    writer.may_connect.set()
    await until(lambda: session.sinks)
    for index in range(20):
        output.play(entry(index))
    assert writer.killed
    await next_of(writers)
    assert output.losses == 1


async def test_stopping_waits_for_no_receiver(writers, begin):
    _, connecting = begin()
    writer = await next_of(writers)
    await connecting.stop()
    assert writer.killed and connecting.state == "ended"
    _, waiting = begin(retry_seconds=(3600.0,))
    (await next_of(writers)).fail(LiveWriterError("no"))
    await until(lambda: waiting.state == "waiting")
    await waiting.stop()
    assert waiting.state == "ended"


async def test_a_recording_that_cannot_be_written_ends_and_one_whose_process_died_goes_on(writers, begin, tmp_path):
    _, full = begin(str(tmp_path / "full.mp4"))
    (await next_of(writers)).fail(LiveWriterError("full.mp4: No space left on device"))
    await until(lambda: full.state == "failed")
    assert not full.running and full.describe()["error"] == "full.mp4: No space left on device"
    assert not (tmp_path / "full.mp4").exists()
    session, killed = begin(str(tmp_path / "talk.mp4"))
    first = await next_of(writers)
    first.run()
    await until(lambda: session.sinks)
    killed.play(entry(0))
    await until(lambda: first.written)
    first.error = VanishedError("it was killed")
    killed.play(entry(1))
    second = await next_of(writers)
    assert second.setup.target == str(tmp_path / "talk-2.mp4") and killed.describe()["target"] == "talk-2.mp4"


async def test_a_file_that_cannot_be_ended_is_told(writers, begin, monkeypatch, tmp_path):
    def fail(writer: FakeWriter) -> None:
        raise LiveWriterError("talk.mp4: No space left on device")

    monkeypatch.setattr(FakeWriter, "finish", fail)
    session, output = begin(str(tmp_path / "talk.mp4"))
    (await next_of(writers)).run()
    await until(lambda: session.sinks)
    await output.stop()
    assert (output.state, output.error) == ("ended", "talk.mp4: No space left on device")


async def test_a_recording_through_the_session_is_in_step(begin, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    session, output = begin(str(tmp_path / "talk.mkv"))
    await until(lambda: session.sinks, 60)
    for index in range(500, 600):
        output.play(entry(index))
        await until(lambda: output.queued < 10, 60)
    session.generation.at_rest = None
    await output.stop()
    assert output.describe() == {
        "id": "it",
        "kind": "record",
        "target": "talk.mkv",
        "state": "ended",
        "seconds": 4.0,
        "frames_dropped": 0,
        "losses": 0,
        "error": "",
    }
    assert len(decoded(tmp_path / "talk.mkv", "video")) == 100
    assert np.abs(offsets_ms(tmp_path / "talk.mkv")).max() <= 40


RECEIVER = """
import av, sys
with av.open(sys.argv[1], options={"listen": "1"}) as stream:
    print(stream.metadata["title"], flush=True)
    streams = (stream.streams.video[0], stream.streams.audio[0])
    print(*(each.codec_context.name for each in streams), flush=True)
    for packet in stream.demux(streams[0]):
        print("key" if packet.is_keyframe else "frame", flush=True)
"""


async def play_until(output: Output, first: int, end: Callable[[int], bool]) -> int:
    """Play frames from `first` on, as fast as they are written, until `end(index)`; the number of the next."""
    while not end(first):
        output.play(entry(first))
        first += 1
        await until(partial(lambda at: output.queued < 10 or end(at), first), 60)
    return first


async def test_a_push_finds_a_receiver_that_is_killed_twice(begin, monkeypatch):
    """FFmpeg's own RTMP server, which takes one client and ends."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"rtmp://127.0.0.1:{probe.getsockname()[1]}/live/key"
    session, output = begin(url, retry_seconds=(0.1,))
    index = losses = 0
    for _ in range(3):
        receiver = await asyncio.create_subprocess_exec(
            sys.executable, "-c", RECEIVER, url, stdout=asyncio.subprocess.PIPE
        )
        assert receiver.stdout is not None
        try:
            await until(lambda: session.sinks, 60)
            losses = output.losses
            index = await play_until(output, index, partial(operator.le, index + 130))
            heard = [(await receiver.stdout.readline()).decode().strip() for _ in range(2 + 101)]
        finally:
            receiver.kill()
            await receiver.communicate()
        assert heard[:2] == ["AI-generated video", "h264 aac"]
        assert [n for n, kind in enumerate(heard[2:]) if kind == "key"] == [0, 50, 100], "every two seconds"
        # That it is gone is noticed by writing.
        index = await play_until(output, index, partial(lambda before, _: output.losses > before, losses))


async def test_what_the_configuration_names_is_begun_and_counted(writers, tmp_path):
    session = StillSession()
    config = OutputConfig(push=(URL,), record=str(tmp_path / "talk.mp4"))
    both = Outputs(config, session)  # type: ignore[arg-type]
    assert list(both) == []
    both.start()
    for _ in range(2):
        (await next_of(writers)).run()
    await until(lambda: len(session.sinks) == 2)
    assert [output.name for output in both] == ["push-1", "record-2"]
    for output in both:
        output.play(entry(0))
    await until(lambda: all(output.written for output in both))
    text = session.metrics.text().decode()
    assert 'avatard_outputs{state="connected"} 2.0' in text
    assert 'avatard_frames_total{fate="output_written"} 2.0' in text
    assert 'avatard_output_losses_total{kind="push"} 0.0' in text
    ended = await both.remove("push-1")
    assert ended is not None and ended.state == "ended" and await both.remove("push-1") is None
    assert 'fate="output_written"} 2.0' in session.metrics.text().decode(), "counters never go back"
    await both.stop()
    assert not session.sinks


async def test_what_may_be_asked_for_is_what_the_operator_allowed(writers, tmp_path):
    session = StillSession()
    closed = Outputs(OutputConfig(), session)  # type: ignore[arg-type]
    with pytest.raises(ForbiddenOutputError, match="^pushing to live.example is not allowed: name it in output.push_h"):
        closed.push(URL)
    with pytest.raises(ForbiddenOutputError, match="output.record_directory"):
        closed.record("talk.mp4")
    (tmp_path / "old.mp4").touch()
    allowed = Outputs(
        OutputConfig(push_hosts=("LIVE.example",), record_directory=str(tmp_path)),
        session,  # type: ignore[arg-type]
    )
    for name in ("../talk.mp4", "/etc/talk.mp4", ".talk.mp4", "a\0.mp4", "talk", "a" * 200 + ".mp4", "old.mp4"):
        with pytest.raises((OutputError, LiveWriterError)):
            allowed.record(name)
    for url in ("rtmp://other.example/app/key", "file:///etc/passwd", "talk.mp4", "srt://:9000?mode=listener"):
        with pytest.raises((OutputError, LiveWriterError)):
            allowed.push(url)
    for n in range(outputs.MAX_OUTPUTS):
        allowed.push(URL) if n % 2 else allowed.record(f"talk {n}.mp4")
    with pytest.raises(ManyOutputsError, match="^all 8 outputs are in use"):
        allowed.push(URL)
    await allowed.stop()


@pytest.mark.parametrize(
    "config",
    [{"push": ("http://a/b",)}, {"record": "talk.avi"}, {"record": "/none/talk.mp4"}, {"record_directory": "/none"}],
)
def test_a_mistake_in_the_configuration_is_told_before_anything_begins(config):
    with pytest.raises((OutputError, LiveWriterError)):
        Outputs(OutputConfig(**config), StillSession())  # type: ignore[arg-type]
