"""Near duplicates: copies are found whatever was done to them, other photos are not, and no pair is missed."""

import io
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skinray import duplicates
from skinray.duplicates import FINGERPRINT_BYTES, FINGERPRINT_INPUT, clusters, find_duplicates, fingerprint, near_duplicates
from skinray.images import decode_photo
from skinray.synthetic import draw_dataset

Pixels = npt.NDArray[np.uint8]

CHANGES = {
    "resized": lambda image: (image.resize((image.width // 2, image.height // 2)), 90),
    "squared": lambda image: (image.resize((224, 224)), 90),
    "thumbnail": lambda image: (image.resize((112, 84)), 85),
    "quality 60": lambda image: (image, 60),
    "quality 30": lambda image: (image, 30),
    "mirrored": lambda image: (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 85),
    "upside down": lambda image: (image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), 85),
    "turned": lambda image: (image.transpose(Image.Transpose.ROTATE_90), 85),
    "brighter": lambda image: (image.point(lambda level: min(255, int(level * 1.1))), 85),
    "all at once": lambda image: (image.resize((300, 225)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), 60),
}


def of_bytes(data: bytes) -> bytes:
    return fingerprint(decode_photo(data, FINGERPRINT_INPUT).pixels)


def changed(data: bytes, change: str) -> bytes:
    image, quality = CHANGES[change](Image.open(io.BytesIO(data)).convert("RGB"))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def textured(seed: int) -> Pixels:
    """A photo with something in it at every scale."""
    random = np.random.default_rng(seed)
    levels = sum(np.kron(random.normal(0, 20, (size, size)), np.ones((64 // size, 64 // size))) for size in (4, 8, 16, 32))
    return np.uint8(np.clip(128 + np.repeat(levels[:, :, None], 3, axis=2), 0, 255))


def test_a_fingerprint_is_the_same_every_time_and_of_one_length() -> None:
    pixels = textured(0)
    assert fingerprint(pixels) == fingerprint(pixels.copy())
    assert len(fingerprint(pixels)) == FINGERPRINT_BYTES


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_even_photo_has_no_fingerprint_and_is_like_no_other(level: int) -> None:
    even = np.full((64, 64, 3), level, np.uint8)
    assert fingerprint(even) == b""
    pairs, _ = near_duplicates([b"", b"", fingerprint(textured(1))])
    assert len(pairs) == 0


def test_all_eight_orientations_are_one_photo() -> None:
    pixels = textured(2)
    turned = [np.rot90(pixels, quarter) for quarter in range(4)]
    prints = [fingerprint(np.ascontiguousarray(one)) for one in [*turned, *(one[:, ::-1] for one in turned)]]
    pairs, similarity = near_duplicates(prints)
    assert len(set(clusters(8, pairs).tolist())) == 1
    assert similarity.min() > 0.999


def test_different_photos_are_not_alike() -> None:
    assert len(near_duplicates([fingerprint(textured(seed)) for seed in range(200)])[0]) == 0


def test_the_same_fingerprint_a_thousand_times_is_a_thousand_pairs() -> None:
    pairs, similarity = near_duplicates([fingerprint(textured(3))] * 1000)
    assert len(pairs) == 999
    assert (similarity == 1).all()
    assert len(set(clusters(1000, pairs).tolist())) == 1


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), noise=st.floats(0, 12))
def test_no_pair_is_missed_that_comparing_all_would_find(seed: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    photos = []
    for number in range(12):
        base = textured(number).astype(float)
        photos += [
            base,
            base[:, ::-1] + random.normal(0, noise, base.shape),
            base.transpose(1, 0, 2) + random.normal(0, noise, base.shape),
        ]
    prints = [fingerprint(np.uint8(np.clip(photo, 0, 255))) for photo in photos]
    stored = np.frombuffer(b"".join(prints), np.int8).reshape(len(prints), -1)
    every = np.array(list(combinations(range(len(prints)), 2)))
    coarse, detail = duplicates._correlations(stored[every[:, 0]], stored[every[:, 1]])
    alike = (coarse >= duplicates.SMALLEST_COARSE) & (detail >= duplicates.SMALLEST_DETAIL)
    found, _ = near_duplicates(prints)
    # Equal prints are joined through the first of them only.
    assert clusters(len(prints), found).tolist() == clusters(len(prints), every[alike]).tolist()


def test_many_blocks_find_what_one_block_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    base = [textured(seed).astype(float) for seed in range(150)]
    copies = [base[number] + random.normal(0, 2, base[0].shape) for number in random.integers(0, 150, 100)]
    prints = [fingerprint(np.uint8(np.clip(photo, 0, 255))) for photo in [*base, *copies]]
    whole = near_duplicates(prints)
    small = duplicates._blocks
    monkeypatch.setattr(duplicates, "_blocks", lambda points: small(points, 16))
    pairs, similarity = near_duplicates(prints)
    assert pairs.tolist() == whole[0].tolist()
    np.testing.assert_allclose(similarity, whole[1], rtol=1e-5)
    assert len(pairs) >= 100


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_clusters_are_what_chains_of_pairs_join(pairs: list[tuple[int, int]]) -> None:
    number = clusters(20, pairs).tolist()
    joined = [{position} for position in range(20)]
    for one, other in pairs:
        union = joined[one] | joined[other]
        for member in union:
            joined[member] = union
    assert all((number[a] == number[b]) == (b in joined[a]) for a, b in combinations(range(20), 2))
    assert number[0] == 0
    assert all(one <= max(number[:position], default=-1) + 1 for position, one in enumerate(number))


def test_exact_near_and_listed_pairs_are_told_apart() -> None:
    one, other = fingerprint(textured(5)), fingerprint(textured(6))
    found = find_duplicates(["a", "a", "b", "c", "d", "d"], [one, one, one, other, b"", b""], listed=[(3, 4), (0, 1)])
    pairs = {tuple(pair): kind for pair, kind in zip(found.pairs.tolist(), found.kinds.tolist(), strict=True)}
    assert pairs == {(0, 1): "exact", (0, 2): "near", (3, 4): "listed", (4, 5): "exact"}


def test_nothing_is_no_pair() -> None:
    assert len(find_duplicates([], []).pairs) == 0
    assert len(find_duplicates(["a"], [fingerprint(textured(0))]).pairs) == 0


def test_drawn_lesions_are_not_taken_for_each_other(tmp_path: Path) -> None:
    draw_dataset(tmp_path, 120, seed=11)
    files = sorted((tmp_path / "images").iterdir())
    lesion_of = pd.read_csv(tmp_path / "metadata.csv").set_index("image_id")["lesion_id"]
    pairs, _ = near_duplicates([of_bytes(path.read_bytes()) for path in files])
    assert all(lesion_of[files[one].stem] == lesion_of[files[other].stem] for one, other in pairs)


@pytest.mark.data
def test_planted_copies_of_real_photos_are_found_and_nothing_else(real_data: Path) -> None:
    metadata = pd.read_csv(real_data / "ham10000" / "HAM10000_metadata.csv").sample(700, random_state=0)
    paths = {path.stem: path for path in (real_data / "ham10000").glob("*/*.jpg")}
    contents = [paths[image_id].read_bytes() for image_id in metadata["image_id"]]
    lesions = metadata["lesion_id"].tolist()
    random = Random(0)
    planted = [(random.randrange(len(contents)), change) for change in CHANGES for _ in range(20)]
    prints = [of_bytes(data) for data in contents] + [of_bytes(changed(contents[row], change)) for row, change in planted]
    pairs, _ = near_duplicates(prints)
    number = clusters(len(prints), pairs)
    missed = [change for position, (row, change) in enumerate(planted) if number[row] != number[len(contents) + position]]
    assert len(missed) <= 0.05 * len(planted), missed
    lesion_of = lesions + [lesions[row] for row, _ in planted]
    # Two photos of one lesion may be the same picture; of two lesions they are a false pair.
    false = [(one, other) for one, other in pairs if lesion_of[one] != lesion_of[other]]
    assert len(false) <= 0.05 * len(pairs), false
