"""A virtual camera and a sound output, with devices in memory."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from avatard.gateways.loudspeaker import MOST_SAMPLES, START_SAMPLES, Loudspeaker, LoudspeakerError, PlaybackBuffer
from avatard.gateways.loudspeaker import check_loudspeaker as check
from avatard.gateways.virtual_camera import CameraError, VirtualCamera, check_camera
from tests.support.flashes import TONE, entry
from tests.support.serving import said, until
from tests.support.still import StillSession


class Camera:
    """What pyvirtualcam makes."""

    made: "list[Camera]" = []

    def __init__(self, width: int, height: int, fps: float, *, device: str | None = None) -> None:
        if device == "/dev/video9":
            raise RuntimeError("'v4l2loopback' backend: /dev/video9 is not\na loopback device.")
        self.shape, self.device, self.open = (height, width, 3), device or "/dev/video4", True
        self.sent: list[np.ndarray] = []
        self.made.append(self)

    def __enter__(self) -> "Camera":
        return self

    def __exit__(self, *error: object) -> None:
        self.open = False

    def send(self, pixels: np.ndarray) -> None:
        if pixels.shape != self.shape:
            raise OSError("No such device")
        self.sent.append(pixels)


@pytest.fixture
def cameras(monkeypatch):
    monkeypatch.setattr(Camera, "made", [])
    monkeypatch.setitem(sys.modules, "pyvirtualcam", SimpleNamespace(Camera=Camera))
    return Camera.made


async def test_the_camera_shows_the_newest_picture_at_its_own_size(cameras):
    session = StillSession()
    sink = VirtualCamera(session, "auto", badge=False)  # type: ignore[arg-type]
    (camera,) = cameras
    assert session.sinks == [sink] and camera.shape == (64, 64, 3)
    sink.play(entry(19))
    await until(lambda: camera.sent)
    assert camera.sent[0].mean() == 220
    sink.play(entry(0, side=128))
    await until(lambda: len(camera.sent) == 2)
    await sink.stop()
    assert not camera.open and session.sinks == []


async def test_a_camera_that_is_lost_takes_nothing_any_more(cameras, caplog):
    session = StillSession()
    sink = VirtualCamera(session, "auto")  # type: ignore[arg-type]
    cameras[0].shape = (0, 0, 3)
    sink.play(entry(0))
    await until(lambda: not session.sinks)
    assert said(caplog) == ["camera lost"]
    await sink.stop()


async def test_a_camera_that_is_missing_is_one_line_with_its_cure(cameras, monkeypatch):
    with pytest.raises(CameraError, match="^no virtual camera: 'v4l2loopback' backend: .* To have one, ") as refused:
        VirtualCamera(StillSession(), "/dev/video9")  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(CameraError, match=r"needs pyvirtualcam: pip install 'avatard\[camera\]'$"):
        check_camera("auto")


class PortAudioError(Exception):
    pass


class FakeSounddevice:
    PortAudioError = PortAudioError

    def __init__(self) -> None:
        self.streams: list[Any] = []

    def check_output_settings(self, device: str | None, *settings: Any, samplerate: int) -> None:
        if device not in (None, "Cable"):
            raise ValueError(f"No output device\nmatching {device!r}")

    def query_devices(self) -> list[dict[str, Any]]:
        return [{"name": "Cable", "max_output_channels": 2}, {"name": "Microphone", "max_output_channels": 0}]

    def OutputStream(self, rate, block, device, channels, kind, latency, callback):  # noqa: N802 - sounddevice's name
        stream = SimpleNamespace(device=device, callback=callback, start=lambda: None, close=lambda: None)
        self.streams.append(stream)
        return stream


async def test_sound_goes_to_the_named_device(monkeypatch):
    fake = FakeSounddevice()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    session = StillSession()
    sink = Loudspeaker(session, "Cable")  # type: ignore[arg-type]
    (stream,) = fake.streams
    assert stream.device == "Cable" and session.sinks == [sink]
    for index in (18, 19, 20):
        sink.play(entry(index))
    out = np.ones((3 * 1920, 1), np.float32)
    stream.callback(out, len(out), None, None)
    np.testing.assert_array_equal(out[:1920, 0], TONE)
    assert not out[2 * 1920 :].any()
    await sink.stop()
    assert session.sinks == []
    with pytest.raises(LoudspeakerError, match="^no sound output 'None': No output device matching 'None'; there"):
        check("None")


def test_the_buffer_begins_late_stays_whole_and_is_bounded():
    buffer = PlaybackBuffer()
    block = np.arange(1, 1921, dtype=np.float32)
    buffer.push(block)
    assert not buffer.pull(100).any(), "it waits for a second block"
    buffer.push(block)
    heard = np.concatenate([buffer.pull(count) for count in (1, 1000, 919, 1920)])
    np.testing.assert_array_equal(heard, np.concatenate([block, block]))
    assert not buffer.pull(10).any() and buffer.gaps == 1
    buffer.push(block)
    assert not buffer.pull(10).any(), "after a gap it waits again"
    for _ in range(20):
        buffer.push(block)
        assert buffer._waiting <= MOST_SAMPLES
    assert buffer.dropped % 1920 == 0 and buffer.dropped > START_SAMPLES
    assert buffer.pull(1920)[0] == 1
