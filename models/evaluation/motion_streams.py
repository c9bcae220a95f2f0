"""Figures of AToM-Net on a device: all clips of a split streamed side by side, in seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.models.atom.model import Atom, reference_of
from avatard.models.evaluation.motion_metrics import correlation, jerk, lip_error
from avatard.models.evaluation.streamed import roll_out
from avatard.models.face.topology import mouth_opening
from avatard.models.speech import power_spectrum
from avatard.models.training.atom.device_data import DeviceData
from avatard.timebase import SAMPLES_PER_FRAME


class Streams:
    """Clips of one split as serving streams them, side by side: silence, the clip, silence.

    The sound is moved to the sample, so that frame n of the picture belongs to frame n of the motion.
    """

    def __init__(self, data: DeviceData, hop: int = 4, lookahead: int = 2) -> None:
        self.data, self.hop, self.lookahead = data, hop, lookahead
        hops = -(-max(clip.frames for clip in data.clips) // hop)
        window = data.window_frames * SAMPLES_PER_FRAME
        before = window - (hop + lookahead) * SAMPLES_PER_FRAME
        count = before + (hops * hop + hop + lookahead) * SAMPLES_PER_FRAME
        place = torch.arange(count, device=data.device) - before
        shift = (data.offset * SAMPLES_PER_FRAME).round().long()
        index = place + shift[:, None]
        own = data.frames[:, None] * SAMPLES_PER_FRAME
        there = (index >= 0) & (index < own) & (place >= 0)
        start = data.start[:, None] * SAMPLES_PER_FRAME
        sound = data.audio[torch.where(there, start + index, 0)].float() / 32768 * there
        self.windows = [
            sound[:, n * hop * SAMPLES_PER_FRAME : n * hop * SAMPLES_PER_FRAME + window] for n in range(hops)
        ]
        first = data.start
        self.reference = reference_of(data.landmarks[first], data.neutrals[first])

    @torch.no_grad()
    def motions(self, atom: Atom, steps: int = 2) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Real and generated landmarks of each clip."""

        def features() -> Iterator[Tensor]:
            for window in self.windows:
                yield self.data.speech.encode(power_spectrum(window, self.data.window)).float()

        moved = roll_out(atom, features(), self.reference, steps=steps, lookahead=self.lookahead, hop=self.hop)
        made = (moved + atom.resting(self.reference)[:, None]).float().cpu().numpy()
        return [(face.landmarks, made[n, : len(face.landmarks)]) for n, face in enumerate(self.data.faces)]

    def figures(self, atom: Atom) -> dict[str, float]:
        """Of all clips, and r by clip of each source.

        `score`, by which the best weights are kept, is r by clip less the lip error's share of a held portrait's, with
        sources weighted by the square root of their clips.
        """
        pairs = self.motions(atom)
        r = np.array([correlation(mouth_opening(real), mouth_opening(made)) for real, made in pairs])
        ratio = np.array([lip_error(real, made) / lip_error(real, real[:1]) for real, made in pairs])
        groups = defaultdict(list)
        for n, clip in enumerate(self.data.clips):
            groups[clip.source].append(n)
        weights = np.sqrt([len(members) for members in groups.values()])
        scores = [r[members].mean() - ratio[members].mean() for members in groups.values()]
        real, made = (np.concatenate([mouth_opening(pair[side]) for pair in pairs]) for side in (0, 1))
        jerks = [np.sqrt(np.mean(np.concatenate([jerk(pair[side]).ravel() for pair in pairs]) ** 2)) for side in (0, 1)]
        return {
            "score": float(scores @ weights / weights.sum()),
            "mouth_r_clip": float(r.mean()),
            "lip_error_to_hold": float(ratio.mean()),
            "opening_ratio": float(made.std() / real.std()),
            "jerk_ratio": float(jerks[1] / jerks[0]),
            **{f"r_{source}": float(r[members].mean()) for source, members in groups.items()},
        }
