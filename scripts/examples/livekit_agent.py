"""A LiveKit agent with a face: a worker for LiveKit's dispatch, with one process a job and one avatar a process.

    pip install 'avatard[livekit]'
    export LIVEKIT_URL=… LIVEKIT_API_KEY=… LIVEKIT_API_SECRET=…
    export PORTRAIT=me.png GREETING=hello.wav
    python scripts/examples/livekit_agent.py start                  # an avatar in each job's process
    AVATARD="http://127.0.0.1:8080 http://127.0.0.1:8081" python scripts/examples/livekit_agent.py start

With AVATARD, a list of running `avatard serve`, each job takes one that is free, and the load of the worker is the
share that is not: LiveKit sends jobs elsewhere when all are taken. Without it there is one job at a time: an avatar
needs two cores. AVATARD_TOKEN is the daemons' `--token`.

It says a WAV file (16 bits). Give `AgentSession` your `stt`, `llm` and `tts` for a conversation.
"""

import json
import os
import urllib.request
import wave
from collections.abc import AsyncIterator

from livekit import rtc
from livekit.agents import Agent, AgentServer, AgentSession, JobContext, JobExecutorType, WorkerOptions, cli

from avatard.integrations.livekit import AvatarSession, RemoteAvatarSession

STATUS_SECONDS = 2.0


def daemons() -> list[str]:
    """The addresses of AVATARD."""
    return os.environ.get("AVATARD", "").split()


def is_free(url: str) -> bool:
    """Whether a daemon can join a room now, as its `/api/status` says."""
    token = os.environ.get("AVATARD_TOKEN", "")
    request = urllib.request.Request(f"{url}/api/status", headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=STATUS_SECONDS) as response:
            status = json.load(response)
    except (OSError, ValueError):
        return False
    return bool(status["ready"]) and status["livekit"] is None


def load(worker: AgentServer) -> float:
    """The share of avatars that are taken, 0 to 1; LiveKit asks every half second, in a thread."""
    urls = daemons()
    if not urls:
        return 1.0 if worker.active_jobs else 0.0
    return 1 - sum(map(is_free, urls)) / len(urls)


def make_avatar() -> AvatarSession | RemoteAvatarSession:
    """An avatar in this process, or a daemon that is free."""
    urls = daemons()
    if not urls:
        return AvatarSession(os.environ["PORTRAIT"])
    free = next((url for url in urls if is_free(url)), urls[0])  # the first one, if none is, says why
    return RemoteAvatarSession(free, token=os.environ.get("AVATARD_TOKEN", ""))


async def sound_of(path: str) -> AsyncIterator[rtc.AudioFrame]:
    """A WAV file in pieces of a tenth of a second."""
    with wave.open(path) as file:
        rate, channels = file.getframerate(), file.getnchannels()
        while data := file.readframes(rate // 10):
            yield rtc.AudioFrame(data, rate, channels, len(data) // (2 * channels))


async def entrypoint(ctx: JobContext) -> None:
    """One job: one room, one agent, one avatar."""
    await ctx.connect()
    session: AgentSession = AgentSession()  # stt=…, llm=…, tts=…
    await make_avatar().start(session, ctx.room)
    await session.start(Agent(instructions="You are a friendly assistant."), room=ctx.room)
    await session.say("Hello!", audio=sound_of(os.environ["GREETING"]))


if __name__ == "__main__":
    cli.run_app(
        WorkerOptions(
            entrypoint_fnc=entrypoint,
            load_fnc=load,
            load_threshold=0.99,  # full only when all are taken
            job_executor_type=JobExecutorType.PROCESS,
            num_idle_processes=1,
        )
    )
