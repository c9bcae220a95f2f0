"""Average the weights of trainings that went on from the same one.

    python scripts/average_weights.py ONE.safetensors TWO.safetensors --out MEAN.safetensors

Their mean is often better on new people than any of them. The metadata are the first one's, but for its metrics, which
are not those of the mean.
"""

import argparse
import sys
from pathlib import Path

import torch

from avatard.errors import UserError
from avatard.models import checkpoint


def main() -> int:
    """Write the mean; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="+", help="networks of one configuration")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    try:
        average(arguments.weights, arguments.out)
    except (UserError, OSError, ValueError) as error:
        print(f"average_weights: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.out}, the mean of {len(arguments.weights)}")
    return 0


def average(paths: list[Path], out: Path) -> None:
    """Write the mean of these files. Raises `ValueError` where they are not of one network, `CheckpointError`."""
    (first, metadata), *others = [checkpoint.load(path.absolute()) for path in paths]
    for path, (tensors, other) in zip(paths[1:], others, strict=True):
        if other.get("config") != metadata.get("config") or tensors.keys() != first.keys():
            raise ValueError(f"{path} is not of the same network as {paths[0]}")
    networks = [first, *(tensors for tensors, _ in others)]
    mean = {
        name: torch.stack([network[name].double() for network in networks]).mean(0).to(tensor.dtype)
        for name, tensor in first.items()
    }
    kept = {key: value for key, value in metadata.items() if key != "metrics"}
    checkpoint.save(out, mean, kept | {"mean_of": str(len(paths))})


if __name__ == "__main__":
    sys.exit(main())
