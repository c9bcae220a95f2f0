"""Pack AToM-Net's training data into a few small files, for scripts/train_atom_bundle.py on another machine.

    python scripts/pack_motion.py DATA_DIR OFFSETS_JSON OUT_DIR

DATA_DIR is what scripts/prepare_data.py wrote (--motion-only is enough), OFFSETS_JSON what scripts/prepare_motion.py
wrote. Test people and clips that are out of step with their sound stay behind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from avatard.commands.script import run_script
from avatard.models.training.atom.bundle import BundledClip, write
from avatard.models.training.atom.dataset import clips_with_sound
from avatard.models.training.clips import Clip, DataError
from avatard.timebase import SAMPLES_PER_FRAME


def main(
    data: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Prepared data.")],
    offsets: Annotated[Path, typer.Argument(exists=True, help="offsets.json.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    part_mib: Annotated[int, typer.Option(min=1, help="Size of the largest file.")] = 20,
) -> None:
    """Write part_*.bin under OUT."""
    lags, clips = json.loads(offsets.read_text())["clips"], []
    for entry in clips_with_sound(data):
        lag = lags.get(f"{entry.source}/{entry.clip}", {})
        if entry.split == "test" or not lag.get("kept"):
            continue
        clip = Clip(data / entry.path)
        offset = float(lag.get("exact", lag["frames"]))
        described = BundledClip(entry.source, entry.clip, entry.speaker, entry.split, len(clip), offset)
        wanted = len(clip) * SAMPLES_PER_FRAME
        audio = clip.audio[:wanted]
        clips.append((described, clip.landmarks, np.pad(audio, (0, wanted - len(audio)))))
    if not clips:
        raise DataError(f"{data} has no clips to pack")
    for path in write(out, clips, part_mib << 20):
        typer.echo(f"{path} {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_script(main)
