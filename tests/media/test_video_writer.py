"""Files hold the pictures, their alpha and their sound, and say that they are synthetic."""

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext

from avatard.media.synthetic import DIGITAL_SOURCE_TYPE, XMP_BOX
from avatard.media.video_writer import VideoWriter
from tests.support.sounds import write_wav

HEIGHT, WIDTH, FRAMES = 96, 128, 10


def person() -> np.ndarray:
    """Orange on the left half, with an alpha that rises to the right; nothing on the right half."""
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[..., :3] = (220, 120, 40)
    rgba[:, : WIDTH // 2, 3] = np.linspace(0, 255, WIDTH // 2)
    return rgba


def pictures(path: Path) -> list[np.ndarray]:
    """RGBA of a file; FFmpeg's own decoder of VP9 knows no alpha."""
    with av.open(str(path)) as file:
        video = file.streams.video[0]
        if video.codec_context.name != "vp9":
            return [frame.to_ndarray(format="rgba") for frame in file.decode(video)]
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        assert isinstance(decoder, VideoCodecContext)
        packets = [packet for packet in file.demux(video) if packet.size]
        return [frame.to_ndarray(format="rgba") for packet in packets for frame in decoder.decode(packet)]


@pytest.mark.parametrize(("suffix", "codec", "sound"), [(".webm", "vp9", "opus"), (".mov", "prores", "pcm_s16le")])
def test_alpha_and_colours_come_back(tmp_path, suffix, codec, sound):
    path = tmp_path / f"out{suffix}"
    speech = write_wav(tmp_path / "speech.wav", 0.3 * np.sin(np.arange(FRAMES * 640) * 0.2).astype(np.float32))
    with VideoWriter(path, (HEIGHT, WIDTH), speech, {"title": "AI-generated video"}, transparent=True) as writer:
        for _ in range(FRAMES):
            writer.write(person())
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.name == codec and file.streams.video[0].average_rate == 25
        assert file.streams.audio[0].codec_context.name == sound and file.streams.audio[0].rate == 48_000
        heard = sum(frame.samples for frame in file.decode(audio=0))
    assert heard == pytest.approx(FRAMES * 1920, abs=1920)
    shown = pictures(path)
    assert len(shown) == FRAMES
    for picture in shown:
        assert picture.shape == (HEIGHT, WIDTH, 4)
        np.testing.assert_allclose(picture[..., 3].astype(int), person()[..., 3].astype(int), atol=8)
        seen = picture[picture[..., 3] > 64][:, :3].astype(int)
        np.testing.assert_allclose(seen, np.tile((220, 120, 40), (len(seen), 1)), atol=8)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mov"])
def test_opaque_pictures_have_no_alpha(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    with VideoWriter(path, (HEIGHT, WIDTH)) as writer:
        for _ in range(FRAMES):
            writer.write(person()[..., :3])
    shown = pictures(path)
    assert len(shown) == FRAMES and all((picture[..., 3] == 255).all() for picture in shown)
    np.testing.assert_allclose(shown[0][..., :3].reshape(-1, 3), np.tile((220, 120, 40), (HEIGHT * WIDTH, 1)), atol=8)


def test_every_file_says_to_programs_that_it_is_synthetic(tmp_path):
    for suffix in (".mp4", ".mov", ".webm"):
        path = tmp_path / f"out{suffix}"
        with VideoWriter(path, (HEIGHT, WIDTH), metadata={"title": "AI-generated video"}) as writer:
            writer.write(person()[..., :3])
        with av.open(str(path)) as file:
            assert file.metadata["title"] == "AI-generated video"
            tag = file.metadata.get("DIGITAL_SOURCE_TYPE")
        if suffix == ".webm":
            assert tag == DIGITAL_SOURCE_TYPE
        else:
            assert XMP_BOX.bytes in path.read_bytes() and DIGITAL_SOURCE_TYPE.encode() in path.read_bytes()


@pytest.mark.parametrize("suffix", [".webm", ".mov"])
def test_the_same_pictures_give_the_same_bytes(tmp_path, suffix):
    for name in ("one", "two"):
        with VideoWriter(tmp_path / f"{name}{suffix}", (HEIGHT, WIDTH), transparent=True) as writer:
            for _ in range(FRAMES):
                writer.write(person())
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
