"""Look at an avatar over ZeroMQ: picture, landmarks drawn on it, strongest ARKit coefficients, state.

python scripts/examples/zmq_view.py                          # a window
python scripts/examples/zmq_view.py --out frames --seconds 5 # PNG files, named by frame
python scripts/examples/zmq_view.py --server-key KEY --key me.key_secret --connect tcp://10.0.0.5:5556
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
import zmq
from numpy.typing import NDArray

from avatard.frame import over_chequers
from avatard.protocols.curve import KeysError, set_client_keys
from avatard.protocols.image import decode_image
from avatard.protocols.messages import (
    Audio,
    Face,
    MessageError,
    Meta,
    State,
    Stats,
    Topic,
    Video,
    decode,
    floats,
    split,
    topic_of,
)

SIZE = 512  # pixels of the picture's longer side as it is shown
PANEL = 320  # pixels of what stands beside it
BARS = 12  # coefficients shown
WHITE, GREY, GREEN = (255, 255, 255), (140, 140, 140), (80, 220, 120)
Picture = NDArray[np.uint8]


class View:
    """The last message of each topic, and a picture of them."""

    def __init__(self, room: str = "") -> None:
        self.room = room
        self.meta: Meta | None = None
        self.state: State | None = None
        self.face: Face | None = None
        self.video: Video | None = None
        self.loudness = 0.0
        self.lost = 0
        self._next: dict[Topic, int] = {}

    def read(self, parts: list[bytes]) -> bool:
        """Take a message in; whether it completes a frame that can be drawn."""
        name, payload = split(parts)
        topic = next((kind for kind in Topic if topic_of(kind, self.room) == name), None)
        if topic is None:
            return False  # of another room
        message = decode(payload)
        self.lost += max(message.seq - self._next.get(topic, message.seq), 0)
        self._next[topic] = message.seq + 1
        match message:
            case Meta():
                self.meta = message
            case State():
                self.state = message
                if message.event != "snapshot":
                    print(f"{message.pts_us / 1e6:8.2f} s  {message.event}  {message.message}")
            case Face():
                self.face = message
            case Audio():
                samples = np.frombuffer(message.data, "<i2").astype(np.float32) / 32768
                self.loudness = float(np.sqrt(np.mean(samples**2))) if len(samples) else 0.0
            case Video():
                self.video = message  # the last that a publisher sends of a frame
                return True
            case Stats():
                pass
        return False

    def draw(self) -> Picture:
        """The frame as it would be shown, uint8 RGB [SIZE, SIZE + PANEL, 3]."""
        canvas: Picture = np.zeros((SIZE, SIZE + PANEL, 3), np.uint8)
        if self.video:
            scale = SIZE / max(self.video.w, self.video.h)
            width, height = round(self.video.w * scale), round(self.video.h * scale)
            canvas[:height, :width] = cv2.resize(decode_picture(self.video), (width, height))
            if self.face and self.face.pts_us == self.video.pts_us:
                for x, y in project(self.face, self.video.w, self.video.h) * scale:
                    cv2.circle(canvas, (round(x), round(y)), 2, GREEN, -1, cv2.LINE_AA)
        self._draw_panel(canvas)
        return canvas

    def _draw_panel(self, canvas: Picture) -> None:
        def write(text: str, row: int, colour: tuple[int, int, int] = WHITE) -> None:
            cv2.putText(canvas, text, (SIZE + 16, 28 + 26 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)

        pts_us = self.video.pts_us if self.video else 0
        write(f"{pts_us / 1e6:.2f} s   {self.state.state if self.state else ''}   lost {self.lost}", 0)
        write("sound", 1, GREY)
        cv2.rectangle(canvas, (SIZE + 100, 44), (SIZE + 100 + round(600 * min(self.loudness, 0.33)), 54), GREEN, -1)
        if self.face and self.meta:
            weights = floats(self.face.bs)
            for row, index in enumerate(np.argsort(-weights, kind="stable")[:BARS], 3):
                write(self.meta.arkit[index], row, GREY)
                top = 18 + 26 * row
                cv2.rectangle(
                    canvas, (SIZE + 190, top), (SIZE + 190 + round(110 * weights[index]), top + 10), GREEN, -1
                )


def decode_picture(video: Video) -> Picture:
    """The picture uint8 RGB [h, w, 3] of a message; what is transparent lies over a pattern."""
    picture = decode_image(video.data, video.enc, (video.h, video.w, video.ch))
    return over_chequers(picture) if video.ch == 4 else picture


def project(face: Face, w: int, h: int) -> NDArray[np.float64]:
    """Where the landmarks [68, 2] are in a picture of w x h pixels."""
    x, y, z, real = face.head.q
    # v' = v + 2 w (u x v) + 2 u x (u x v), the rotation of v by the unit quaternion (u, w).
    points, axis = floats(face.lm).reshape(68, 3).astype(np.float64), np.array([x, y, z])
    cross = np.cross(axis, points)
    turned = points + 2 * real * cross + 2 * np.cross(axis, cross)
    centred: NDArray[np.float64] = (turned + face.head.t)[:, :2] * face.head.s
    return centred + (w / 2, h / 2)


def show_in_window(frames: Callable[[], Picture | None]) -> None:
    """Show what `frames` gives, None while there is nothing new, until the window is closed.

    Raises:
        ImportError, RuntimeError: there is no Tk or no display.
    """
    import tkinter

    try:
        root = tkinter.Tk()
    except tkinter.TclError as error:
        raise RuntimeError(str(error)) from None
    root.title("avatard")
    label = tkinter.Label(root)
    label.pack()

    def refresh() -> None:
        if (picture := frames()) is not None:
            header = f"P6 {picture.shape[1]} {picture.shape[0]} 255 ".encode()
            image = tkinter.PhotoImage(data=header + picture.tobytes(), format="PPM")
            label.configure(image=image)
            label.image = image  # type: ignore[attr-defined] # Tk does not keep what it shows
        root.after(5, refresh)

    refresh()
    root.mainloop()


def main(
    connect: Annotated[str, typer.Option(help="The publisher's endpoint.")] = "tcp://127.0.0.1:5556",
    out: Annotated[Path | None, typer.Option(help="Write PNG files here instead of opening a window.")] = None,
    room: Annotated[str, typer.Option(metavar="ID", help="Show a room that was made with zmq: true.")] = "",
    seconds: Annotated[float, typer.Option(help="Stop after this time; 0 is never.")] = 0,
    every: Annotated[int, typer.Option(min=1, help="Write every n-th frame.")] = 1,
    server_key: Annotated[str, typer.Option(help="The server's public CURVE key.")] = "",
    key: Annotated[Path | None, typer.Option(help="Your own .key_secret file.")] = None,
) -> None:
    """Show an avatar, or write what would be shown."""
    view, end, drawn = View(room), time.monotonic() + (seconds or 1e9), 0
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        try:
            if server_key:
                set_client_keys(socket, server_key, key)
            for topic in Topic:
                socket.subscribe(topic_of(topic, room))
            socket.connect(connect)
        except (KeysError, zmq.ZMQError) as error:
            sys.exit(f"zmq_view: cannot connect to {connect}: {error}")

        def newest() -> Picture | None:
            fresh = False
            while socket.poll(0):
                fresh |= read(view, socket)
            return view.draw() if fresh else None

        if out is None:
            try:
                show_in_window(newest)
            except (ImportError, RuntimeError) as error:
                sys.exit(f"zmq_view: no window: {error}; use --out FOLDER")
            return
        out.mkdir(parents=True, exist_ok=True)
        while time.monotonic() < end:
            if not socket.poll(1000):
                continue
            if read(view, socket) and view.video:
                drawn += 1
                if drawn % every == 0:
                    picture = cv2.cvtColor(view.draw(), cv2.COLOR_RGB2BGR)
                    cv2.imwrite(str(out / f"{view.video.pts_us // 40_000:06d}.png"), picture)
    print(f"{drawn} frames, {view.lost} messages lost")
    if not drawn:
        sys.exit(f"zmq_view: no frame came from {connect} in {seconds:g} s")


def read(view: View, socket: zmq.Socket[bytes]) -> bool:
    """Take one message in; what does not follow the protocol is named and skipped."""
    try:
        return view.read(socket.recv_multipart())
    except MessageError as error:
        print(f"zmq_view: {error}", file=sys.stderr)
        return False


if __name__ == "__main__":
    typer.run(main)
