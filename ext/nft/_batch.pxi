# Part of _nft.pyx: transactions of element changes, written as netlink messages.

cdef inline uint32_t be32(uint32_t value) noexcept nogil:
    return ((value & 0xFF) << 24) | ((value & 0xFF00) << 8) | ((value >> 8) & 0xFF00) | (value >> 24)


cdef class _Buffer:
    """A growing byte buffer that netlink messages are written into."""

    cdef char* data
    cdef size_t used
    cdef size_t room

    def __dealloc__(self):
        free(self.data)

    cdef int reserve(self, size_t more) except -1:
        cdef size_t wanted
        cdef char* moved
        if self.used + more <= self.room:
            return 0
        wanted = max(2 * self.room, self.used + more, <size_t>4096)
        moved = <char*>realloc(self.data, wanted)
        if moved == NULL:
            raise MemoryError(f"no memory for a netlink batch of {wanted} bytes")
        self.data, self.room = moved, wanted
        return 0

    cdef int attribute(self, uint16_t kind, const char* value, size_t length) except -1:
        cdef size_t padded = (length + 3) & ~<size_t>3
        self.reserve(4 + padded)
        (<uint16_t*>(self.data + self.used))[0] = <uint16_t>(4 + length)
        (<uint16_t*>(self.data + self.used))[1] = kind
        memcpy(self.data + self.used + 4, value, length)
        memset(self.data + self.used + 4 + length, 0, padded - length)
        self.used += 4 + padded
        return 0

    cdef int raw(self, bytes content) except -1:
        """Attributes that are made already, padded each."""
        self.reserve(len(content))
        memcpy(self.data + self.used, <const char*>content, len(content))
        self.used += len(content)
        return 0

    cdef int number(self, uint16_t kind, uint32_t value) except -1:
        value = be32(value)
        return self.attribute(kind, <char*>&value, 4)

    cdef size_t nest(self, uint16_t kind) except 0:
        self.reserve(4)
        (<uint16_t*>(self.data + self.used))[1] = kind | NLA_NESTED
        self.used += 4
        return self.used - 4

    cdef void unnest(self, size_t start) noexcept:
        (<uint16_t*>(self.data + start))[0] = <uint16_t>(self.used - start)

    cdef size_t message(self, uint16_t kind, uint16_t flags, uint32_t sequence, uint8_t family, uint16_t resource):
        """Begins a message; returns its offset, for `finish`. `resource` is nfgenmsg's res_id in network order."""
        cdef size_t start = self.used
        cdef char* head
        self.reserve(HEADER)
        head = self.data + start
        memset(head, 0, HEADER)
        (<uint16_t*>(head + 4))[0] = kind
        (<uint16_t*>(head + 6))[0] = flags
        (<uint32_t*>(head + 8))[0] = sequence
        (<uint8_t*>(head + 16))[0] = family
        (<uint16_t*>(head + 18))[0] = resource
        self.used += HEADER
        return start

    cdef void finish(self, size_t start) noexcept:
        (<uint32_t*>(self.data + start))[0] = <uint32_t>(self.used - start)


cdef class Batch:
    """One transaction of element changes, built in memory."""

    cdef _Buffer buffer
    cdef Py_ssize_t operations
    cdef list messages  # (offset in buffer, operation, family, table, set name), message i has sequence i + 1
    cdef readonly uint32_t generation

    def __init__(self, uint32_t generation=0):
        cdef size_t start
        self.buffer = _Buffer()
        self.operations = 0
        self.messages = []
        self.generation = generation
        start = self.buffer.message(BATCH_BEGIN, NLM_F_REQUEST, 0, 0, be16_subsystem())
        if generation:
            self.buffer.number(1, generation)
        self.buffer.finish(start)

    def __len__(self):
        return self.operations

    @property
    def size(self):
        return self.buffer.used

    def content(self):
        return (<const char*>self.buffer.data)[:self.buffer.used]

    def add_set(self, str table, int family, str set_name, int key_type, int key_length, data_type=None,
                int data_length=0, bint counter=False, uint32_t dynamic=0, ranges=()):
        cdef size_t nested, start = self._begin(NEWSET, NLM_F_CREATE, "add", table, family, set_name)
        cdef uint32_t flags = 0 if data_type is None else SET_MAP
        if dynamic:
            flags |= SET_EVAL | SET_TIMEOUT
        if ranges:
            flags |= SET_INTERVAL | SET_CONCAT
        self.buffer.number(3, flags)
        self.buffer.number(4, key_type)
        self.buffer.number(5, key_length)
        if data_type is not None:
            self.buffer.number(6, DATA_VERDICT if data_type == "verdict" else data_type)
            self.buffer.number(7, data_length)
        # The kernel wants an id, unique in the transaction, by which its messages could refer to the new set.
        self.buffer.number(10, <uint32_t>len(self.messages))
        if dynamic or ranges:
            self._describe(dynamic, ranges)
        if counter:
            nested = self.buffer.nest(17)
            self.buffer.attribute(1, b"counter\0", 8)
            self.buffer.unnest(self.buffer.nest(2))
            self.buffer.unnest(nested)
        self.buffer.finish(start)
        self.operations += 1

    cdef int _describe(self, uint32_t size, fields) except -1:
        """A set's size, and the lengths of its fields where it holds ranges."""
        cdef size_t nested, concatenation, part, described = self.buffer.nest(9)
        if size:
            self.buffer.number(1, size)
        if fields:
            concatenation = self.buffer.nest(2)
            for field in fields:
                part = self.buffer.nest(1)
                self.buffer.number(1, field)
                self.buffer.unnest(part)
            self.buffer.unnest(concatenation)
        self.buffer.unnest(described)
        return 0

    def add_rule(self, str table, int family, str chain, expressions):
        cdef size_t part, nested, start = self._begin(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, "add", table, family, chain)
        cdef bytes content
        nested = self.buffer.nest(4)
        for content in expressions:
            part = self.buffer.nest(1)
            self.buffer.raw(content)
            self.buffer.unnest(part)
        self.buffer.unnest(nested)
        self.buffer.finish(start)
        self.operations += 1

    def add_elements(self, str table, int family, str set_name, items, uint32_t set_id=0, bint ranges=False):
        cdef Py_ssize_t count = 0
        cdef size_t start = 0, nested = 0
        cdef bytes key
        for key, data in items:
            start, nested = self._room(NEWSETELEM, table, family, set_name, set_id, start, nested)
            self._element(key, data, ranges)
            count += 1
        if count:
            self._close(start, nested)
        self.operations += count
        return count

    def delete_elements(self, str table, int family, str set_name, keys, uint32_t set_id=0, bint ranges=False):
        cdef Py_ssize_t count = 0
        cdef size_t start = 0, nested = 0
        cdef bytes key
        for key in keys:
            start, nested = self._room(DELSETELEM, table, family, set_name, set_id, start, nested)
            self._element(key, None, ranges)
            count += 1
        if count:
            self._close(start, nested)
        self.operations += count
        return count

    cdef (size_t, size_t) _room(self, uint16_t kind, str table, int family, str set_name, uint32_t set_id,
                                size_t start, size_t nested):
        """Where the open message and its list begin; opens a new message when there is none or it is full."""
        if nested and self.buffer.used - nested < LIST_ROOM - ELEMENT_ROOM:
            return start, nested
        if nested:
            self._close(start, nested)
        if kind == NEWSETELEM:
            start = self._begin(kind, NLM_F_CREATE, "add", table, family, set_name)
        else:
            start = self._begin(kind, 0, "delete", table, family, set_name)
        if set_id:
            self.buffer.number(4, set_id)
        return start, self.buffer.nest(3)

    cdef size_t _begin(self, uint16_t kind, uint16_t flags, str operation, str table, int family, str set_name):
        """Opens a message that names a set."""
        cdef size_t start = self.buffer.used
        cdef bytes text
        self.messages.append((start, operation, family, table, set_name))
        self.buffer.message(SUBSYSTEM | kind, NLM_F_REQUEST | flags, <uint32_t>len(self.messages), <uint8_t>family, 0)
        text = table.encode() + b"\0"
        self.buffer.attribute(1, text, len(text))
        text = set_name.encode() + b"\0"
        self.buffer.attribute(2, text, len(text))
        return start

    cdef int _close(self, size_t start, size_t nested) except -1:
        self.buffer.unnest(nested)
        self.buffer.finish(start)
        return 0

    cdef int _element(self, bytes key, data, bint ranges) except -1:
        cdef _Buffer out = self.buffer
        cdef size_t element, part, verdict, length = len(key)
        cdef bytes chain
        if ranges:
            if length & 1:
                raise ValueError(f"a range of {length} bytes: it is two keys, the first and the last")
            length >>= 1
        if length > 64:
            raise ValueError(f"element key of {length} bytes: nftables takes at most 64")
        element = out.nest(1)
        part = out.nest(1)
        out.attribute(1, key, length)
        out.unnest(part)
        if ranges:
            part = out.nest(10)
            out.attribute(1, <const char*>key + length, length)
            out.unnest(part)
        if data is not None:
            part = out.nest(2)
            if isinstance(data, bytes):
                if len(<bytes>data) > 64:
                    raise ValueError(f"element data of {len(data)} bytes: nftables takes at most 64")
                out.attribute(1, <bytes>data, len(<bytes>data))
            elif isinstance(data, str):
                code, chain = _verdict(<str>data)
                verdict = out.nest(2)
                out.number(1, <uint32_t><int>code)
                if chain:
                    out.attribute(2, chain, len(chain))
                out.unnest(verdict)
            else:
                raise TypeError(f"element data must be bytes, a verdict or None, not {type(data).__name__}")
            out.unnest(part)
        out.unnest(element)
        return 0

    cdef object _failure(self, uint32_t sequence, int number, str message, long offset):
        """An ElementError for the message with this sequence number, whose attribute at `offset` was refused."""
        cdef const char* base
        cdef Py_ssize_t at, end
        cdef uint16_t length
        if not 1 <= sequence <= len(self.messages):
            return ElementError(number, message, "batch", 0, "", "", None, None)
        start, operation, family, table, set_name = self.messages[sequence - 1]
        base = self.buffer.data + <size_t>start
        end = <Py_ssize_t>(<uint32_t*>base)[0]
        at = HEADER
        while at < end and ((<uint16_t*>(base + at))[1] & NLA_TYPE) != 3:
            at += ((<uint16_t*>(base + at))[0] + 3) & ~3
        at += 4
        while at < end and offset >= at:
            length = (<uint16_t*>(base + at))[0]
            if offset < at + length:
                key, data, _ = _parse_element(base + at + 4, length - 4)
                return ElementError(number, message, operation, family, table, set_name, key, data)
            at += (length + 3) & ~3
        return ElementError(number, message, operation, family, table, set_name, None, None)


cdef uint16_t be16_subsystem() noexcept:
    """nfgenmsg.res_id of batch messages: the nftables subsystem, in network order."""
    return 10 << 8


cdef tuple _verdict(str text):
    """"goto CHAIN" -> (code, chain with its NUL)."""
    word, _, chain = text.partition(" ")
    if chain and word in ("goto", "jump"):
        return (-4 if word == "goto" else -3), chain.encode() + b"\0"
    if text in _VERDICTS:
        return _VERDICTS[text], b""
    raise ValueError(f"{text!r} is no verdict; use 'goto CHAIN', 'jump CHAIN', 'drop', 'accept' or 'return'")
