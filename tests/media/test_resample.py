import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from avatard.media.resample import Resampler, SoundConverter


def convert(samples, rate_hz, cuts):
    resampler = Resampler(rate_hz)
    edges = sorted({0, len(samples), *(min(cut, len(samples)) for cut in np.cumsum(cuts))})
    parts = [resampler.push(samples[first:end]) for first, end in zip(edges, edges[1:], strict=False)]
    return np.concatenate([*parts, resampler.flush()])


@given(st.sampled_from([8000, 16000, 24000, 44100, 48000]), st.lists(st.integers(1, 9000), max_size=20))
@settings(deadline=None, max_examples=30)
def test_any_chunking_gives_the_same_samples(rate_hz, cuts):
    samples = np.random.default_rng(rate_hz).normal(0, 0.1, rate_hz // 2).astype(np.float32)
    np.testing.assert_array_equal(convert(samples, rate_hz, cuts), convert(samples, rate_hz, []))


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 24000, 44100, 48000, 96000])
def test_the_signal_stays_where_it_was(rate_hz):
    samples = np.zeros(rate_hz, np.float32)
    samples[rate_hz // 4] = 1
    converted = convert(samples, rate_hz, [])
    assert len(converted) == pytest.approx(16000, abs=1)
    assert int(np.argmax(converted)) == pytest.approx(4000, abs=1)


def test_the_delay_is_what_has_not_come_out_yet():
    resampler = Resampler(48000)
    given_out = sum(len(resampler.push(np.zeros(960, np.float32))) for _ in range(50))
    assert resampler.delay_samples == 16000 - given_out
    assert 0 < resampler.delay_samples < 400, "under 25 ms"


@pytest.mark.parametrize("rate_hz", [22050, 24000, 44100, 48000])
def test_packets_come_out_as_evenly_as_they_go_in(rate_hz):
    resampler = Resampler(rate_hz)
    given_out = [len(resampler.push(np.zeros(rate_hz // 50, np.float32))) for _ in range(50)]
    assert min(given_out[5:]) == max(given_out[5:]) == 320


def test_a_tone_keeps_its_frequency_and_what_would_alias_is_gone():
    time = np.arange(48000) / 48000
    tone = convert(np.sin(2 * np.pi * 1000 * time).astype(np.float32), 48000, [])
    spectrum = np.abs(np.fft.rfft(tone[:16000]))
    assert int(np.argmax(spectrum)) == 1000
    hiss = convert(np.sin(2 * np.pi * 12000 * time).astype(np.float32), 48000, [])
    assert np.abs(hiss[1000:-1000]).max() < 1e-3


def test_an_impossible_rate_is_refused():
    with pytest.raises(ValueError, match="sample rate is 100 Hz, expected 8,000 to 192,000"):
        Resampler(100)


@given(st.sampled_from([8000, 16000, 22050, 24000, 44100, 48000]), st.lists(st.integers(1, 9000), max_size=20))
@settings(deadline=None, max_examples=30)
def test_both_rates_stay_in_step_at_any_chunking(rate_hz, cuts):
    time = np.arange(rate_hz) / rate_hz
    samples = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    converter = SoundConverter(rate_hz)
    edges = sorted({0, len(samples), *(min(cut, len(samples)) for cut in np.cumsum(cuts))})
    parts = [converter.push(samples[first:end]) for first, end in zip(edges, edges[1:], strict=False)]
    for part in parts:
        assert len(part.playback) == 3 * len(part.speech)
    parts.append(converter.flush())
    speech = np.concatenate([part.speech for part in parts])
    playback = np.concatenate([part.playback for part in parts])
    np.testing.assert_array_equal(speech, convert(samples, rate_hz, []))
    assert len(playback) == 3 * len(speech)
    np.testing.assert_allclose(playback[::3][400:-400], speech[400:-400], atol=0.08)


@pytest.mark.parametrize(("rate_hz", "upper_hz"), [(44_100, 16_000), (48_000, 16_000), (24_000, 11_000)])
def test_what_viewers_hear_keeps_its_treble(rate_hz, upper_hz):
    noise = np.random.default_rng(1).normal(0, 0.1, 4 * rate_hz).astype(np.float32)
    converter = SoundConverter(rate_hz)
    playback = np.concatenate([converter.push(noise).playback, converter.flush().playback])
    hz, before = signal.welch(noise, rate_hz, nperseg=1024)
    heard_hz, after = signal.welch(playback, 48_000, nperseg=1024)
    band = (heard_hz > 100) & (heard_hz < upper_hz)
    loss = 10 * np.log10(np.convolve(after[band], np.ones(9) / 9, "valid").min() / before[5:-5].mean())
    assert loss > -1


@pytest.mark.parametrize("rate_hz", [8000, 24000, 44100, 48000])
@pytest.mark.parametrize("milliseconds", [0.1, 1, 4, 12, 30])
def test_a_stream_of_milliseconds_has_its_whole_length(rate_hz, milliseconds):
    samples = np.full(round(rate_hz * milliseconds / 1000), 0.1, np.float32)
    assert len(convert(samples, rate_hz, [])) == pytest.approx(16 * milliseconds, abs=1)
    converter = SoundConverter(rate_hz)
    assert len(converter.push(samples)) + len(converter.flush()) == pytest.approx(16 * milliseconds, abs=1)
