"""Photos -> fingerprints -> pairs of near duplicates -> clusters, without comparing every photo with every other.

A fingerprint is a perceptual hash: low frequencies of the photo's brightness. It is the discrete cosine transform of the
classic perceptual hash (pHash), but keeps a byte of each coefficient where pHash keeps the sign, because lesions on smooth
skin have few strong coefficients and the signs of the weak ones are noise. It has three parts, which must all correlate, in
the same one of the eight ways in which a photo can be flipped and turned:

    coarse   8 by 8 frequencies of the whole photo: where it is dark and where bright
    centre   8 by 8 frequencies of its central half: a dermoscope's black rim alone makes different lesions alike as a whole
    detail   what 16 by 16 frequencies add: two round dark lesions are alike in the coarse and differ in the detail
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.csgraph

from skinray.images import Preprocessing

# What photos are decoded to for a fingerprint.
FINGERPRINT_INPUT = Preprocessing(image_size_px=64)

# Copies of HAM10000 photos (resized to a fifth, re-encoded at quality 30, flipped, turned, brightened) correlate at 0.995 and
# 0.97 or more. Of 8 million pairs of its different lesions none but true copies passes 0.982, and the one there has a detail
# of 0.66. tests/test_duplicates.py measures both again.
SMALLEST_COARSE = 0.985
SMALLEST_DETAIL = 0.93

_GRID = 32
_FINE, _COARSE = 16, 8
FINGERPRINT_BYTES = _FINE**2 + _COARSE**2

# Some 100 MB while they are compared.
_PAIRS_AT_ONCE = 50_000

# Grey levels: with less spread than this, what is left of a photo is noise, and every blank photo would equal every other.
_SMALLEST_SPREAD = 1.0
_SMALLEST_DETAIL_SPREAD = 0.5

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG

_Bytes = npt.NDArray[np.int8]
_Floats = npt.NDArray[np.float32]


def _cosines() -> _Floats:
    """The lowest frequencies of the orthonormal DCT-II, float32 [frequencies, grid]."""
    frequency, position = np.meshgrid(np.arange(_FINE), np.arange(_GRID), indexing="ij")
    rows = np.cos(np.pi * (2 * position + 1) * frequency / (2 * _GRID)) * np.sqrt(2 / _GRID)
    rows[0] /= np.sqrt(2)
    cosines: _Floats = rows.astype(np.float32)
    return cosines


_COSINES = _cosines()


class _Part:
    """One part of a fingerprint: which coefficients stand where in it.

    Args:
        start: Its first byte.
        row: Vertical frequency of each coefficient.
        column: Horizontal frequency of each.
    """

    def __init__(self, start: int, row: npt.NDArray[np.int64], column: npt.NDArray[np.int64]) -> None:
        self.row, self.column = row, column
        self.bytes = slice(start, start + len(row))
        position = {place: number for number, place in enumerate(zip(row.tolist(), column.tolist(), strict=True))}
        self._swapped = np.array([position[c, r] for r, c in zip(row.tolist(), column.tolist(), strict=True)])
        # Mirroring left-right turns the sign of every odd column, up-down of every odd row.
        signs = np.stack([np.ones(len(row)), (-1.0) ** column, (-1.0) ** row, (-1.0) ** (row + column)], axis=1)
        self._signs = signs.astype(np.float32)

    def stored(self, spectrum: _Floats, norm: float) -> bytes:
        """The coefficients of a photo as a byte each; all zero for a norm of zero."""
        encoded: bytes = np.rint(spectrum[self.row, self.column] * (127 / norm if norm else 0)).astype(np.int8).tobytes()
        return encoded

    def unit(self, stored: _Bytes) -> _Floats:
        """The coefficients of stored fingerprints as unit vectors (or zero), float32 [rows, coefficients]."""
        values = stored[:, self.bytes].astype(np.float32)
        unit: _Floats = values / np.maximum(np.sqrt(np.einsum("ij,ij->i", values, values)), 1)[:, None]
        return unit

    def correlations(self, one: _Bytes, other: _Bytes) -> _Floats:
        """Of pairs, with one of them in each of eight orientations, float32 [pairs, 8]."""
        left, right = self.unit(one), self.unit(other)
        return np.hstack([(left * right) @ self._signs, (left[:, self._swapped] * right) @ self._signs])


def _square(side: int, start: int) -> _Part:
    row, column = np.divmod(np.arange(side**2), side)
    return _Part(start, row, column)


def _frame(inner: int, outer: int, start: int) -> _Part:
    row, column = np.divmod(np.arange(outer**2), outer)
    beyond = np.maximum(row, column) >= inner
    return _Part(start, row[beyond], column[beyond])


_WHOLE, _CENTRE = _square(_COARSE, 0), _square(_COARSE, _COARSE**2)
_DETAIL = _frame(_COARSE, _FINE, 2 * _COARSE**2)


def fingerprint(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The perceptual hash of one photo.

    Args:
        pixels: uint8 [64, 64, 3], as decoded with `FINGERPRINT_INPUT`.

    Returns:
        `FINGERPRINT_BYTES` bytes, or none for a photo so even that it resembles every other even one.
    """
    brightness = pixels @ _LUMA
    halved = brightness.reshape(_GRID, 2, _GRID, 2).mean(axis=(1, 3))
    whole = _COSINES @ halved @ _COSINES.T
    centre = _COSINES[:_COARSE] @ brightness[16:48, 16:48] @ _COSINES[:_COARSE].T
    whole[0, 0] = centre[0, 0] = 0  # the mean says nothing
    coarse, central = (float(np.linalg.norm(part[:_COARSE, :_COARSE])) for part in (whole, centre))
    if min(coarse, central) < _SMALLEST_SPREAD * _GRID:
        return b""
    detail = float(np.linalg.norm(whole[_DETAIL.row, _DETAIL.column]))
    detail = detail if detail >= _SMALLEST_DETAIL_SPREAD * _GRID else 0.0
    return _WHOLE.stored(whole, coarse) + _CENTRE.stored(centre, central) + _DETAIL.stored(whole, detail)


@dataclass(frozen=True)
class Duplicates:
    """Pairs of photos that show the same.

    Attributes:
        pairs: Their positions, int64 [pairs, 2], the smaller first, sorted.
        kinds: "exact" (the same bytes), "near" (alike to the eye) or "listed" (the data set says so), str [pairs].
        similarity: Smallest correlation of the fingerprints' parts; 1 for exact, NaN for listed; float32 [pairs].
    """

    pairs: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.str_]
    similarity: _Floats


def find_duplicates(hashes: Sequence[str], fingerprints: Sequence[bytes], listed: Sequence[tuple[int, int]] = ()) -> Duplicates:
    """Finds the photos that stand more than once.

    Args:
        hashes: SHA-256 of each photo's bytes.
        fingerprints: `fingerprint` of each photo.
        listed: Positions of pairs that the data set itself lists.

    Returns:
        Every pair of near duplicates; of many photos with the same bytes or fingerprint each one with the first.
    """
    near, similarity = near_duplicates(fingerprints)
    first_with: dict[str, int] = {}
    exact = [
        (first, position)
        for position, one in enumerate(hashes)
        if (first := first_with.setdefault(one, position)) != position and not fingerprints[position]
    ]  # those with a fingerprint are among the near ones
    said = [(min(pair), max(pair)) for pair in listed]
    pairs = np.concatenate([near, np.array([*exact, *said], np.int64).reshape(-1, 2)])
    similarity = np.concatenate([similarity, np.ones(len(exact)), np.full(len(said), np.nan)]).astype(np.float32)
    listed_only = np.arange(len(pairs)) >= len(near) + len(exact)
    hash_of = np.array(hashes, object)
    same_bytes = hash_of[pairs[:, 0]] == hash_of[pairs[:, 1]] if len(pairs) else np.zeros(0, bool)
    kinds = np.where(same_bytes, "exact", np.where(listed_only, "listed", "near"))
    # One line a pair: what is found and listed too counts as found.
    order = np.lexsort((listed_only, pairs[:, 1], pairs[:, 0]))
    pairs, kinds, similarity = pairs[order], kinds[order], similarity[order]
    fresh = np.ones(len(pairs), bool)
    fresh[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return Duplicates(pairs[fresh], kinds[fresh], similarity[fresh])


def near_duplicates(fingerprints: Sequence[bytes]) -> tuple[npt.NDArray[np.int64], _Floats]:
    """Every pair of photos whose fingerprints are alike.

    Candidates are near each other in 30 numbers that flips and turns leave alone. No two photos are farther apart there than
    their fingerprints are, so no pair is missed. Blocks of photos that lie too far apart are not compared at all, the others
    by one matrix product: 40 times faster than a k-d tree's radius search on 40,000 photos, which do not fall into clear heaps.

    Args:
        fingerprints: One a photo; empty ones are like no other.

    Returns:
        Positions, int64 [pairs, 2], the smaller first, sorted; and the smallest correlation of the parts, float32 [pairs].
        Photos with the very same fingerprint are each paired with the first of them only, so that a thousand copies are a
        thousand pairs and not half a million; what is like that first one is like all of them.
    """
    first_with: dict[bytes, int] = {}
    same = [
        (first, position)
        for position, one in enumerate(fingerprints)
        if one and (first := first_with.setdefault(one, position)) != position
    ]
    known = np.array(list(first_with.values()), np.int64)
    found = [np.array(same, np.int64).reshape(-1, 2)]
    alike = [np.ones(len(same), np.float32)]
    stored = np.frombuffer(b"".join(first_with), np.int8).reshape(len(known), FINGERPRINT_BYTES)
    for block in _candidates(stored):
        for start in range(0, len(block), _PAIRS_AT_ONCE):
            candidates = block[start : start + _PAIRS_AT_ONCE]
            coarse, detail = _correlations(stored[candidates[:, 0]], stored[candidates[:, 1]])
            kept = (coarse >= SMALLEST_COARSE) & (detail >= SMALLEST_DETAIL)
            found.append(np.sort(known[candidates[kept]], axis=1))
            alike.append(np.minimum(coarse, detail)[kept])
    pairs, similarities = np.concatenate(found), np.concatenate(alike)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], similarities[order]


def clusters(count: int, pairs: Iterable[tuple[int, int]] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers the connected components: photos that a chain of pairs joins share a number.

    Args:
        count: Number of photos.
        pairs: Positions of photos that belong together.

    Returns:
        int64 [count], numbered in the order of each component's first photo.
    """
    edges = np.array(pairs if isinstance(pairs, np.ndarray) else list(pairs), np.int64).reshape(-1, 2)
    graph = scipy.sparse.coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(count, count))
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    _, first, number = np.unique(component, return_index=True, return_inverse=True)
    rank: npt.NDArray[np.int64] = np.argsort(np.argsort(first))[number]
    return rank


def _candidates(stored: _Bytes) -> Iterator[npt.NDArray[np.int64]]:
    """Pairs that may be alike, int64 [pairs, 2], a block of photos against others at a time, so that memory stays bounded."""
    if len(stored) < 2:
        return
    points = _rotated(np.concatenate([_invariants(stored[start : start + 8192]) for start in range(0, len(stored), 8192)]))
    blocks = _blocks(points)
    lowest = np.stack([points[block].min(axis=0) for block in blocks])
    highest = np.stack([points[block].max(axis=0) for block in blocks])
    # Unit vectors that correlate at c are sqrt(2 - 2c) apart; there are two of them, and coefficients are rounded.
    radius = np.sqrt(2 * 2 * (1 - SMALLEST_COARSE)) + 0.02
    # |a - b|^2 <= r^2 where a.b - |a|^2 / 2 - |b|^2 / 2 >= -r^2 / 2: one matrix product finds them all.
    half, one = (points**2).sum(axis=1, keepdims=True) / 2, np.ones((len(points), 1), np.float32)
    left, right = np.hstack([points, -half, one]), np.hstack([points, one, -half])
    for number, block in enumerate(blocks):
        gap = np.maximum(lowest[number:] - highest[number], lowest[number] - highest[number:])
        near = np.flatnonzero((np.maximum(gap, 0) ** 2).sum(axis=1) <= radius**2)
        others = np.concatenate([blocks[number + step] for step in near])
        for start in range(0, len(others), 8192):
            some = others[start : start + 8192]
            row, column = np.nonzero(left[block] @ right[some].T >= -(radius**2) / 2)
            pairs = np.stack([block[row], some[column]], axis=1)
            # A block meets itself first, and finds each of its pairs twice and every photo once.
            yield pairs[(pairs[:, 0] < pairs[:, 1]) | (start + column >= len(block))]


def _rotated(points: _Floats) -> _Floats:
    """The points along their principal axes, so that a cut along one axis parts as much as it can."""
    _, axes = np.linalg.eigh(np.cov(points[:: max(1, len(points) // 20_000)], rowvar=False))
    rotated: _Floats = points @ axes.astype(np.float32)
    return rotated


def _blocks(points: _Floats, size: int = 512) -> list[npt.NDArray[np.int64]]:
    """Row numbers in blocks of neighbours: halved at the median of the axis of largest spread until small enough."""
    waiting, done = [np.arange(len(points))], []
    while waiting:
        rows = waiting.pop()
        if len(rows) <= size:
            done.append(rows)
            continue
        axis = int(np.argmax(points[rows].var(axis=0)))
        ordered = rows[np.argsort(points[rows, axis], kind="stable")]
        waiting += [ordered[len(rows) // 2 :], ordered[: len(rows) // 2]]
    return done


def _invariants(stored: _Bytes) -> _Floats:
    """Numbers that stay the same under flips and quarter turns, float32 [rows, 30].

    A flip changes signs, a transposition swaps rows and columns: so of each mirrored pair of coefficients the larger and the
    smaller magnitude. Both steps bring two photos closer or leave their distance; leaving coefficients out does, too.
    """
    numbers = []
    for part in (_WHOLE, _CENTRE):
        size = np.abs(part.unit(stored)).reshape(-1, _COARSE, _COARSE)
        for row in range(5):
            for column in range(row, 5 - row):
                one, other = size[:, row, column], size[:, column, row]
                numbers += [one] if row == column else [np.maximum(one, other), np.minimum(one, other)]
    return np.stack(numbers, axis=1)


def _correlations(one: _Bytes, other: _Bytes) -> tuple[_Floats, _Floats]:
    """How alike pairs are in the best of eight orientations.

    Returns:
        The smaller correlation of whole and centre; and, where that is large enough to matter, that of the detail in the
        same orientation, else 0; float32 [pairs] each. The detail counts as alike where a photo has none.
    """
    both = np.minimum(_WHOLE.correlations(one, other), _CENTRE.correlations(one, other))
    best = both.argmax(axis=1)
    coarse: _Floats = both[np.arange(len(both)), best]
    detail = np.zeros(len(one), np.float32)
    rows = np.flatnonzero(coarse >= SMALLEST_COARSE)
    left, right = one[rows], other[rows]
    detail[rows] = _DETAIL.correlations(left, right)[np.arange(len(rows)), best[rows]]
    plain = ~(left[:, _DETAIL.bytes].any(axis=1) & right[:, _DETAIL.bytes].any(axis=1))
    detail[rows[plain]] = 1
    return coarse, detail
