"""Listen to VMC: the head's rotation and the strongest blend shapes, and how regularly frames come.

avatard serve --identity me.png --vmc 127.0.0.1
python scripts/examples/vmc_view.py
"""

import socket
import time
from typing import Annotated

import numpy as np
import typer
from pythonosc.osc_bundle import OscBundle
from pythonosc.osc_message import OscMessage

SHOWN = 5  # blend shapes


def messages(packet: bytes) -> list[OscMessage]:
    """What a packet holds: a bundle of messages, or one."""
    if OscBundle.dgram_is_bundle(packet):
        return [message for message in OscBundle(packet) if isinstance(message, OscMessage)]
    return [OscMessage(packet)]


def main(
    port: Annotated[int, typer.Option(help="UDP port to listen on.")] = 39539,
    seconds: Annotated[float, typer.Option(help="Stop after this time; 0 is never.")] = 0,
) -> None:
    """Print what comes, once a second."""
    shapes: dict[str, float] = {}
    head, arrived = (0.0, 0.0, 0.0, 1.0), [time.monotonic()]
    end, told = time.monotonic() + (seconds or 1e9), time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("0.0.0.0", port))
        listening.settimeout(1.0)
        while time.monotonic() < end:
            try:
                packet = listening.recv(65535)
            except TimeoutError:
                continue
            for message in messages(packet):
                match message.address, message.params:
                    case "/VMC/Ext/Bone/Pos", ["Head", _, _, _, x, y, z, w]:
                        head = (x, y, z, w)
                    case "/VMC/Ext/Blend/Val", [name, value]:
                        shapes[name] = value
                    case "/VMC/Ext/Blend/Apply", _:
                        arrived.append(time.monotonic())
            if arrived[-1] - told >= 1:
                told = arrived[-1]
                strongest = sorted(shapes.items(), key=lambda item: -item[1])[:SHOWN]
                print(
                    " ".join(f"{value:+.3f}" for value in head), *(f"{name} {value:.2f}" for name, value in strongest)
                )
    gaps = np.diff(arrived[2:])  # the first frame asks whether anybody listens
    if len(gaps) < 2:
        raise SystemExit(f"vmc_view: no frame came to port {port}")
    late = np.abs(gaps - np.median(gaps))
    print(f"{len(gaps)} frames, {1 / gaps.mean():.2f} a second, jitter p95 {1000 * np.quantile(late, 0.95):.1f} ms")


if __name__ == "__main__":
    typer.run(main)
