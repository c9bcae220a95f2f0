"""Placement and pinning, without a socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard.cluster import directory as module
from avatard.cluster.directory import Directory, LostRoomError, Member, NoRoomError, Report


def filled(**headrooms: float) -> Directory:
    directory = Directory()
    directory.register({name: Member(f"http://{name}") for name in headrooms}, now=0)
    for name, headroom in headrooms.items():
        directory.answered(name, Report(1000, headroom), asked_at=0, now=0)
    return directory


def test_a_room_goes_to_the_replica_with_most_headroom():
    directory = filled(a=100, b=900, c=500)
    assert [replica.name for replica in directory.candidates()] == ["b", "c", "a"]


def test_rooms_made_at_once_spread_before_the_next_report():
    directory = filled(a=1000, b=1000, c=1000)
    for number in range(9):
        directory.place(f"room-{number}", directory.candidates()[0].name, now=1)
    assert [len(replica.rooms) for replica in directory.replicas] == [3, 3, 3]


def test_a_room_is_thought_to_take_what_its_neighbours_take():
    directory = filled(a=1000)
    directory.answered("a", Report(1000, 700, frozenset({"x", "y"})), asked_at=1, now=1)
    (replica,) = directory.candidates()
    directory.place("z", "a", now=2)
    assert replica.headroom == 700 - 150


def test_a_replica_takes_no_rooms_before_it_answers_or_while_it_drains():
    directory = filled(a=1000, b=1000)
    directory.register(
        {"a": Member("http://a", draining=True), "b": Member("http://b"), "c": Member("http://c")}, now=1
    )
    assert [replica.name for replica in directory.candidates()] == ["b"]
    directory.place("room", "a", now=1)
    assert directory.find("room").name == "a", "its rooms go on"


def test_one_that_left_the_register_drains_until_it_is_silent():
    directory = filled(a=1000)
    directory.place("room", "a", now=0)
    directory.register({}, now=1)
    assert not directory.candidates() and directory.find("room").name == "a"
    directory.answered("a", Report(1000, 900, frozenset({"room"})), asked_at=2, now=2)
    assert not directory.silent(now=4.9)
    assert list(directory.silent(now=5)) == ["room"]
    with pytest.raises(LostRoomError):
        directory.find("room")


def test_the_rooms_of_a_lost_replica_are_told_from_those_that_never_were():
    directory = filled(a=1000, b=1000)
    directory.place("mine", "a", now=0)
    directory.place("yours", "b", now=0)
    assert list(directory.refused("a")) == ["mine"] and list(directory.refused("a")) == []
    with pytest.raises(LostRoomError, match="^the machine of this room was lost: make a new room$") as error:
        directory.find("mine")
    assert error.value.code == "room-lost"
    with pytest.raises(NoRoomError):
        directory.find("nobodys")
    assert directory.find("yours").name == "b"


def test_a_daemon_that_was_started_again_has_lost_its_rooms():
    directory = filled(a=1000)
    directory.place("room", "a", now=0)
    directory.register({"a": Member("http://elsewhere")}, now=1)
    with pytest.raises(LostRoomError):
        directory.find("room")
    assert not directory.candidates(), "the new one has not answered yet"


def test_rooms_of_other_ingresses_are_found_and_ended_ones_forgotten():
    directory = filled(a=1000)
    directory.answered("a", Report(1000, 800, frozenset({"theirs"})), asked_at=1, now=1)
    assert directory.find("theirs").name == "a"
    directory.answered("a", Report(1000, 1000), asked_at=2, now=2)
    with pytest.raises(NoRoomError):
        directory.find("theirs")


def test_an_answer_from_before_a_room_was_made_does_not_end_it():
    directory = filled(a=1000)
    directory.place("room", "a", now=2.0)
    directory.answered("a", Report(1000, 1000), asked_at=1.9, now=2.1)
    assert directory.find("room").name == "a"
    directory.answered("a", Report(1000, 1000), asked_at=2.9, now=3.1)
    with pytest.raises(NoRoomError):
        directory.find("room")


def test_lost_rooms_are_remembered_up_to_a_number(monkeypatch):
    monkeypatch.setattr(module, "LOST_ROOMS", 3)
    directory = filled(a=1000)
    for number in range(5):
        directory.place(str(number), "a", now=0)
    directory.refused("a")
    found = []
    for number in range(5):
        with pytest.raises((LostRoomError, NoRoomError)) as error:
            directory.find(str(number))
        found.append(error.type)
    assert found == [NoRoomError] * 2 + [LostRoomError] * 3


steps = st.lists(
    st.tuples(st.sampled_from(["place", "forget", "lose", "join", "report"]), st.integers(0, 3), st.integers(0, 9))
)


@given(steps)
def test_a_room_is_never_in_two_places(taken):
    directory = filled(r0=1000, r1=1000, r2=1000, r3=1000)
    for now, (step, number, room) in enumerate(taken):
        name = f"r{number}"
        if step == "place":
            directory.forget(str(room))  # ids are never given twice
            directory.place(str(room), name, now)
        elif step == "forget":
            directory.forget(str(room))
        elif step == "lose":
            directory.refused(name)
        elif step == "join":
            directory.register({f"r{k}": Member(f"http://r{k}") for k in range(4)}, now)
        else:
            there = next((frozenset(r.rooms) for r in directory.replicas if r.name == name), frozenset())
            directory.answered(name, Report(1000, 500, there), asked_at=now, now=now)
        rooms = [room for replica in directory.replicas for room in replica.rooms]
        assert len(rooms) == len(set(rooms))
        for replica in directory.replicas:
            assert all(directory.find(room) is replica for room in replica.rooms)
