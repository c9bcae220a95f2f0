"""The avatar as a camera of this machine, for programs with a camera menu (pyvirtualcam)."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from avatard.errors import UserError
from avatard.frame import Frame
from avatard.media.live_writer import fitted
from avatard.media.synthetic import with_badge
from avatard.playout.scheduler import PlayoutFrame
from avatard.session.session import Session
from avatard.timebase import FPS

if TYPE_CHECKING:
    import pyvirtualcam

logger = logging.getLogger(__name__)

AUTO: Final = "auto"
#: What gives a machine a virtual camera, by `sys.platform`.
CURES: Final = {
    "linux": "load v4l2loopback (Debian: apt install v4l2loopback-dkms; modprobe v4l2loopback exclusive_caps=1)",
    "darwin": "install OBS 30 or newer, and start and stop its virtual camera once",
    "win32": "install OBS, or Unity Capture",
}


class CameraError(UserError):
    """There is no virtual camera."""

    CODE = "camera"


def check_camera(device: str) -> None:
    """Refuse a virtual camera that cannot be had, before the networks are loaded. Raises `CameraError`."""
    try:
        import pyvirtualcam  # noqa: F401 - whether it is there
    except ImportError:
        raise CameraError(f"the virtual camera {device} needs pyvirtualcam: pip install 'avatard[camera]'") from None


class VirtualCamera:
    """A sink of the session that shows its pictures as a camera; one that is too slow skips pictures.

    Args:
        session: the avatar, started.
        device: of the camera, such as /dev/video4, or `auto`: the first one.
        badge: write "AI-generated" into each picture.

    Raises:
        CameraError: there is no such camera, or another program writes to it.
    """

    def __init__(self, session: Session, device: str, badge: bool = False) -> None:
        check_camera(device)
        import pyvirtualcam

        at_rest = session.generation.at_rest
        assert at_rest is not None, "the session has started"
        self._session, self._badge = session, badge
        self._size = at_rest.pixels.shape[0] & ~1, at_rest.pixels.shape[1] & ~1
        try:
            self._camera: pyvirtualcam.Camera = pyvirtualcam.Camera(
                self._size[1], self._size[0], FPS, device=None if device == AUTO else device
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            cure = CURES.get(sys.platform, "see pyvirtualcam's documentation")
            raise CameraError(f"no virtual camera: {reason} To have one, {cure}") from None
        self._waiting: deque[Frame] = deque(maxlen=1)
        self._wake = threading.Event()
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()
        session.attach(self)
        logger.info(
            "camera connected", extra={"device": self._camera.device, "size": f"{self._size[1]}x{self._size[0]}"}
        )

    def play(self, entry: PlayoutFrame) -> None:
        """Show a picture; one that still waits is skipped."""
        if entry.picture is not None:
            self._waiting.append(entry.picture)
            self._wake.set()

    async def stop(self) -> None:
        """Release the camera."""
        self._session.detach(self)
        self._stopped = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            with self._camera:
                while not self._stopped:
                    self._wake.wait()
                    self._wake.clear()
                    while self._waiting:
                        pixels = fitted(self._waiting.popleft().rgb, self._size)
                        self._camera.send(with_badge(pixels) if self._badge else pixels)
        except (RuntimeError, OSError) as error:
            logger.warning("camera lost", extra={"device": self._camera.device, "reason": str(error)})
            self._loop.call_soon_threadsafe(self._session.detach, self)
