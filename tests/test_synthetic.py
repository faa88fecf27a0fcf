"""Drawn lesions: the same every time, plausible, and told apart by nothing but what is drawn."""

import csv
import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skinray import synthetic

PHOTOS = 300


def read_metadata(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw(severity: float, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return synthetic.draw_lesion(severity, patient_seed=seed, lesion_seed=seed + 1, photo_seed=seed + 2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data set of 320 photos, drawn by two processes."""
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.draw_dataset(folder, PHOTOS, seed=5, workers=2)
    return folder


@pytest.fixture(scope="module")
def rows(dataset: Path) -> list[dict[str, str]]:
    return read_metadata(dataset)


def test_same_seed_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    synthetic.draw_dataset(tmp_path / "one", 9, seed=1)
    synthetic.draw_dataset(tmp_path / "two", 9, seed=1, workers=2)
    assert read_bytes(tmp_path / "one") == read_bytes(tmp_path / "two")


def test_other_seed_other_photos_and_names(tmp_path: Path) -> None:
    synthetic.draw_dataset(tmp_path / "one", 5, seed=1)
    synthetic.draw_dataset(tmp_path / "two", 5, seed=2)
    one, two = read_bytes(tmp_path / "one"), read_bytes(tmp_path / "two")
    assert set(one) & set(two) == {"metadata.csv"}
    assert not set(one.values()) & set(two.values())


def test_drawing_again_into_the_same_folder_changes_nothing(tmp_path: Path) -> None:
    synthetic.draw_dataset(tmp_path, 3, seed=1)
    before = read_bytes(tmp_path)
    synthetic.draw_dataset(tmp_path, 3, seed=1)
    assert read_bytes(tmp_path) == before


def test_refuses_a_folder_with_other_photos(tmp_path: Path) -> None:
    synthetic.draw_dataset(tmp_path, 2, seed=1)
    with pytest.raises(FileExistsError, match="other files"):
        synthetic.draw_dataset(tmp_path, 2, seed=2)


@pytest.mark.parametrize(("photos", "workers"), [(0, 1), (-3, 1), (5, 0)])
def test_refuses_counts_below_one(tmp_path: Path, photos: int, workers: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        synthetic.draw_dataset(tmp_path, photos, seed=0, workers=workers)


def test_a_single_photo_is_a_data_set(tmp_path: Path) -> None:
    synthetic.draw_dataset(tmp_path, 1, seed=0)
    assert len(read_metadata(tmp_path)) == len(list((tmp_path / "images").iterdir())) == 1


def test_table_and_photos_agree(dataset: Path, rows: list[dict[str, str]]) -> None:
    image_ids = [row["image_id"] for row in rows]
    assert tuple(rows[0]) == synthetic.METADATA_COLUMNS
    assert len(set(image_ids)) == PHOTOS
    assert image_ids == sorted(image_ids)
    assert {path.name for path in (dataset / "images").iterdir()} == {f"{name}.jpg" for name in image_ids}


def test_values_of_the_table(rows: list[dict[str, str]]) -> None:
    assert {row["label"] for row in rows} == {"benign", "malignant"}
    assert 0.22 < np.mean([row["label"] == "malignant" for row in rows]) < 0.38
    assert {row["sex"] for row in rows} == {"male", "female", ""}
    assert {row["site"] for row in rows} <= {*synthetic.SITES, ""}
    assert all(row["age"] == "" or (5 <= int(row["age"]) <= 90 and int(row["age"]) % 5 == 0) for row in rows)
    for column in ("age", "sex", "site"):
        assert 0 < sum(row[column] == "" for row in rows) < PHOTOS / 5


def test_photos_lesions_and_patients_nest(rows: list[dict[str, str]]) -> None:
    photos_by_lesion, lesions_by_patient = defaultdict(list), defaultdict(set)
    for row in rows:
        photos_by_lesion[row["lesion_id"]].append(row)
        lesions_by_patient[row["patient_id"]].add(row["lesion_id"])
    assert {len(photos) for photos in photos_by_lesion.values()} == {1, 2, 3, 4}
    assert {len(lesions) for lesions in lesions_by_patient.values()} == {1, 2, 3, 4, 5}
    for photos in photos_by_lesion.values():
        assert len({(row["patient_id"], row["label"], row["site"]) for row in photos}) == 1
    for patient_id in lesions_by_patient:
        described = {(row["age"], row["sex"]) for row in rows if row["patient_id"] == patient_id}
        assert len(described) == 1


def test_every_photo_is_a_bare_jpeg_of_one_size(dataset: Path) -> None:
    for path in (dataset / "images").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (600, 450))
            assert not image.getexif()
            assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_photos_of_one_lesion_differ() -> None:
    seeds = {"patient_seed": 1, "lesion_seed": 2}
    first, _ = synthetic.draw_lesion(0.0, **seeds, photo_seed=3)
    second, _ = synthetic.draw_lesion(0.0, **seeds, photo_seed=4)
    assert np.abs(first.astype(float) - second).mean() > 5


@pytest.mark.parametrize("severity", [-4.0, -1.5, 0.0, 1.5, 4.0])
def test_mask_covers_the_lesion(severity: float) -> None:
    for seed in range(0, 60, 10):
        photo, mask = draw(severity, seed)
        assert photo.shape == (450, 600, 3)
        assert photo.dtype == np.uint8
        assert mask.shape == (450, 600)
        assert mask.dtype == np.bool_
        assert 0.04 < mask.mean() < 0.35
        # Around the lesion, but within the circle that a vignette leaves light.
        across, down = np.meshgrid(np.arange(600) - 299.5, np.arange(450) - 224.5)
        skin = ~mask & (np.hypot(across, down) < 225)
        assert photo[mask].mean() < 0.85 * photo[skin].mean()


def test_the_severity_changes_neither_area_nor_pose() -> None:
    for seed in range(0, 40, 10):
        mild, severe = draw(-3.0, seed)[1], draw(3.0, seed)[1]
        assert severe.sum() == pytest.approx(mild.sum(), rel=0.05)
        assert (mild & severe).sum() > 0.6 * mild.sum()


def test_label_cannot_be_told_from_size_colour_or_area(dataset: Path, rows: list[dict[str, str]]) -> None:
    malignant = np.array([row["label"] == "malignant" for row in rows])
    patients = np.array([row["patient_id"] for row in rows])
    paths = [dataset / "images" / f"{row['image_id']}.jpg" for row in rows]
    size = np.array([[path.stat().st_size] for path in paths], dtype=float)
    colour, area = [], []
    for path in paths:
        with Image.open(path) as image:
            image.draft("RGB", (300, 225))
            pixels = np.asarray(image, dtype=float)
        colour.append(pixels.mean(axis=(0, 1)))
        # The lesion as anyone would find it: what is clearly darker than most of the photo.
        green = pixels[..., 1][20:-20, 40:-40]
        area.append([(green < 0.75 * np.median(green)).sum()])
    shortcuts = {"size": size, "colour": np.array(colour), "area": np.array(area, dtype=float)}
    shortcuts["together"] = np.hstack(list(shortcuts.values()))
    for name, features in shortcuts.items():
        for model in (
            make_pipeline(StandardScaler(), LogisticRegression()),
            GradientBoostingClassifier(n_estimators=30, max_depth=2, random_state=0),
        ):
            scores = cross_val_predict(model, features, malignant, groups=patients, cv=GroupKFold(5), method="predict_proba")[
                :, 1
            ]
            assert roc_auc_score(malignant, scores) < 0.7, (name, type(model).__name__)


@pytest.mark.parametrize("how", synthetic.BROKEN_KINDS)
def test_broken_files_cannot_be_decoded(dataset: Path, how: str) -> None:
    data = next((dataset / "images").iterdir()).read_bytes()
    Image.open(io.BytesIO(data)).load()
    broken = synthetic.break_file(data, how)
    assert broken != data
    with pytest.raises(OSError):  # noqa: PT011 - Pillow's UnidentifiedImageError and truncation are both OSErrors
        Image.open(io.BytesIO(broken)).load()


def test_unknown_way_to_break_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="truncated"):
        synthetic.break_file(b"", "burnt")
