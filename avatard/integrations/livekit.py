"""LiveKit: avatard as the face of an agent made with LiveKit Agents.

    avatar = AvatarSession("me.png")                          # in the agent's process
    avatar = RemoteAvatarSession("http://127.0.0.1:8080")     # … or a running `avatard serve` that joins the room
    await avatar.start(agent_session, ctx.room)
    await agent_session.start(agent, room=ctx.room)

Both publish picture and sound of the avatar to the room. The agent's own sound output becomes the avatar, which tells
it how much of each answer was heard.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.errors import UserError
from avatard.frame import Samples
from avatard.integrations.extras import needs
from avatard.integrations.stream import SessionStream, Stream
from avatard.session.session import Session
from avatard.timebase import FPS, PLAYBACK_RATE_HZ

with needs("livekit", "livekit"):
    from livekit import api, rtc
    from livekit.agents import get_job_context
    from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
    from livekit.agents.voice import avatar as livekit_avatar
    from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, AvatarRunner

logger = logging.getLogger(__name__)

# An interrupt may come while one piece is on its way; the position that the runner counts is off by no more than that.
PIECE_SAMPLES = PLAYBACK_RATE_HZ // 50
IDENTITY = "avatard"
REQUEST_SECONDS = 30.0


class LiveKitError(UserError):
    """A room cannot be joined."""

    CODE = "livekit"


class AvatarGenerator(livekit_avatar.VideoGenerator):
    """Gives LiveKit's `AvatarRunner` the frames of a stream.

    The runner counts every piece of sound as progress of the segment that is being said, and forgets the end of a
    segment if it has read the next one. So sound is given only where it was pushed, to the sample, and an end is
    waited for. Before the tracks are published, which the first picture does and a listener's subscription completes,
    nothing is said.

    Args:
        stream: started.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._sync: rtc.AVSynchronizer | None = None
        self._published = asyncio.Event()
        self._clears = 0
        self._segment = ""  # that is being said
        self._taken = asyncio.Event()  # its end was

    def attach(self, sync: rtc.AVSynchronizer) -> None:
        """Take the sound that waits there back after an interrupt."""
        self._sync = sync

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Say the sound of the agent; at the end of a segment wait until it was heard."""
        if isinstance(frame, AudioSegmentEnd):
            if self._segment:  # nothing was pushed after an interrupt: the end is that of what was interrupted
                self._taken.clear()
                self._stream.end()
                await self._taken.wait()
            return
        clears = self._clears
        await self._published.wait()
        if clears == self._clears:
            self._segment = self._stream.push(_mono(frame), frame.sample_rate)
            await self._stream.room()

    def clear_buffer(self) -> Coroutine[None, None, None] | None:
        """Stop speaking now; the runner itself tells the agent."""
        self._clears += 1
        self._segment = ""
        self._taken.set()
        self._stream.interrupt()
        clearing: Coroutine[None, None, None] | None = self._sync.clear_queue() if self._sync is not None else None
        return clearing

    def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        """Pictures, 25 a second; the sound of each where there is speech; ends of segments."""
        return self._frames()

    async def _frames(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        async for frame in self._stream:
            clears = self._clears
            if frame.picture is not None:
                yield _video(frame.picture)
                self._published.set()
            for first in range(0, len(frame.speech), PIECE_SAMPLES):
                if clears != self._clears:
                    break
                piece = frame.speech[first : first + PIECE_SAMPLES]
                yield rtc.AudioFrame(piece.tobytes(), frame.rate_hz, 1, len(piece))
            if clears == self._clears and self._segment in {end.id for end in frame.ended}:
                self._segment = ""
                yield AudioSegmentEnd()
                self._taken.set()


class AgentAudioOutput(livekit_avatar.QueueAudioOutput):
    """The agent's sound output in its own process.

    At an interrupt LiveKit's runner tells one end: of the segment that it has read. Segments that still wait in the
    queue are gone with it, and the agent would wait for their ends for ever.
    """

    def __init__(self) -> None:
        super().__init__(wait_playback_start=True)
        self._ending: set[asyncio.Task[None]] = set()

    def clear_buffer(self) -> None:
        """Stop speaking; every segment that was captured ends."""
        captured = self.captured_playout_segments
        super().clear_buffer()
        task = asyncio.create_task(self._end_until(captured), name="livekit-ends")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end_until(self, captured: int) -> None:
        """End the first so many segments. The runner's own task was made before this one, and tells its end first."""
        while self.captured_playout_segments - self._pending_playback_count < captured:
            self.on_playback_finished(playback_position=0.0, interrupted=True)


def make_runner(room: rtc.Room, stream: Stream, audio: livekit_avatar.AudioReceiver) -> AvatarRunner:
    """LiveKit's runner for a started stream; `start` it.

    Args:
        room: gets the tracks.
        stream: the avatar.
        audio: speech of the agent, and where its ends are told.
    """
    generator = AvatarGenerator(stream)
    width, height = stream.size
    runner = AvatarRunner(
        room,
        audio_recv=audio,
        video_gen=generator,
        options=AvatarOptions(width, height, FPS, PLAYBACK_RATE_HZ, 1),
    )
    generator.attach(runner.av_sync)
    return runner


class AvatarSession(livekit_avatar.AvatarSession):
    """An avatar in the agent's process; the networks run in a process of their own.

    Args:
        portrait: a picture file, or a session that is already started.
        settings: configuration keys, as of `avatard serve --set`: "stream.profile=low-latency".

    Raises:
        UserError: the picture or a key cannot be used.
    """

    _room: Any  # of the base class

    def __init__(self, portrait: str | Path | Session, settings: Sequence[str] = ()) -> None:
        super().__init__()
        if isinstance(portrait, Session):
            self._stream = SessionStream(portrait)
        else:
            self._stream = SessionStream.of_portrait(portrait, settings)
        self._runner: AvatarRunner | None = None

    @property
    def avatar_identity(self) -> str:
        """The agent's own: it publishes the tracks."""
        return str(self._room.local_participant.identity) if self._room is not None else ""

    @property
    def provider(self) -> str:
        """For metrics."""
        return "avatard"

    async def start(self, agent_session: Any, room: rtc.Room) -> None:
        """Become the agent's sound output; before `agent_session.start`.

        Raises:
            UserError: the inference process cannot be started.
        """
        await super().start(agent_session, room)
        await self._stream.start()
        audio = AgentAudioOutput()
        self._runner = make_runner(room, self._stream, audio)
        await self._runner.start()
        agent_session.output.replace_audio_tail(audio)

    async def aclose(self) -> None:
        """End the avatar; LiveKit calls it when the job ends."""
        # The base class removes the avatar's participant from the room, and that is the agent.
        room, self._room = self._room, None
        if room is not None:
            room.off("connection_state_changed", self._on_connection_state_changed)
        await super().aclose()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.aclose()
        await self._stream.stop()


class RemoteAvatarSession(livekit_avatar.AvatarSession):
    """An avatar of a running daemon, which joins the room as a participant of its own.

    Args:
        url: of `avatard serve`, which needs LiveKit's packages, too.
        token: of its `--token`.
        identity: of the avatar in the room.
        name: of the avatar in the room, for people.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8080", *, token: str = "", identity: str = IDENTITY, name: str = "avatar"
    ) -> None:
        super().__init__()
        self._url = url.rstrip("/") + "/api/livekit"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._identity, self._name = identity, name
        self._joined = ""  # id of what the daemon joined

    @property
    def avatar_identity(self) -> str:
        """The avatar's participant."""
        return self._identity

    @property
    def provider(self) -> str:
        """For metrics."""
        return "avatard"

    async def start(
        self,
        agent_session: Any,
        room: rtc.Room,
        *,
        livekit_url: str = "",
        livekit_api_key: str = "",
        livekit_api_secret: str = "",
    ) -> None:
        """Let the daemon join, and become the agent's sound output; before `agent_session.start`.

        Args:
            agent_session: of the agent.
            room: that the agent is in.
            livekit_url: as the daemon reaches it; of the environment if not given, as are the following.
            livekit_api_key: LIVEKIT_API_KEY.
            livekit_api_secret: LIVEKIT_API_SECRET.

        Raises:
            LiveKitError: a key is missing, or the daemon cannot be reached or does not join.
        """
        url, key, secret = (
            given or os.environ.get(name, "")
            for given, name in (
                (livekit_url, "LIVEKIT_URL"),
                (livekit_api_key, "LIVEKIT_API_KEY"),
                (livekit_api_secret, "LIVEKIT_API_SECRET"),
            )
        )
        if not (url and key and secret):
            raise LiveKitError("expected LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET in the environment")
        await super().start(agent_session, room)
        job = get_job_context(required=False)
        agent = job.local_participant_identity if job is not None else room.local_participant.identity
        name = job.job.room.name if job is not None else room.name
        grant = avatar_token(key, secret, room=name, agent=agent, identity=self._identity, name=self._name)
        self._joined = (await self._request("POST", {"url": url, "token": grant}))["id"]
        agent_session.output.replace_audio_tail(
            livekit_avatar.DataStreamAudioOutput(
                room,
                destination_identity=self._identity,
                wait_remote_track=rtc.TrackKind.KIND_VIDEO,
                wait_playback_start=True,
            )
        )

    async def aclose(self) -> None:
        """Let the daemon leave; LiveKit calls it when the job ends."""
        joined, self._joined = self._joined, ""
        if joined:
            try:
                await self._request("DELETE", id=joined)
            except LiveKitError as error:
                logger.warning("%s", error)
        await super().aclose()

    async def _request(self, method: str, body: object = None, **query: str) -> Any:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=self._headers) as http,
                http.request(method, self._url, json=body, params=query) as response,
            ):
                answer = await response.json(content_type=None)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise LiveKitError(f"no avatard answers at {self._url}: {str(error) or 'timeout'}") from None
        if status >= 400:
            raise LiveKitError(f"{self._url}: {answer.get('error', status)}")
        return answer


def avatar_token(key: str, secret: str, *, room: str, agent: str, identity: str, name: str) -> str:
    """A grant to join as an avatar that publishes on behalf of an agent.

    Args:
        key: of LiveKit's API.
        secret: of LiveKit's API.
        room: its name.
        agent: the identity of the agent's participant.
        identity: of the avatar's participant.
        name: of the avatar's participant, for people.
    """
    token = (
        api.AccessToken(key, secret)
        .with_kind("agent")
        .with_identity(identity)
        .with_name(name)
        .with_grants(api.VideoGrants(room_join=True, room=room))
        .with_attributes({ATTRIBUTE_PUBLISH_ON_BEHALF: agent})
    )
    return str(token.to_jwt())


def _mono(frame: rtc.AudioFrame) -> Samples:
    """Its samples, float32 [T]; several channels are averaged."""
    pcm = np.frombuffer(frame.data, np.int16).astype(np.float32) / np.float32(32768)
    mono: Samples = pcm.reshape(-1, frame.num_channels).mean(axis=1, dtype=np.float32)
    return mono


def _video(picture: NDArray[np.uint8]) -> rtc.VideoFrame:
    """A picture for a video source; three bytes a pixel would take it six times as long."""
    height, width, _ = picture.shape
    rgba = cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA)
    return rtc.VideoFrame(width, height, rtc.VideoBufferType.RGBA, rgba.tobytes())
