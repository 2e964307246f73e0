"""The choice of a backend, run in the kernel without sockets (BPF_PROG_TEST_RUN)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from kernelet.ext import bpf
from kernelet.ext.libbpf import BpfError, Map, Object

ROUTE_MAPS = ("services", "backends", "members", "affinity")
KEY = (b"\xfd" * 16, b"\0P", 6, 0)
SERVICE = bpf.SERVICE_KEY.pack(*KEY)


class Chooser:
    """The program over maps of its own."""

    def __init__(self, loaded: Object) -> None:
        self._program = loaded.program("choose_backend")
        self.maps = {name: loaded.map(name) for name in ROUTE_MAPS}

    def ask(self, client: int = 1) -> tuple[int, int]:
        """The verdict, and the port of the backend, which tells backends apart in here."""
        verdict, answer = self._program.run(bpf.QUESTION.pack(*KEY, 0, client, bytes(16), b"\0\0", 0, 0))
        return verdict, int.from_bytes(bpf.QUESTION.unpack(answer)[-3], "big")

    def hold(self, number: int, count: int, affinity: int = 0, flags: int = 0) -> None:
        self.maps["services"].update(SERVICE, bpf.SERVICE.pack(number, count, affinity, flags, 0, 0))

    def backend(self, number: int, slot: int, port: int) -> None:
        endpoint = bpf.ENDPOINT.pack(bytes(16), port.to_bytes(2, "big"), 0)
        self.maps["backends"].update(bpf.BACKEND_KEY.pack(number, slot), endpoint)
        self.maps["members"].update(number.to_bytes(4, "little") + endpoint, bytes(4))


@pytest.fixture
def chooser() -> Iterator[Chooser]:
    with Object(bpf.CHOOSE) as loaded:
        loaded.load()
        made = Chooser(loaded)
        try:
            yield made
        finally:
            for item in made.maps.values():
                item.close()


def test_an_unknown_service_is_none(chooser: Chooser) -> None:
    assert chooser.ask()[0] == bpf.NO_SERVICE


def test_a_service_that_is_marked_as_gone_is_none(chooser: Chooser) -> None:
    chooser.backend(5, 0, 1000)
    chooser.hold(5, 1, flags=bpf.FLAG_GONE)
    assert chooser.ask()[0] == bpf.NO_SERVICE


def test_a_service_without_backends_refuses(chooser: Chooser) -> None:
    chooser.hold(0, 0)
    assert chooser.ask()[0] == bpf.REFUSED


def test_choices_are_spread_evenly(chooser: Chooser) -> None:
    for slot in range(10):
        chooser.backend(5, slot, 1000 + slot)
    chooser.hold(5, 10)
    tally = Counter(chooser.ask() for _ in range(5000))
    assert set(tally) == {(bpf.CHOSEN, 1000 + slot) for slot in range(10)}
    assert min(tally.values()) > 380 and max(tally.values()) < 620  # 5.6 standard deviations


def test_only_the_current_set_is_chosen_from(chooser: Chooser) -> None:
    chooser.backend(5, 0, 1000)
    chooser.backend(6, 0, 2000)
    chooser.hold(5, 1)
    assert chooser.ask() == (bpf.CHOSEN, 1000)
    chooser.hold(6, 1)
    assert chooser.ask() == (bpf.CHOSEN, 2000)


def test_a_service_whose_backends_are_missing_refuses_rather_than_passes(chooser: Chooser) -> None:
    chooser.hold(5, 3)
    assert chooser.ask()[0] == bpf.REFUSED


def test_affinity_is_per_client_and_ends_with_its_backend(chooser: Chooser) -> None:
    for slot in range(10):
        chooser.backend(5, slot, 1000 + slot)
    chooser.hold(5, 10, affinity=60)
    first = {client: chooser.ask(client) for client in range(50)}
    assert {client: chooser.ask(client) for client in range(50)} == first
    assert len(set(first.values())) > 3
    for slot in range(5):
        chooser.backend(6, slot, 1000 + slot)
    chooser.hold(6, 5, affinity=60)
    after = {client: chooser.ask(client) for client in range(50)}
    assert {port for _, port in after.values()} <= set(range(1000, 1005))
    assert all(after[client] == answer for client, answer in first.items() if answer[1] < 1005)


def test_a_consistent_services_clients_keep_their_slot_without_being_remembered(chooser: Chooser) -> None:
    for slot in range(251):
        chooser.backend(5, slot, 1000 + slot % 5)
    chooser.hold(5, 251, flags=bpf.FLAG_CONSISTENT)
    first = {client: chooser.ask(client) for client in range(500)}
    assert {client: chooser.ask(client) for client in range(500)} == first
    tally = Counter(first.values())
    assert len(tally) == 5
    assert min(tally.values()) > 60
    assert not chooser.maps["affinity"].items()


def test_keys_of_the_wrong_size_never_reach_the_kernel(chooser: Chooser) -> None:
    with pytest.raises(ValueError, match="keys of BPF map services must have 40 bytes"):
        chooser.maps["services"].update_many(2, SERVICE, bytes(32))


def test_a_map_that_is_full_says_so_and_how_far_it_got() -> None:
    with Object(bpf.CHOOSE) as loaded:
        loaded.resize("backends", 16)
        loaded.load()
        with loaded.map("backends") as backends:
            keys = b"".join(bpf.BACKEND_KEY.pack(1, slot) for slot in range(20))
            with pytest.raises(BpfError, match=r"max_entries 16.*of which 16 are written.*the map is full"):
                backends.update_many(20, keys, bytes(20 * bpf.ENDPOINT.size))
            backends.delete_many(20, keys)
            assert backends.read() == (0, b"", b"")


def test_a_map_is_read_whole(chooser: Chooser) -> None:
    backends: Map = chooser.maps["backends"]
    count = backends.info.max_entries
    keys = b"".join(bpf.BACKEND_KEY.pack(1, slot) for slot in range(count))
    backends.update_many(count, keys, bytes(count * bpf.ENDPOINT.size))
    assert {key for key, _ in backends.items()} == {bpf.BACKEND_KEY.pack(1, slot) for slot in range(count)}


def test_what_libbpf_says_is_in_the_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bpf") / "broken.bpf.o"
    path.write_bytes(b"no ELF")
    with pytest.raises(BpfError, match=r"cannot open BPF object.*\n.*libbpf"):
        Object(path)
