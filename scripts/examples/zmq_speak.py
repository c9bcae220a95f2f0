"""Make an avatar speak over ZeroMQ: send the sound of a file (any that PyAV reads), as live speech or all at once.

python scripts/examples/zmq_speak.py hello.wav
python scripts/examples/zmq_speak.py answer.mp3 --fast --interrupt-after 1.5
python scripts/examples/zmq_speak.py --portrait other.png
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import av
import typer
import zmq
from av.audio.resampler import AudioResampler
from av.error import FFmpegError

from avatard.protocols.curve import KeysError, set_client_keys
from avatard.protocols.messages import EndOfUtterance, Interrupt, Portrait, Request, Speech, encode

CHUNK_SECONDS = 0.02  # what a microphone or a voice agent sends at a time
QUEUE_MESSAGES = 100


def read_sound(path: Path) -> Iterator[Speech]:
    """The file's sound at its own rate, mono or stereo, in messages of 20 ms.

    Raises:
        FFmpegError, ValueError: the file has no sound that can be read.
    """
    with av.open(str(path)) as container:
        if not container.streams.audio:
            raise ValueError(f"{path} has no sound")
        stream = container.streams.audio[0]
        channels = min(stream.channels, 2)
        size = round(stream.rate * CHUNK_SECONDS)
        resampler = AudioResampler("s16", "mono" if channels == 1 else "stereo", stream.rate, frame_size=size)
        for frame in [*container.decode(stream), None]:
            for chunk in resampler.resample(frame):
                data = chunk.to_ndarray().astype("<i2").tobytes()
                yield Speech(enc="pcm_s16le", sr=stream.rate, ch=2 if channels == 2 else 1, data=data)


class Sender:
    """A PUSH socket that gives up when nobody takes what is sent."""

    def __init__(self, socket: zmq.Socket[bytes], patience_seconds: float) -> None:
        socket.sndhwm = QUEUE_MESSAGES
        socket.sndtimeo = round(patience_seconds * 1000)
        # Without it messages are queued for a daemon that is not there.
        socket.immediate = True
        self._socket = socket

    def send(self, request: Request) -> None:
        """Send it, waiting while the avatar's buffer is full.

        Raises:
            zmq.Again: nobody took it in time.
        """
        self._socket.send(encode(request))


def speak(sender: Sender, path: Path, fast: bool, interrupt_after: float | None) -> float:
    """Send the file, then the end of the utterance, or an interrupt; return the seconds of sound that were sent."""
    sent, start = 0.0, time.monotonic()
    for speech in read_sound(path):
        if interrupt_after is not None and sent >= interrupt_after:
            sender.send(Interrupt(id="zmq_speak"))
            return sent
        sender.send(speech)
        sent += speech.seconds
        if not fast:
            time.sleep(max(start + sent - time.monotonic(), 0))
    sender.send(EndOfUtterance())
    return sent


def main(
    sound: Annotated[Path | None, typer.Argument(help="A file with sound.")] = None,
    connect: Annotated[str, typer.Option(help="The avatar's audio input.")] = "tcp://127.0.0.1:5557",
    fast: Annotated[bool, typer.Option(help="As fast as the avatar takes it, as a TTS would.")] = False,
    interrupt_after: Annotated[float | None, typer.Option(help="Interrupt after so many seconds of sound.")] = None,
    portrait: Annotated[Path | None, typer.Option(help="Swap the portrait first.")] = None,
    server_key: Annotated[str, typer.Option(help="The server's public CURVE key.")] = "",
    key: Annotated[Path | None, typer.Option(help="Your own .key_secret file.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds to wait until the avatar takes a message.")] = 60,
) -> None:
    """Send a file's sound, a portrait, or both."""
    if sound is None and portrait is None:
        raise typer.BadParameter("give a file with sound, or --portrait")
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        try:
            if server_key:
                set_client_keys(socket, server_key, key)
            sender = Sender(socket, patience)
            socket.connect(connect)
            if portrait:
                sender.send(Portrait(data=portrait.read_bytes(), id="zmq_speak"))
            if sound:
                sent = speak(sender, sound, fast, interrupt_after)
                print(f"sent {sent:.2f} s of sound")
        except zmq.Again:
            sys.exit(f"zmq_speak: nobody took a message at {connect} for {patience:g} s")
        except (FFmpegError, KeysError, OSError, ValueError, zmq.ZMQError) as error:
            sys.exit(f"zmq_speak: {error}")
        socket.linger = 2000


if __name__ == "__main__":
    typer.run(main)
