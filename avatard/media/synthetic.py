"""The marks that say to people and to programs that a picture is synthetic."""

from __future__ import annotations

import struct
import uuid
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard import __version__

BADGE: Final = "AI-generated"
#: IPTC Digital Source Type of a real picture that a trained network animates.
DIGITAL_SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
#: The box that carries XMP in ISO base media files (XMP specification, part 3).
XMP_BOX: Final = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")
#: How XMP begins in a JPEG's segment APP1 (XMP specification, part 3).
XMP_SEGMENT: Final = b"http://ns.adobe.com/xap/1.0/\0"
XMP: Final = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


def metadata(voice: str) -> dict[str, str]:
    """Title and comment of a video, for people and programs; `voice` says which kind it is animated from."""
    comment = f"Synthetic media: a still portrait animated by trained networks from a {voice} voice."
    return {"title": f"{BADGE} video", "comment": f"{comment} Made with avatard {__version__}."}


def xmp_box() -> bytes:
    """The XMP data as a box at the end of a file: FFmpeg writes none, and readers skip boxes they do not know."""
    content = b"uuid" + XMP_BOX.bytes + XMP.encode()
    return struct.pack(">I", len(content) + 4) + content


def marked_jpeg(data: bytes) -> bytes:
    """A JPEG file with the XMP data behind its first marker."""
    content = XMP_SEGMENT + XMP.encode()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]


def with_badge(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy of a picture `[H, W, 3 or 4]` with the badge in its lower left corner."""
    pixels = pixels.copy()
    height, width = pixels.shape[:2]
    longest = max(height, width)
    scale, at = longest / 640, (longest // 40, height - longest // 32)
    for colour, thick in (((0, 0, 0, 255), 3), ((255, 255, 255, 255), 1)):
        thickness = max(1, round(thick * scale * 1.5))
        cv2.putText(pixels, BADGE, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
    return pixels
