"""Batches of nftables elements, as messages in memory."""

from __future__ import annotations

import struct

import pytest

from kernelet.ext.nft import AF_INET, Batch, pad

KEY = bytes((10, 96, 0, 1)) + pad(b"\x06") + pad(b"\x00\x50")


def messages(batch: Batch) -> list[tuple[int, bytes]]:
    """(type, whole message) of each netlink message."""
    data, found = batch.content(), []
    while data:
        length, kind = struct.unpack_from("=IH", data)
        found.append((kind, data[:length]))
        data = data[length:]
    return found


def test_fields_are_padded_to_four_bytes() -> None:
    assert [pad(b""), pad(b"\x06"), pad(b"abcd"), pad(b"abcde")] == [b"", b"\x06\0\0\0", b"abcd", b"abcde\0\0\0"]


def test_an_element_is_laid_out_as_nft_lays_it_out() -> None:
    batch = Batch()
    data = bytes.fromhex("0af400051f900000")
    assert batch.add_elements("kernelet", AF_INET, "backends", [(KEY + b"\x01\0\0\0", data)]) == 1
    (_, begin), (kind, message) = messages(batch)
    assert struct.unpack_from("=IHH", begin) == (20, 0x10, 1)
    assert kind == 10 << 8 | 12
    # What `nft add element ip kernelet backends { 10.96.0.1 . tcp . 80 . 1 : 10.244.0.5 . 8080 }` sends.
    element = "2c00018018000180140001000a600001060000000050000001000000100002800c0001000af400051f900000"
    assert message[20:] == bytes.fromhex(
        "0d0001006b65726e656c6574000000000d0002006261636b656e64730000000030000380" + element
    )


def test_a_message_is_split_before_its_list_outgrows_sixteen_bits() -> None:
    batch = Batch()
    count = batch.add_elements("t", AF_INET, "s", ((KEY + struct.pack("=I", n), b"\0" * 8) for n in range(5000)))
    assert count == len(batch) == 5000
    sizes = [len(message) for kind, message in messages(batch) if kind == 10 << 8 | 12]
    assert len(sizes) == 4
    assert max(sizes) < 65536
    assert sum(sizes) + 20 == batch.size


def test_nothing_to_add_adds_no_message() -> None:
    batch = Batch()
    assert batch.add_elements("t", AF_INET, "s", []) == batch.delete_elements("t", AF_INET, "s", []) == len(batch) == 0
    assert len(messages(batch)) == 1


@pytest.mark.parametrize("data", ["fly", "goto", "goto ", "drop now"])
def test_text_that_is_no_verdict_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match="is no verdict"):
        Batch().add_elements("t", AF_INET, "s", [(KEY, data)])


def test_keys_beyond_the_kernels_limit_and_wrong_types_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 64"):
        Batch().add_elements("t", AF_INET, "s", [(b"\0" * 65, None)])
    with pytest.raises(TypeError):
        Batch().add_elements("t", AF_INET, "s", [(KEY, 5)])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        Batch().delete_elements("t", AF_INET, "s", ["text"])  # type: ignore[list-item]


def test_a_range_is_laid_out_as_nft_lays_it_out() -> None:
    batch = Batch()
    first, last = KEY + bytes((11, 0, 0, 0)), KEY + bytes((11, 255, 255, 255))
    assert batch.add_elements("kx", AF_INET, "sources", [(first + last, None)], ranges=True) == 1
    # What `nft add element ip kx sources { 10.96.0.1 . tcp . 80 . 11.0.0.0/8 }` sends.
    element = "34000180" + "18000180140001000a60000106000000005000000b000000"
    element += "18000a80140001000a60000106000000005000000bffffff"
    assert messages(batch)[1][1].endswith(bytes.fromhex("38000380" + element))
    with pytest.raises(ValueError, match="two keys"):
        batch.add_elements("kx", AF_INET, "sources", [(KEY + b"x", None)], ranges=True)


def test_a_set_of_ranges_tells_the_lengths_of_its_fields() -> None:
    batch = Batch()
    batch.add_set("kx", AF_INET, "s", 0x1CC347, 16, ranges=(4, 1, 2, 4))
    message = messages(batch)[1][1]
    assert bytes.fromhex("0800030000000084") in message, "interval, concatenation"
    field = "0c000180080001000000000"
    description = "38000980" + "34000280" + field + "4" + field + "1" + field + "2" + field + "4"
    assert bytes.fromhex(description) in message


def test_a_dynamic_map_has_a_size() -> None:
    batch = Batch()
    batch.add_set("kx", AF_INET, "m", 0x1CC347, 16, 23, 4, dynamic=65535)
    message = messages(batch)[1][1]
    assert bytes.fromhex("0800030000000038") in message, "map, timeout, filled by rules"
    assert bytes.fromhex("0c000980080001000000ffff") in message
