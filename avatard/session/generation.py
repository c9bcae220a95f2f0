"""Generation: keeps the inference process in step with the scheduler, whatever becomes of either."""

from __future__ import annotations

import logging

from msgspec import structs

from avatard.clock import monotonic
from avatard.config import Stream
from avatard.frame import Frame
from avatard.inference import ipc
from avatard.inference.supervisor import Supervisor
from avatard.playout.scheduler import Scheduler, StartEpoch
from avatard.portrait import Portrait
from avatard.protocols import events
from avatard.session.adaptation import (
    MAX_STRIDE,
    LatencyEstimator,
    LoadController,
    figures,
    first_estimate,
    stride_within,
)
from avatard.session.events import EventBus
from avatard.session.metrics import Metrics
from avatard.session.playout_loop import PlayoutLoop
from avatard.timebase import FPS

logger = logging.getLogger(__name__)


class Generation:
    """Forwards the scheduler's work to the inference process, and its frames back.

    Args:
        stream: the configuration of the stream.
        supervisor: runs the inference process.
        scheduler: what is played when.
        playout: plays the frames.
        bus: told of what happens.
        metrics: told of what it costs.
        idle_stride: of the pictures, while nobody speaks.
    """

    def __init__(
        self,
        stream: Stream,
        supervisor: Supervisor,
        scheduler: Scheduler,
        playout: PlayoutLoop,
        bus: EventBus,
        metrics: Metrics,
        idle_stride: int = 1,
    ) -> None:
        self.digest = ""
        self.at_rest: Frame | None = None  # the portrait
        self.hop_seconds = 0.0  # of a hop through all stages, in the warm-up
        self.supervisor = supervisor
        self.pressed = False  # others need the machine: while nobody speaks, as few pictures as possible
        self.patient = False  # others give way first: the quality level is not lowered yet
        self._idle_stride = idle_stride
        self._stride = 1  # at least, because nobody speaks
        self._strained = False  # even so the machine did not keep up
        self._speaking = False  # while speech is heard the latency stays
        self._stream = stream
        self._scheduler = scheduler
        self._playout = playout
        self._bus = bus
        self._metrics = metrics
        self._latency = LatencyEstimator()
        self._load = LoadController(stream)

    async def start(self) -> None:
        """Start the inference process and wait until it is warm. Raises `WorkerError`."""
        await self.supervisor.start(self)

    async def stop(self) -> None:
        """Stop the inference process."""
        await self.supervisor.stop()

    @property
    def ready(self) -> bool:
        """Whether a warm inference process waits for work."""
        return self.supervisor.ready

    @property
    def level(self) -> ipc.QualityLevel:
        """The quality level now: what the load allows, or less while nobody speaks."""
        level = self._load.level
        return structs.replace(level, frame_stride=max(level.frame_stride, self._stride))

    @property
    def whole(self) -> bool:
        """Whether frames are made as the configuration wants them, and not with less work."""
        return self.level == self._load.wanted

    @property
    def busy(self) -> bool:
        """Whether the machine does not keep up."""
        return self._load.busy

    def dispatch(self, quiet: bool = False) -> None:
        """Forward what the networks have not had yet.

        Args:
            quiet: whether nobody speaks, or is about to.
        """
        self._adapt(quiet)
        now = self._playout.position
        for command in self._scheduler.poll(now):
            if isinstance(command, StartEpoch):
                self.supervisor.start_epoch(command.epoch, command.first_frame)
                self._latency.epoch_started()
            else:
                self.supervisor.push_audio(command.epoch, command.samples, monotonic() - now / FPS)
                self._latency.audio_sent(command, now)

    def frame_played(self, speaking: bool) -> None:
        """Begin anew if the frames are hopelessly late, and a process is there that could make them.

        Args:
            speaking: whether the frame is part of speech.
        """
        self._speaking = speaking
        if self.supervisor.ready and self._scheduler.catch_up(self._playout.position):
            self._latency.fell_behind()

    async def identify(self, portrait: Portrait) -> str:
        """Show another person from now on, without a break for anybody; their digest.

        Raises:
            PortraitError: the portrait cannot be used.
            WorkerError: the inference process is restarting.
        """
        self.digest, self.at_rest = await self.supervisor.identify(portrait)
        self._scheduler.forget_face()
        if self._playout.playing:
            self._scheduler.restart(self._playout.position)
        else:
            self._scheduler.show(self.at_rest)
        self._bus.emit(events.Identity(digest=self.digest))
        return self.digest

    def worker_ready(self, ready: ipc.Ready, portrait: Frame) -> None:
        """Start, or go on with the sound where it is now."""
        logger.info("inference process ready", extra={"hop_seconds": round(ready.hop_seconds, 4)})
        self.digest, self.at_rest, self.hop_seconds = ready.digest, portrait, ready.hop_seconds
        self._latency, self._stride = LatencyEstimator(), 1
        self._load = LoadController(self._stream, ready.core_seconds, max(ready.width, ready.height))
        if self.level != self._load.wanted:
            self.supervisor.set_quality(self.level)
            logger.info("quality level lowered from the start", extra=figures(self.level))
        self._metrics.quality(self.level)
        if self._playout.playing:
            self._scheduler.restart(self._playout.position)
        elif self._scheduler.counters.played == 0:
            self._scheduler.retime(first_estimate(ready.hop_seconds))
            self._scheduler.show(portrait)
        self._bus.emit(events.Ready(identity=self.digest))

    def frames_ready(self, ready: ipc.FramesReady, frames: list[Frame]) -> None:
        """Queue frames for the play-out."""
        self._scheduler.add(ready.epoch, ready.first, frames)
        self._metrics.frames_ready(ready)
        self._load.frames_ready(ready)
        if self._idling:
            return  # what these took says little of what speech will take
        self._latency.frames_ready(ready, self._scheduler, self._playout.position)
        if not self._speaking:
            self._latency.retime(self._scheduler)
        before = self.level
        if self._load.decide(self.patient) is not None:
            self._set_quality(before)
            self._announce(self.level)

    @property
    def _idling(self) -> bool:
        """Whether pictures are left out only because nobody speaks."""
        return self._stride > self._load.level.frame_stride

    def _adapt(self, quiet: bool) -> None:
        """Leave pictures out while nobody speaks, and none from the first sample on."""
        before = self.level
        self._strained = quiet and (self._strained or (self._idling and self._load.busy))
        stride = MAX_STRIDE if self.pressed or self._strained else self._idle_stride
        # What speech will take is measured first.
        lowered = quiet and self._latency.known
        self._stride = stride_within(self._stream.hop_frames, stride) if lowered else 1
        if self.level != before:
            self._load.forget()
            self._set_quality(before)

    def _set_quality(self, before: ipc.QualityLevel) -> None:
        """Use the level from now on; another frame rate or size begins with an epoch."""
        level = self.level
        self.supervisor.set_quality(level)
        if (level.frame_stride, level.size_divisor) != (before.frame_stride, before.size_divisor):
            self._scheduler.restart(self._playout.position)
        self._metrics.quality(level)

    def _announce(self, level: ipc.QualityLevel) -> None:
        """Tell that the load changed the level."""
        rate = FPS / level.frame_stride
        self._bus.emit(
            events.Quality(
                pictures_per_second=rate,
                motion_steps=level.motion_steps,
                video_steps=level.video_steps,
                picture_scale=level.picture_scale,
            )
        )

    def worker_lost(self, reason: str) -> None:
        """The last frame stays and the sound goes on until there is a new process."""
        self._metrics.restarts.inc()
        message = f"the inference process is restarting: {reason}"
        self._bus.emit(events.Error(message=message, code="worker-restart"))
