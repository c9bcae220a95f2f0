"""Read a still picture of any common format, upright, as 8-bit RGB."""

from __future__ import annotations

import logging
import warnings
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from avatard.errors import UserError

#: Accepted formats by their media type. Pillow's other readers are excluded: some start other programs (EPS).
MEDIA_TYPES: Final = MappingProxyType(
    {
        "image/jpeg": "JPEG",
        "image/png": "PNG",
        "image/webp": "WEBP",
        "image/avif": "AVIF",
        "image/gif": "GIF",
        "image/bmp": "BMP",
        "image/tiff": "TIFF",
        "image/x-portable-pixmap": "PPM",
    }
)
FORMATS: Final = tuple(MEDIA_TYPES.values())
#: Brands of pictures as telephones write them (ISO/IEC 23008-12), which Pillow cannot read.
HEIC: Final = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1")
#: More pixels are refused before they are decoded: a small file can claim to be any size.
MAX_PIXELS: Final = 64_000_000
#: OpenCV warps pictures up to 32,767 pixels a side.
MAX_SIDE: Final = 32_000
MAX_BYTES: Final = 100_000_000
#: The colour behind transparent parts.
BACKGROUND: Final = (255, 255, 255)

# ImageError reports damaged files; without a handler Python would print what Pillow logs about them.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class ImageError(UserError):
    """A file that is not a usable picture."""

    CODE = "image"


def load_image(path: str | Path) -> NDArray[np.uint8]:
    """Read a file; see `read_image`. Raises `ImageError`."""
    return read_image(read_bytes(path), str(path))


def read_bytes(path: str | Path) -> bytes:
    """The content of a picture file. Raises `ImageError` where it is missing, too large or may not be read."""
    path = Path(path)
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "no such file"
            raise ImageError(f"{path}: {what}; give the path of a picture")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(f"{path} has {size:,} bytes, expected at most {MAX_BYTES:,}: reduce it")
        return path.read_bytes()
    except PermissionError:
        raise ImageError(f"{path} may not be read: check its permissions") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from None


def read_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """Pixels `[H, W, 3]` of a picture file; transparent parts are white. See `read_cutout`. Raises `ImageError`."""
    pixels, _ = read_cutout(data, name)
    return pixels


def read_cutout(data: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Decode the bytes of a picture file.

    CMYK and embedded colour profiles become sRGB, 16 bits become 8, transparent parts become white.

    Args:
        data: JPEG, PNG, WebP or another of `FORMATS`.
        name: its name in messages.

    Returns:
        Pixels `[H, W, 3]`, RGB, upright by the EXIF data; the first picture of an animation. And how opaque they
        are, `[H, W]`, 0 to 255, where not all of them are opaque.

    Raises:
        ImageError: it is no picture, damaged, cut off, wholly transparent, or too large (checked before decoding).
    """
    try:
        # Pillow warns about broken metadata and large sizes; both are handled here.
        with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                claim = f"{picture.width}x{picture.height} pixels"
                raise ImageError(f"{name} has {claim}, expected at most {MAX_PIXELS:,}: reduce it")
            if max(picture.size) > MAX_SIDE:
                raise ImageError(f"{name} has a side of {max(picture.size)} pixels, expected at most {MAX_SIDE:,}")
            picture.load()
            upright = _upright(picture)
            alpha = _alpha(upright)
            if alpha is not None and not alpha.any():
                raise ImageError(f"{name} is transparent everywhere: there is nothing to show")
            return _rgb(upright), alpha
    except ImageError:
        raise
    except UnidentifiedImageError:
        if data[4:12] in HEIC:
            raise ImageError(f"{name} is an HEIC picture, which cannot be read: save it as JPEG") from None
        raise ImageError(f"{name} is not a picture that can be read; expected one of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} is too large, expected at most {MAX_PIXELS:,} pixels: reduce it") from None
    except Exception as error:  # Damaged files raise nearly anything inside Pillow's readers.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name} is damaged or cut off: {reason}") from None


def _upright(picture: Image.Image) -> Image.Image:
    """Turn the picture upright by its EXIF data; broken EXIF data is ignored."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        return picture


def _alpha(picture: Image.Image) -> NDArray[np.uint8] | None:
    """How opaque each pixel is `[H, W]`, unless all of them are opaque."""
    if not picture.has_transparency_data:
        return None
    alpha = np.array(picture.convert("RGBA").getchannel("A"), dtype=np.uint8)
    return None if alpha.min() == 255 else alpha


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """Convert any of Pillow's modes to 8-bit sRGB `[H, W, 3]`."""
    if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        behind = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
        picture = Image.alpha_composite(behind, picture.convert("RGBA"))
    else:
        picture = _managed(picture)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A deep greyscale picture in 8 bits; its white is the smallest of 1, 255 and 65535 that no pixel exceeds."""
    values = np.nan_to_num(np.asarray(picture).astype(np.float64), posinf=0.0, neginf=0.0).clip(0)
    if picture.mode != "F" and picture.mode != "I":
        white = 65535.0
    else:
        white = next((white for white in (1.0, 255.0, 65535.0) if values.max() <= white), float(values.max()))
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def _managed(picture: Image.Image) -> Image.Image:
    """Convert from the embedded colour profile to sRGB; unchanged without a usable profile."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "CMYK", "L"):
        return picture
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        return converted or picture
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture
