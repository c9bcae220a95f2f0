"""AToM-Net (paper section 3.2): speech features and one face → 3D landmarks, by diffusion.

Landmarks are handled as displacement from the person's resting face, `[..., 68, 3]` in interocular distances. The
network sees S frames: P already emitted ones, clean, and S - P to denoise; its audio ends `lookahead` frames later.

The resting face is the portrait's without what speech does to it. It is no neutral face of the 3DMM, which takes out
whatever its expressions can explain, a long upper lip too: `Atom.resting` puts back what lasts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avatard.models import checkpoint
from avatard.models.diffusion import cosine_alpha_bar, ddim, timestep_embedding
from avatard.models.face.topology import LIP_68, REST_68, inner_lip_heights
from avatard.timebase import LANDMARKS

#: Modes of facial motion from which the resting face of a portrait is predicted.
REST_MODES = 3
#: Ablations of the paper's Table 3: audio concatenated (A), with the reference (B), and with local attention (C).
Variant: TypeAlias = Literal["A", "B", "C"]


@dataclass(frozen=True)
class AtomConfig:
    """Size and variant; the defaults are `nano`."""

    speech_dim: int = 768
    audio_frames: int = 32  # the speech encoder's window, 1.28 s
    frames: int = 12  # S: prefix and new frames
    width: int = 192
    depth: int = 4  # blocks of the lip stream
    rest_depth: int = 2  # blocks of the other points' stream
    heads: int = 6
    dropout: float = 0.3
    reach: int = 12  # local attention: a frame attends to frames at most this far away
    variant: Variant = "C"
    timesteps: int = 1000
    max_lookahead: int = 4  # frames, the largest that was trained

    def to_json(self) -> str:
        """For the checkpoint's metadata."""
        return json.dumps(asdict(self))


def reference_of(landmarks: Tensor, neutral: Tensor) -> Tensor:
    """c_lmd of a portrait: its neutral face and the expression that was taken out of it, `[..., 68, 3]` each."""
    return torch.stack([neutral, landmarks - neutral], dim=-3)


def rest_features(portrait: Tensor, expression: Tensor, modes: Tensor) -> Tensor:
    """Features `[..., K + 2]` of how far a portrait's mouth is from closed: its opening, and its expression's modes."""
    opening = inner_lip_heights(portrait).mean(-1, keepdim=True)
    return torch.cat([torch.ones_like(opening), opening, expression.flatten(-2) @ modes], dim=-1)


def rotary(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate the halves of `[B, heads, N, d]` by `positions` `[N]` (frames). Source: RoFormer, Su et al. 2021."""
    half = x.shape[-1] // 2
    rate = 100.0 ** (-torch.arange(half, device=x.device) / half)
    angle = positions[:, None] * rate  # [N, d / 2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Multi-head attention with rotary positions, to itself or to a memory."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, at: Tensor, memory: Tensor, memory_at: Tensor, mask: Tensor | None) -> Tensor:
        """`x` `[B, N, D]` at frames `at` `[N]` attends to `memory` `[B, M, D]` where `mask` `[N, M]` is true."""

        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)  # [B, heads, ·, D / heads]

        key, value = self.key_value(memory).chunk(2, dim=-1)
        q, k = rotary(split(self.query(x)), at), rotary(split(key), memory_at)
        # In bf16 this kernel's backward pass on a CPU takes six times as long as in f32, more than all the rest.
        with torch.autocast(x.device.type, enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), split(value).float(), attn_mask=mask)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Pre-norm self-attention, optional cross-attention and MLP, each followed by FiLM. Source: EDGE (2023)."""

    def __init__(self, width: int, heads: int, cross: bool, dropout: float) -> None:
        super().__init__()
        self.parts = 3 if cross else 2
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(self.parts))
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads) if cross else None
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.film = nn.Linear(width, 2 * self.parts * width)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(
        self, x: Tensor, at: Tensor, condition: Tensor, memory: Tensor | None = None,
        memory_at: Tensor | None = None, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`[B, N, D]` → `[B, N, D]`, with the FiLM vector `condition` `[B, D]`."""
        films = self.film(condition)[:, None].chunk(2 * self.parts, dim=-1)
        for part, norm in enumerate(self.norms):
            y = norm(x)
            if part == 0:
                y = self.self_attention(y, at, y, at, None)
            elif part == self.parts - 1:
                y = self.mlp(y)
            else:
                assert self.cross_attention is not None and memory is not None and memory_at is not None
                y = self.cross_attention(y, at, memory, memory_at, mask)
            x = x + y * (1 + films[2 * part]) + films[2 * part + 1]
        return x


class Atom(nn.Module):
    """The network. Displacements are in interocular distances outside, divided by `scale` inside."""

    scale: Tensor
    modes: Tensor
    to_rest: Tensor
    reference_scale: Tensor
    bound: Tensor
    alpha_bar: Tensor
    lip: Tensor
    rest: Tensor

    def __init__(self, config: AtomConfig) -> None:
        super().__init__()
        self.config = config
        width, self.two_streams = config.width, config.variant == "C"
        lip = LIP_68 if self.two_streams else torch.arange(LANDMARKS).numpy()
        self.register_buffer("lip", torch.as_tensor(lip), persistent=False)
        self.register_buffer("rest", torch.as_tensor(REST_68), persistent=False)
        reference = 0 if config.variant == "A" else width
        self.audio_in = nn.Sequential(
            nn.LayerNorm(config.speech_dim), nn.Dropout(config.dropout), nn.Linear(config.speech_dim, width)
        )
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.audio_pool = nn.Linear(width, width)
        self.reference_in = nn.Sequential(nn.Linear(2 * 3 * LANDMARKS, width), nn.SiLU(), nn.Linear(width, width))
        # Per frame: noisy or clean points, whether they are clean, the frame's own audio, c_lmd.
        self.lip_in = nn.Linear(3 * len(lip) + 1 + width + reference, width)
        self.lip_blocks = nn.ModuleList(
            Block(width, config.heads, self.two_streams, config.dropout) for _ in range(config.depth)
        )
        self.lip_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * len(lip)))
        outs = [self.lip_out[1]]
        if self.two_streams:
            self.rest_in = nn.Linear(3 * len(REST_68) + 1 + reference, width)
            self.rest_blocks = nn.ModuleList(
                Block(width, config.heads, True, config.dropout) for _ in range(config.rest_depth)
            )
            self.rest_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * len(REST_68)))
            outs.append(self.rest_out[1])
        for out in outs:
            assert isinstance(out, nn.Linear)
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)
        # Statistics of the training data: one scale per stream, how far a point may ever go, and what leads from a
        # portrait to the resting face.
        self.register_buffer("scale", torch.full((LANDMARKS, 1), 0.05))
        self.register_buffer("reference_scale", torch.tensor(0.1))
        self.register_buffer("bound", torch.full((LANDMARKS, 3), 1.0))
        self.register_buffer("modes", torch.zeros(3 * LANDMARKS, REST_MODES))
        self.register_buffer("to_rest", torch.zeros(REST_MODES + 2, 3 * LANDMARKS))
        self.register_buffer("alpha_bar", cosine_alpha_bar(config.timesteps), persistent=False)

    @classmethod
    def load(cls, name: str | Path = "atom_nano.safetensors") -> Atom:
        """The shipped network, or one from a path. Raises `CheckpointError`."""
        return checkpoint.build(name, "weights of AToM-Net", lambda config: cls(AtomConfig(**json.loads(config))))

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.scale.device

    def resting(self, reference: Tensor) -> Tensor:
        """Landmarks `[..., 68, 3]` from which displacement is counted, of c_lmd `[..., 2, 68, 3]`."""
        neutral, expression = reference.unbind(-3)
        portrait = neutral + expression
        change = rest_features(portrait, expression, self.modes) @ self.to_rest
        return portrait + change.view(portrait.shape)

    def forward(
        self, x: Tensor, clean: Tensor, t: Tensor, audio: Tensor, reference: Tensor, lookahead: int
    ) -> Tensor:  # fmt: skip
        """Predict x_0.

        Args:
            x: scaled displacements `[B, S, 68, 3]`, noisy where `clean` is 0.
            clean: 1 where a frame is given, `[B, S]`.
            t: timesteps `[B]`.
            audio: features `[B, audio_frames, speech_dim]`; the last `lookahead` frames follow the S landmark frames.
            reference: c_lmd `[B, 2, 68, 3]`, see `reference_of`.
            lookahead: frames, 0 to `max_lookahead`.
        """
        at = torch.arange(x.shape[1], device=x.device)
        audio_at = torch.arange(audio.shape[1], device=x.device) + x.shape[1] + lookahead - audio.shape[1]
        mask = (at[:, None] - audio_at).abs() <= self.config.reach  # [S, audio_frames]
        encoded = self.audio_in(audio)  # [B, audio_frames, D]
        neutral, expression = reference[:, 0] / self.reference_scale, reference[:, 1] / self.scale
        face = self.reference_in(torch.cat([neutral.flatten(1), expression.flatten(1)], dim=1))  # [B, D]
        condition = self.time(timestep_embedding(t, self.config.width)) + self.audio_pool(encoded.mean(1))
        per_frame = [clean[..., None]]
        if self.config.variant != "A":
            condition = condition + face
            per_frame.append(face[:, None].expand(-1, x.shape[1], -1))
        condition = F.silu(condition)
        start = audio.shape[1] - lookahead - x.shape[1]
        own = encoded[:, start : start + x.shape[1]]  # [B, S, D]
        lip = self.lip_in(torch.cat([x[:, :, self.lip].flatten(2), *per_frame, own], dim=-1))
        for block in self.lip_blocks:
            lip = block(lip, at, condition, encoded, audio_at, mask)
        x0: Tensor = self.lip_out(lip).unflatten(-1, (-1, 3))  # [B, S, lip points, 3]
        if not self.two_streams:
            return x0
        rest = self.rest_in(torch.cat([x[:, :, self.rest].flatten(2), *per_frame], dim=-1))
        for block in self.rest_blocks:
            rest = block(rest, at, condition, lip, at, None)
        both = x0.new_empty(*x0.shape[:2], LANDMARKS, 3)
        both[:, :, self.lip], both[:, :, self.rest] = x0, self.rest_out(rest).unflatten(-1, (-1, 3)).to(x0.dtype)
        return both

    def sample(
        self, audio: Tensor, reference: Tensor, prefix: Tensor, noise: Tensor, *, steps: int, lookahead: int
    ) -> Tensor:  # fmt: skip
        """Continue `prefix`: new displacements `[B, S - P, 68, 3]`, bounded, by DDIM with the prefix clamped.

        Args:
            audio: as `forward`.
            reference: as `forward`.
            prefix: displacements already emitted, `[B, P, 68, 3]`.
            noise: start noise `[B, S - P, 68, 3]`; zeros for the calmest motion.
            steps: network evaluations.
            lookahead: as `forward`.
        """
        known, batch = prefix.shape[1], len(prefix)
        given = prefix / self.scale
        clean = torch.zeros(batch, known + noise.shape[1], device=prefix.device)
        clean[:, :known] = 1

        def predict_x0(x: Tensor, t: int) -> Tensor:
            clamped = torch.cat([given, x], dim=1)
            when = torch.full((batch,), t, device=x.device)
            x0: Tensor = self(clamped, clean, when, audio, reference, lookahead)
            return x0[:, known:]

        new = ddim(predict_x0, noise, self.alpha_bar, steps) * self.scale
        return torch.clamp(new, -self.bound, self.bound)
