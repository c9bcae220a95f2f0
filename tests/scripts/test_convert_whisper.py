import pytest

from tests.support.scripts import script_names


def test_a_converter_refuses_another_file():
    name = b"BertSpec\0"
    data = (6).to_bytes(4, "little") + len(name).to_bytes(2, "little") + name
    with pytest.raises(ValueError, match="got BertSpec in file version 6, expected WhisperSpec"):
        list(script_names("convert_whisper")["half_tensors"](data))
