import pytest

from avatard.config import Config, Tts
from avatard.config_loader import ConfigError, load
from avatard.gateways.http import Server
from avatard.session.session import Session
from avatard.tts.configured import configured_synthesizer
from avatard.tts.openai import OpenAiSynthesizer
from avatard.tts.synthesizer import TtsUnavailableError
from tests.support.serving import portrait


def test_without_a_word_there_is_none():
    assert configured_synthesizer(Tts()) is None


def test_an_endpoints_key_comes_from_the_environment_and_is_not_printed():
    settings = load(flags={"tts.url": "http://127.0.0.1:8880"}, environ={"AVATARD_TTS__KEY": "s3cret"})
    assert isinstance(configured_synthesizer(settings.config.tts), OpenAiSynthesizer)
    assert settings.secrets == ("s3cret",)
    assert "s3cret" not in "\n".join(settings.toml())


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"tts.engine": "say"}, "expected espeak-ng, flite or piper:MODEL.onnx"),
        ({"tts.url": "ftp://host"}, "expected an http:// or https:// URL"),
        ({"tts.engine": "flite", "tts.url": "http://host"}, "both set"),
        ({"tts.voice": "-w file"}, "expected a name"),
    ],
)
def test_what_cannot_speak_is_refused(flags, text):
    with pytest.raises(ConfigError, match=text):
        load(flags=flags)


def test_a_missing_program_is_said_before_the_networks_load(monkeypatch):
    monkeypatch.setenv("PATH", "")
    config = Config(tts=Tts(engine="flite"))
    with pytest.raises(TtsUnavailableError, match="flite is not installed"):
        Server(config, Session(config, portrait()))


def test_the_doctor_looks_for_the_program(monkeypatch):
    from avatard.commands.doctor import examine

    monkeypatch.setenv("PATH", "")
    checks = {check.what: check for check in examine(Config(tts=Tts(engine="flite")))}
    assert (checks["text to speech"].state, "apt install flite" in checks["text to speech"].found) == ("missing", True)
