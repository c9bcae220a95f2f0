"""Train MC-VDM, from clips to weights that the daemon loads.

    scripts/train_mcvdm.py all DATA RUN --perceptual vgg.safetensors --minutes 10 --out mine.safetensors

DATA was written by scripts/prepare_data.py, or is a bundle of scripts/pack_data.py. RUN receives states, logs, tables
of validation figures and sheets of pictures; a run that finds states there goes on where it stopped. `all` does these
stages after each other, and each can be called by itself:

    autoencoder DATA AE_RUN                 the video autoencoder (first stage): AE_RUN/state.safetensors
    cache       DATA RUN --autoencoder ...  latents of clips, encoded with the state of its training
    latents     DATA RUN --autoencoder ...  UNet and landmark encoder on them: RUN/state.safetensors
    pixels      DATA RUN --perceptual ...   the same through the decoder, on the network's own samples
    export      DATA RUN --out FILE         the averaged weights

Sizes and settings are the recipe's (configs/train/): `mcvdm_nano` for a CPU, `mcvdm_gpu` for a GPU, where examples are
made as well; --set changes any of them. With --minutes the learning rate follows the clock and the training ends when
they are over, whatever the device; `all` divides them among its stages. --measure trains nothing: it prints how many
examples a second the stage learns from, and how many the network alone would.

Needs torch, numpy, opencv and safetensors; several processes need accelerate (`accelerate launch`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from avatard.commands.script import run_parsed
from avatard.errors import UserError

STAGES = ("all", "autoencoder", "cache", "latents", "pixels", "export")


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("data", type=Path, help="prepared data, or a bundle")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--autoencoder", type=Path, help="state of its training (cache; first latents)")
    parser.add_argument("--perceptual", type=Path, help="trunk of the perceptual loss; without it the loss is L1")
    parser.add_argument("--out", type=Path, help="the file to write (export, all)")
    parser.add_argument("--note", default="", help="for the exported file's metadata")
    parser.add_argument("--recipe", default="mcvdm_nano", help="a name in configs/train or a TOML file")
    parser.add_argument("--set", dest="change", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--minutes", type=float, help="of the clock, for the stage or for all of them")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--measure", action="store_true", help="examples a second; trains nothing")
    parser.add_argument("--threads", type=int, default=1, help="of torch, per process, on a CPU")
    return parser


def main(
    stage: str,
    data: Path,
    run: Path,
    autoencoder: Path | None,
    perceptual: Path | None,
    out: Path | None,
    note: str,
    recipe: str,
    change: Sequence[str],
    minutes: float | None,
    device: str,
    measure: bool,
    threads: int,
) -> None:
    """Run one stage, or all."""
    import torch  # takes seconds: not for --help

    from avatard.models.evaluation.video_validation import validate_autoencoder, validate_diffusion
    from avatard.models.training.loop import Stage
    from avatard.models.training.mcvdm.latent_cache import write_cache
    from avatard.models.training.mcvdm.recipe import McvdmRecipe
    from avatard.models.training.mcvdm.train_autoencoder import autoencoder_stage, train_autoencoder
    from avatard.models.training.mcvdm.train_diffusion import (
        StageName,
        diffusion_stage,
        export,
        stage_of,
        train_diffusion,
        trained_autoencoder,
    )
    from avatard.models.training.recipe import load_recipe
    from avatard.models.training.schedule import Clock

    if measure and stage not in ("autoencoder", "latents", "pixels"):
        raise UserError("--measure: give the stage autoencoder, latents or pixels")
    if out is None and stage in ("export", "all"):
        raise UserError("--out: give the file to write")
    if minutes is not None and minutes <= 0:
        raise UserError(f"got --minutes {minutes:g}, expected more than 0")
    torch.set_num_threads(threads)
    settings = load_recipe(McvdmRecipe, recipe, change)

    def within(name: str, share: float) -> McvdmRecipe:
        return settings if minutes is None else settings.within(name, minutes * share)

    def tell_speed(made: Stage) -> None:
        whole, alone = made.throughput(time.monotonic)
        limit = f"{whole / alone:.0%} of the {alone:,.1f} of the network alone"
        print(f"{made.trainer.stage} on {made.trainer.device}: {whole:,.1f} examples/s, {limit}")

    def first_stage(folder: Path, share: float) -> None:
        clock, chosen = Clock(time.monotonic), within("autoencoder", share)
        if measure:
            tell_speed(autoencoder_stage(data, folder, chosen, perceptual, device, clock))
        else:
            train_autoencoder(data, folder, chosen, perceptual, validate_autoencoder, device=device, clock=clock)

    def encode(state: Path | None) -> None:
        write_cache(data, run, settings, trained_autoencoder(state), device, lambda path: print(path.name))

    def later_stage(name: StageName, share: float, state: Path | None, clock: Clock) -> None:
        chosen = within(name, share)
        if measure:
            tell_speed(diffusion_stage(data, run, chosen, name, state, perceptual, device, clock))
        else:
            train_diffusion(
                data, run, chosen, name, autoencoder=state, trunk=perceptual, validate=validate_diffusion,
                device=device, clock=clock,
            )  # fmt: skip

    match stage:
        case "autoencoder":
            first_stage(run, 1.0)
        case "cache":
            encode(autoencoder)
        case "latents" | "pixels":
            later_stage(stage, 1.0, autoencoder, Clock(time.monotonic))
        case "all":
            first_stage(run / "autoencoder", settings.shares[0])
            state = run / "autoencoder" / "state.safetensors"
            if stage_of(run) != "pixels":
                clock = Clock(time.monotonic)
                encode(state)  # of the same minutes
                later_stage("latents", settings.shares[1], state, clock)
            later_stage("pixels", settings.shares[2], None, Clock(time.monotonic))
    if out is not None and stage in ("export", "all"):
        export(run, out, note)
        print(f"wrote {out}, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    run_parsed(main, options())
