"""Carry prepared clips to another machine in a few files of limited size.

    scripts/pack_data.py pack   DATA_DIR BUNDLE_DIR
    scripts/pack_data.py unpack BUNDLE_DIR DATA_DIR

DATA_DIR was written by scripts/prepare_data.py. `pack` writes its training and validation clips with pictures: H.264
(--crf), landmarks and poses in steps of a fraction of their noise, an index with digests; no file is larger than
--part-mib. Mesh and sound stay behind: scripts/pack_motion.py packs what AToM-Net needs.

scripts/train_mcvdm.py reads a bundle as it is. `unpack` makes prepared clips of it again, for everything else. Reading
needs numpy, opencv and safetensors, packing PyAV as well. A bundle that was cut off or altered is named and refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from avatard.commands.script import run_parsed
from avatard.errors import UserError
from avatard.models.training.bundle import (
    CRF,
    ClipToPack,
    PackedClip,
    PackedMotion,
    encode_video,
    read_bundle,
    write_bundle,
)
from avatard.models.training.clips import SIDES, Clip, DataError, Entry, read_index, write_index
from avatard.timebase import CROP_SIDE

MIB = 1 << 20


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path, help="prepared data (pack) or a bundle (unpack)")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--crf", type=int, default=CRF, help=f"H.264's constant quality, 0 (best) to 51; {CRF}")
    parser.add_argument("--part-mib", type=float, default=60.0, help="size of the largest file; 60")
    parser.add_argument("--crop", type=int, choices=SIDES, default=CROP_SIDE, help="largest side of pictures to pack")
    parser.add_argument("--test-people", action="store_true", help="pack the people who are kept for the end as well")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def packed(data: Path, entry: Entry, crop: int, crf: int) -> ClipToPack:
    """One clip."""
    clip = Clip(data / entry.path)
    side = max(side for side in clip.sides if side <= crop)
    motion = PackedMotion.of(clip.landmarks, clip.registered, clip.pose)
    return ClipToPack(entry, motion, encode_video(clip.frames(side=side), crf), side)


def unpacked(entry: Entry, clip: PackedClip, out: Path) -> Entry:
    """One clip, written under `out`."""
    pictures = clip.pictures()
    small = pictures if clip.side == CROP_SIDE else clip.frames()
    large = [*pictures] if clip.side > CROP_SIDE else []
    metadata = {"source": entry.source, "clip": entry.clip, "speaker": entry.speaker, "bundle": "yes"}
    Clip.write(
        out / entry.path, [*small], None, clip.landmarks, clip.pose, metadata, None, clip.registered, large
    )  # fmt: skip
    return entry


def main(
    what: str, source: Path, out: Path, crf: int, part_mib: float, crop: int, test_people: bool, threads: int
) -> None:
    """Pack or unpack."""
    if part_mib <= 0 or threads < 1 or not 0 <= crf <= 51:
        raise UserError("expected --part-mib above 0, --threads from 1 and --crf from 0 to 51")
    with ThreadPoolExecutor(threads) as pool:
        if what == "unpack":
            clips = read_bundle(source)
            if (out / "index.json").exists():
                raise UserError(f"{out} has data: give another folder")
            written = [*pool.map(lambda pair: unpacked(pair[0], pair[1], out), clips)]
            write_index(out, written)
            print(f"{len(written)} clips, {sum(entry.frames for entry in written)} frames in {out}")
            return
        entries = [entry for entry in read_index(source) if test_people or entry.split != "test"]
        entries = [entry for entry in entries if entry.frames > 1 and Clip(source / entry.path).sides]
        if not entries:
            raise DataError(f"{source} has no clips with pictures to pack")

        def made() -> Iterator[ClipToPack]:
            """A few ahead of what is written, so that videos do not pile up."""
            for first in range(0, len(entries), 8 * threads):
                some = entries[first : first + 8 * threads]
                yield from pool.map(lambda entry: packed(source, entry, crop, crf), some)

        for path in write_bundle(out, made(), int(part_mib * MIB)):
            print(f"{path} {path.stat().st_size / MIB:.1f} MiB")
        print(f"{len(entries)} clips, {sum(entry.frames for entry in entries)} frames")


if __name__ == "__main__":
    run_parsed(main, options())
