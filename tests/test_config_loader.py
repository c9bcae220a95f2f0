import math
import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard.config import PROFILES, Config, Stream
from avatard.config_loader import ConfigError, configs_dir, keys, load
from tests.support.paths import ROOT

# Keys whose values do not depend on each other, with texts that a file, a variable and a flag can all carry.
FREE = {
    "stream.seed": st.integers(0, 2**32 - 1),
    "stream.lookahead_ms": st.integers(0, 1000),
    "idle.motion": st.floats(0, 2),
    "server.port": st.integers(0, 65535),
    "server.token": st.text("aZ09._~+/-", max_size=8),
    "webrtc.ice_username": st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=8),
    "webrtc.codec": st.sampled_from(["vp8", "h264"]),
    "webrtc.ice_servers": st.lists(st.sampled_from(["stun:a", "turn:b", "turns:c"]), max_size=3).map(tuple),
    "zmq.single_part": st.booleans(),
    "log.level": st.sampled_from(["debug", "info", "warning", "error"]),
}
values = st.fixed_dictionaries({}, optional=FREE)
profiles = st.none() | st.sampled_from(sorted(PROFILES))


def text(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def variable(path: str) -> str:
    return f"AVATARD_{path.upper().replace('.', '__')}"


def get(config: Config, path: str) -> object:
    section, name = path.split(".")
    return getattr(getattr(config, section), name)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "mine.toml"

    def write(settings: dict[str, object]) -> str:
        tables: dict[str, dict[str, object]] = {}
        for key, value in settings.items():
            section, name = key.split(".")
            tables.setdefault(section, {})[name] = value
        lines = []
        for section, table in tables.items():
            lines.append(f"[{section}]")
            lines += [f"{name} = {toml(value)}" for name, value in table.items()]
        path.write_text("\n".join(lines), encoding="utf-8")
        return str(path)

    return write


def toml(value: object) -> str:
    if isinstance(value, str):
        escaped = "".join(f"\\U{ord(letter):08x}" for letter in value)
        return f'"{escaped}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


@given(in_file=values, in_environment=values, in_sets=st.lists(values, max_size=3), in_flags=values)
def test_flag_over_set_over_environment_over_file_over_default(file, in_file, in_environment, in_sets, in_flags):
    settings = load(
        file(in_file),
        [f"{path}={text(value)}" for layer in in_sets for path, value in layer.items()],
        {path: in_flags.get(path) for path in FREE},
        {variable(path): text(value) for path, value in in_environment.items()} | {"HOME": "elsewhere"},
    )
    for path in FREE:
        layers = [{path: get(Config(), path)}, in_file, in_environment, *in_sets, in_flags]
        expected = [layer[path] for layer in layers if path in layer][-1]
        assert get(settings.config, path) == expected
        source = settings.settings[path].source
        if path in in_flags or any(path in layer for layer in in_sets):
            assert source == "command line"
        elif path in in_environment:
            assert source == f"environment {variable(path)}"
        else:
            assert source.endswith("mine.toml") if path in in_file else source == "default"


@given(
    st.lists(st.tuples(profiles, st.none() | st.integers(0, 1000)), min_size=3, max_size=3),
)
def test_a_profile_counts_where_it_is_written(file, layers):
    """It overrides what lower layers say of its keys, and a key beside it overrides the profile."""
    expected = Config().stream.lookahead_ms
    given = []
    for profile, lookahead_ms in layers:
        layer: dict[str, object] = {}
        if profile is not None:
            layer["stream.profile"] = profile
            expected = PROFILES[profile]["lookahead_ms"]
        if lookahead_ms is not None:
            layer["stream.lookahead_ms"] = lookahead_ms
            expected = lookahead_ms
        given.append(layer)
    environ = {variable(path): text(value) for path, value in given[1].items()}
    settings = load(file(given[0]), [f"{path}={value}" for path, value in given[2].items()], environ=environ)
    assert settings.config.stream.lookahead_ms == expected


names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)


@given(section=names | st.sampled_from([path.split(".")[0] for path in keys()]), name=names)
def test_any_unknown_key_is_named_wherever_it_is(file, section, name):
    path = f"{section}.{name}"
    if path in keys() or "__" in section or section.endswith("_") or name.startswith("_"):
        return
    for arguments in (
        {"config": file({path: 1})},
        {"overrides": [f"{path}=1"]},
        {"flags": {path: 1}},
        {"environ": {variable(path): "1"}},
    ):
        with pytest.raises(ConfigError) as error:
            load(**arguments)
        message = str(error.value)
        assert message.startswith(f"{path}: unknown ")
        assert len(message.splitlines()) == 1


@given(st.text(min_size=1))
def test_any_override_is_read_or_refused_in_one_line(override):
    try:
        load(overrides=[override])
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


@given(values, profiles)
def test_what_config_prints_gives_the_same_configuration(file, in_file, profile):
    if profile is not None:
        in_file["stream.profile"] = profile
    settings = load(file(in_file))
    lines = list(settings.toml())
    tables = tomllib.loads("\n".join(lines))
    again = msgspec.convert(tables, Config)
    hidden = msgspec.structs.replace(settings.config.server, token="")
    assert again == msgspec.structs.replace(settings.config, server=hidden)


def test_secrets_are_not_printed():
    pushes = "rtmp://a/b/one, rtmp://a/b/two"
    settings = load(overrides=["server.token=hunter2", "webrtc.ice_credential=sesame", f"output.push={pushes}"])
    assert settings.secrets == ("hunter2", "sesame", "rtmp://a/b/one", "rtmp://a/b/two")
    printed = "\n".join(settings.toml())
    assert "hunter2" not in printed and "sesame" not in printed and "rtmp:" not in printed
    assert "# token is set, and not shown  # command line" in printed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stream.hops=3", "stream.hops: unknown key; did you mean stream.hop_frames? (command line)"),
        ("log.colour=red", "log.colour: unknown key; [log] has level, format (command line)"),
        ("stream.clip_frames=1", "stream.clip_frames = '1' (command line): expected a whole number from 2 up to 128"),
        (
            "stream.clip_frames=many",
            "stream.clip_frames = 'many' (command line): expected a whole number from 2 up to 128",
        ),
        (
            "audio.buffer_seconds=nan",
            "audio.buffer_seconds = 'nan' (command line): expected a number above 0 up to 600",
        ),
        (
            "stream.profile=fast",
            "stream.profile = 'fast' (command line): expected one of balanced, low-latency, quality",
        ),
        ("zmq.single_part=maybe", "zmq.single_part = 'maybe' (command line): expected true or false"),
        ("motion.weights=", "motion.weights = '' (command line): expected a text that is not empty"),
        ("server.token=a b", "server.token = (secret) (command line): expected letters, digits and -._~+/"),
        ("stream.seed", "--set stream.seed: expected section.key=value"),
        (
            "stream.hop_frames=15",
            "stream.hop_frames + stream.fade_frames = 15 + 2: expected at most stream.clip_frames = 16",
        ),
        (
            "server.tls_key_file=key.pem",
            "server.tls_certificate_file is not set: expected both the TLS certificate and its key, or neither",
        ),
    ],
)
def test_a_refused_value_says_what_was_got_and_what_is_allowed(override, message):
    with pytest.raises(ConfigError) as error:
        load(overrides=[override])
    assert str(error.value) == message


@pytest.mark.parametrize(
    "url",
    [
        "stun.l.google.com:19302",
        "stun://stun.l.google.com",
        "stun:",
        "stun:[::1]",
        "stun:a:0",
        "stun:a:65536",
        "stun:a?transport=udp",
        "turn:a?transport=sctp",
        "turn:a\n",
    ],
)
def test_an_ice_server_that_no_connection_could_use_is_refused(url):
    with pytest.raises(ConfigError, match=r"^webrtc.ice_servers: got .*, expected stun:HOST\[:PORT\], ") as error:
        load(flags={"webrtc.ice_servers": [url]})
    assert len(str(error.value).splitlines()) == 1


def test_what_goes_into_a_header_has_no_lines():
    with pytest.raises(ConfigError, match=r"^webrtc.ice_credential: expected no control characters"):
        load(flags={"webrtc.ice_credential": "a\r\nSet-Cookie: b"})


@pytest.mark.parametrize("ports", ["40000", "4000-3999", "80-90", "60000-70000", "40000-40100,5", "a-b"])
def test_udp_ports_that_nobody_could_bind_are_refused(ports):
    with pytest.raises(ConfigError, match=r"^webrtc.udp_ports = .*: expected FIRST-LAST, from 1024 to 65535$") as error:
        load(overrides=[f"webrtc.udp_ports={ports}"])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("address", ["avatar.example", "0.0.0.0", "10.0.0.0/8", "[::1]"])
def test_an_announced_address_that_nobody_could_reach_is_refused(address):
    with pytest.raises(ConfigError, match="^webrtc.announce: got .*, expected IP addresses"):
        load(overrides=[f"webrtc.announce={address}"])


def test_udp_ports_and_announced_addresses():
    webrtc = load(
        environ={"AVATARD_WEBRTC__UDP_PORTS": "40000-40100", "AVATARD_WEBRTC__ANNOUNCE": "::2,1.2.3.4"}
    ).config.webrtc
    assert list(webrtc.udp_port_range) == list(range(40_000, 40_101)) and webrtc.announce == ("::2", "1.2.3.4")
    assert not load().config.webrtc.udp_port_range


def test_ice_servers_that_can_be_used_are_taken():
    urls = ["stun:stun.l.google.com:19302", "stuns:a", "turn:a.example:3478?transport=tcp", "turns:1.2.3.4:443"]
    config = load(overrides=[f"webrtc.ice_servers={','.join(urls)}"]).config
    assert list(config.webrtc.ice_servers) == urls


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hop_frames = 3", "hop_frames: unknown key; did you mean stream.hop_frames\\? .*mine.toml"),
        (b"[streams]", "streams: unknown section; did you mean stream\\?"),
        (b"[colours]", "colours: unknown section; there are stream, "),
        (b"stream = 3", "stream = 3 .*: expected a table \\[stream\\]"),
        (
            b"[stream]\nseed = '3'",
            "stream.seed = '3' .*mine.toml\\): expected a whole number from 0 below 4,294,967,296",
        ),
        (b"[webrtc]\nice_servers = 'stun:a'", "webrtc.ice_servers = 'stun:a' .*: expected a list of texts"),
        (b"[stream", "cannot read the configuration"),
        (b"\xff\xfe", "cannot read the configuration"),
        (b'["a\\nb"]\nc = 1', "unknown section"),
        (b"[stream]\nseed = " + b"[" * 5000, "nested too deeply"),
        (b"stream.seed" + b".a" * 5000 + b" = 1", "stream.seed = {'a': .*expected a whole number"),
        (b"x" * 5000 + b" = 1", "xxx"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load(path)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


def test_a_missing_configuration_names_those_that_ship(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration 'nanno': give a TOML file or one of nano, paper"):
        load("nanno")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(tmp_path)


def test_a_secret_is_not_in_the_complaint_about_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[server]\ntoken = 12345\n")
    with pytest.raises(ConfigError, match=r"server.token = \(secret\) .*: expected letters"):
        load(path)


def test_the_shipped_configurations_load():
    assert {path.stem for path in configs_dir().glob("*.toml")} == {"nano", "paper"}
    assert load("nano").config == Config()
    paper = load("paper").config
    assert paper.stream.video_steps == 100
    assert paper.speech.encoder == "hubert"


def test_the_defaults_are_those_of_the_balanced_profile():
    for profile, preset in PROFILES.items():
        stream = load(overrides=[f"stream.profile={profile}"]).config.stream
        assert stream == Stream(profile=profile, **preset)
        assert preset.keys() == msgspec.structs.asdict(Stream()).keys() - {"profile", "seed"}
    assert Stream() == Stream(profile="balanced", **PROFILES["balanced"])


def test_the_architecture_page_tells_the_profiles_as_they_are():
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for profile, preset in PROFILES.items():
        clip, hop, fade, ahead = (preset[key] for key in ("clip_frames", "hop_frames", "fade_frames", "lookahead_ms"))
        latency = (hop + fade) * 40 + ahead
        assert f"| `{profile}` | {clip} frames | {hop} | {fade} | {ahead} ms | {latency} ms |" in page


def test_every_key_says_what_it_is_and_no_number_is_unbounded():
    for path, key in keys().items():
        assert key.description, path
        default = get(Config(), path)
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert "from" in key.allowed or "above" in key.allowed, path
            assert "up to" in key.allowed or "below" in key.allowed, path
            assert math.isfinite(default)
