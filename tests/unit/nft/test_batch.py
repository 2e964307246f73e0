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
