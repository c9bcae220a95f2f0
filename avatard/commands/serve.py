"""`avatard serve`: the session, the server, the outputs and the local sources of speech, from start to a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from avatard.commands.inputs import check_pictures
from avatard.config import Config, Output
from avatard.gateways.http import Server, make_rooms
from avatard.gateways.local import check_microphone, speak_file, speak_microphone
from avatard.gateways.loudspeaker import Loudspeaker, check_loudspeaker
from avatard.gateways.motion_udp import MotionGateway
from avatard.gateways.outputs import Outputs
from avatard.gateways.virtual_camera import VirtualCamera, check_camera
from avatard.gateways.zeromq import ZmqGateway
from avatard.media.audio_file import open_audio
from avatard.portrait import Portrait
from avatard.session.session import ENGINE, Session

logger = logging.getLogger(__name__)

MICROPHONE = "mic"


def run(config: Config, portrait: Path, engine: str = ENGINE, print_url: bool = False) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        config: the effective configuration.
        portrait: a picture file.
        engine: `module:function` that makes the engine in the inference process.
        print_url: print the page's URL as the only line of standard output, for programs.

    Raises:
        UserError: the portrait, an address, a key file or the sound cannot be used, or the inference process cannot
            be started.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(config, Portrait.read(portrait, config.portrait.face), engine, print_url))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop of uvloop, if it is installed."""
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def serve(config: Config, portrait: Portrait, engine: str = ENGINE, print_url: bool = False) -> None:
    """Serve until a signal comes; see `run` for the errors."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C cancels the runner's task
            loop.add_signal_handler(number, stopped.set)
    gateway = ZmqGateway(config.zmq) if config.zmq.publish or config.zmq.audio else None
    motion = MotionGateway(config.engines)
    session = Session(config, portrait, engine)
    outputs = Outputs(config.output, session)
    server = Server(config, session, outputs, partial(make_rooms, engine=engine))
    check_pictures(config)
    _check_devices(config)
    await server.check_address()
    if gateway is not None:
        gateway.check_addresses()
    stopping = asyncio.create_task(stopped.wait(), name="signal")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(session.stop)
        starting = asyncio.create_task(session.start(), name="start")
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            return
        await starting
        stack.push_async_callback(outputs.stop)
        _open_devices(config.output, session, stack)
        stack.push_async_callback(server.stop)
        url = await server.start()
        if gateway is not None:
            stack.push_async_callback(gateway.stop)
            await gateway.start(session)
            server.rooms.guests.append(gateway)
        outputs.start()
        stack.push_async_callback(motion.stop)
        motion.start(session)
        if print_url:
            print(url, flush=True)
        print(f"avatard: open {url}{'?token=...' if config.server.token else ''}", file=sys.stderr, flush=True)
        logger.info("listening", extra={"url": url, "profile": config.stream.profile})
        speech = asyncio.create_task(_speak(config.audio.source, session), name="speech")
        waiting = {stopping, speech}
        while not stopping.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a source that fails ends the daemon, with its reason
        speech.cancel()
        logger.info("shutting down")


def _check_devices(config: Config) -> None:
    """Refuse a missing sound file, microphone, camera or sound output before the networks load. Raises `UserError`."""
    source = config.audio.source
    if source == MICROPHONE:
        check_microphone()
    elif source:
        open_audio(Path(source)).close()
    if config.output.camera:
        check_camera(config.output.camera)
    if config.output.sound:
        check_loudspeaker(config.output.sound)


def _open_devices(config: Output, session: Session, stack: contextlib.AsyncExitStack) -> None:
    """Show and play the avatar on this machine, if the configuration says so. Raises `UserError`."""
    if config.camera:
        stack.push_async_callback(VirtualCamera(session, config.camera, config.badge).stop)
    if config.sound:
        stack.push_async_callback(Loudspeaker(session, config.sound).stop)


async def _speak(source: str, session: Session) -> None:
    """Speak the configured local source, if any."""
    if source == MICROPHONE:
        await speak_microphone(session)
    elif source:
        await speak_file(session, Path(source))
