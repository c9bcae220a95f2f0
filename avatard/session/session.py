"""One avatar: speech in, frames paired with sound out, on one media clock.

    session = Session(config, Portrait.read(path))
    await session.start()                     # the inference process is warm
    session.attach(sink)                      # sink.play(entry) once for each frame, when it is due
    speaker = session.open_speaker()
    speaker.push_audio(samples, 24_000)       # see `avatard.session.speaker`

Nothing is generated while no sink is attached and nobody speaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from avatard.clock import MediaClock
from avatard.config import Config
from avatard.inference.supervisor import Supervisor
from avatard.playout.audio_timeline import Timing
from avatard.playout.scheduler import PlayoutFrame, Scheduler
from avatard.portrait import Portrait
from avatard.protocols import events
from avatard.protocols.tasks import cancel_and_wait
from avatard.session.events import EventBus, Listener
from avatard.session.generation import Generation
from avatard.session.metrics import Metrics
from avatard.session.playout_loop import PlayoutLoop, Sink
from avatard.session.speaker import LiveSpeaker, PushedSpeaker
from avatard.session.turn_taking import TurnTaking
from avatard.timebase import FPS, SAMPLE_RATE_HZ

ENGINE = "avatard.engine.engine:make_engine"


class Session:
    """The avatar.

    Args:
        config: the effective configuration.
        portrait: whom to show.
        engine: `module:function` that makes the engine in the inference process.
        make_supervisor: makes what runs that process.
    """

    def __init__(
        self,
        config: Config,
        portrait: Portrait,
        engine: str = ENGINE,
        make_supervisor: Callable[[Config, Portrait, str], Supervisor] = Supervisor,
    ) -> None:
        self.clock = MediaClock()
        self.metrics = Metrics()
        self.first_portrait = self.shown_portrait = portrait
        self.events = EventBus()
        buffered = int(config.audio.buffer_seconds * SAMPLE_RATE_HZ)
        self.scheduler = Scheduler(replace(Timing.of(config.stream, compute_frames=5), buffer_samples=buffered))
        self.playout = PlayoutLoop(self.scheduler, self.clock, self)
        supervisor = make_supervisor(config, portrait, engine)
        # A head that a video drives moves without speech, too.
        idle_stride = 2 if config.idle.half_rate == "always" and not config.idle.pose_video else 1
        self.generation = Generation(
            config.stream, supervisor, self.scheduler, self.playout, self.events, self.metrics, idle_stride
        )
        self.turns = TurnTaking(self.scheduler, self.playout, self.events, self.metrics)
        self._task: asyncio.Task[None] | None = None
        self._watch_counters(supervisor)

    async def start(self) -> None:
        """Start the inference process and wait until it is warm.

        Raises:
            WorkerError: it could not be started.
        """
        await self.generation.start()
        self._task = asyncio.create_task(self.playout.run(), name="playout")

    async def stop(self) -> None:
        """Stop generating, and the inference process."""
        await cancel_and_wait(self._task)
        await self.turns.close()
        await self.generation.stop()

    @property
    def ready(self) -> bool:
        """Whether a warm inference process waits for work."""
        return self.generation.ready

    @property
    def speaking(self) -> bool:
        """Whether the frame played last was part of speech."""
        return self.turns.speaking

    def attach(self, sink: Sink) -> None:
        """Give every frame to this sink from now on."""
        self.playout.sinks.append(sink)
        self.playout.wake()

    def detach(self, sink: Sink) -> None:
        """No more frames for this sink; unknown ones are ignored."""
        if sink in self.playout.sinks:
            self.playout.sinks.remove(sink)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(event)` for every event; return what ends it."""
        return self.events.listen(listener)

    def open_speaker(self) -> PushedSpeaker:
        """Open a handle for speech that is all to be said: of an agent, a file or a socket."""
        return self.turns.open_speaker()

    def open_microphone(self) -> LiveSpeaker:
        """Open a handle for what a microphone hears now."""
        return self.turns.open_microphone()

    def interrupt(self) -> events.Interrupted:
        """Stop speaking: the next frame is silent, and the mouth closes within the cross-fade."""
        return self.turns.interrupt()

    async def identify(self, portrait: Portrait) -> str:
        """Show another person from now on, without a break for anybody; return their digest.

        Raises:
            PortraitError: the portrait cannot be used.
            WorkerError: the inference process is restarting.
        """
        digest = await self.generation.identify(portrait)
        self.shown_portrait = portrait
        return digest

    def wants_frames(self) -> bool:
        """Whether anybody watches, or anything is left to say."""
        return self.turns.attended or self.speaking or self.scheduler.has_speech

    def before_frame(self) -> None:
        """Keep the networks ahead of the play position."""
        self.generation.dispatch(self.turns.quiet)

    def frame_played(self, entry: PlayoutFrame) -> None:
        """Account for a frame that is leaving."""
        self.turns.frame_played(entry)
        self.generation.frame_played(speaking=self.speaking)

    def figures(self) -> dict[str, float]:
        """What the page's panel and ZeroMQ's `stats` show."""
        counters, recent = self.scheduler.counters, self.metrics.recent_latency
        live = self.metrics.recent_live_latency
        return {
            "rtf": round(self.metrics.rtf_now, 3),
            "audio_to_photon_ms": round(1000 * float(np.median(recent)), 1) if recent else 0.0,
            "live_latency_ms": round(1000 * float(np.median(live)), 1) if live else 0.0,
            "delay_ms": round(1000 * self.scheduler.timing.delay_frames / FPS, 1),
            "av_skew_ms": round(1000 * self.metrics.skew_now, 2),
            "frames_played": counters.played,
            "frames_repeated": counters.repeated,
            "frames_late": counters.late,
            "frames_skipped": counters.skipped,
            "pictures_per_second": FPS / self.generation.level.frame_stride,
            "picture_scale": self.generation.level.picture_scale,
            "pictures_ahead": self.scheduler.ahead_frames,
            "speech_buffered_ms": 1000 * self.scheduler.buffered_samples // SAMPLE_RATE_HZ,
            "worker_restarts": self.generation.supervisor.restarts,
        }

    def _watch_counters(self, supervisor: Supervisor) -> None:
        """Let `/metrics` read what is counted here."""
        scheduler, counters = self.scheduler, self.scheduler.counters
        names = ("generated", "played", "repeated", "late", "skipped")
        self.metrics.watch("frames", lambda: {name: getattr(counters, name) for name in names})
        self.metrics.watch(
            "queue_depth",
            lambda: {
                "pictures": scheduler.ahead_frames,
                "speech_samples": scheduler.buffered_samples,
                "worker": supervisor.queued,
            },
        )
        self.metrics.watch("underruns", lambda: {"": scheduler.underruns})
        self.metrics.watch("worker_resident_bytes", lambda: {"": supervisor.resident_bytes})
