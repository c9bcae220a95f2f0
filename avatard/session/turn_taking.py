"""Turn-taking: who speaks, which utterances there are, and what an interrupt (barge-in) does to them."""

from __future__ import annotations

import asyncio
import math

from avatard.clock import monotonic
from avatard.frame import Sound
from avatard.playout.scheduler import PlayoutFrame, Scheduler
from avatard.playout.utterance import Caption, Utterance
from avatard.protocols import events
from avatard.session.events import EventBus
from avatard.session.floor_control import Floor
from avatard.session.metrics import Metrics
from avatard.session.playout_loop import PlayoutLoop
from avatard.session.speaker import LiveSpeaker, PushedSpeaker, Speaker
from avatard.session.voice_activity import VoiceActivity
from avatard.timebase import FPS, SAMPLES_PER_MS

QUIET_SECONDS = 2.0  # after the last speech
LINGER_SECONDS = 5.0  # generation goes on after the last speech when nobody watches


class TurnTaking:
    """The speakers of one session.

    Args:
        scheduler: what is played when.
        playout: plays it.
        bus: told of utterances and interrupts.
        metrics: told of latencies.
    """

    def __init__(self, scheduler: Scheduler, playout: PlayoutLoop, bus: EventBus, metrics: Metrics) -> None:
        self._scheduler = scheduler
        self._playout = playout
        self._bus = bus
        self._metrics = metrics
        self._floor: Floor[Speaker] = Floor()
        self._speakers: list[Speaker] = []
        self._activity = VoiceActivity()
        self._captioned: dict[Utterance, None] = {}  # those with captions, in order
        self._silent_from = 0  # what is heard before this frame is what an interrupt came too late for
        self._heard_at = -math.inf
        self._interrupted_at: tuple[int, float] | None = None

    @property
    def speaking(self) -> bool:
        """Whether the frame played last was part of speech."""
        return self._activity.speaking

    @property
    def quiet(self) -> bool:
        """Whether nobody spoke for a while, and no pushed speech waits: what a microphone gathers is no promise."""
        waiting = self._floor.pushed and self._scheduler.has_speech
        silent = min(self._floor.silent_seconds, monotonic() - self._heard_at)
        return not (self.speaking or waiting) and silent > QUIET_SECONDS

    @property
    def attended(self) -> bool:
        """Whether anybody watches, or spoke a moment ago."""
        return bool(self._playout.sinks) or self._floor.silent_seconds < LINGER_SECONDS

    @property
    def backlog_frames(self) -> float:
        """How much later than intended a sample pushed now will be played, in frames."""
        return self._scheduler.backlog_frames(self._playout.position)

    def open_speaker(self) -> PushedSpeaker:
        """Open a handle for speech that is all to be said."""
        speaker = PushedSpeaker(self)
        self._speakers.append(speaker)
        return speaker

    def open_microphone(self) -> LiveSpeaker:
        """Open a handle for what a microphone hears now."""
        speaker = LiveSpeaker(self)
        self._speakers.append(speaker)
        return speaker

    def forget(self, speaker: Speaker) -> None:
        """The handle is closed."""
        self._speakers.remove(speaker)

    async def close(self) -> None:
        """Drop what the speakers still have to say."""
        await asyncio.gather(*(speaker.abort() for speaker in self._speakers))

    def claim_floor(self, speaker: Speaker, pushed: bool, loud: bool = True) -> bool:
        """Let this speaker speak if nobody else does; see `Floor.claim`."""
        before = self._floor.holder
        granted = self._floor.claim(speaker, pushed, waiting=self._scheduler.buffered_samples > 0, loud=loud)
        if granted and before is not None and before is not speaker:
            before.end_turn()
        return granted

    def release_floor(self, speaker: Speaker) -> bool:
        """This speaker has said everything; return whether they held the floor."""
        return self._floor.release(speaker)

    async def next_frame(self) -> None:
        """Wait until there may be room, or a free floor."""
        await self._playout.next_frame()

    def queue(self, utterance: Utterance) -> None:
        """A speaker began an utterance."""
        self._bus.emit(events.Utterance(id=utterance.id, state="queued"))

    def push(self, sound: Sound, utterance: Utterance) -> int:
        """Take speech of who has the floor; return how many samples were accepted, the first ones."""
        self._playout.wake()
        return self._scheduler.push(sound, self._playout.position, utterance)

    def finish(self, utterance: Utterance) -> None:
        """The utterance is complete."""
        self._playout.wake()
        self._scheduler.end_of_utterance(self._playout.position, utterance)

    def caption(self, utterance: Utterance, text: str) -> None:
        """What is pushed from here on is this sentence."""
        utterance.captions.append(Caption(text, utterance.pushed))
        self._captioned[utterance] = None

    def interrupt(self) -> events.Interrupted:
        """Stop speaking: the next frame is silent, and the mouth closes within the cross-fade."""
        cut = self._scheduler.interrupt(self._playout.position)
        self._floor.interrupt()
        ended = list(cut.ended)
        for speaker in self._speakers:
            ended += speaker.cancel()
        for utterance in ended:
            utterance.ended = utterance.interrupted = True
        self._interrupted_at, self._silent_from = (self._scheduler.epoch, monotonic()), cut.frame
        event = events.Interrupted(
            frame=cut.frame,
            played_ms=next((u.played for u in ended if u.played), 0) // SAMPLES_PER_MS,
            dropped_ms=sum(u.dropped for u in ended) // SAMPLES_PER_MS,
        )
        self._bus.emit(event)
        if self._activity.stop():
            self._bus.emit(events.StoppedSpeaking(frame=cut.frame))
        for utterance in ended:
            self._announce_start(utterance)
            self._announce_end(utterance)
        return event

    def frame_played(self, entry: PlayoutFrame) -> None:
        """Tell what begins and ends with a frame."""
        if entry.waited_frames is not None:
            self._metrics.latency(entry.waited_frames / FPS, live=entry.live)
        if self._interrupted_at is not None and self._scheduler.settled:
            epoch, since = self._interrupted_at
            if epoch == self._scheduler.epoch:
                self._metrics.interrupt.observe(monotonic() - since)
            self._interrupted_at = None
        more = self._floor.pushed and self._scheduler.has_speech
        if self._activity.update(entry.samples, entry.speech and entry.index >= self._silent_from, more):
            kind = events.StartedSpeaking if self.speaking else events.StoppedSpeaking
            self._bus.emit(kind(frame=entry.index))
        if self.speaking:
            self._heard_at = monotonic()
        for utterance, state in entry.changes:
            if state == "started":
                self._announce_start(utterance)
            else:
                self._announce_captions(utterance)
                self._announce_end(utterance)
        for utterance in list(self._captioned):
            self._announce_captions(utterance)

    def _announce_captions(self, utterance: Utterance) -> None:
        """Tell the sentences that begin with what was just played."""
        captions = utterance.captions
        while captions and utterance.played > captions[0].at and not utterance.interrupted:
            text, at = captions.popleft()
            self._bus.emit(events.Caption(id=utterance.id, text=text, at_ms=at // SAMPLES_PER_MS))
        if utterance.ended:
            self._captioned.pop(utterance, None)

    def _announce_start(self, utterance: Utterance) -> None:
        if utterance.id and not utterance.announced:
            utterance.announced = True
            self._bus.emit(events.Utterance(id=utterance.id, state="started"))

    def _announce_end(self, utterance: Utterance) -> None:
        if utterance.id:
            self._bus.emit(
                events.Utterance(
                    id=utterance.id,
                    state="ended",
                    played_ms=utterance.played // SAMPLES_PER_MS,
                    dropped_ms=utterance.dropped // SAMPLES_PER_MS if utterance.interrupted else 0,
                    interrupted=utterance.interrupted,
                )
            )
