# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""See _maglev.pyi."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc


cdef uint64_t _hash(bytes name, uint64_t seed):
    """FNV-1a, then a finalizer, since names differ in few bits and both a high and a low part of the hash are used."""
    cdef const unsigned char[:] data = name
    cdef uint64_t value = 0xCBF29CE484222325ULL ^ seed
    cdef Py_ssize_t index
    for index in range(data.shape[0]):
        value = (value ^ data[index]) * 0x100000001B3ULL
    value = (value ^ (value >> 33)) * 0xFF51AFD7ED558CCDULL
    value = (value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53ULL
    return value ^ (value >> 33)


cdef struct Chooser:
    uint32_t slot
    uint32_t skip
    uint64_t weight
    uint64_t due


cdef void _fill(Chooser *choosers, Py_ssize_t count, uint64_t heaviest, int32_t *slots, uint32_t size) noexcept nogil:
    """Each round the heaviest has a turn, and another one as soon as its weights so far add up to the heaviest's."""
    cdef uint32_t filled = 0
    cdef Py_ssize_t index
    cdef Chooser *chooser
    while True:
        for index in range(count):
            chooser = &choosers[index]
            chooser.due += chooser.weight
            if chooser.due < heaviest:
                continue
            chooser.due -= heaviest
            while slots[chooser.slot] >= 0:
                chooser.slot = (chooser.slot + chooser.skip) % size
            slots[chooser.slot] = <int32_t>index
            filled += 1
            if filled == size:
                return


def table(names, weights, size):
    cdef Py_ssize_t count = len(names), index
    cdef uint32_t room
    cdef uint64_t heaviest = 0
    if not count or len(weights) != count or size < 2 or min(weights) < 1:
        raise ValueError(f"{count} names with {len(weights)} weights in {size} slots: weights are positive, one a name")
    room = size
    cdef Chooser *choosers = <Chooser *>calloc(count, sizeof(Chooser))
    cdef int32_t *slots = <int32_t *>malloc(room * sizeof(int32_t))
    if choosers == NULL or slots == NULL:
        free(choosers)
        free(slots)
        raise MemoryError
    try:
        for index in range(count):
            choosers[index].slot = <uint32_t>(_hash(names[index], 0) % room)
            choosers[index].skip = <uint32_t>(_hash(names[index], 0x9E3779B97F4A7C15ULL) % (room - 1) + 1)
            choosers[index].weight = weights[index]
            heaviest = max(heaviest, choosers[index].weight)
        for index in range(room):
            slots[index] = -1
        with nogil:
            _fill(choosers, count, heaviest, slots, room)
        return [slots[index] for index in range(room)]
    finally:
        free(choosers)
        free(slots)
