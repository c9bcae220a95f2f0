import sys
from types import SimpleNamespace

import numpy as np
import pytest

from avatard.gateways.local import MicrophoneError, check_microphone, speak_file
from tests.support.serving import Screen, beeps, config, portrait
from tests.support.sounds import write_wav
from tests.support.virtual import InlineSupervisor


async def test_a_file_is_queued_whole(tmp_path):
    from avatard.session.session import Session

    session = Session(config(), portrait(), make_supervisor=InlineSupervisor)
    screen = Screen()
    session.attach(screen)
    await session.start()
    voice = beeps(1, 24_000)
    await speak_file(session, write_wav(tmp_path / "voice.wav", voice, 24_000, channels=2))
    assert session.scheduler.has_speech
    while session.scheduler.has_speech:
        await session.playout.next_frame()
    heard = np.concatenate([entry.sound.playback for entry in screen.entries])
    assert np.sqrt((heard**2).sum() / (voice**2).sum()) == pytest.approx(np.sqrt(2), rel=0.02)
    await session.stop()


def test_a_machine_without_a_microphone_says_so_at_once(monkeypatch):
    class PortAudioError(Exception):
        pass

    def query_devices(device, kind):
        raise PortAudioError("Error querying\ndevice -1")

    fake = SimpleNamespace(PortAudioError=PortAudioError, query_devices=query_devices)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    with pytest.raises(MicrophoneError, match="^no microphone: Error querying device -1$"):
        check_microphone()
