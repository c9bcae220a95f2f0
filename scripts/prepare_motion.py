"""Prepare AToM-Net's training: speech features on serving windows, audio-video offsets, neutral faces.

    python scripts/prepare_motion.py DATA_DIR OUT_DIR

DATA_DIR is what scripts/prepare_data.py wrote. Features already in OUT_DIR are kept. Clips whose sound and picture do
not belong together are marked and left out of the training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avatard.commands.script import run_script
from avatard.models.speech import HubertFeatures, WhisperFeatures
from avatard.models.training.atom.dataset import clips_with_sound
from avatard.models.training.atom.prepare import NO_SPEECH_TRACKS, extract_all, neutral_faces, sync_clip, write_offsets
from avatard.models.training.av_sync import estimate


def main(
    data: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What prepare_data.py wrote.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; resumed where it exists.")],
    hubert: Annotated[str, typer.Option(help="A HuBERT model instead of the shipped Whisper layers.")] = "",
    window_frames: Annotated[int, typer.Option(min=8, help="The speech encoder's window.")] = 32,
    no_speech_tracks: Annotated[int, typer.Option(min=1, help="Tracks of sound that is no speech.")] = NO_SPEECH_TRACKS,
    anchor: Annotated[
        str, typer.Option(help="SOURCE/SPEAKER whose sound and picture are in step.")
    ] = "grid_s1/grid_s1",
) -> None:
    """Write features/, motion.safetensors and offsets.json under OUT."""
    entries = clips_with_sound(data)
    speech = HubertFeatures.load(hubert) if hubert else WhisperFeatures.load()
    out.mkdir(parents=True, exist_ok=True)
    extract_all(speech, data, out, entries, window_frames, no_speech_tracks)
    neutral_faces(data, out, entries)
    clips = [sync_clip(speech, data, entry) for entry in entries]
    for source, counts in write_offsets(out, entries, estimate(clips, anchor)).items():
        typer.echo(f"{source}: {counts}")


if __name__ == "__main__":
    run_script(main)
