"""Rendering with an engine whose mouth opens as far as the sound is loud."""

import signal
import struct
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from avatard.cli import app
from avatard.commands.render import RenderError, play_out, render
from avatard.config import Config, Picture, Stream
from avatard.errors import UserError
from avatard.media.audio_file import AudioFileError
from avatard.media.synthetic import DIGITAL_SOURCE_TYPE, XMP_BOX
from avatard.playout.scheduler import PlayoutFrame
from avatard.timebase import SAMPLES_PER_FRAME
from tests.support.sounds import write_wav
from tests.support.warp_engine import ALPHA, WarpEngine, WarpStream

CONFIG = Config(stream=Stream(clip_frames=8, hop_frames=5, fade_frames=2, lookahead_ms=80))


class Quick(WarpEngine):
    seconds_per_frame = 0.0

    def __init__(self, config: Config = CONFIG) -> None:
        super().__init__(config)


def bursts(frames: float):
    """A tone that is loud in every third frame group of five."""
    t = np.arange(round(frames * SAMPLES_PER_FRAME))
    loud = t // (5 * SAMPLES_PER_FRAME) % 3 == 2
    return (0.5 * loud * np.sin(t * 0.17)).astype(np.float32)


@pytest.fixture
def portrait(tmp_path):
    path = tmp_path / "me.png"
    cv2.imwrite(str(path), np.full((256, 256, 3), 180, np.uint8))
    return path


@pytest.fixture
def speech(tmp_path):
    return write_wav(tmp_path / "speech.wav", bursts(60.5))


@pytest.fixture
def made(portrait, speech, tmp_path):
    path = tmp_path / "out.mp4"
    assert render(CONFIG, Quick, portrait, speech, path, progress=False) == 61
    return path


def mouth(picture: np.ndarray) -> float:
    """How dark the place of the mouth is."""
    return float(180 - picture[190, 128].mean())


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".png", ".wav"))


def opening(played: PlayoutFrame) -> float:
    assert played.picture is not None
    return float(played.picture.landmarks[57, 1])


@given(st.lists(st.integers(0, 9000), max_size=8), st.floats(0.01, 45), st.integers(1, 8), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_any_chunking_is_played_whole_and_paired(cuts, frames, hop, fade):
    config = Config(stream=Stream(clip_frames=16, hop_frames=hop, fade_frames=fade, lookahead_ms=120))
    said = bursts(frames)
    chunks = np.split(said, sorted(min(cut, len(said)) for cut in cuts))
    played = list(play_out(Quick(config), chunks, config))
    total = -(-len(said) // SAMPLES_PER_FRAME)
    assert [entry.index for entry in played] == list(range(total))
    sound = np.concatenate([entry.samples for entry in played])
    np.testing.assert_array_equal(sound[: len(said)], said)
    assert not sound[len(said) :].any()
    for entry in played:
        assert not entry.repeated
        loudness = np.sqrt((entry.samples**2).mean())
        assert opening(entry) == pytest.approx(min(1, 4 * loudness), abs=1e-6)


def test_a_long_speech_is_not_read_ahead_of_what_is_played():
    taken = 0

    def chunks():
        nonlocal taken
        for _ in range(600):
            taken += 1
            yield bursts(1)

    stream = play_out(Quick(), chunks(), CONFIG)
    for index, played in zip(range(300), stream, strict=False):
        assert played.index == index
        assert taken < index + 150


def test_what_the_engine_raises_reaches_the_caller():
    class Broken(Quick):
        def begin(self, first_frame: int, warm_up: bool = False) -> WarpStream:
            take = super().begin(first_frame, warm_up)
            take.render = lambda motion: 1 / 0  # type: ignore[method-assign, assignment, return-value]
            return take

    with pytest.raises(ZeroDivisionError):
        list(play_out(Broken(), [bursts(20)], CONFIG))


def test_an_engine_that_makes_too_little_is_not_waited_for():
    class Short(Quick):
        def begin(self, first_frame: int, warm_up: bool = False) -> WarpStream:
            take = super().begin(first_frame, warm_up)
            take.render = lambda motion: iter(())  # type: ignore[method-assign]
            return take

    with pytest.raises(RuntimeError, match="fewer frames"):
        list(play_out(Short(), [bursts(20)], CONFIG))


def test_pictures_and_sound_are_in_step(made):
    with av.open(str(made)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert video.codec_context.name == "h264" and video.average_rate == 25
        assert audio.codec_context.name == "aac" and audio.rate == 48_000
        shown = [mouth(frame.to_ndarray(format="rgb24")) for frame in file.decode(video)]
    with av.open(str(made)) as file:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    assert len(shown) == 61
    loud = np.array([np.sqrt((part**2).mean()) for part in np.array_split(heard[: 60 * 1920], 60)])
    np.testing.assert_array_equal(np.array(shown[:60]) > 60, loud > 0.1)


def test_the_same_seed_gives_the_same_bytes(made, portrait, speech, tmp_path):
    again = tmp_path / "again.mp4"
    render(CONFIG, Quick, portrait, speech, again, progress=False)
    assert again.read_bytes() == made.read_bytes()


def boxes(data: bytes) -> dict[bytes, bytes]:
    found = {}
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        found[kind] = data[at + 8 : at + size]
        at += size
    return found


def test_the_file_says_that_it_is_synthetic(made):
    with av.open(str(made)) as file:
        assert "AI-generated" in file.metadata["title"]
        assert "Synthetic media" in file.metadata["comment"]
    box = boxes(made.read_bytes())[b"uuid"]
    assert box.startswith(XMP_BOX.bytes)
    assert f'DigitalSourceType="{DIGITAL_SOURCE_TYPE}"' in box.decode(errors="ignore")


def test_size_and_badge(portrait, speech, tmp_path, made):
    path = tmp_path / "large.mp4"
    render(CONFIG, Quick, portrait, speech, path, size=320, badge=True, progress=False)
    with av.open(str(path)) as file:
        picture = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (320, 320, 3)
    assert picture[300:, :150].std() > 20
    assert picture[:290].std() < 5


TRANSPARENT = Config(stream=CONFIG.stream, picture=Picture(background="transparent"))


def test_a_transparent_background_stays_transparent_at_any_size(portrait, speech, tmp_path):
    path = tmp_path / "out.mov"
    assert render(TRANSPARENT, Quick, portrait, speech, path, size=320, badge=True, progress=False) == 61
    with av.open(str(path)) as file:
        picture = next(file.decode(video=0)).to_ndarray(format="rgba")
    assert picture.shape == (320, 320, 4)
    np.testing.assert_allclose(picture[100, 40::80, 3], ALPHA[100, 32::64], atol=4)
    assert picture[300:, :70, 3].max() > 200, "the badge is seen there too"


def test_mp4_cannot_be_transparent(portrait, speech, tmp_path):
    expected = r"MP4 cannot be transparent: choose a name that ends in \.webm or \.mov, or another picture\.background$"
    with pytest.raises(RenderError, match=expected):
        render(TRANSPARENT, Quick, portrait, speech, tmp_path / "out.mp4", progress=False)


def test_a_video_gives_its_first_picture_and_its_pose(made, speech, tmp_path):
    seen = []

    class Watching(Quick):
        def __init__(self, config: Config) -> None:
            super().__init__(config)
            seen.append(config.idle.pose_video)

    render(CONFIG, Watching, made, speech, tmp_path / "second.mp4", progress=False)
    assert seen == [str(made)]


class Stopping(Quick):
    """Ctrl-C after some frames."""

    def picture(self, opening: float):
        if opening > 0.1:
            raise KeyboardInterrupt
        return super().picture(opening)


def test_an_interrupt_leaves_nothing(portrait, speech, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        render(CONFIG, Stopping, portrait, speech, tmp_path / "out.mp4", progress=False)
    assert leftovers(tmp_path) == []


def test_an_interrupt_keeps_the_file_that_was_there(portrait, speech, tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        render(CONFIG, Stopping, portrait, speech, tmp_path / "out.mp4", progress=False)
    assert (tmp_path / "out.mp4").read_bytes() == b"before"


def test_a_source_is_not_overwritten(speech, tmp_path):
    with pytest.raises(RenderError, match="would be overwritten"):
        render(CONFIG, Stopping, tmp_path / "me.mp4", speech, tmp_path / "me.mp4", progress=False)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("out.avi", None, "expected a name that ends in .mp4, .webm or .mov"),
        ("missing/out.mp4", None, "missing is not a folder"),
        ("out.mp4", 255, "a size of 255 pixels: expected an even number from 64 to 2048"),
        ("out.mp4", 4096, "a size of 4096 pixels"),
    ],
)
def test_what_cannot_be_written_is_one_line(portrait, speech, tmp_path, name, size, message):
    with pytest.raises(RenderError, match=message) as error:
        render(CONFIG, Quick, portrait, speech, tmp_path / name, size=size, progress=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"not a sound"])
def test_a_sound_that_cannot_be_read_is_one_line(portrait, tmp_path, content):
    bad = tmp_path / "bad.wav"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(UserError, match="bad.wav") as error:
        render(CONFIG, Quick, portrait, bad, tmp_path / "out.mp4", progress=False)
    assert "\n" not in str(error.value)
    assert "out.mp4" not in leftovers(tmp_path)


def test_a_picture_has_no_sound(portrait, tmp_path):
    with pytest.raises(AudioFileError, match="has no sound in it"):
        render(CONFIG, Quick, portrait, portrait, tmp_path / "out.mp4", progress=False)


def test_a_sound_file_without_samples_is_refused(portrait, tmp_path):
    empty = tmp_path / "empty.wav"
    with wave.open(str(empty), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
    with pytest.raises(UserError, match="empty.wav"):
        render(CONFIG, Quick, portrait, empty, tmp_path / "out.mp4", progress=False)
    assert leftovers(tmp_path) == []


def invoke(monkeypatch, engine: type[WarpEngine] | int, *arguments: object):
    monkeypatch.setattr("avatard.engine.engine.make_engine", engine)
    before = signal.getsignal(signal.SIGTERM)
    try:
        return CliRunner().invoke(app, ["render", *map(str, arguments)])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_verb_writes_the_file(portrait, speech, tmp_path, monkeypatch):
    out = tmp_path / "out.mp4"
    ran = invoke(monkeypatch, Quick, "--identity", portrait, "--audio", speech, "-o", out, "--seed", 3, "--steps", 1)
    assert ran.exit_code == 0, ran.output
    assert boxes(out.read_bytes())[b"uuid"].startswith(XMP_BOX.bytes)


def test_the_verb_says_what_is_wrong_in_one_line(portrait, tmp_path, monkeypatch):
    ran = invoke(monkeypatch, Quick, "--identity", portrait, "--audio", tmp_path / "no.wav", "-o", tmp_path / "out.mp4")
    assert ran.exit_code == 1
    assert ran.stderr.startswith("avatard: ") and ran.stderr.count("\n") == 1 and "no.wav" in ran.stderr


def test_inputs_are_checked_before_the_networks_are_loaded(portrait, speech, tmp_path, monkeypatch):
    for identity, audio in ((tmp_path / "no.png", speech), (portrait, tmp_path / "no.wav")):
        ran = invoke(monkeypatch, 0, "--identity", identity, "--audio", audio, "-o", tmp_path / "out.mp4")
        assert ran.exit_code == 1 and "cannot be read" in ran.stderr and ran.stderr.count("\n") == 1


def test_the_verb_can_be_stopped(portrait, speech, tmp_path, monkeypatch):
    ran = invoke(monkeypatch, Stopping, "--identity", portrait, "--audio", speech, "-o", tmp_path / "out.mp4")
    assert ran.exit_code == 130
    assert "stopped; nothing was written" in ran.stderr
    assert leftovers(tmp_path) == []
