"""What a compiled decode step works on: one array of words that says where everything lies."""

from __future__ import annotations

import numpy as np
from numba import carray, types

from .jit_numba import chosen, jit, pointer

TILE = 32
"""Tokens of a cluster whose logits are held at once."""
LINE = 64
"""Bytes of a cache line."""
PIECES = 8
"""Pieces of work per thread where clusters are read: a thread that is done takes another's."""
DROPPED, RETRIEVED, ESTIMATED = np.arange(3, dtype=np.int32)
NONE, ONE = np.int64(0), np.int64(1)
NOTHING = np.float32(-1e30)
"""Log of a mass that counts beside no other."""
# What a step works on is one int64 array, `w`: numbers first, then three words for each array
# (address, rows, columns). Handing dozens of arrays to every function would take minutes to
# compile; so would Python integers as names, because numba compiles anew for each.
BY_HEAD = np.int64(0)  # whether threads take heads, or tasks of passes BEGIN ... END - 1
BEGIN = np.int64(1)
END = np.int64(2)
GIVE_WAY = np.int64(3)  # address of what lets other threads go first
FAILED = np.int64(4)  # whether memory was missing
KV_HEADS = np.int64(5)
GROUP = np.int64(6)
DIM = np.int64(7)
SEGMENTS = np.int64(8)
PARTS = np.int64(9)
GROUPS = np.int64(10)
SINGLES = np.int64(11)
SCALED = np.int64(12)
TWO_LEVEL = np.int64(13)
WHOLE = np.int64(14)
SECOND_ORDER = np.int64(15)
FLOOR = np.int64(16)
LEAST = np.int64(17)
Q_AT = np.int64(18)  # address of [Hq, D], Q_CODE its dtype: 0 float32, 1 bfloat16, 2 float16
Q_CODE = np.int64(19)
STEADY_TOKENS = np.int64(20)
STEADY_STRIDE = np.int64(21)  # bytes from one head's keys (or values) to the next one's
STEADY_K = np.int64(22)  # addresses of [H, STEADY_TOKENS, D]
STEADY_V = np.int64(23)
TABLE = np.int64(24)  # int64 [S, columns]: `SegmentTable.rows`
Q = np.int64(27)  # float32 [Hq, D], the scale in it
NORMS = np.int64(30)  # float32 [1, Hq]: squares of their lengths
STEADY_LSE = np.int64(33)  # float32 [1, Hq]
LOGS = np.int64(36)  # float32 [1, n]: log of 0 ... n - 1
RULES = np.int64(39)  # float64 [1, 18]: DESCEND ... below
COARSE_MASS = np.int64(42)  # float32 [H * G, groups]: log masses
COARSE_RANK = np.int64(45)  # float32 [H, groups]
COARSE_SIZE = np.int64(48)  # int32 [H, groups]: tokens
COARSE_ZONE = np.int64(51)  # int32 [H, groups]: RETRIEVED is descended into
SINGLE_MASS = np.int64(54)  # float32 [H * G, singles]
FINE_MASS = np.int64(57)  # float32 [H * G, candidates]: log masses; the singles come last
RANK = np.int64(60)  # float32 [H, candidates]
SIZE = np.int64(63)  # int32 [H, candidates]: tokens
ZONE = np.int64(66)  # int32 [H, candidates]
SEGMENT = np.int64(69)  # int32 [H, candidates]: where a candidate is
CLUSTER = np.int64(72)  # int32 [H, candidates]
# int64 [H, 7]: grouped candidates, candidates, tokens to take, clusters, tokens, sharp or not,
# and the retrieved candidate of highest rank, -1 for none
FOUND = np.int64(75)
Z = np.int64(78)  # float32 [H, G]: log of the whole mass
BUCKET_TOKENS = np.int64(81)  # int64 [H, BUCKETS]
BUCKET_NUMBER = np.int64(84)  # int64 [H, BUCKETS]
BUCKET_MASS = np.int64(87)  # float64 [H, BUCKETS]
PART_TOP = np.int64(90)  # float32 [T, G]; T = H * PARTS; masses and sums are relative to e^top
PART_MASS = np.int64(93)  # float32 [T, G]
PART_EXACT = np.int64(96)  # float32 [T, G]
PART_SUM = np.int64(99)  # float32 [T * G, D]
PART_SCORES = np.int64(102)  # float32 [T * G, TILE]
PART_ROWS = np.int64(105)  # float32 [T * TILE, D]: rows of int4, decoded
PART_BYTES = np.int64(108)  # int64 [1, T]
OUT = np.int64(111)  # float32 [Hq, D]
EXACT = np.int64(114)  # float32 [1, Hq]
TOKENS = np.int64(117)  # int64 [1, H]: retrieved
BYTES = np.int64(120)  # int64 [1, H]
# int64 [T * 10, 2 * TILE]: of two tiles addresses of keys, values, scales, columns, addresses
PART_AT = np.int64(123)
LSE_EXACT = np.int64(126)  # float32 [1, Hq]
# int64 [1, 2 + 3 * H]: tasks (or heads) that are taken, and done; whether a head's clusters are
# chosen, its parts that are taken, and done
PROGRESS = np.int64(129)
Q_TURNED = np.int64(132)  # float32 [Hq, D]: `rotate` of Q, for int4
Q_WHOLE = np.int64(135)  # int16 [Hq, D]: Q in steps of Q_STEP
Q_STEP = np.int64(138)  # float32 [1, Hq]
# int64 [H, candidates]: addresses of the retrieved; no rows where all are where the table says
PLACE = np.int64(141)
LSE = np.int64(144)  # float32 [1, Hq]: log of the whole mass
PART_LINE = np.int64(147)  # float32 [T * 2, TILE]: the heaviest weight, factors, of each column
PART_SHARED = np.int64(150)  # float32 [T, G]: a number for each query
# float32 [H * G, groups]: masses of what is estimated, relative to e^COARSE_TOP, else 0
COARSE_SHARE = np.int64(153)
COARSE_TOP = np.int64(156)  # float32 [H, G]
FINE_SHARE = np.int64(159)  # float32 [H * G, candidates]: the same of the candidates
FINE_TOP = np.int64(162)  # float32 [H, G]
FINE_LOGIT = np.int64(165)  # float32 [H * G, candidates]: queries times centroids
COARSE_SPREAD = np.int64(168)  # float32 [H, S]: spreads of a segment's groups, summed
PART_CENTRE = np.int64(171)  # float32 [T * 2 * G, 2 * TILE]: of two tiles logits of centres
WORDS = 174
# Of RULES.
DESCEND, SURE, SHARE_TOKENS, SHARP_TOKENS = np.arange(4)
SHARE_CLUSTERS, EPSILON, SHARE_ESTIMATED, SEEN_SUMS = np.arange(4, 8)
LEAST_GROUPS, MOST, SCALE, SHARP_DESCEND = np.arange(8, 12)
SEEN_VALUES, FROZEN, CALM, FLAT, FLAT_DESCEND, FLAT_TOKENS = np.arange(12, 18)
# Columns of TABLE.
FINE, COARSE = np.int64(0), np.int64(4)  # centroids, value sums, scales, spreads
STARTS, OFFSETS, MEAN, BLOCKS = np.arange(8, 12)
S_CLUSTERS, S_GROUPS, S_SINGLES, S_TOKENS, S_GROUPS_BEFORE, S_SINGLES_BEFORE = np.arange(12, 18)


@jit()
def f4(w, name):
    return carray(pointer(w[name]), (w[name + 1], w[name + 2]), np.float32)


@jit()
def f8(w, name):
    return carray(pointer(w[name]), (w[name + 1], w[name + 2]), np.float64)


@jit()
def i2(w, name):
    return carray(pointer(w[name]), (w[name + 1], w[name + 2]), np.int16)


@jit()
def i4(w, name):
    return carray(pointer(w[name]), (w[name + 1], w[name + 2]), np.int32)


@jit()
def i8(w, name):
    return carray(pointer(w[name]), (w[name + 1], w[name + 2]), np.int64)


@jit()
def rows_of(w, h, address, rows, kind):
    """[rows, D] of KV head h of an array [H, rows, D]; `kind` is an empty array of its dtype."""
    at = address + h * rows * w[DIM] * kind.itemsize
    return carray(pointer(at), (rows, w[DIM]), kind.dtype)


@jit()
def runs_of(w, h, s):
    """`starts` and `group_offsets` of KV head h of segment s."""
    table = i8(w, TABLE)
    n, m = table[s, S_CLUSTERS] + 1, table[s, S_GROUPS] + 1
    starts = carray(pointer(table[s, STARTS] + h * n * 4), n, np.int32)
    offsets = carray(pointer(table[s, OFFSETS] + h * m * 4), m, np.int32)
    return starts, offsets


@jit()
def scales_of(w, h, address, rows):
    """[rows, 2] of KV head h; not to be read unless w[SCALED]."""
    return carray(pointer(address + h * rows * 4), (rows, 2), np.uint16)


def is_int4(stored):
    """Whether an empty array stands for the int4 codec; known when compiling."""
    raise NotImplementedError


@chosen(is_int4)
def _is_int4(stored):
    if stored.dtype == types.uint8:
        return lambda stored: True
    return lambda stored: False


@jit()
def is_plain(stored):
    """Whether an empty array stands for a codec without loss; known when compiling."""
    return stored.itemsize > 1


@jit()
def group_dims(dim):
    """`group_dims` of the reference."""
    return min(dim & -dim, 32)


@jit()
def row_bytes(w, stored):
    """Of a stored key or value, without its scales: `Codec.row_bytes`."""
    return w[DIM] // 2 if is_int4(stored) else w[DIM] * stored.itemsize


@jit()
def scale_bytes(w, stored):
    """Of its scales: `Codec.scale_bytes`."""
    if is_plain(stored):
        return NONE
    return 2 * (w[DIM] // group_dims(w[DIM])) if is_int4(stored) else 2 * ONE
