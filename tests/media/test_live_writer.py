"""Live files: whole when they are ended, playable when they are not, and picture and sound in step."""

import random

import av
import numpy as np
import pytest

from avatard.media import live_writer
from avatard.media.live_writer import STREAMS, LiveWriter, LiveWriterError, Target, fitted, target_of
from avatard.media.synthetic import DIGITAL_SOURCE_TYPE, XMP_BOX, metadata
from tests.support.flashes import SIDE, decoded, offsets_ms, pcm, picture

SUFFIXES = (".mp4", ".mkv", ".webm")


def write(path, indexes, after=lambda index: None, **options):
    with LiveWriter(target_of(str(path)), (SIDE, SIDE), metadata("live"), **options) as writer:
        for index in indexes:
            writer.write(index, picture(index), pcm(index))
            after(index)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_left_out_does_not_part_picture_and_sound(tmp_path, suffix):
    path = write(tmp_path / f"out{suffix}", [*range(1000, 1050), *range(1083, 1200)])
    apart = offsets_ms(path)
    assert len(apart) >= 6 and np.abs(apart).max() <= 40
    pictures = decoded(path, "video")
    assert len(pictures) == 167 and pictures[-1][0] == pytest.approx(199 / 25, abs=0.05)


@pytest.mark.parametrize(("suffix", "codecs"), [(".mp4", "h264 aac"), (".mkv", "h264 aac"), (".webm", "vp9 opus")])
def test_a_file_says_what_it_is_and_can_be_entered_every_second(tmp_path, suffix, codecs):
    path = write(tmp_path / f"out{suffix}", range(60))
    with av.open(str(path)) as file:
        assert f"{file.streams.video[0].codec_context.name} {file.streams.audio[0].codec_context.name}" == codecs
        assert file.streams.video[0].average_rate == pytest.approx(25, rel=0.02)
        tags = {key.lower(): value for key, value in file.metadata.items()}
        assert [n for n, frame in enumerate(file.decode(video=0)) if frame.key_frame] == [0, 25, 50]
    assert tags["title"] == "AI-generated video" and tags["comment"].startswith("Synthetic media: ")
    if suffix == ".mp4":
        assert XMP_BOX.bytes in path.read_bytes()
    else:
        assert tags["digital_source_type"] == DIGITAL_SOURCE_TYPE


def outside_moof(data: bytes, cut: int) -> int:
    """The cut, or the start of the `moof` that it is in: a killed process has written all of such a box, or nothing."""
    start = data.rfind(b"moof", 0, cut) - 4
    return start if start >= 0 and cut < start + int.from_bytes(data[start : start + 4]) else cut


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_cut_anywhere_plays_up_to_its_last_two_seconds(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    sizes: list[int] = []
    whole = []

    def note(index):
        sizes.append(path.stat().st_size)
        if index == 119:
            whole.append(path.read_bytes())  # what a process that is killed now leaves behind

    write(path, range(120), note)
    draw = random.Random(suffix)
    cuts = [len(whole[0])] + [draw.randrange(sizes[60], len(whole[0])) for _ in range(3)]
    for cut in (outside_moof(whole[0], cut) for cut in cuts):
        rest = tmp_path / f"cut{suffix}"
        rest.write_bytes(whole[0][:cut])
        written = sum(size <= cut for size in sizes)
        pictures, sounds = decoded(rest, "video"), decoded(rest, "audio")
        assert len(pictures) >= written - 50, f"cut at {cut} of {len(whole[0])}"
        assert sum(block.size for _, block in sounds) >= (written - 50) * 1920
        assert np.abs(offsets_ms(rest)).max() <= 40
        with av.open(str(rest)) as file:
            assert {key.lower(): value for key, value in file.metadata.items()}["title"] == "AI-generated video"


def test_pictures_of_another_size_are_fitted(tmp_path):
    path = tmp_path / "out.mkv"
    with LiveWriter(target_of(str(path)), (65, 97), {}) as writer:
        for index, shape in enumerate([(65, 97), (200, 100), (32, 128)]):
            writer.write(index, np.full((*shape, 3), 200, np.uint8), pcm(0))
    shown = [pixels.astype(int) for _, pixels in decoded(path, "video")]
    assert [pixels.shape for pixels in shown] == [(64, 96, 3)] * 3
    assert shown[0].min() > 180
    assert shown[1][:, 40:56].min() > 150 and shown[1][:, :24].max() < 60
    assert shown[2][28:36].min() > 150 and shown[2][:12].max() < 60
    assert fitted(np.zeros((64, 96, 4), np.uint8), (64, 96)).shape == (64, 96, 4)


def test_only_webm_keeps_what_is_transparent(tmp_path):
    rgba = np.full((SIDE, SIDE, 4), 255, np.uint8)
    rgba[:, : SIDE // 2, 3] = 0
    for suffix in (".webm", ".mp4"):
        path = tmp_path / f"out{suffix}"
        with LiveWriter(target_of(str(path)), (SIDE, SIDE), {}, transparent=True) as writer:
            for index in range(30):
                writer.write(index, rgba, pcm(index))
        if suffix == ".webm":
            with av.open(str(path)) as file:
                assert file.streams.video[0].metadata["alpha_mode"] == "1"
        else:
            left = decoded(path, "video")[0][1][:, : SIDE // 2]
            assert 180 < left.mean() < 245, "grey chequers"


def test_the_badge_is_in_the_picture(tmp_path):
    path = tmp_path / "out.mkv"
    with LiveWriter(target_of(str(path)), (256, 256), {}, badge=True) as writer:
        writer.write(0, np.full((256, 256, 3), 90, np.uint8), pcm(0))
    ((_, shown),) = decoded(path, "video")
    assert shown[220:].max() > 200 and shown[:200].max() < 110


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("talk.avi", "^talk.avi: expected a name that ends in .mp4, .mkv, .webm$"),
        ("http://a/b", "^cannot push to http://: expected rtmp://, rtmps://, srt://, rtsp://, rtsps://$"),
        ("rtmp:///live/key", "^the address of a rtmp push is malformed: expected rtmp://HOST"),
        ("rtmp://a b/live/key", "malformed"),
        ("rtmp://a:port/live/key", "malformed"),
        ("rtmp://[::1/live/key", "malformed"),
    ],
)
def test_targets_that_cannot_be(target, said):
    with pytest.raises(LiveWriterError, match=said) as refused:
        target_of(target)
    assert "key" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtmp://live.example/app/secret?more=secret", "rtmp://live.example/app/***"),
        ("rtmps://user:secret@live.example:443/app/secret", "rtmps://live.example:443/app/***"),
        ("srt://live.example:9000?streamid=secret&passphrase=secret", "srt://live.example:9000"),
        ("rtsp://user:secret@live.example/live", "rtsp://live.example/live"),
    ],
)
def test_what_is_shown_of_an_address_is_not_secret(url, shown):
    assert target_of(url).shown == shown


def test_an_encoder_that_is_missing_is_one_line(tmp_path):
    made = live_writer.FILES[".mkv"]._replace(video="libnosuch")
    with pytest.raises(LiveWriterError, match="^this build of PyAV has no encoder libnosuch: install"):
        with LiveWriter(Target(str(tmp_path / "out.mkv"), made, live=False), (SIDE, SIDE), {}):
            pass


def test_without_srt_in_pyav_and_without_ffmpeg_the_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    target = Target("nosuch://127.0.0.1:9", STREAMS["srt"], live=True)
    with pytest.raises(LiveWriterError, match="PyAV has no nosuch://: install the program ffmpeg"):
        with LiveWriter(target, (SIDE, SIDE), {}):
            pass


def test_ffmpeg_relays_what_pyav_cannot_send(monkeypatch, tmp_path):
    """A program of that name that writes what it reads, and one that fails as FFmpeg does."""
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\nexec /bin/cat > {tmp_path}/out.ts\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    target = Target("nosuch://127.0.0.1:9?passphrase=secret", STREAMS["srt"], live=True)
    with LiveWriter(target, (SIDE, SIDE), metadata("live")) as writer:
        for index in range(60):
            writer.write(index, picture(index), pcm(index))
    assert np.abs(offsets_ms(tmp_path / "out.ts")).max() <= 40
    program.write_text('#!/bin/sh\necho first >&2\nfor url; do :; done; echo "$url: Connection refused" >&2\nexit 1\n')
    with pytest.raises(LiveWriterError, match="^nosuch://127.0.0.1:9: Connection refused$"):
        with LiveWriter(target, (SIDE, SIDE), {}) as writer:
            for index in range(1000):
                writer.write(index, picture(index), pcm(index))
