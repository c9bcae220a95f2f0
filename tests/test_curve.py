"""Key files: what is written, and what is refused."""

import pytest

from avatard.protocols.curve import KeysError, create_keys, load_server_keys


def test_the_secret_is_its_owners_alone(tmp_path):
    public_file, secret_file, public = create_keys(tmp_path / "keys", "server")
    assert secret_file.stat().st_mode & 0o777 == 0o600
    assert public_file.stat().st_mode & 0o777 == 0o644
    assert public in public_file.read_text()
    loaded = load_server_keys(secret_file)
    assert loaded.public.decode() == public
    assert loaded.secret.decode() not in public_file.read_text()
    assert loaded.clients is None


def test_keys_are_never_overwritten(tmp_path):
    create_keys(tmp_path, "server")
    before = (tmp_path / "server.key_secret").read_text()
    with pytest.raises(KeysError, match=r"server\.key exists"):
        create_keys(tmp_path, "server")
    assert (tmp_path / "server.key_secret").read_text() == before


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KeysError, match="cannot write keys into"):
        create_keys(tmp_path / "file" / "keys", "server")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot read the key file"),
        (b"\x89PNG\r\n\xff", "is no key file"),
        (b'curve\n public-key = "short"\n', "public key in .* is not a Z85 key"),
        (b'curve\n public-key = "' + b"#" * 40 + b'"\n', "public key in .* is not a Z85 key"),
        (b'curve\n public-key = "' + b"a" * 40 + b'"\n', "has no secret key"),
        (b'curve\n public-key = "' + b"a" * 40 + b'"\n secret-key = "' + b"~" * 40 + b'"\n', "secret key in .* is not"),
    ],
)
def test_a_bad_key_file_is_one_clear_line(tmp_path, content, text):
    path = tmp_path / "server.key_secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeysError, match=text):
        load_server_keys(path)


def test_allowed_clients_name_the_bad_line(tmp_path):
    _, secret_file, public = create_keys(tmp_path, "server")
    clients = tmp_path / "clients"
    clients.write_text(f"# remarks\n{public} game engine\n\n")
    assert load_server_keys(secret_file, clients).clients == frozenset([public.encode()])
    clients.write_text(f"{public}\nnonsense\n")
    with pytest.raises(KeysError, match="clients, line 2 is not a Z85 key of 40 characters"):
        load_server_keys(secret_file, clients)
    with pytest.raises(KeysError, match="cannot read the allowed clients"):
        load_server_keys(secret_file, tmp_path / "nowhere")
