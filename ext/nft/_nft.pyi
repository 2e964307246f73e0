"""Public face of the Cython module; the meaning of keys and data is told in the package docstring."""

from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

AF_INET: Final = 2
AF_INET6: Final = 10

def pad(field: bytes) -> bytes:
    """The field padded with zeros to a multiple of four bytes, as nftables concatenates fields."""

class NetlinkError(OSError):
    """The kernel answered with an error; `errno` is its number, the text has what the kernel said about it."""

class Overrun(NetlinkError):
    """Messages were lost (ENOBUFS). For a commit: it may or may not have happened; read back before retrying."""

class ElementError(NamedTuple):
    """What one message of a batch was refused for."""

    errno: int
    message: str
    operation: str
    """"add", "delete", or "batch" for the transaction as a whole."""
    family: int
    table: str
    set_name: str
    key: bytes | None
    """The offending element; None where the kernel did not name it."""
    data: bytes | str | None

class BatchError(NetlinkError):
    """The transaction was refused as a whole and changed nothing; `errno` is the first failure's."""

    failures: tuple[ElementError, ...]

class Batch:
    """One transaction of element changes, built in memory.

    With `generation` the kernel refuses it (ERESTART) when the ruleset has changed since that generation.
    """

    generation: int
    def __init__(self, generation: int = 0) -> None: ...
    def __len__(self) -> int:
        """The number of element operations."""
    @property
    def size(self) -> int:
        """Bytes so far."""
    def content(self) -> bytes:
        """The messages so far, as they would be sent."""
    def add_set(
        self,
        table: str,
        family: int,
        set_name: str,
        key_type: int,
        key_length: int,
        data_type: int | Literal["verdict"] | None = None,
        data_length: int = 0,
        counter: bool = False,
        dynamic: int = 0,
        ranges: Sequence[int] = (),
    ) -> None:
        """Makes a set, or with `data_type` a map, unless one just like it is there (EEXIST for one that differs).

        With `counter` every element counts the packets that matched it. With `dynamic` rules add elements that time
        out, at most so many. With `ranges`, the lengths of the key's fields in bytes before padding, elements are
        ranges in each field.

        Types are nft's datatype numbers, six bits for each field of a concatenation; lengths are bytes after padding.
        The kernel ignores the numbers: nft reads them to print elements and to check rules.
        """
    def add_elements(
        self,
        table: str,
        family: int,
        set_name: str,
        items: Iterable[tuple[bytes, bytes | str | None]],
        set_id: int = 0,
        ranges: bool = False,
    ) -> int:
        """Adds elements to a set or map; returns how many. `set_id` names a set made in the same transaction.

        With `ranges` a key is two: the range's first and its last. Ranges must not overlap (EEXIST, ENOTEMPTY).

        Raises ValueError for a verdict that is not one, TypeError for other data.
        """
    def delete_elements(
        self,
        table: str,
        family: int,
        set_name: str,
        keys: Iterable[bytes],
        set_id: int = 0,
        ranges: bool = False,
    ) -> int:
        """Deletes elements by key; returns how many. A missing one fails the transaction with ENOENT."""
    def add_rule(self, table: str, family: int, chain: str, expressions: Iterable[bytes]) -> None:
        """Appends a rule to a chain that exists; expressions.py makes what it does."""

class Socket:
    """A netlink socket in the network namespace the calling thread is in when it is made. Not thread-safe."""

    def __init__(self, timeout: float = 10.0) -> None:
        """Raises NetlinkError where the kernel has no nfnetlink. `timeout`: seconds to wait for an answer."""
    @property
    def portid(self) -> int:
        """The netlink port, which the kernel puts on the events that this socket's transactions cause."""
    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def __enter__(self) -> Socket: ...
    def __exit__(self, *exc: object) -> None: ...
    def commit(self, batch: Batch) -> None:
        """Sends the batch as one transaction and reads all answers. An empty batch is not sent.

        Raises BatchError (nothing changed), Overrun (unknown: read back), TimeoutError.
        """
    def elements(self, table: str, family: int, set_name: str) -> dict[bytes, bytes | str | None]:
        """Keys and data of all elements of a set or map. Raises NetlinkError (ENOENT for a missing one).

        The key of a range is two: its first and its last.
        """
    def counters(self, table: str, family: int, set_name: str) -> list[tuple[bytes, int, int]]:
        """(key, packets, bytes) of every element that has a counter."""
    def rules(self, table: str, family: int) -> list[tuple[str, int, bytes]]:
        """(chain, handle, the rule's attributes as the kernel sent them), in order; [] for a missing table."""
    def generation(self) -> int:
        """The ruleset's generation id in this network namespace."""
    def dump(self, message: int, family: int, payload: bytes) -> list[bytes]:
        """Answers to a dump request, each without its netlink header (they begin with nfgenmsg).

        `message` is `subsystem << 8 | type`. Repeats a dump that a concurrent change made inconsistent.
        """
    def request(self, message: int, flags: int, family: int, payload: bytes) -> None:
        """One request outside a transaction, acknowledged. Raises NetlinkError."""

class Change(NamedTuple):
    """One object changed; `kind` is "table", "chain", "rule", "set", "element", "object" or "flowtable"."""

    kind: str
    removed: bool
    family: int
    table: str
    name: str
    """The set of an element, the chain of a rule; "" otherwise."""
    portid: int

class Generation(NamedTuple):
    """A transaction was committed: ends the changes before it."""

    generation: int
    pid: int
    process: str
    portid: int

class Events:
    """A subscription to nftables' change notifications in the current network namespace."""

    def __init__(self, ignore: Socket | None = None) -> None:
        """`ignore`'s own transactions are filtered out in the kernel, so that they never wake the reader."""
    def fileno(self) -> int:
        """For asyncio's add_reader; readable when `read` has something."""
    def read(self) -> list[Change | Generation]:
        """What has happened since the last read, without waiting; runs of equal changes are given once.

        Raises Overrun when notifications were lost.
        """
    def pause(self) -> None:
        """Leaves the group: while nobody listens the kernel commits large transactions several times faster."""
    def resume(self) -> None:
        """Joins it again. Whoever pauses must find out by `Socket.generation` whether something was missed."""
    def close(self) -> None: ...
    def __enter__(self) -> Events: ...
    def __exit__(self, *exc: object) -> None: ...
