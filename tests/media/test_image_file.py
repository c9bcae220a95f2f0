import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from avatard.media.image_file import FORMATS, MAX_PIXELS, ImageError, load_image
from tests.support.faces import PORTRAIT, portrait


def small() -> Image.Image:
    return Image.fromarray(portrait()[40:200, 40:240])


def near(found: np.ndarray, expected: Image.Image, atol: float) -> None:
    wanted = np.asarray(expected.convert("RGB")).astype(int)
    assert found.dtype == np.uint8 and found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean() < atol


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "ppm", "gif", "avif"])
def test_common_formats(tmp_path, suffix):
    path = tmp_path / f"me.{suffix}"
    small().save(path)
    near(load_image(path), small(), 8)


def test_the_content_counts_not_the_name(tmp_path):
    path = tmp_path / "me.jpg"
    small().save(path, format="PNG")
    near(load_image(path), small(), 0.1)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "YCbCr", "RGBA", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / "me.tiff"
    if mode in ("I;16", "I", "F"):
        grey = np.asarray(small().convert("L"))
        deep: dict[str, np.ndarray] = {
            "I;16": grey.astype(np.uint16) * 257,
            "I": grey.astype(np.int32) * 257,
            "F": grey.astype(np.float32) / 255,
        }
        Image.fromarray(deep[mode]).save(path)
        near(load_image(path), small().convert("L"), 1)
    elif mode == "LA":
        small().convert("LA").save(tmp_path / "me.png")
        near(load_image(tmp_path / "me.png"), small().convert("L"), 1)
    else:
        small().convert(mode).save(path)
        near(load_image(path), small().convert(mode), 4)


def test_sixteen_bits_of_png_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    np.testing.assert_allclose(load_image(tmp_path / "ramp.png")[0, :, 0], np.arange(256), atol=1)


@pytest.mark.parametrize("kind", ["RGBA", "palette"])
def test_transparent_parts_become_white(tmp_path, kind):
    picture = Image.new("RGBA", (20, 10), (200, 0, 0, 0))
    picture.paste((0, 0, 200, 255), (10, 0, 20, 10))
    if kind == "palette":
        indexed = Image.new("P", (20, 10), 0)
        indexed.putpalette([200, 0, 0, 0, 0, 200])
        indexed.paste(1, (10, 0, 20, 10))
        indexed.save(tmp_path / "me.png", transparency=0)
    else:
        picture.save(tmp_path / "me.png")
    found = load_image(tmp_path / "me.png")
    assert found[5, 2].tolist() == [255, 255, 255] and found[5, 15].tolist() == [0, 0, 200]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(tmp_path, orientation):
    upright = Image.new("RGB", (40, 20), (0, 0, 0))
    upright.paste((255, 255, 255), (0, 0, 10, 5))  # a light corner, top left
    turned = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "me.png", exif=exif)
    found = load_image(tmp_path / "me.png")
    assert found.shape == (20, 40, 3)
    assert found[2, 4, 0] == 255 and found[17, 35, 0] == 0 and found[2, 35, 0] == 0


def test_broken_exif_does_not_cost_the_picture(tmp_path):
    small().save(tmp_path / "me.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f junk")
    near(load_image(tmp_path / "me.jpg"), small(), 8)


def test_a_broken_colour_profile_does_not_cost_the_picture(tmp_path):
    small().save(tmp_path / "me.png", icc_profile=b"no profile at all")
    near(load_image(tmp_path / "me.png"), small(), 0.1)


def test_an_embedded_profile_is_applied(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    small().save(tmp_path / "same.png", icc_profile=srgb.tobytes())
    near(load_image(tmp_path / "same.png"), small(), 1.5)
    small().save(tmp_path / "unfit.png", icc_profile=profile.tobytes())  # describes Lab, not RGB
    near(load_image(tmp_path / "unfit.png"), small(), 0.1)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_picture_counts(tmp_path, suffix):
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / f"me.{suffix}", save_all=True, append_images=frames[1:], duration=40)
    found = load_image(tmp_path / f"me.{suffix}")
    assert found.shape == (20, 30, 3) and found[10, 10, 0] > 240 and found[10, 10, 1] < 15


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_001, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(side, side))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=f"{MAX_PIXELS:,} pixels|at most {MAX_PIXELS:,}: reduce it"):
        load_image(path)


def test_a_picture_may_not_be_too_long(tmp_path):
    Image.new("L", (32_001, 4)).save(tmp_path / "long.png")
    assert "a side of 32001 pixels, expected at most 32,000" in refusal(tmp_path / "long.png")


def refusal(path) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_what_is_no_picture_is_one_line(tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing.png")
    assert "is a folder" in refusal(tmp_path)
    assert "name too long" in refusal(tmp_path / ("x" * 300))
    assert "no such file" in refusal("a\0b.png")
    for name, content in {"empty.png": b"", "text.jpg": b"hello\n" * 99, "page.html": b"<html>"}.items():
        (tmp_path / name).write_bytes(content)
        assert "is not a picture that can be read" in refusal(tmp_path / name)


def test_formats_that_run_other_programs_are_not_read(tmp_path):
    small().save(tmp_path / "me.eps")
    assert f"expected one of {', '.join(FORMATS)}" in refusal(tmp_path / "me.eps")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
def test_a_cut_off_file_is_one_line(tmp_path, suffix):
    whole = io.BytesIO()
    small().save(whole, format={"jpg": "JPEG", "tiff": "TIFF"}.get(suffix, suffix.upper()))
    path = tmp_path / f"me.{suffix}"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) * 2 // 3])
    assert "damaged or cut off" in refusal(path) or "not a picture" in refusal(path)


def test_the_fixture_is_what_its_note_says():
    assert portrait().shape == (300, 300, 3)
    assert PORTRAIT.stat().st_size < 40_000


def test_a_telephones_heic_says_what_to_do(tmp_path):
    path = tmp_path / "me.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(ImageError, match="is an HEIC picture, which cannot be read: save it as JPEG"):
        load_image(path)
