"""Acknowledgements: who is waited for, and whose word counts."""

from __future__ import annotations

from kernelet.core.routes.acks import AckTable


def table(*nodes: str) -> tuple[AckTable, dict[str, int]]:
    acks = AckTable()
    streams = {node: acks.connect(node) for node in nodes}
    acks.note_version(1)
    return acks, streams


def test_a_live_node_lags_until_it_acknowledged_even_when_it_never_connected() -> None:
    acks, streams = table("a", "b")
    acks.ack("a", streams["a"], 1)
    assert acks.lagging(1, ["a", "b", "never"]) == ["b", "never"]
    assert acks.lagging(1, ["a"]) == []


def test_the_end_of_an_old_stream_does_not_disconnect_a_node_that_is_back() -> None:
    acks, streams = table("a")
    again = acks.connect("a")
    acks.disconnect("a", streams["a"])
    assert acks.nodes["a"].connected
    acks.disconnect("a", again)
    assert not acks.nodes["a"].connected


def test_what_an_old_stream_says_is_not_counted() -> None:
    acks, streams = table("a")
    acks.connect("a")
    acks.ack("a", streams["a"], 1)
    acks.fail("a", streams["a"], "late")
    assert acks.lagging(1, ["a"]) == ["a"]
    assert acks.nodes["a"].error == ""


def test_an_error_stays_until_a_version_is_held() -> None:
    acks, streams = table("a")
    acks.fail("a", streams["a"], "no room")
    again = acks.connect("a")
    acks.ack("a", again, 0)
    assert acks.nodes["a"].error == "no room"
    acks.ack("a", again, 1)
    assert acks.nodes["a"].error == ""
    assert acks.lag_seconds("a") == 0


def test_a_node_that_is_no_member_any_more_is_forgotten_once_its_stream_has_ended() -> None:
    acks, streams = table("a")
    acks.forget("a")
    acks.ack("a", streams["a"], 1)
    assert acks.lagging(1, ["a"]) == []
    acks.disconnect("a", streams["a"])
    acks.forget("a")
    assert not acks.nodes
