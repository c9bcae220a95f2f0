"""Animate portraits with the expressions of prepared videos: many more people to learn from.

    python scripts/animate_portraits.py PORTRAITS_DIR... --data DATA_DIR --clips 2500

DATA_DIR is what scripts/prepare_data.py wrote; the clips become its source `factory` (with --validation: people kept
out of training, source `factory_validation`). A clip is a function of its number, so a run continues where it stopped;
clips whose faces, tracked again, are not where they were drawn are dropped. The index is updated every hundred clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from safetensors import safe_open
from tqdm import tqdm

from avatard.commands.script import run_script
from avatard.models.training.clips import Clip, DataError, Entry, read_index, write_index
from avatard.models.training.splits import Split, SplitTable
from avatard.models.training.synthesis.synthesizer import ClipSynthesizer

SUFFIXES = {".jpg", ".jpeg", ".png"}


def _speaker(path: Path) -> str:
    with safe_open(path, framework="numpy") as file:
        return str(file.metadata()["speaker"])


def make(synthesizer: ClipSynthesizer, number: int, source: str, split: Split, data: Path) -> Entry | None:
    """Make clip `number`, or find that it exists; its index entry."""
    file = Path(source) / f"{number:05d}.safetensors"
    if (data / file).exists():
        speaker = _speaker(data / file)
        return Entry(source, f"{number:05d}", speaker, len(Clip(data / file)), file.as_posix(), split, animated=True)
    made = synthesizer.synthesise(number)
    if made is None:
        return None
    name, clip = made
    speaker = f"{name}-{number:05d}"  # shape and colours differ from clip to clip: each is another person
    metadata = {"source": source, "clip": f"{number:05d}", "speaker": speaker, "portrait": name, "fps": "25"}
    landmarks = synthesizer.model.landmarks(clip.canonical)
    Clip.write(data / file, clip.frames, clip.pose.project(clip.canonical), landmarks, clip.pose, metadata)
    return Entry(source, f"{number:05d}", speaker, len(clip.frames), file.as_posix(), split, animated=True)


def add_to_index(data: Path, source: str, entries: Sequence[Entry]) -> None:
    """Put a source's entries into the index beside its others that are still there."""
    index = read_index(data)
    found = {e.clip: e for e in index if e.source == source and (data / e.path).exists()}
    found |= {entry.clip: entry for entry in entries}
    write_index(data, [e for e in index if e.source != source] + [found[clip] for clip in sorted(found)])


def main(
    portraits: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Folders of portraits.")],
    data: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Prepared data, read and added to.")],
    clips: Annotated[int, typer.Option(min=1)] = 2500,
    frames: Annotated[int, typer.Option(min=2, help="Frames of a clip, the portrait included.")] = 13,
    validation: Annotated[bool, typer.Option(help="Animate the people kept out of training.")] = False,
    performers: Annotated[str, typer.Option(help="Source whose videos drive the portraits.")] = "lrw_ar",
    seed: int = 0,
) -> None:
    """Add animated portraits to prepared data."""
    paths = [path for folder in portraits for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    split: Split = "validation" if validation else "train"
    table = SplitTable.load()
    paths = [path for path in paths if table.split(path.parent.name, path.stem) == split]
    source = "factory_validation" if validation else "factory"
    drivers = [data / entry.path for entry in read_index(data) if entry.source == performers and entry.split == split]
    if not paths or not drivers:
        raise DataError(f"{len(paths)} portraits and {len(drivers)} prepared videos to animate them with")
    synthesizer = ClipSynthesizer(paths, drivers, frames, seed)
    entries: list[Entry] = []
    for number in tqdm(range(clips), unit="clip"):
        entry = make(synthesizer, number, source, split, data)
        if entry is not None:
            entries.append(entry)
        if number % 100 == 99 or number == clips - 1:
            add_to_index(data, source, entries)
    typer.echo(f"{len(entries)} clips of {len(paths)} portraits in {data / source}, {clips - len(entries)} dropped")


if __name__ == "__main__":
    run_script(main)
