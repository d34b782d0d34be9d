"""Workers that never come, or that no longer take part, are named, within a time limit."""

from __future__ import annotations

import json
import os
import socket
import threading
import time

from lmmbook.engine.parallel import workers

import pytest


def addresses(count: int) -> list[str]:
    """Free ports on the loopback interface."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return found


def config(hosts: list[str], index: int) -> str:
    return json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}})


class Meeting:
    """Workers as threads; what came of it, and after how many seconds."""

    def __init__(self, count: int, patience: float) -> None:
        self.hosts, self.patience = addresses(count), patience
        self.said: dict[int, tuple[str, float]] = {}
        self.threads: list[threading.Thread] = []

    @property
    def first(self) -> tuple[str, int]:
        host, port = self.hosts[0].split(":")
        return host, int(port)

    def start(self, index: int) -> None:
        self.threads.append(threading.Thread(target=self.run, args=[index]))
        self.threads[-1].start()

    def run(self, index: int) -> None:
        began, pairs = time.monotonic(), [host.split(":") for host in self.hosts]
        try:
            workers.together([(host, int(port)) for host, port in pairs], index, self.patience)
            said = "met"
        except RuntimeError as error:
            said = str(error)
        self.said[index] = said, time.monotonic() - began

    def ends(self) -> dict[int, tuple[str, float]]:
        for thread in self.threads:
            thread.join(30)
        return self.said


def test_workers_meet_in_whatever_order_they_come():
    meeting = Meeting(3, patience=20.0)
    for index in (2, 0, 1):
        meeting.start(index)
        time.sleep(0.3)
    said = meeting.ends()
    assert {index: text for index, (text, _) in said.items()} == dict.fromkeys(range(3), "met")
    assert all(seconds < 10 for _, seconds in said.values())
    socket.create_server(meeting.first).close()  # TensorFlow can have it now


def test_who_has_not_come_is_named_on_all_the_others():
    meeting = Meeting(4, patience=1.5)
    for index in (0, 2):
        meeting.start(index)
    said = meeting.ends()
    one, three = meeting.hosts[1], meeting.hosts[3]
    for text, seconds in said.values():
        assert f"expected all 4 workers, but 1 ({one}), 3 ({three}) have not come" in text
        assert "within 1.5 s" in text
        assert 1.4 < seconds < 6
    assert sorted(said) == [0, 2]


def test_without_the_first_the_others_say_so():
    meeting = Meeting(3, patience=1.0)
    meeting.start(1)
    [(text, seconds)] = meeting.ends().values()
    assert f"but 0 ({meeting.hosts[0]}) has not come within 1 s" in text
    assert seconds < 5


def test_a_stranger_is_nobody():
    """Who says nothing that is a number of ours is not counted, and keeps nobody out."""
    meeting = Meeting(2, patience=20.0)
    meeting.start(0)
    time.sleep(0.3)
    for text in (b"GET / HTTP/1.0\r\n\r\n", b"7", b"-1", b""):
        with socket.create_connection(meeting.first) as stranger:
            stranger.sendall(text)
    meeting.start(1)
    assert {text for text, _ in meeting.ends().values()} == {"met"}


@pytest.mark.parametrize(
    "text",
    [
        None, "", "no json", "[]", "{}", config(["127.0.0.1:1"], 1), config(["nowhere"], 0),
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
    ],
)  # fmt: skip
def test_a_configuration_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG: expected the addresses of all workers"):
        workers.meet(0.1)


def test_one_worker_waits_for_nobody(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(["127.0.0.1:1"], 0))
    workers.meet(0.1)
    assert os.environ["TF_CONFIG"]


def test_without_several_workers_nothing_is_watched():
    before = threading.active_count()
    with workers.Watch(None) as watch:
        assert threading.active_count() == before
    assert watch.late is None
