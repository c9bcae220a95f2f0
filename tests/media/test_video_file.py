import numpy as np
import pytest

from avatard.media.video_file import MediaError, read_audio, read_frames
from tests.support.faces import write_video


def numbered(count: int) -> list[np.ndarray]:
    """Frames whose brightness is their number times 8."""
    return [np.full((48, 64, 3), 8 * n, np.uint8) for n in range(count)]


def numbers(path) -> list[int]:
    return [round(int(frame[0, 0, 1]) / 8) for frame in read_frames(path)]


@pytest.mark.parametrize("fps, frames, expected", [(25, 10, list(range(10))), (50, 20, list(range(0, 20, 2)))])
def test_frames_come_at_25_a_second(tmp_path, fps, frames, expected):
    write_video(tmp_path / "v.mkv", numbered(frames), fps)
    found = numbers(tmp_path / "v.mkv")
    assert len(found) == len(expected)
    assert np.abs(np.array(found) - expected).max() <= (0 if fps == 25 else 1)


@pytest.mark.parametrize("fps", [10, 15, 24, 30, 60])
def test_other_rates_keep_the_duration_and_stay_near_their_time(tmp_path, fps):
    frames = min(30, fps)
    write_video(tmp_path / "v.mkv", numbered(frames), fps)
    found = np.array(numbers(tmp_path / "v.mkv"))
    assert len(found) / 25 == pytest.approx(frames / fps, abs=1.5 / fps + 0.02)
    assert np.abs(found / fps - np.arange(len(found)) / 25).max() <= 1 / fps + 0.021


def test_colours_are_rgb(tmp_path):
    write_video(tmp_path / "v.mkv", [np.full((48, 64, 3), (200, 10, 30), np.uint8)] * 2)
    np.testing.assert_array_equal(next(read_frames(tmp_path / "v.mkv"))[0, 0], [200, 10, 30])


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 48_000])
def test_sound_comes_at_16_khz(tmp_path, rate_hz):
    time = np.arange(rate_hz) / rate_hz
    tone = (8000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
    write_video(tmp_path / "v.mkv", numbered(25), audio=tone, rate_hz=rate_hz)
    found = read_audio(tmp_path / "v.mkv")
    assert found.dtype == np.int16 and len(found) == pytest.approx(16_000, abs=40)
    expected = 8000 * np.sin(2 * np.pi * 440 * np.arange(len(found)) / 16_000)
    middle = slice(2000, 14_000)
    assert np.corrcoef(found[middle], expected[middle])[0, 1] > 0.99


def test_sound_that_starts_late_is_padded_to_the_first_picture(tmp_path):
    click = np.zeros(8000, np.int16)
    click[0] = 20_000
    write_video(tmp_path / "v.mkv", numbered(25), audio=click, audio_start=0.2)
    found = read_audio(tmp_path / "v.mkv")
    assert int(np.abs(found).argmax()) == pytest.approx(3200, abs=20)


def test_a_silent_video_has_no_samples(tmp_path):
    write_video(tmp_path / "v.mkv", numbered(3))
    assert len(read_audio(tmp_path / "v.mkv")) == 0


def test_what_is_no_video_is_one_line(tmp_path):
    path = tmp_path / "v.mkv"
    for content in (b"", b"no video"):
        path.write_bytes(content)
        for read in (lambda: list(read_frames(path)), lambda: read_audio(path)):
            with pytest.raises(MediaError, match=r"v\.mkv cannot be read as") as caught:
                read()
            assert "\n" not in str(caught.value)
    with pytest.raises(MediaError):
        list(read_frames(tmp_path / "missing.mkv"))
