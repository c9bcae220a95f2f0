import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avatard.models import checkpoint
from avatard.models.speech import (
    HubertFeatures,
    SpeechError,
    WhisperConfig,
    WhisperFeatures,
    log_mel,
    mel_filters,
    power_spectrum,
    sinusoids,
)
from avatard.timebase import SAMPLES_PER_FRAME

WINDOW = 32 * SAMPLES_PER_FRAME


@pytest.fixture(scope="module")
def whisper():
    return WhisperFeatures.load()


def voice(samples=WINDOW):
    """A 120 Hz buzz through a slow envelope."""
    time = torch.arange(samples) / 16_000
    buzz = sum(torch.sin(2 * torch.pi * 120 * k * time) / k for k in range(1, 20))
    return (0.1 * buzz * (1 + torch.sin(2 * torch.pi * 4 * time)))[None]


def test_two_tokens_a_frame(whisper):
    features = whisper(torch.cat([voice(), torch.zeros(1, WINDOW)]))
    assert features.shape == (2, 32, 768) and whisper.dim == 768
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("shape", [(WINDOW,), (1, 0), (1, WINDOW + 1), (1, 2, WINDOW)])
def test_wrong_windows_are_refused(whisper, shape):
    with pytest.raises(SpeechError, match="positive multiple of 640"):
        whisper(torch.zeros(shape))


def test_golden_features(whisper):
    """The shipped weights, on a signal anybody can compute."""
    features = whisper(voice())[0]
    assert features.mean().item() == pytest.approx(0.576, abs=0.02)
    assert features.std().item() == pytest.approx(0.596, abs=0.02)


def test_a_dc_offset_is_not_heard(whisper):
    quiet = torch.randn(1, WINDOW, generator=torch.Generator().manual_seed(0)) * 1e-3
    torch.testing.assert_close(whisper(quiet + 0.3), whisper(quiet), atol=0.05, rtol=0)


def test_silence_looks_the_same_at_any_level_below_hearing():
    filters, window = mel_filters(80), torch.hann_window(400)
    silent = log_mel(power_spectrum(torch.zeros(1, WINDOW), window), filters)
    assert (silent == -1).all()
    noise = torch.randn(1, WINDOW, generator=torch.Generator().manual_seed(0)) * 1e-6
    faint = log_mel(power_spectrum(noise, window), filters)
    torch.testing.assert_close(faint, silent)


def test_mel_filters_are_those_of_transformers():
    from transformers.audio_utils import mel_filter_bank

    expected = mel_filter_bank(201, 80, 0, 8000, 16_000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(80).numpy(), expected.T, atol=1e-7)


def test_layers_are_those_of_transformers():
    from transformers import WhisperConfig as TheirConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(0)
    ours: Any = WhisperFeatures(WhisperConfig(width=32, heads=2, layers=2)).eval()
    theirs = WhisperEncoder(
        TheirConfig(
            d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=128, max_source_positions=64
        )
    ).eval()
    names = {"self_attn.out_proj": "out", "self_attn_layer_norm": "attention_norm", "final_layer_norm": "mlp_norm"}
    names |= {"fc1": "mlp_in", "fc2": "mlp_out"}
    with torch.no_grad():
        for n in (1, 2):
            getattr(theirs, f"conv{n}").load_state_dict(getattr(ours, f"conv{n}").state_dict())
        theirs.embed_positions.weight.copy_(sinusoids(64, 32))
        theirs.layer_norm = torch.nn.Identity()
        own: Any
        other: Any
        for own, other in zip(ours.layers, theirs.layers, strict=True):
            own.qkv.bias[32:64] = 0  # Whisper's keys have no bias
            for theirs_name, ours_name in names.items():
                other.get_submodule(theirs_name).load_state_dict(getattr(own, ours_name).state_dict())
            for part, name in enumerate("qkv"):
                rows = slice(32 * part, 32 * part + 32)
                projection = other.get_submodule(f"self_attn.{name}_proj")
                projection.weight.copy_(own.qkv.weight[rows])
                if projection.bias is not None:
                    projection.bias.copy_(own.qkv.bias[rows])
        expected = theirs(log_mel(power_spectrum(voice(), ours.window), ours.filters)).last_hidden_state
        torch.testing.assert_close(ours(voice()), expected.reshape(1, 32, 64), atol=1e-5, rtol=1e-4)


def tiny_hubert(folder: Path) -> None:
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_hubert_from_a_folder(tmp_path):
    tiny_hubert(tmp_path)
    hubert = HubertFeatures.load(tmp_path)
    features = hubert(voice())
    assert features.shape == (1, 32, 32) and hubert.dim == 32
    torch.testing.assert_close(hubert(0.5 * voice()), features, atol=1e-3, rtol=1e-3)  # it normalises


def test_a_missing_hubert_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "hubert"}))
    with pytest.raises(SpeechError, match="hf download"):
        HubertFeatures.load(tmp_path)


def test_other_weights_are_refused_in_one_line(tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", {"weight": torch.zeros(2)}, {"config": "{}"})
    with pytest.raises(checkpoint.CheckpointError, match="not speech features") as error:
        WhisperFeatures.load(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)
