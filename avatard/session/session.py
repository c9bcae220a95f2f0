"""One avatar: speech in, pictures paired with sound out, on one media clock.

    session = Session(config, Portrait.read(path))
    await session.start()           # the inference process is warm
    session.attach(sink)            # sink.play(entry) once for each frame, when it is due
    await session.speak(samples)    # 16 kHz; returns when the samples were accepted

Nothing is generated while no sink is attached and nobody speaks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from avatard.clock import MediaClock, monotonic
from avatard.config import Config
from avatard.frame import Frame, Samples
from avatard.inference import ipc
from avatard.inference.supervisor import Supervisor
from avatard.playout.audio_timeline import Timing
from avatard.playout.scheduler import Interrupted, PlayoutFrame, Scheduler
from avatard.portrait import Portrait
from avatard.session.adaptation import Tempo, first_estimate
from avatard.session.floor_control import Floor, FloorError
from avatard.session.metrics import Metrics
from avatard.session.voice_activity import SPEAKING_RMS, Activity, rms
from avatard.timebase import FPS, SAMPLE_RATE_HZ

logger = logging.getLogger(__name__)

ENGINE = "avatard.engine.engine:make_engine"
TICK_SECONDS = 0.01
STARVED_FRAMES = 25  # later than this the clock moves, instead of every frame being sent at once
LINGER_SECONDS = 5.0  # generation goes on after the last speech when nobody watches
LIVE_BACKLOG_FRAMES = 0.5  # live sound that runs further behind is caught up with where it is quiet
MAX_BACKLOG_FRAMES = 12.5  # … and here wherever it is

EventListener = Callable[[str, Mapping[str, Any]], None]


class Sink(Protocol):
    """Somewhere that frames go."""

    def play(self, entry: PlayoutFrame) -> None:
        """Take a frame that is due now; must not block."""


class Session:
    """The avatar.

    Args:
        config: the effective configuration.
        portrait: whom to show.
        engine: `module:function` that makes the engine in the inference process.
        clock: the one media clock.
    """

    def __init__(
        self, config: Config, portrait: Portrait, engine: str = ENGINE, clock: MediaClock | None = None
    ) -> None:
        self.metrics = Metrics()
        self.digest = ""
        self.portrait: Frame | None = None  # at rest
        self.size = (0, 0)  # height, width of the pictures
        self.clock = clock if clock is not None else MediaClock()
        self._config = config
        self.scheduler = self._schedule(compute_frames=5, held_frames=0)
        self._supervisor = Supervisor(config, portrait, self, engine)
        self._sinks: list[Sink] = []
        self._listeners: list[EventListener] = []
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._floor = Floor()
        self._activity = Activity()
        self._interrupted_at: tuple[int, float] | None = None
        self._tempo = Tempo(config.stream)
        self._effort = self._tempo.wanted

    def _schedule(self, compute_frames: float, held_frames: int) -> Scheduler:
        timing = Timing.of(self._config.stream, compute_frames, held_frames)
        return Scheduler(replace(timing, buffer_samples=int(self._config.audio.buffer_seconds * SAMPLE_RATE_HZ)))

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the inference process and wait until it is warm.

        Raises:
            WorkerError: it could not be started, in one line.
        """
        await self._supervisor.start()
        self._task = asyncio.create_task(self._run(), name="session")

    async def stop(self) -> None:
        """Stop generating, and the inference process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._supervisor.stop()

    @property
    def ready(self) -> bool:
        """Whether a warm inference process waits for work."""
        return self._supervisor.ready

    @property
    def worker_pid(self) -> int | None:
        """The inference process, if there is one now."""
        return self._supervisor.pid

    @property
    def speaking(self) -> bool:
        """Whether the frame played last was part of speech."""
        return self._activity.speaking

    @property
    def now(self) -> float:
        """The play position in frames."""
        return self.clock.lateness(0) * FPS if self.clock.running else float(self.scheduler.next_frame)

    def attach(self, sink: Sink) -> None:
        """Give every frame to this sink from now on."""
        self._sinks.append(sink)
        self._wake.set()

    def detach(self, sink: Sink) -> None:
        """No more frames for this sink; unknown ones are ignored."""
        if sink in self._sinks:
            self._sinks.remove(sink)

    def listen(self, listener: EventListener) -> Callable[[], None]:
        """Call `listener(type, data)` for every event; gives what ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def emit(self, kind: str, **data: Any) -> None:
        """Tell every listener; one that fails keeps nothing from the others."""
        for listener in list(self._listeners):
            try:
                listener(kind, data)
            except Exception:
                logger.exception("an event was not told", extra={"event": kind})

    # -- speech -------------------------------------------------------------------------------------------------------

    async def speak(self, samples: Samples, speaker: object) -> None:
        """Say these 16 kHz samples (float32 [T]); waits while the buffer is full, which is the back-pressure.

        After an interrupt the rest of the utterance is dropped: until `end_of_utterance`, or until the speaker pauses.
        What is waiting here when it comes is dropped in any case.

        Raises:
            FloorError: another speaker is speaking.
        """
        rest, interrupts = samples, self._floor.interrupts
        while len(rest):
            if self._floor.is_cut_off(speaker) or self._floor.interrupts != interrupts:
                return
            self._claim(speaker, pushed=True)
            rest = rest[self._push(rest) :]
            if len(rest):
                self._room.clear()
                await self._room.wait()

    def speak_live(self, samples: Samples, speaker: object) -> bool:
        """Say what a microphone hears now.

        False if it was dropped: another is speaking, or it is quiet and late, or quiet and nobody watches.
        """
        level = rms(samples)
        loud = level > SPEAKING_RMS
        if not loud and not self._attended:
            return False
        try:
            self._claim(speaker, pushed=False, loud=loud)
        except FloorError:
            return False
        # A microphone's clock is not ours: what it gains is left out where it is quiet, or the latency would grow.
        behind = self.scheduler.backlog_frames(self.now)
        if behind > LIVE_BACKLOG_FRAMES and (level < SPEAKING_RMS / 2 or behind > MAX_BACKLOG_FRAMES):
            return False
        self._push(samples)
        return True

    def end_of_utterance(self, speaker: object) -> None:
        """The speaker has said everything."""
        if self._floor.release(speaker):
            self.scheduler.end_of_utterance(self.now)

    def _claim(self, speaker: object, pushed: bool, loud: bool = True) -> None:
        if self._floor.claim(speaker, pushed, waiting=self.scheduler.buffered_samples > 0, loud=loud):
            self.scheduler.end_of_utterance(self.now)

    def _push(self, samples: Samples) -> int:
        if not self.clock.running:
            self._wake.set()
        accepted = self.scheduler.push(samples, self.now)
        if self.clock.running:
            self._order()
        return accepted

    def interrupt(self) -> Interrupted:
        """Stop speaking: the next frame is silent, and the mouth closes within the cross-fade."""
        cut = self.scheduler.interrupt(self.now)
        self._floor.interrupt()
        self._room.set()
        self._interrupted_at = (self.scheduler.epoch, monotonic())
        self._begin(self.scheduler.epoch_first)
        played_ms, dropped_ms = (1000 * n // SAMPLE_RATE_HZ for n in (cut.played_samples, cut.dropped_samples))
        self.emit("bot-interrupted", frame=cut.frame, played_ms=played_ms, dropped_ms=dropped_ms)
        return cut

    async def identify(self, portrait: Portrait) -> str:
        """Show another person from now on, without a break for anybody; their digest.

        Raises:
            PortraitError: the portrait cannot be used.
            WorkerError: the inference process is restarting.
        """
        self.digest, self.portrait = await self._supervisor.identify(portrait)
        self.scheduler.forget_face()
        if self.clock.running:
            self._begin(self.scheduler.restart(self.now))
        else:
            self.scheduler.show(self.portrait)
        self.emit("identity", digest=self.digest)
        return self.digest

    # -- the inference process ----------------------------------------------------------------------------------------

    def worker_ready(self, ready: ipc.Ready, portrait: Frame) -> None:
        """Start, or go on with the sound where it is now."""
        logger.info("inference process ready", extra={"hop_seconds": round(ready.hop_seconds, 4)})
        self.digest, self.portrait = ready.digest, portrait
        self.size = (ready.height, ready.width)
        self._tempo = Tempo(self._config.stream)
        self._effort = self._tempo.wanted
        self.metrics.effort(self._effort.motion_steps, self._effort.video_steps, FPS)
        if not self.clock.running and self.scheduler.counters.played == 0:
            self.scheduler = self._schedule(first_estimate(ready.hop_seconds), ready.delay_frames)
            self.scheduler.show(portrait)
        elif self.clock.running:
            self._begin(self.scheduler.restart(self.now))
        self.emit("bot-ready", identity=self.digest)

    def frames_ready(self, made: ipc.FramesReady, pictures: list[Frame]) -> None:
        """Pictures for the play-out."""
        self.scheduler.add(made.epoch, made.first, pictures)
        self.metrics.made(made.count, made.motion_seconds, made.video_seconds)
        self._tempo.made(made, self.scheduler, self.now)
        if not self.speaking:
            self._tempo.retime(self.scheduler)
        effort = self._tempo.effort()
        if effort is not None:
            self._try(effort)

    def _try(self, effort: ipc.QualityLevel) -> None:
        """Put in this effort from now on, and say so; another frame rate begins with an epoch."""
        self._supervisor.set_quality(effort)
        if effort.frame_stride != self._effort.frame_stride:
            self._begin(self.scheduler.restart(self.now))
        self._effort = effort
        self.metrics.effort(effort.motion_steps, effort.video_steps, FPS / effort.frame_stride)
        steps = {"motion_steps": effort.motion_steps, "video_steps": effort.video_steps}
        self.emit("effort", pictures_per_second=FPS / effort.frame_stride, **steps)

    def worker_lost(self, reason: str) -> None:
        """The last picture stays and the sound goes on until there is a new process."""
        self.metrics.restarts.inc()
        self.emit("error", message=f"the inference process is restarting: {reason}", fatal=False)

    def _begin(self, first: int) -> None:
        self._supervisor.start_epoch(self.scheduler.epoch, first)
        self._tempo.began()
        self._order()

    def _order(self) -> None:
        for order in self.scheduler.advance(self.now):
            self._supervisor.push_audio(order.epoch, order.samples)
            self._tempo.ordered(order, self.now)

    # -- play-out -----------------------------------------------------------------------------------------------------

    @property
    def _wanted(self) -> bool:
        return self._attended or self.speaking or self.scheduler.has_speech

    @property
    def _attended(self) -> bool:
        """Whether anybody watches, or spoke a moment ago."""
        return bool(self._sinks) or self._floor.silent_seconds < LINGER_SECONDS

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            if not self._wanted:
                await self._wake.wait()
            try:
                await self._go_on()
            except Exception:
                # Whatever it was, an avatar that stands still for a moment is better than none.
                logger.exception("play-out failed")
                await asyncio.sleep(1)

    async def _go_on(self) -> None:
        """Play while anybody watches or anything is left to say."""
        self.clock.start(self.scheduler.next_frame)
        self._begin(self.scheduler.resume(self.now))
        while self._wanted:
            self._order()
            self._play()
            due = -self.clock.lateness(self.scheduler.next_frame)
            await asyncio.sleep(max(0.0, min(TICK_SECONDS, due)))
        self.scheduler.interrupt(self.now)
        self.clock = MediaClock()

    def _play(self) -> None:
        """Play one frame if it is due: where frames take longer than they last, others must have their turn too."""
        if self.clock.frame() - self.scheduler.next_frame > STARVED_FRAMES:
            logger.warning("the machine was asleep", extra={"frames": self.clock.frame() - self.scheduler.next_frame})
            self.clock.start(self.scheduler.next_frame)
        if self.scheduler.next_frame > self.clock.frame():
            return
        entry = self.scheduler.play(self.now)
        self._account(entry)
        for sink in list(self._sinks):
            sink.play(entry)
        if self._supervisor.ready and self.scheduler.catch_up(self.now):
            self._tempo.fell_behind()
            self._begin(self.scheduler.epoch_first)

    def _account(self, entry: PlayoutFrame) -> None:
        if not self._room.is_set():
            self._room.set()
        self.metrics.frames.labels("repeated" if entry.repeated else "played").inc()
        if entry.waited_frames is not None:
            self.metrics.latency(entry.waited_frames / FPS)
        if self._interrupted_at is not None and self.scheduler.settled:
            epoch, since = self._interrupted_at
            if epoch == self.scheduler.epoch:
                self.metrics.interrupt.observe(monotonic() - since)
            self._interrupted_at = None
        # What a microphone gathers is no promise: it is always on.
        more = self._floor.pushed and self.scheduler.has_speech
        if self._activity.hear(entry.samples, entry.speech, more):
            self.emit("bot-started-speaking" if self.speaking else "bot-stopped-speaking", frame=entry.index)

    # -- figures ------------------------------------------------------------------------------------------------------

    def collect(self) -> bytes:
        """`/metrics`: gauges and totals brought up to date."""
        metrics, counters = self.metrics, self.scheduler.counters
        metrics.queue.labels("pictures").set(self.scheduler.ahead_frames)
        metrics.queue.labels("speech_samples").set(self.scheduler.buffered_samples)
        metrics.queue.labels("worker").set(self._supervisor.queued)
        metrics.resident.set(self._supervisor.resident_bytes)
        metrics.total(metrics.frames.labels("late"), "late", counters.late)
        metrics.total(metrics.frames.labels("skipped"), "skipped", counters.skipped)
        metrics.total(metrics.underruns, "underruns", self.scheduler.underruns)
        return metrics.text()

    def figures(self) -> dict[str, float]:
        """What the page's panel and ZeroMQ's `stats` show."""
        counters, recent = self.scheduler.counters, self.metrics.recent_latency
        return {
            "rtf": round(self.metrics.rtf_now, 3),
            "audio_to_photon_ms": round(1000 * float(np.median(recent)), 1) if recent else 0.0,
            "delay_ms": round(1000 * self.scheduler.timing.delay_frames / FPS, 1),
            "av_skew_ms": round(1000 * self.metrics.skew_now, 2),
            "frames_played": counters.played,
            "frames_repeated": counters.repeated,
            "frames_late": counters.late,
            "frames_skipped": counters.skipped,
            "pictures_per_second": FPS / self._effort.frame_stride,
            "pictures_ahead": self.scheduler.ahead_frames,
            "speech_buffered_ms": 1000 * self.scheduler.buffered_samples // SAMPLE_RATE_HZ,
            "worker_restarts": self._supervisor.restarts,
        }
