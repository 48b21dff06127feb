"""What every link does (link.py), whatever is behind it."""

from __future__ import annotations

import pytest
import worlds

from torpor.link.link import ABSENT, ALL, COORDINATOR, Conflict, LinkError, Message, host_topic, matches, quote, unquote


def test_messages_reach_all_one_or_the_coordinator(world: worlds.World) -> None:
    a, b, c = (world.host(name) for name in ("a", "b.example", "c"))
    for host in (a, b, c):
        host.hear(ALL, host_topic(host.link.host))
    b.hear(COORDINATOR)
    # A subscription holds for what is sent after an answer to a question that was asked after it.
    for host in (a, b, c):
        host.get("nothing")
    a.link.publish(ALL, b"to all")
    a.link.publish(host_topic("c"), b"to c")
    c.link.publish(COORDINATOR, b"to the coordinator")
    a.link.publish(host_topic("b.example"), bytes(range(256)) * 1000)
    world.driver.until(lambda: len(b.messages) == 3 and len(c.messages) == 2 and len(a.messages) == 1, "all arrived")
    assert a.messages == [Message("a", ALL, b"to all")]
    assert set(c.messages) == {Message("a", ALL, b"to all"), Message("a", host_topic("c"), b"to c")}
    assert set(b.messages) == {
        Message("a", ALL, b"to all"),
        Message("c", COORDINATOR, b"to the coordinator"),
        Message("a", host_topic("b.example"), bytes(range(256)) * 1000),
    }


def test_messages_of_one_sender_keep_their_order(world: worlds.World) -> None:
    a, b = world.host("a"), world.host("b")
    b.hear(ALL)
    b.get("nothing")
    sent = [f"{n}".encode() for n in range(500)]
    for payload in sent:
        a.link.publish(ALL, payload)
    world.driver.until(lambda: len(b.messages) == len(sent), "all arrived")
    assert b.payloads() == sent


def test_who_has_left_a_topic_hears_no_more(world: worlds.World) -> None:
    a, b = world.host("a"), world.host("b")
    b.hear(ALL, host_topic("b"))
    b.get("nothing")
    b.link.unsubscribe(ALL)
    b.get("nothing")
    a.link.publish(ALL, b"not heard")
    a.link.publish(host_topic("b"), b"heard")
    world.driver.until(lambda: b.messages, "a message")
    assert b.payloads() == [b"heard"]


def test_revisions(world: worlds.World) -> None:
    a, b = world.host("a"), world.host("b")
    assert a.get("x") is None
    first = a.put("x", b"1", expect=ABSENT)
    with pytest.raises(Conflict):
        b.put("x", b"2", expect=ABSENT)
    assert (b.get("x") or ())[1:] == (b"1", first)
    second = b.put("x", b"2", expect=first)
    assert second > first
    with pytest.raises(Conflict):
        a.put("x", b"3", expect=first)
    third = a.put("x", b"4")
    assert third > second
    assert (b.get("x") or ())[1:] == (b"4", third)


def test_what_was_removed_can_be_made_again_once(world: worlds.World) -> None:
    a, b = world.host("a"), world.host("b")
    first = a.put("x", b"1", expect=ABSENT)
    with pytest.raises(Conflict):
        b.delete("x", expect=first + 1)
    b.delete("x", expect=first)
    assert a.get("x") is None
    again = a.put("x", b"2", expect=ABSENT)
    assert again > first
    with pytest.raises(Conflict):
        b.put("x", b"3", expect=ABSENT)
    with pytest.raises(Conflict):
        b.put("x", b"3", expect=first)
    a.delete("x")
    assert b.get("x") is None


def test_an_empty_value_is_a_value(world: worlds.World) -> None:
    a = world.host("a")
    a.put("x", b"")
    assert (a.get("x") or ("", None))[1] == b""


def test_one_of_many_wins(world: worlds.World) -> None:
    hosts = [world.host(name) for name in "abc"]
    answers: list[str] = []
    for _ in range(5):
        for host in hosts:
            host.link.put("race", host.link.host.encode(), lambda _, error: answers.append(str(error)), expect=ABSENT)
    world.driver.until(lambda: len(answers) == 15, "all answers")
    assert answers.count("None") == 1


def test_watching(world: worlds.World) -> None:
    a, b = world.host("a"), world.host("b")
    first = a.put("m.x", b"1")
    b.watch("m.>")
    world.driver.until(lambda: b.told, "what was there already")
    assert b.told == [("m.x", ("m.x", b"1", first))]
    second = a.put("m.y", b"2")
    a.put("other", b"-")
    a.put("m", b"-")
    world.driver.until(lambda: len(b.told) == 2, "what came")
    a.delete("m.x")
    world.driver.until(lambda: len(b.told) == 3, "what went")
    assert b.told[1:] == [("m.y", ("m.y", b"2", second)), ("m.x", None)]
    b.link.unwatch("m.>")
    b.get("nothing")
    a.put("m.z", b"3")
    b.watch("single")
    single = a.put("single", b"4")
    world.driver.until(lambda: len(b.told) == 4, "the single key")
    assert b.told[3] == ("single", ("single", b"4", single))


def test_watching_ends_with_the_last_state(world: worlds.World) -> None:
    a, b = world.host("a"), world.host("b")
    b.watch("n.>")
    errors: list[object] = []
    for n in range(100):
        a.link.put(f"n.{n % 5}", f"{n}".encode(), lambda _result, error: errors.append(error))
    last = {f"n.{n % 5}": f"{n}".encode() for n in range(95, 100)}
    world.driver.until(lambda: {key: entry.value for key, entry in b.told if entry} == last, "the last state")
    world.driver.until(lambda: len(errors) == 100, "all answers")
    assert set(errors) == {None}
    revisions = [entry.revision for key, entry in b.told if entry and key == "n.0"]
    assert revisions == sorted(set(revisions))


def test_too_long(world: worlds.World) -> None:
    a = world.host("a")
    if isinstance(world, worlds.Direct):
        pytest.skip("nothing is too long within a process")
    with pytest.raises(LinkError, match="at most"):
        a.link.publish(ALL, bytes(9 << 20))
    with pytest.raises(LinkError, match="at most"):
        a.put("x", bytes(9 << 20))
    a.put("x", bytes(4 << 20))
    assert len((a.get("x") or ("", b""))[1]) == 4 << 20


def test_the_end_of_a_job(world: worlds.World) -> None:
    a = world.host("a")
    a.put("x", b"1")
    a.ask(a.link.destroy)
    a.close()
    world.hosts.remove(a)
    assert world.host("b").get("x") is None


def test_words() -> None:
    for name in ("h1", "node-1.example.org", "é", "a=b", "_-9", "a b*>"):
        assert unquote(quote(name)) == name
        assert not set(quote(name)) & set(" .*>")
    assert matches("a.b", "a.b") and not matches("a.b", "a.b.c") and not matches("a.b", "a")
    assert matches("a.>", "a.b") and matches("a.>", "a.b.c") and not matches("a.>", "a") and not matches("a.>", "ab")
