"""The receivers' side of VMC, Live Link Face and OpenSeeFace, from their published layouts, and faces to send."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from avatard.frame import HeadPose
from avatard.models.face.arkit import ARKIT_NAMES
from avatard.models.face.blendshapes import expression_basis
from avatard.models.face.pose import rotation_matrix
from avatard.protocols.face_motion import FaceMotion
from tests.support.faces import morphable


def face(yaw: float = 0, pitch: float = 0, roll: float = 0, moves: dict[str, float] | None = None, **weights: float):
    """A frame of the mean face: the head turned (degrees: to its left, up, towards its left shoulder), shapes of the
    expression basis that move its points, and coefficients."""
    rest = morphable().mean_68
    basis = expression_basis(rest)
    moved = sum((share * basis[name] for name, share in (moves or {}).items()), np.zeros((68, 3)))
    turn = Rotation.from_matrix(rotation_matrix(yaw, pitch, roll)).as_quat(canonical=True)
    x, y, z, w = map(float, turn)
    assert set(weights) <= set(ARKIT_NAMES)
    return FaceMotion(
        index=75,
        seconds=3.0,
        unix_seconds=1_790_000_000.25,
        landmarks=rest + moved,
        rest=rest,
        weights={name: weights.get(name, 0.0) for name in ARKIT_NAMES},
        head=HeadPose((x, y, z, w), (0.25, -0.5, 0.0), 80.0),
        size=(640, 480),
    )


def osc_messages(packet: bytes) -> list[tuple[str, list[Any]]]:
    """Addresses and arguments of an OSC packet: a message, or a bundle of packets. Source: OSC 1.0."""
    assert len(packet) % 4 == 0
    if packet.startswith(b"#bundle\0"):
        assert packet[8:16] == struct.pack(">Q", 1)  # at once
        messages, at = [], 16
        while at < len(packet):
            (size,) = struct.unpack_from(">i", packet, at)
            messages += osc_messages(packet[at + 4 : at + 4 + size])
            at += 4 + size
        assert at == len(packet)
        return messages

    def text(at: int) -> tuple[str, int]:
        end = packet.index(0, at)
        assert not any(packet[end : (end // 4 + 1) * 4])
        return packet[at:end].decode(), (end // 4 + 1) * 4

    address, at = text(0)
    tags, at = text(at)
    assert tags.startswith(",")
    values: list[Any] = []
    for tag in tags[1:]:
        if tag == "s":
            value, at = text(at)
            values.append(value)
        else:
            values += struct.unpack_from({"i": ">i", "f": ">f"}[tag], packet, at)
            at += 4
    assert at == len(packet)
    return [(address, values)]


@dataclass
class VmcModel:
    """What a Unity program has after the packets of a frame: rotations in its left-handed axes (x right of the
    character, y up, z forward), and blend shapes, which show only when they are applied."""

    bones: dict[str, np.ndarray]
    shown: dict[str, float]
    available: bool
    time: float

    @classmethod
    def of(cls, packets: list[bytes]) -> "VmcModel":
        model, waiting = cls({}, {}, False, 0.0), dict[str, float]()
        for packet in packets:
            for address, values in osc_messages(packet):
                match address, values:
                    case "/VMC/Ext/OK", [int(loaded), *_]:
                        model.available = loaded == 1
                    case "/VMC/Ext/T", [float(time)]:
                        model.time = time
                    case "/VMC/Ext/Root/Pos", ["root", *floats] if len(floats) == 7:
                        model.bones["root"] = left_handed(*floats[3:])
                    case "/VMC/Ext/Bone/Pos", [str(name), *floats] if len(floats) == 7:
                        model.bones[name] = left_handed(*floats[3:])
                    case "/VMC/Ext/Blend/Val", [str(name), float(value)]:
                        waiting[name] = value
                    case "/VMC/Ext/Blend/Apply", []:
                        model.shown = model.shown | waiting
                    case unknown:
                        raise AssertionError(unknown)
        return model

    @property
    def head(self) -> np.ndarray:
        """The head's rotation in the world: parents first."""
        whole: np.ndarray = self.bones["root"] @ self.bones["Neck"] @ self.bones["Head"]
        return whole


def left_handed(x: float, y: float, z: float, w: float) -> np.ndarray:
    """Unity's matrix of a quaternion: the same formula as in right-handed axes."""
    matrix: np.ndarray = Rotation.from_quat((x, y, z, w)).as_matrix()
    return matrix


@dataclass
class LiveLinkFrame:
    subject: str
    device: str
    frame: int
    sub_frame: float
    rate: tuple[int, int]
    values: tuple[float, ...]

    @classmethod
    def of(cls, packet: bytes) -> "LiveLinkFrame":
        at = 0

        def take(layout: str) -> tuple[Any, ...]:
            nonlocal at
            values = struct.unpack_from(f">{layout}", packet, at)
            at += struct.calcsize(f">{layout}")
            return values

        def text() -> str:
            (length,) = take("i")
            return str(take(f"{length}s")[0], "utf-8")

        assert take("B") == (6,)
        device, subject = text(), text()
        frame, sub_frame, numerator, denominator, count = take("ifiiB")
        assert count == 61
        values = take("61f")
        assert at == len(packet)
        return cls(subject, device, frame, sub_frame, (numerator, denominator), values)


@dataclass
class OpenSeeFace:
    """A face as OpenSeeFace's Unity side has it."""

    time: float
    id: int
    camera: tuple[float, float]
    right_eye_open: float
    left_eye_open: float
    got_3d: bool
    error: float
    raw_quaternion: np.ndarray
    euler: np.ndarray
    translation: np.ndarray
    confidence: np.ndarray
    points: np.ndarray
    points_3d: np.ndarray
    features: np.ndarray

    @classmethod
    def of(cls, packet: bytes) -> "OpenSeeFace":
        assert len(packet) == 1785
        at = 0

        def take(kind: str, *shape: int) -> Any:
            nonlocal at
            count = int(np.prod(shape)) if shape else 1
            found = np.frombuffer(packet, np.dtype(kind), count, at)
            at += found.nbytes
            return found.reshape(shape) if shape else found[0].item()

        face = cls(
            time=take("<f8"),
            id=take("<i4"),
            camera=(take("<f4"), take("<f4")),
            right_eye_open=take("<f4"),
            left_eye_open=take("<f4"),
            got_3d=take("u1") != 0,
            error=take("<f4"),
            raw_quaternion=take("<f4", 4),
            euler=take("<f4", 3),
            translation=take("<f4", 3),
            confidence=take("<f4", 68),
            points=take("<f4", 68, 2),
            points_3d=take("<f4", 70, 3),
            features=take("<f4", 14),
        )
        assert at == len(packet)
        return face

    @property
    def unity(self) -> Rotation:
        """The rotation that `OpenSeeIKTarget` gives a transform before it takes off the calibrated one."""
        x, y, z, w = self.raw_quaternion
        return Rotation.from_quat((-y, -x, z, w))


def unity_turn(rest: OpenSeeFace, now: OpenSeeFace) -> np.ndarray:
    """How a Unity character is turned since it was calibrated."""
    turned: np.ndarray = (now.unity * rest.unity.inv()).as_matrix()
    return turned
