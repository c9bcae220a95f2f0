import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard import log
from avatard.config import Log


def logged(config: Log, emit, secrets=()) -> list[str]:
    stream = io.StringIO()
    log.setup(config, secrets, stream)
    emit(logging.getLogger("avatard.gateways.http"))
    return stream.getvalue().splitlines()


def test_human_lines_carry_the_values():
    (line,) = logged(Log(), lambda logger: logger.info("listening", extra={"url": "http://localhost", "port": 80}))
    time, level, rest = line.split(maxsplit=2)
    assert len(time) == len("12:34:56.789")
    assert (level, rest) == ("INFO", "avatard.gateways.http: listening url=http://localhost port=80")


def test_json_lines_are_objects():
    (line,) = logged(Log(format="json"), lambda logger: logger.warning("late", extra={"frame": 7, "level": "high"}))
    event = json.loads(line)
    assert event.pop("time").endswith("+00:00")
    assert event == {"level": "warning", "logger": "avatard.gateways.http", "event": "late", "frame": 7}


@given(st.text(), st.text(), st.sampled_from(["human", "json"]))
def test_one_event_is_one_line_whatever_is_in_it(message, value, form):
    lines = logged(Log(format=form), lambda logger: logger.error("%s", message, extra={"value": value}))
    assert len(lines) == 1


@pytest.mark.parametrize("form", ["human", "json"])
def test_an_exception_stays_in_its_line(form):
    def emit(logger):
        try:
            raise OSError("disk full")
        except OSError:
            logger.exception("could not save")

    (line,) = logged(Log(format=form), emit)
    assert "OSError: disk full" in line and "test_log.py" in line


@pytest.mark.parametrize("form", ["human", "json"])
def test_secrets_never_leave(form):
    secret = 'hun"ter\\2'
    lines = logged(
        Log(format=form),
        lambda logger: logger.info("got %s", secret, extra={"headers": {"Authorization": f"Bearer {secret}"}}),
        secrets=(secret, ""),
    )
    assert "ter" not in lines[0].replace("avatard.gateways.http", "")
    assert "***" in lines[0]


def test_the_level_is_kept():
    lines = logged(Log(level="error"), lambda logger: (logger.warning("no"), logger.error("yes")))
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["yes"]
