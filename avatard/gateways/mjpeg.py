"""`GET /mjpeg`: pictures without sound for old viewers and quick looks, as `multipart/x-mixed-replace`.

A picture is encoded once for all viewers, on a thread. A viewer that does not keep up is sent the newest picture each
time, and the others are not.
"""

from __future__ import annotations

import asyncio
import logging

from aiohttp import hdrs, web

from avatard.config import Output as OutputConfig
from avatard.frame import Frame
from avatard.media.synthetic import marked_jpeg, with_badge
from avatard.playout.scheduler import PlayoutFrame
from avatard.protocols.image import ImageFormat, encode_image
from avatard.protocols.tasks import cancel_and_wait
from avatard.session.session import Session
from avatard.timebase import FPS

logger = logging.getLogger(__name__)

BOUNDARY = "avatard-frame"
HEADERS = {
    hdrs.CONTENT_TYPE: f"multipart/x-mixed-replace;boundary={BOUNDARY}",
    hdrs.CACHE_CONTROL: "no-store",
    hdrs.CONNECTION: "close",
}
QUALITY = 80
RETRY_SECONDS = 10
WRITE_SECONDS = 10.0  # a viewer that takes nothing for so long loses its seat


class Mjpeg:
    """The viewers of `/mjpeg`; a sink of the session while there are any.

    Args:
        session: the avatar.
        config: the section `output`.
    """

    def __init__(self, session: Session, config: OutputConfig) -> None:
        self._session, self._config = session, config
        self._format = ImageFormat("jpeg", QUALITY)
        self._stride = max(1, round(FPS / config.mjpeg_fps))
        self._viewers = 0
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._picture: bytes = b""
        self._changed = asyncio.Event()
        self.encoded = 0
        session.metrics.watch("frames", lambda: {"mjpeg_encoded": self.encoded})

    @property
    def viewers(self) -> int:
        """How many watch."""
        return self._viewers

    def play(self, entry: PlayoutFrame) -> None:
        """Encode a frame, if it is time for one and the one before is done."""
        if entry.picture is None or entry.index % self._stride or (self._task is not None and not self._task.done()):
            return
        self._task = asyncio.create_task(self._encode(entry.picture), name="mjpeg")

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer with pictures until the viewer leaves, or the server stops."""
        at_rest = self._session.generation.at_rest
        if at_rest is None or self._closing:
            raise web.HTTPServiceUnavailable(text="the avatar is not ready", headers={hdrs.RETRY_AFTER: "2"})
        if self._viewers >= self._config.mjpeg_viewers:
            seats = self._config.mjpeg_viewers
            text = f"all {seats} viewer seats of /mjpeg are taken; /whep has others, with sound"
            raise web.HTTPServiceUnavailable(text=text, headers={hdrs.RETRY_AFTER: str(RETRY_SECONDS)})
        response = web.StreamResponse(headers=HEADERS)
        self._viewers += 1
        try:
            if self._viewers == 1:
                self._picture = b""
                self._session.attach(self)
            await response.prepare(request)
            if not self._picture:  # something to see until the first frame comes
                await self._encode(at_rest)
            try:
                await self._write_pictures(response)
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()  # the end of the answer would not be taken either
            except ConnectionError:
                pass  # the viewer left
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._session.detach(self)
        return response

    async def close(self) -> None:
        """End all answers."""
        self._closing = True
        self._changed.set()
        await cancel_and_wait(self._task)

    async def _write_pictures(self, response: web.StreamResponse) -> None:
        sent = b""
        while not self._closing:
            changed, picture = self._changed, self._picture
            if picture is sent:
                await changed.wait()
                continue
            head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
            async with asyncio.timeout(WRITE_SECONDS):
                await response.write(head.encode() + picture + b"\r\n")
            sent = picture

    async def _encode(self, frame: Frame) -> None:
        try:
            self._picture = await asyncio.to_thread(self._encoded, frame)
        except Exception:
            # Whatever it was, pictures that stand still are better than none.
            logger.exception("encoding failed")
            return
        self.encoded += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def _encoded(self, frame: Frame) -> bytes:
        pixels = with_badge(frame.rgb) if self._config.badge else frame.rgb
        return marked_jpeg(encode_image(pixels, self._format))
