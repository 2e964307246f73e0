# Part of _nft.pyx: what the kernel answers, made into Python values.

cdef tuple _parse_element(const char* base, Py_ssize_t size):
    """(key, data, counter) of one list element's attributes; the key of a range is its first and its last."""
    cdef Py_ssize_t at = 0
    cdef uint16_t length, kind
    cdef object key = None, data = None, counter = None, last = None
    while at + 4 <= size:
        length = (<uint16_t*>(base + at))[0]
        kind = (<uint16_t*>(base + at))[1] & NLA_TYPE
        if length < 4 or at + length > size:
            break
        if kind == 1 and length > 8:
            key = _inner(base + at)
        elif kind == 2 and length > 8:
            if ((<uint16_t*>(base + at + 4))[1] & NLA_TYPE) == 1:
                data = _inner(base + at)
            else:
                data = _parse_verdict(base + at + 8, (<uint16_t*>(base + at + 4))[0] - 4)
        elif kind == 10 and length > 8:
            last = _inner(base + at)
        elif kind == 7:
            counter = (base + at + 4)[:length - 4]
        at += (length + 3) & ~3
    return (key if last is None else key + last), data, counter


cdef inline bytes _inner(const char* attribute):
    """The value of the attribute that is nested in this one."""
    return PyBytes_FromStringAndSize(attribute + 8, (<uint16_t*>(attribute + 4))[0] - 4)


cdef str _parse_verdict(const char* base, Py_ssize_t size):
    values = _attributes((<const char*>base)[:size])
    code = struct.unpack(">i", values[1])[0]
    return _VERDICT_NAMES.get(code, f"verdict {code}") + values.get(2, b"").rstrip(b"\0").decode()


cdef dict _attributes(bytes payload):
    """Attribute type -> value of a flat attribute list; the last one of a type wins."""
    cdef const char* base = payload
    cdef Py_ssize_t at = 0, size = len(payload)
    cdef uint16_t length
    cdef dict found = {}
    while at + 4 <= size:
        length = (<uint16_t*>(base + at))[0]
        if length < 4 or at + length > size:
            break
        found[(<uint16_t*>(base + at))[1] & NLA_TYPE] = payload[at + 4:at + length]
        at += (length + 3) & ~3
    return found


cdef list _messages(bytearray buffer, Py_ssize_t size):
    """(type, flags, sequence, body) of each message in a datagram; a body is what follows nlmsghdr."""
    cdef const char* base = buffer
    cdef Py_ssize_t at = 0
    cdef uint32_t length
    cdef list found = []
    while at + 16 <= size:
        length = (<uint32_t*>(base + at))[0]
        if length < 16 or at + length > size:
            break
        found.append(((<uint16_t*>(base + at + 4))[0], (<uint16_t*>(base + at + 6))[0], (<uint32_t*>(base + at + 8))[0],
                      (base + at + 16)[:length - 16]))
        at += (length + 3) & ~<uint32_t>3
    return found


cdef tuple _error(int flags, bytes body):
    """(errno, kernel's text, offset of the bad attribute or -1) of an NLMSG_ERROR's body."""
    number = -struct.unpack_from("i", body)[0]
    # The request's header follows; its payload does not, since NETLINK_CAP_ACK is set.
    details = _attributes(body[20:]) if flags & NLM_F_ACK_TLVS else {}
    offset = struct.unpack("I", details[2])[0] if 2 in details else -1
    return number, details.get(1, b"").rstrip(b"\0").decode(errors="replace"), offset


cdef Py_ssize_t _collect(bytes body, dict found, bint counters) except -1:
    """Puts the elements in one GETSETELEM answer into `found`; how many there were."""
    cdef const char* base = body
    cdef Py_ssize_t at = 4, size = len(body), end, count = 0
    cdef uint16_t length
    while at + 4 <= size:
        length = (<uint16_t*>(base + at))[0]
        if length < 4 or at + length > size:
            break
        if ((<uint16_t*>(base + at))[1] & NLA_TYPE) == 3:
            end = at + length
            at += 4
            while at + 4 <= end:
                length = (<uint16_t*>(base + at))[0]
                if length < 4 or at + length > end:
                    break
                key, data, counter = _parse_element(base + at + 4, length - 4)
                found[key] = data if not counters else counter
                count += 1
                at += (length + 3) & ~3
            return count
        at += (length + 3) & ~3
    return count


cdef tuple _counter(bytes expression):
    """(packets, bytes) of a counter expression."""
    values = _attributes(_attributes(expression).get(2, b""))
    return struct.unpack(">Q", values[2])[0], struct.unpack(">Q", values[1])[0]


cdef int _parse_events(bytearray buffer, Py_ssize_t size, list found) except -1:
    """Appends Change and Generation of one datagram."""
    cdef const char* base = buffer
    cdef Py_ssize_t at = 0
    cdef uint32_t length
    while at + HEADER <= size:
        length = (<uint32_t*>(base + at))[0]
        if length < HEADER or at + length > size:
            break
        kind = (<uint16_t*>(base + at + 4))[0] & 0xFF
        portid = (<uint32_t*>(base + at + 12))[0]
        values = _attributes((base + at + HEADER)[:length - HEADER])
        if kind == NEWGEN:
            pid = struct.unpack(">I", values[2])[0] if 2 in values else 0
            name = values.get(3, b"").rstrip(b"\0").decode(errors="replace")
            found.append(Generation(struct.unpack(">I", values[1])[0], pid, name, portid))
        elif kind in _KINDS:
            what = _KINDS[kind]
            name = values.get(2, b"").rstrip(b"\0").decode() if what in ("element", "rule", "set") else ""
            table = values.get(1, b"").rstrip(b"\0").decode()
            change = Change(what, kind in _REMOVALS, (<uint8_t*>(base + at + 16))[0], table, name, portid)
            if not found or found[len(found) - 1] != change:
                found.append(change)
        at += (length + 3) & ~<uint32_t>3
    return 0
