"""Speech features: waveform windows in, one vector per video frame out.

Every encoder sees the window layout of serving: `window_frames` whole frames of sound that end at the look-ahead. The
features of one moment depend on where it lies in the window, so training extracts them on the same windows.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avatard.errors import UserError
from avatard.models import checkpoint
from avatard.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

TOKENS_PER_FRAME = 2  # both encoders emit a token each 20 ms

WINDOW = 400  # 25 ms analysis window of the spectrogram
STRIDE = 160  # 10 ms


class SpeechError(UserError):
    """A speech encoder that cannot be loaded, or sound of the wrong shape, in one line."""


class SpeechEncoder(Protocol):
    """Waveforms `[B, T_audio]` f32 at 16 kHz → features `[B, n_frames, dim]` f32, `n_frames = T_audio / 640`."""

    @property
    def dim(self) -> int:
        """Length of a frame's feature vector."""
        ...

    def __call__(self, audio: Tensor) -> Tensor:
        """Features of the window. Raises `SpeechError` where `T_audio` is not a whole number of frames."""
        ...


def check_window(audio: Tensor) -> None:
    """Raise `SpeechError` unless `audio` is `[B, T]` with a positive whole number of video frames."""
    if audio.ndim != 2 or audio.shape[1] < SAMPLES_PER_FRAME or audio.shape[1] % SAMPLES_PER_FRAME:
        raise SpeechError(
            f"got audio {list(audio.shape)}, expected [B, T], T a positive multiple of {SAMPLES_PER_FRAME}"
        )


def mel_filters(bands: int) -> Tensor:
    """Slaney's mel filter bank `[bands, WINDOW / 2 + 1]`, area-normalised: linear to 1 kHz, logarithmic above."""
    top_mel = 15 + math.log(SAMPLE_RATE_HZ / 2 / 1000) / (math.log(6.4) / 27)
    mel = torch.linspace(0, top_mel, bands + 2, dtype=torch.float64)
    edges_hz = torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))
    bins_hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, WINDOW // 2 + 1, dtype=torch.float64)
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    triangles = torch.minimum((bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre)).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


def power_spectrum(audio: Tensor, window: Tensor) -> Tensor:
    """Power in time and frequency: `[B, T]` → `[B, WINDOW / 2 + 1, T / 160]`.

    The window's mean is removed: a DC offset is no speech.
    """
    audio = audio - audio.mean(dim=1, keepdim=True)
    return torch.stft(audio, WINDOW, STRIDE, window=window, return_complex=True)[..., :-1].abs().square()


def log_mel(spectrum: Tensor, filters: Tensor) -> Tensor:
    """Whisper's log-mel spectrogram of a `power_spectrum`: `[B, bands, T / 160]`, about -1 to 1.5.

    The floor, eight decades below the loudest band, never sinks below that of a quiet voice, so that silence looks the
    same everywhere.
    """
    power = (filters @ spectrum).clamp(min=1e-10).log10()  # [B, bands, T / 160]
    loudest = power.amax(dim=(1, 2), keepdim=True).clamp(min=0)
    return (torch.maximum(power, loudest - 8) + 4) / 4


def sinusoids(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Whisper's position encoding `[length, width]`: sines, then cosines."""
    rate = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2, device=device))
    angle = torch.arange(length, device=device)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


@dataclass(frozen=True)
class WhisperConfig:
    """Size of the part of Whisper's encoder that is used; the defaults are tiny.en's."""

    bands: int = 80
    width: int = 384
    heads: int = 6
    layers: int = 3

    def to_json(self) -> str:
        """For the checkpoint's metadata."""
        return json.dumps(asdict(self))


class WhisperLayer(nn.Module):
    """A pre-norm transformer encoder layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, width]` → the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, N, width / heads] each
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(attended)
        transformed: Tensor = self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
        return x + transformed


class WhisperFeatures(nn.Module):
    """The first layers of Whisper's audio encoder, two 20 ms tokens a frame. Source: Radford et al. 2022 (MIT)."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = TOKENS_PER_FRAME * config.width
        self.conv1 = nn.Conv1d(config.bands, config.width, 3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(WhisperLayer(config.width, config.heads) for _ in range(config.layers))
        self.register_buffer("filters", mel_filters(config.bands), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    @classmethod
    def load(cls, name: str | Path = "whisper_tiny_en_3.safetensors") -> WhisperFeatures:
        """The shipped layers, or converted ones from a path. Raises `CheckpointError`."""
        what = "speech features of scripts/convert_whisper.py"
        return checkpoint.build(name, what, lambda config: cls(WhisperConfig(**json.loads(config))))

    def forward(self, audio: Tensor) -> Tensor:
        """Waveforms `[B, T]` → features `[B, T / 640, dim]`."""
        check_window(audio)
        assert isinstance(self.window, Tensor)
        return self.encode(power_spectrum(audio, self.window))

    def encode(self, spectrum: Tensor) -> Tensor:
        """Power spectra `[B, WINDOW / 2 + 1, T / 160]` → features `[B, T / 640, dim]`."""
        assert isinstance(self.filters, Tensor)
        x = log_mel(spectrum, self.filters)  # [B, bands, T / 160]
        x = F.gelu(self.conv2(F.gelu(self.conv1(x)))).transpose(1, 2)  # [B, T / 320, width]
        x = x + sinusoids(x.shape[1], x.shape[2], x.device)
        for layer in self.layers:
            x = layer(x)
        return x.reshape(len(x), -1, self.dim)


class HubertFeatures(nn.Module):
    """The last layer of a HuBERT model (paper section 3.2), two 20 ms tokens a frame.

    `model` is a `transformers` HubertModel, `normalise` what its feature extractor asks for.
    """

    def __init__(self, model: nn.Module, normalise: bool) -> None:
        super().__init__()
        self.model, self.normalise = model, normalise
        self.dim = TOKENS_PER_FRAME * int(model.config.hidden_size)  # type: ignore[union-attr,arg-type]

    @classmethod
    def load(cls, name: str | Path) -> HubertFeatures:
        """From a local folder or the Hugging Face hub, such as `facebook/hubert-base-ls960`. Raises `SpeechError`."""
        try:
            from transformers import HubertModel, Wav2Vec2FeatureExtractor
        except ImportError as error:
            raise SpeechError("HuBERT needs transformers: in the checkout, pip install '.[hubert]'") from error
        try:
            model = HubertModel.from_pretrained(str(name))
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(str(name))
        except (OSError, ValueError) as error:
            raise SpeechError(
                f"HuBERT {str(name)!r} is neither a folder with config.json and weights nor reachable on the hub; "
                f"where there is a network run `hf download {name} --local-dir FOLDER`, then give FOLDER"
            ) from error
        features = cls(model.requires_grad_(False), bool(extractor.do_normalize))
        return features.eval()

    def forward(self, audio: Tensor) -> Tensor:
        """Waveforms `[B, T]` → features `[B, T / 640, dim]`."""
        check_window(audio)
        if self.normalise:
            audio = F.layer_norm(audio, audio.shape[1:])
        # The convolutions span 400 samples at stride 320: 40 more on each side give exactly T / 320 tokens.
        x: Tensor = self.model(F.pad(audio, (40, 40))).last_hidden_state  # [B, T / 320, hidden]
        return x.reshape(len(x), -1, self.dim)
