"""A day of one avatar in virtual time: speech, interrupts, swaps, viewers, faults, and what must hold in every frame.

    report = run_day(hours=24, seed=1)

The session, its turn-taking, scheduler, play-out and adaptation are those of the daemon. The inference process is
replaced by one that says in each picture which samples it was made of, and the event loop's clock jumps to the next
timer. Speech carries its own position: sample k of a sender is 0.25 + k / 2^25, which float32 holds exactly, so that a
sample that is lost, doubled or moved is seen where it is heard.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import psutil

from avatard.config import Config
from avatard.frame import Frame, HeadPose, Samples, Sound
from avatard.inference.ipc import FramesReady, QualityLevel, Ready
from avatard.inference.supervisor import Listener, WorkerError
from avatard.playout.audio_timeline import DECLICK_SAMPLES
from avatard.playout.scheduler import PlayoutFrame
from avatard.playout.utterance import Utterance
from avatard.portrait import Portrait, PortraitError
from avatard.protocols import events
from avatard.session.playout_loop import STARVED_FRAMES, TICK_SECONDS
from avatard.session.session import Session
from avatard.session.speaker import MAX_WAITING_SECONDS, LiveSpeaker, PushedSpeaker
from avatard.timebase import BLENDSHAPES, FRAME_SECONDS, LANDMARKS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, SAMPLES_PER_MS
from tests.support.serving import STREAM, config
from tests.support.virtual import SupervisorWithoutProcess, VirtualLoop

LOUDEST, STEP, POSITIONS = 0.25, 2.0**-25, 1 << 23
QUIET = np.float32(0.001)  # of a microphone in a pause
PACKET_SECONDS, MICROPHONE_PPM = 0.02, 200
MOST_QUEUED_FRAMES = 200
SIDE = 8  # of pictures
#: Of the hours of a day.
BUSY = (0.1,) * 7 + (0.5, 1, 1, 0.5, 1, 0.3, 0.5, 1, 1, 0.5, 0.5, 0.5, 1, 0.5, 0.3, 0.2, 0.1)


def positions(first: int, count: int) -> Samples:
    """Samples of a sender, from its number `first` on."""
    return (LOUDEST + np.arange(first, first + count) * STEP).astype(np.float32)


def position(sample: float) -> int:
    """The number that a sample carries."""
    return round((float(sample) - LOUDEST) / STEP)


class SimulatedSupervisor(SupervisorWithoutProcess):
    """An inference process that takes time, stalls and dies as it is told.

    The head of each picture says what it is: epoch and person, then frame and the first sample that was heard for it.
    """

    def __init__(self, settings: Config, portrait: Portrait, engine: str) -> None:
        super().__init__(settings, portrait, engine)
        self.compute_seconds = 0.12
        self.seconds_per_frame = 0.02  # of the slowest stage
        self.stalled_until = 0.0
        self.frames_in_flight = 0
        self._stream = settings.stream
        self._person = 0
        self._epoch, self._upcoming, self._rendered = -1, 0, 0
        self._sound = np.zeros(0, np.float32)
        self._held: list[Frame] = []
        self._free_at = 0.0
        self._level: QualityLevel | None = None
        self._still = Frame(
            np.zeros((SIDE, SIDE, 3), np.uint8),
            np.zeros((LANDMARKS, 3), np.float32),
            np.zeros(BLENDSHAPES, np.float32),
            HeadPose((-1, 0, 0, 1), (-1, 0, 0), 1),
        )

    async def start(self, listener: Listener) -> None:
        self.listener = listener
        self.come_back()

    def die(self) -> None:
        """Be killed."""
        self._up, self._epoch = False, -1
        self.restarts += 1
        self.listener.worker_lost("it was killed by signal 9")

    def come_back(self) -> None:
        """Another process is warm."""
        self._up, self._level = True, None
        self._free_at = 0.0
        self.listener.worker_ready(Ready(f"{self._person}", SIDE, SIDE, self.compute_seconds), self._still)

    def start_epoch(self, epoch: int, first_frame: int) -> None:
        if self._up:
            self._epoch, self._upcoming, self._rendered = epoch, first_frame, first_frame
            self._sound, self._held = np.zeros(0, np.float32), []
            # What is queued is dropped; what a stage is at now is not.
            self._free_at = min(self._free_at, asyncio.get_running_loop().time() + self.seconds_per_frame)
            self.frames_in_flight = 0

    def push_audio(self, epoch: int, samples: Samples, zero: float = 0.0) -> None:
        if not self._up or epoch != self._epoch:
            return
        self._sound = np.concatenate([self._sound, samples])
        hop, lookahead = self._stream.hop_frames * SAMPLES_PER_FRAME, self._stream.lookahead_ms * SAMPLES_PER_MS
        while len(self._sound) >= hop + lookahead:
            self._render()
            self._sound = self._sound[hop:]

    def _render(self) -> None:
        stream, loop = self._stream, asyncio.get_running_loop()
        for n in range(stream.hop_frames):
            heard = self._sound[n * SAMPLES_PER_FRAME]
            head = HeadPose((self._epoch, self._person, 0, 1), (self._upcoming, float(heard), 0), 1)
            self._held.append(
                Frame(self._still.pixels, self._still.landmarks, self._still.blendshapes, head),
            )
            self._upcoming += 1
        count = len(self._held) - stream.fade_frames
        if count > 0:
            frames, self._held = self._held[:count], self._held[count:]
            work = self.seconds_per_frame * count * (0.5 if self._level is not None else 1)
            start = max(loop.time(), self._free_at, self.stalled_until)
            self._free_at = start + work
            self.frames_in_flight += count
            loop.call_at(
                start + max(work, self.compute_seconds),
                self._deliver,
                self._epoch,
                self._rendered,
                frames,
                work,
                self.restarts,
            )
            self._rendered += count

    def _deliver(self, epoch: int, first: int, frames: list[Frame], work: float, life: int) -> None:
        if self._up and life == self.restarts and epoch == self._epoch:
            self.frames_in_flight -= len(frames)
            made = FramesReady(epoch, first, len(frames), SIDE, SIDE, work / 4, work / 4, work)
            self.listener.frames_ready(made, frames)

    def set_quality(self, level: QualityLevel) -> None:
        self._level = level if level.video_steps < self.config.stream.video_steps else None

    async def identify(self, portrait: Portrait) -> tuple[str, Frame]:
        if not self._up:
            raise WorkerError("the inference process is restarting; try again")
        life = self.restarts
        await asyncio.sleep(0.3)
        if life != self.restarts or not self._up:
            raise WorkerError("the inference process is restarting; try again")
        if portrait.name == "no face":
            raise PortraitError("there is no face in it")
        self._person += 1
        return f"{self._person}", self._still


class BrokenInvariant(BaseException):  # noqa: N818 - what catches errors must not catch it
    """Something that must hold in every frame does not."""


@dataclass
class _Heard:
    """What was heard of an utterance."""

    next: int | None = None  # the number that comes next
    samples: int = 0


@dataclass
class Report:
    """What a day was like."""

    hours: float = 0.0
    cpu_seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    longest_repeat: int = 0  # pictures
    lateness_ms: list[float] = field(default_factory=list)  # mean of each hour: a frame's, when it leaves
    resident_mb: list[float] = field(default_factory=list)  # at the end of each hour
    skew_ms: float = 0.0  # the largest of a picture that is not repeated
    most: Counter[str] = field(default_factory=Counter)  # longest queues

    @property
    def lateness_trend_ms_per_hour(self) -> float:
        """How much later frames leave each hour."""
        return _slope(self.lateness_ms)

    @property
    def resident_mb_per_hour(self) -> float:
        """How much the process grows, after two hours."""
        return _slope(self.resident_mb[2:])


def _slope(values: list[float]) -> float:
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else 0.0


class WatchedSession(Session):
    """A session whose frames and events are checked as they leave."""

    def __init__(self, settings: Config, portrait: Portrait, on_hour: Callable[[Report], object]) -> None:
        self._on_hour = on_hour
        super().__init__(settings, portrait, make_supervisor=SimulatedSupervisor)
        assert isinstance(self.generation.supervisor, SimulatedSupervisor)
        self.worker = self.generation.supervisor
        self.report = Report()
        self.disturbed_until = 0.0  # the clock was moved: frames may be late
        self.speakers: list[PushedSpeaker] = []
        self._index = -1
        self._heard: dict[Utterance, _Heard] = {}
        self._states: dict[str, str] = {}  # of utterances that have not ended
        self._speaking_id = ""
        self._done: deque[str] = deque(maxlen=1000)
        self._ramps = set[int]()  # frames in which sound ends that an interrupt cut off
        self._ruler = positions(0, POSITIONS)
        self._repeats = 0
        self._lateness = 0.0, 0
        self._live = np.zeros(0, np.float32)  # what was taken of microphones and not heard yet
        self._push = self.turns.push
        self.turns.push = self._note_push  # type: ignore[method-assign]
        self.listen(self._on_event)

    def _note_push(self, sound: Sound, utterance: Utterance) -> int:
        accepted = self._push(sound, utterance)
        if not utterance.id:
            self._live = np.concatenate([self._live, sound.speech[:accepted]])
        return accepted

    def fail(self, what: str) -> None:
        """Something does not hold."""
        raise BrokenInvariant(f"frame {self._index}, hour {self.report.hours:.3f}: {what}")

    def expect(self, holds: bool, what: str) -> None:
        """`what` must hold."""
        if not holds:
            self.fail(what)

    def frame_played(self, entry: PlayoutFrame) -> None:
        self.expect(self._index in (-1, entry.index - 1), f"frame {entry.index} follows {self._index}")
        self._index = entry.index
        self._check_sound(entry)
        self._check_picture(entry)
        self._check_time(entry)
        self._check_queues()
        self.report.counts["frames"] += 1
        super().frame_played(entry)
        for utterance, state in entry.changes:
            if state == "ended":
                self._check_whole(utterance)

    def _check_sound(self, entry: PlayoutFrame) -> None:
        samples, playback = entry.sound.speech, entry.sound.playback
        self.expect(len(samples) == SAMPLES_PER_FRAME and len(playback) == 3 * SAMPLES_PER_FRAME, "40 ms of sound")
        rest = np.ones(SAMPLES_PER_FRAME, bool)
        for utterance, first, end in entry.spans:
            rest[first:end] = False
            heard = self._heard.setdefault(utterance, _Heard())
            heard.samples += end - first
            if utterance.id:
                high = "@48000" in utterance.id
                if "@" not in utterance.id:  # the rest of one that lost the floor: its rate is seen in its samples
                    numbers = np.rint((samples[first:end].astype(np.float64) - LOUDEST) / STEP)
                    high = end - first > 1 and not (np.diff(numbers) == 1).all()
                self._check_run(heard, playback[3 * first : 3 * end] if high else samples[first:end], utterance.id)
            else:
                expected, self._live = np.split(self._live, [end - first])
                self.expect(bool(np.array_equal(samples[first:end], expected)), "a microphone's samples, each once")
        # An interrupt silences the first frame that is not due; those before belong to nobody any more.
        self._ramps = {at for at in self._ramps if at >= entry.index}
        if entry.index in self._ramps:
            rest[:DECLICK_SAMPLES] = False
        elif self._ramps:
            rest[:] = False
        self.expect(not samples[rest].any(), "silence where nobody speaks")

    def _check_run(self, heard: _Heard, samples: Samples, name: str) -> None:
        """All samples of pushed speech, each once."""
        first = position(samples[0])
        in_order = np.array_equal(samples, self._ruler[max(0, first) : first + len(samples)])
        self.expect(in_order, f"{name}: samples in their order")
        self.expect(heard.next in (None, first), f"{name}: sample {first} follows {heard.next}")
        heard.next = first + len(samples)

    def _check_picture(self, entry: PlayoutFrame) -> None:
        picture, counts = entry.picture, self.report.counts
        self.expect(picture is not None, "a picture")
        assert picture is not None
        epoch, index, heard = picture.head.quaternion[0], picture.head.translation[0], picture.head.translation[1]
        self._repeats = self._repeats + 1 if entry.repeated else 0
        self.report.longest_repeat = max(self.report.longest_repeat, self._repeats)
        if entry.repeated:
            counts["repeated"] += 1
        elif index < 0 or index != entry.index:
            # A closed mouth after an interrupt, or a person at rest whom nobody has watched yet.
            counts["bridged"] += 1
            counts["closed over speech"] += entry.speech  # its own picture is not made yet
        elif epoch == self.scheduler.epoch:
            counts["in step"] += 1
            self.report.skew_ms = max(self.report.skew_ms, abs(index - entry.index) * 1000 * FRAME_SECONDS)
            if entry.index not in self._ramps:
                self.expect(heard == float(entry.samples[0]), f"a picture of {heard} with {entry.samples[0]}")
        else:
            counts["of the epoch before"] += 1

    def _check_time(self, entry: PlayoutFrame) -> None:
        late = self.clock.lateness(entry.index)
        self.expect(late > -1e-6, f"no frame before it is due: {late}")
        if asyncio.get_running_loop().time() > self.disturbed_until:
            self.expect(late <= 1.5 * TICK_SECONDS, f"a frame when it is due, not {late} s later")
            total, count = self._lateness
            self._lateness = total + late, count + 1

    def _check_queues(self) -> None:
        timeline, frames, worker = self.scheduler._timeline, self.scheduler._frames, self.worker
        lengths = {
            "speech samples": (timeline.waiting_samples, 30 * SAMPLE_RATE_HZ),
            "chunks": (len(timeline._pending), 30 * SAMPLE_RATE_HZ // 160),
            "runs": (len(timeline._runs), 6000),
            "pictures": (len(frames._fresh) + len(frames._stale), MOST_QUEUED_FRAMES),
            "pictures in flight": (worker.frames_in_flight, MOST_QUEUED_FRAMES),
            "utterances": (len(self._states), 500),
            "speakers": (len(self.turns._speakers), 20),
        }
        for name, (length, most) in lengths.items():
            self.report.most[name] = max(self.report.most[name], length)
            self.expect(length <= most, f"{name}: {length}, at most {most}")
        for speaker in self.speakers:
            self.expect(speaker.waiting_seconds <= MAX_WAITING_SECONDS + 120, "a speaker's queue")

    def _check_whole(self, utterance: Utterance) -> None:
        heard = self._heard.pop(utterance, _Heard())
        self.expect(
            heard.samples == utterance.played, f"{utterance.id}: {heard.samples} heard, {utterance.played} counted"
        )
        if utterance.id:
            self.expect(
                heard.samples == utterance.pushed,
                f"{utterance.id}: {heard.samples} of {utterance.pushed} samples were heard",
            )

    def _on_event(self, event: events.Event) -> None:
        counts = self.report.counts
        match event:
            case events.Utterance():
                self._check_states(event)
            case events.Interrupted():
                counts["interrupts"] += 1
                self._ramps = {at for at in self._ramps if at <= event.frame} | {event.frame}
                self._live = self._live[:0]
                for utterance in [utterance for utterance in self._heard if utterance.ended]:
                    del self._heard[utterance]
            case events.Quality():
                counts["quality changes"] += 1
            case events.Identity():
                counts["swaps"] += 1
            case events.Error():
                counts["errors told"] += 1

    def _check_states(self, event: events.Utterance) -> None:
        """Queued, started and ended once, one after the other."""
        before = self._states.get(event.id, "")
        expected = {"queued": "", "started": "queued", "ended": "started"}[event.state]
        self.expect(before == expected, f"{event.id} {event.state} after {before or 'nothing'}")
        if event.state == "queued":
            self.expect(event.id not in self._done, f"{event.id} is queued once")
            self._states[event.id] = "queued"
        elif event.state == "started":
            self.expect(not self._speaking_id, f"{event.id} starts while {self._speaking_id} is said")
            self._states[event.id], self._speaking_id = "started", event.id
        else:
            self._speaking_id = ""
            del self._states[event.id]
            self._done.append(event.id)
            self.report.counts["utterances"] += 1
            self.report.counts["interrupted utterances"] += bool(event.interrupted)

    def hour_over(self, hours: float) -> None:
        """Note figures."""
        total, count = self._lateness
        self._lateness = 0.0, 0
        self.report.hours = hours
        if count:
            self.report.lateness_ms.append(1000 * total / count)
        gc.collect()
        self.report.resident_mb.append(psutil.Process().memory_info().rss / 2**20)
        self._on_hour(self.report)


class Viewer:
    """Takes frames."""

    def __init__(self) -> None:
        self.taken = 0

    def play(self, entry: PlayoutFrame) -> None:
        self.taken += 1


class _Mishaps(logging.Handler):
    """What the daemon logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}")


class Day:
    """Who does what, and what goes wrong.

    Args:
        session: started.
        rng: decides.
        loop: its clock is moved.
        busy: how much goes on in each hour, from 0 to 1; repeated.
    """

    def __init__(self, session: WatchedSession, rng: random.Random, loop: VirtualLoop, busy: Sequence[float]) -> None:
        self._session, self._rng, self._loop, self._busy = session, rng, loop, busy
        self._offset, self._began = 0.0, loop.time()

    def monotonic(self) -> float:
        """What the daemon's clock tells: that of the loop, but for steps."""
        return self._loop.time() + self._offset

    async def run(self, hours: int) -> None:
        """Live through it; an invariant that does not hold ends it."""
        actors = [self._agent(n) for n in range(3)]
        actors += [
            self._viewers(),
            self._microphone(),
            self._interrupts(),
            self._swaps(),
            self._faults(),
            self._hours(hours),
        ]
        assert self._session._task is not None
        tasks = [self._session._task, *(asyncio.create_task(actor) for actor in actors)]
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in rest - {self._session._task}:
            task.cancel()
        await asyncio.gather(*(rest - {self._session._task}), return_exceptions=True)
        for task in done:
            task.result()

    @property
    def _activity(self) -> float:
        return self._busy[int((self._loop.time() - self._began) // 3600) % len(self._busy)]

    async def _pause(self, mean_seconds: float) -> None:
        await asyncio.sleep(self._rng.expovariate(1 / mean_seconds))

    async def _hours(self, hours: int) -> None:
        began, session = self._loop.time(), self._session
        for hour in range(1, hours + 1):
            await asyncio.sleep(max(0.0, began + 3600 * hour - self._loop.time()))
            session.hour_over((self._loop.time() - began) / 3600)

    async def _agent(self, number: int) -> None:
        """Utterances of any length, in any pieces, at any pace."""
        rng, session, at, said = self._rng, self._session, 0, 0
        while True:
            speaker = session.open_speaker()
            session.speakers.append(speaker)
            for _ in range(rng.randrange(1, 30)):
                await self._pause(40 / self._activity)
                rate_hz = rng.choice((16_000, 16_000, 48_000))
                seconds = rng.choice((0, 0.02, 1, 3, 6, 10, 20, 60)) * rng.uniform(0.5, 1)
                left = min(round(seconds * rate_hz), POSITIONS // 2) // 3 * 3
                at = 0 if at + left > POSITIONS else at
                said += 1
                speaker.begin(f"{number}@{rate_hz}-{said}")
                streamed = rng.random() < 0.4
                hesitates = rng.random() < 0.05
                while left:
                    count = min(left, 3 * rng.randrange(1, 6000 if streamed else 60_000))
                    speaker.push_audio(positions(at, count), rate_hz)
                    at, left = at + count, left - count
                    await speaker.room()
                    if streamed:
                        await asyncio.sleep(count / rate_hz * rng.uniform(0.5, 1.05))
                    if hesitates and rng.random() < 0.2:
                        break  # it says no end: another may take the floor
                if hesitates:
                    await self._pause(3)
                if rng.random() < 0.9:
                    speaker.flush()
            session.speakers.remove(speaker)
            await speaker.close()

    async def _microphone(self) -> None:
        """A person who speaks and listens; the clock of the sound card runs fast."""
        rng, session = self._rng, self._session
        while True:
            await self._pause(1500 / self._activity)
            microphone, at, talks = session.open_microphone(), 0, True
            count = round(PACKET_SECONDS * SAMPLE_RATE_HZ)
            due, turn_ends = self._loop.time(), 0.0
            until = due + rng.expovariate(1 / 400)
            while due < until:
                due = max(due + PACKET_SECONDS / (1 + MICROPHONE_PPM * 1e-6), self._loop.time() - 1)
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if due > turn_ends:
                    talks, turn_ends = not talks, due + rng.expovariate(1 / 5)
                at = 0 if at + count > POSITIONS else at
                packet = positions(at, count) if talks else np.full(count, QUIET)
                if at == 0 and talks:
                    self._change_microphone(microphone)
                    microphone = session.open_microphone()
                session.report.counts["packets refused"] += not microphone.push_audio(packet, SAMPLE_RATE_HZ)
                at += count
            self._change_microphone(microphone)

    def _change_microphone(self, microphone: LiveSpeaker) -> None:
        microphone.close()
        self._session.report.counts["microphones"] += 1

    async def _viewers(self) -> None:
        """They come and go; sometimes there is none for minutes."""
        rng, session, present = self._rng, self._session, list[Viewer]()
        while True:
            if present and (rng.random() < 0.65 or len(present) > 4):
                session.detach(present.pop(rng.randrange(len(present))))
            else:
                present.append(Viewer())
                session.attach(present[-1])
                session.report.counts["viewers"] += 1
            await self._pause(100 if present else 60 / self._activity)

    async def _interrupts(self) -> None:
        while True:
            await self._pause(70)
            self._session.interrupt()
            if self._rng.random() < 0.1:
                await asyncio.sleep(self._rng.choice((0, 0.01, 0.1)))
                self._session.interrupt()

    async def _swaps(self) -> None:
        while True:
            await self._pause(400)
            try:
                await self._session.identify(Portrait(b"", name=self._rng.choice(("somebody", "somebody", "no face"))))
            except (PortraitError, WorkerError):
                self._session.report.counts["swaps refused"] += 1

    async def _faults(self) -> None:
        """Of the inference process, of the machine and of its clock."""
        rng, worker, counts = self._rng, self._session.worker, self._session.report.counts
        while True:
            await self._pause(150)
            fault = rng.choice(("death", "stall", "overload", "blocked", "suspended", "step", "step"))
            counts[fault] += 1
            match fault:
                case "death":
                    worker.die()
                    await asyncio.sleep(rng.uniform(0.2, 20))
                    worker.come_back()
                case "stall":
                    worker.stalled_until = self._loop.time() + rng.uniform(0.2, 5)
                case "overload":
                    worker.seconds_per_frame = rng.choice((0.03, 0.045, 0.06))
                    await self._pause(30)
                    worker.seconds_per_frame = 0.02
                case "blocked":
                    self._move(rng.uniform(0.02, 3))
                case "suspended":
                    self._move(rng.choice((5, 60, 600)) * rng.random())
                case "step":
                    seconds = rng.choice((-1, 1))
                    self._offset += seconds
                    self._disturb(2 + STARVED_FRAMES * FRAME_SECONDS)

    def _move(self, seconds: float) -> None:
        """Nothing runs for so long."""
        self._loop.jump(seconds)
        self._disturb(2 + STARVED_FRAMES * FRAME_SECONDS)

    def _disturb(self, seconds: float) -> None:
        self._session.disturbed_until = max(self._session.disturbed_until, self._loop.time() + seconds)


def run_day(hours: int, seed: int, busy: Sequence[float] = BUSY, on_hour: Callable[[Report], object] = str) -> Report:
    """Simulate it.

    Args:
        hours: how long.
        seed: the same one gives the same day.
        busy: how much goes on in each hour, from 0 to 1; repeated.
        on_hour: called at the end of each hour.

    Raises:
        BrokenInvariant: something did not hold; the text says what, and in which frame.
    """
    reports: list[Report] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        session = WatchedSession(config(stream=STREAM), Portrait(b""), on_hour)
        reports.append(session.report)
        day = Day(session, random.Random(seed), loop, busy)
        with patch.object(time, "monotonic", day.monotonic):
            await session.start()
            await day.run(hours)
            await session.stop()

    began, mishaps = time.process_time(), _Mishaps()
    logger = logging.getLogger("avatard")
    logger.addHandler(mishaps)
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())
    finally:
        logger.removeHandler(mishaps)
    if mishaps.said:
        raise BrokenInvariant(f"the daemon says: {mishaps.said[0]}")
    (report,) = reports
    report.cpu_seconds = time.process_time() - began
    return report
