"""VMC, the protocol of VTuber programs: Open Sound Control over UDP, port 39539.

Source: protocol.vmc.info, "Marionette" (what a performer sends). Names are case-sensitive.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final, Literal

from avatard.protocols.face_motion import FaceMotion, part_of

PORT: Final = 39539
MAX_BUNDLE_BYTES: Final = 1400

Names = Literal["vrm0", "vrm1", "arkit"]

#: The neck's share of the head's rotation.
NECK_SHARE: Final = 0.4
#: Metres from the bone below, of an adult. Receivers that keep their model's own do better.
NECK_POSITION, HEAD_POSITION = (0.0, 0.12, 0.0), (0.0, 0.08, 0.0)
IDENTITY: Final = (0.0, 0.0, 0.0, 1.0)

#: Expressions of VRM 0 and 1, in the order of `_shapes`.
VRM_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "vrm0": ("A", "I", "U", "E", "O", "Blink_L", "Blink_R"),
    "vrm1": ("aa", "ih", "ou", "ee", "oh", "blinkLeft", "blinkRight"),
}


class VmcEncoder:
    """The bundles of a frame.

    python-osc lays them out once; of each frame only the floats are new, and their places never change.

    Args:
        names: of the blend shapes: VRM's presets, or Perfect Sync's (ARKit's with a capital).
        arkit: ARKit's names.
    """

    def __init__(self, names: Names, arkit: Sequence[str]) -> None:
        self._shapes: Callable[[FaceMotion], Sequence[float]] = _weights if names == "arkit" else _shapes
        blends = VRM_NAMES.get(names) or tuple(name[0].upper() + name[1:] for name in arkit)
        self._bundles = _Bundles()
        self._bundles.add("/VMC/Ext/OK", (1, 3, 0))  # loaded, calibrated, normal
        self._bundles.add("/VMC/Ext/T", (), 1)
        for address, name in (("Root", "root"), ("Bone", "Neck"), ("Bone", "Head")):
            self._bundles.add(f"/VMC/Ext/{address}/Pos", (name,), 7)
        for name in blends:
            self._bundles.add("/VMC/Ext/Blend/Val", (name,), 1)
        self._bundles.add("/VMC/Ext/Blend/Apply")
        self._bundles.close()

    def __call__(self, motion: FaceMotion) -> list[bytes]:
        """The datagrams of a frame, in their order."""
        # For a character that looks along Unity's z our axes are all reversed, which leaves quaternions as they are.
        turn = motion.head.quaternion
        floats = [
            motion.seconds,
            *(0.0, 0.0, 0.0, *IDENTITY),
            *(*NECK_POSITION, *part_of(turn, NECK_SHARE)),
            *(*HEAD_POSITION, *part_of(turn, 1 - NECK_SHARE)),
            *self._shapes(motion),
        ]
        return self._bundles.filled(floats)


def _weights(motion: FaceMotion) -> Sequence[float]:
    return tuple(motion.weights.values())


def _shapes(motion: FaceMotion) -> Sequence[float]:
    return (*motion.visemes, motion.weights["eyeBlinkLeft"], motion.weights["eyeBlinkRight"])


class _Bundles:
    """Messages in bundles that fit into a packet, and where their floats are."""

    def __init__(self) -> None:
        self._messages: list[tuple[bytes, int]] = []  # and how many floats end it
        self._laid_out: list[tuple[bytearray, list[tuple[int, int]]]] = []  # offset and number of floats

    def add(self, address: str, values: Sequence[str | int] = (), floats: int = 0) -> None:
        """Append a message that ends in so many floats."""
        from pythonosc.osc_message_builder import OscMessageBuilder

        builder = OscMessageBuilder(address)
        for value in values:
            builder.add_arg(value, "s" if isinstance(value, str) else "i")
        for _ in range(floats):
            builder.add_arg(0.0, "f")
        message = builder.build().dgram
        size = sum(4 + len(other) for other, _ in self._messages)
        if 16 + size + 4 + len(message) > MAX_BUNDLE_BYTES:
            self.close()
        self._messages.append((message, floats))

    def close(self) -> None:
        """Lay out the messages that were added."""
        from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
        from pythonosc.osc_message import OscMessage

        builder, places, end = OscBundleBuilder(IMMEDIATELY), [], 16  # "#bundle" and the time
        for message, floats in self._messages:
            builder.add_content(OscMessage(message))
            end += 4 + len(message)
            if floats:
                places.append((end - 4 * floats, floats))
        self._laid_out.append((bytearray(builder.build().dgram), places))
        self._messages = []

    def filled(self, floats: Sequence[float]) -> list[bytes]:
        """The bundles with these floats in all places."""
        start = 0
        for bundle, places in self._laid_out:
            for offset, count in places:
                struct.pack_into(f">{count}f", bundle, offset, *floats[start : start + count])
                start += count
        return [bytes(bundle) for bundle, _ in self._laid_out]
