"""Prepare, on drawn and real photos: what is in the shards, what stays where it is, and what leaks."""

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from skinray import outputs, preparation, storage
from skinray.config import PrepareSettings
from skinray.errors import CatalogError, DatasetError, LeakError, OutputExistsError
from skinray.firewall import check_no_leaks
from skinray.preparation import prepare_dataset
from skinray.shards import (
    REJECTED_NAME,
    SHARD_SCHEMA,
    PreparedDataset,
    open_dataset,
    read_photos,
)
from skinray.synthetic import break_file, draw_dataset

pytestmark = pytest.mark.ray


def settings_for(source: Path, output: Path, **changes: Any) -> PrepareSettings:
    return PrepareSettings(
        **{"catalog": "synthetic", "source": str(source), "output": str(output), "validation_fraction": 0.2, "shard_mb": 1.2}
        | changes
    )


def all_rows(dataset: PreparedDataset) -> pd.DataFrame:
    parts = []
    for file in dataset.manifest.files:
        table = pq.read_table(storage.join(dataset.uri, file.path), partitioning=None)
        assert table.schema.equals(SHARD_SCHEMA)
        parts.append(table.to_pandas().assign(split=file.split))
    return pd.concat(parts, ignore_index=True)


def test_every_photo_is_in_the_shards_once_with_its_own_bytes(prepared: PreparedDataset, drawn_photos: Path) -> None:
    rows = all_rows(prepared)
    assert len(rows) == prepared.manifest.rows == 240
    assert rows["image_id"].is_unique
    for row in rows.head(5).itertuples():
        data = (drawn_photos / "images" / f"{row.image_id}.jpg").read_bytes()
        assert row.image_bytes == data
        assert row.image_sha256 == hashlib.sha256(data).hexdigest()
        assert (row.width_px, row.height_px) == (600, 450)


def test_no_patient_or_lesion_stands_on_two_sides(prepared: PreparedDataset) -> None:
    rows = all_rows(prepared)
    for group in ("patient_id", "lesion_id"):
        assert rows.groupby(group)["split"].nunique().max() == 1
        assert rows[rows["split"] != "test"].groupby(group)["fold"].nunique().max() == 1
    assert rows[rows["split"] == "test"]["fold"].isna().all()


def test_the_manifest_counts_and_hashes_what_is_there(prepared: PreparedDataset) -> None:
    counts = all_rows(prepared).groupby(["split", "label"]).size()
    for split, classes in prepared.manifest.split_classes.items():
        for code, count in classes.items():
            assert counts.get((split, code), 0) == count
    for file in prepared.manifest.files:
        data = storage.read_bytes(storage.join(prepared.uri, file.path))
        assert (len(data), storage.sha256_of(data)) == (file.bytes, file.sha256)


def test_a_rerun_writes_the_same_bytes_under_the_same_names(
    prepared: PreparedDataset, drawn_photos: Path, tmp_path: Path
) -> None:
    again = prepare_dataset(settings_for(drawn_photos, tmp_path / "again"))
    assert again.manifest.files == prepared.manifest.files


def test_photos_that_cannot_be_decoded_are_left_out_and_listed(ray_cluster: None, tmp_path: Path) -> None:
    draw_dataset(tmp_path / "photos", 60, seed=3)
    victim = sorted((tmp_path / "photos" / "images").iterdir())[7]
    victim.write_bytes(break_file(victim.read_bytes(), "truncated"))
    dataset = prepare_dataset(settings_for(tmp_path / "photos", tmp_path / "out"))
    assert (dataset.manifest.rows, dataset.manifest.rejected_rows) == (59, 1)
    (rejected,) = storage.read_json(str(tmp_path / "out" / REJECTED_NAME))
    assert (rejected["image_id"], rejected["error_code"]) == (victim.stem, "truncated")
    assert victim.stem not in set(all_rows(dataset)["image_id"])


def test_a_data_set_with_other_settings_is_not_touched(prepared: PreparedDataset, drawn_photos: Path) -> None:
    before = storage.read_bytes(storage.join(prepared.uri, storage.MANIFEST_NAME))
    with pytest.raises(OutputExistsError, match=r"other settings \(seed\): choose another --output"):
        prepare_dataset(settings_for(drawn_photos, Path(prepared.uri), seed=5))
    assert storage.read_bytes(storage.join(prepared.uri, storage.MANIFEST_NAME)) == before


def test_the_same_command_with_nothing_new_changes_nothing(prepared: PreparedDataset, drawn_photos: Path) -> None:
    assert prepare_dataset(settings_for(drawn_photos, Path(prepared.uri))).sha256 == prepared.sha256


def test_what_a_killed_prepare_left_is_no_data_set_and_the_same_command_finishes_it(
    ray_cluster: None, drawn_photos: Path, tmp_path: Path
) -> None:
    settings = settings_for(drawn_photos, tmp_path / "out")
    outputs.claim_folder(settings.output, "dataset", preparation._identity(settings))
    storage.write_bytes(str(tmp_path / "out" / "split=train" / "part-00000.parquet"), b"half a shard")
    with pytest.raises(DatasetError, match="did not finish"):
        open_dataset(settings.output)
    assert prepare_dataset(settings).manifest.rows == 240


def test_a_source_that_is_no_catalog_leaves_nothing_behind(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalogError, match=r"metadata\.csv"):
        prepare_dataset(settings_for(tmp_path / "empty", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_row_groups_are_as_the_manifest_says(prepared: PreparedDataset) -> None:
    assert len(prepared.manifest.files) > 3
    for file in prepared.manifest.files:
        metadata = pq.ParquetFile(storage.join(prepared.uri, file.path)).metadata
        assert tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)) == file.row_groups
        assert sum(file.row_groups) == file.rows
        assert file.bytes < 1.3e6


def test_priors_and_class_weights_are_those_of_training(prepared: PreparedDataset) -> None:
    manifest = prepared.manifest
    counts = manifest.split_classes["train"]
    assert sum(manifest.prior.values()) == pytest.approx(1)
    assert sum(manifest.class_weights[code] * counts[code] for code in counts) == pytest.approx(sum(counts.values()))
    assert len({round(manifest.class_weights[code] * counts[code], 6) for code in counts}) == 1


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    """A source of 120 photos, of which 20 come later; they lie in `later`."""
    draw_dataset(tmp_path / "photos", 120, seed=8)
    metadata = pd.read_csv(tmp_path / "photos" / "metadata.csv")
    metadata.to_csv(tmp_path / "all.csv", index=False)
    # Later come photos of known patients and of new ones, from the middle of the alphabet as well.
    late = metadata["image_id"].iloc[::6]
    metadata[~metadata["image_id"].isin(late)].to_csv(tmp_path / "photos" / "metadata.csv", index=False)
    (tmp_path / "later").mkdir()
    for image_id in late:
        shutil.move(tmp_path / "photos" / "images" / f"{image_id}.jpg", tmp_path / "later")
    return tmp_path


def grow(folder: Path) -> None:
    for path in (folder / "later").iterdir():
        shutil.move(path, folder / "photos" / "images")
    shutil.copy(folder / "all.csv", folder / "photos" / "metadata.csv")


def places(dataset: PreparedDataset) -> dict[str, tuple[str, int | None]]:
    rows = all_rows(dataset)
    folds = [None if pd.isna(fold) else int(fold) for fold in rows["fold"]]
    return dict(zip(rows["image_id"], zip(rows["split"], folds, strict=True), strict=True))


def test_a_grown_source_adds_shards_and_moves_nothing(ray_cluster: None, growing: Path) -> None:
    settings = settings_for(growing / "photos", growing / "out")
    before = prepare_dataset(settings)
    placed = places(before)
    grow(growing)
    after = prepare_dataset(settings)
    assert set(before.manifest.files) < set(after.manifest.files)  # same names, same bytes
    assert after.manifest.rows == 120
    later = places(after)
    assert {image_id: later[image_id] for image_id in placed} == placed
    assert all_rows(after).groupby("patient_id")["split"].nunique().max() == 1
    assert after.manifest.leaks == {}
    assert prepare_dataset(settings).sha256 == after.sha256


def test_growing_that_is_cut_off_leaves_the_data_set_as_it_was(
    ray_cluster: None, growing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(growing / "photos", growing / "out")
    before = prepare_dataset(settings)
    grow(growing)
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "publish_folder", lambda uri, manifest: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_dataset(settings)
    assert open_dataset(settings.output) == before
    assert len(read_photos(before)) == len(all_rows(before)) == 100
    assert prepare_dataset(settings).manifest.rows == 120


def test_a_new_output_keeps_every_photo_where_the_previous_data_set_had_it(ray_cluster: None, growing: Path) -> None:
    placed = places(prepare_dataset(settings_for(growing / "photos", growing / "first")))
    grow(growing)
    # One photo is gone: what was prepared cannot be changed in place.
    metadata = pd.read_csv(growing / "photos" / "metadata.csv")
    gone = next(iter(placed))
    metadata[metadata["image_id"] != gone].to_csv(growing / "photos" / "metadata.csv", index=False)
    with pytest.raises(OutputExistsError, match=f"1 photos .* no longer in the source, the first is '{gone}'.*--previous"):
        prepare_dataset(settings_for(growing / "photos", growing / "first"))
    later = places(prepare_dataset(settings_for(growing / "photos", growing / "second", previous=str(growing / "first"))))
    assert len(later) == 119
    assert {image_id: later[image_id] for image_id in placed if image_id != gone} == {
        image_id: place for image_id, place in placed.items() if image_id != gone
    }


def test_photos_that_were_renamed_keep_their_side(ray_cluster: None, some_jpegs: list[bytes], tmp_path: Path) -> None:
    def source(name: str, first: int) -> Path:
        photos = {f"{'mel' if number % 2 else 'nv'}/{number + first:03d}.jpg": data for number, data in enumerate(some_jpegs)}
        return folders(tmp_path / name, photos)

    def by_content(dataset: PreparedDataset) -> dict[str, str]:
        rows = all_rows(dataset)
        return dict(zip(rows["image_sha256"], rows["split"], strict=True))

    first = prepare_dataset(settings_for(source("one", 0), tmp_path / "first", catalog="folders"))
    again = settings_for(source("two", 1), tmp_path / "second", catalog="folders", previous=first.uri)
    assert by_content(prepare_dataset(again)) == by_content(first)


def test_a_broken_photo_that_is_added_is_said(ray_cluster: None, growing: Path) -> None:
    settings = settings_for(growing / "photos", growing / "out")
    prepare_dataset(settings)
    grow(growing)
    for path in (growing / "photos" / "images").iterdir():
        if path.stem in set(pd.read_csv(growing / "all.csv")["image_id"].iloc[::6]):
            path.write_bytes(b"")
    dataset = prepare_dataset(settings)
    assert (dataset.manifest.rows, dataset.manifest.rejected_rows) == (100, 20)
    assert len(storage.read_json(str(growing / "out" / REJECTED_NAME))) == 20
    assert [path.name for path in (growing / "out").glob("_photos-*")] == [dataset.manifest.photos_path]
    assert prepare_dataset(settings).sha256 == dataset.sha256


def test_what_the_catalog_alone_can_tell_is_told_before_anything_is_written(
    ray_cluster: None, some_jpegs: list[bytes], tmp_path: Path
) -> None:
    source = folders(
        tmp_path / "in", {f"{'mel' if number % 2 else 'nv'}/{number}.jpg": data for number, data in enumerate(some_jpegs)}
    )
    with pytest.raises(CatalogError, match="came without a split"):
        prepare_dataset(settings_for(source, tmp_path / "out", catalog="folders", keep_split=True))
    with pytest.raises(DatasetError, match="run skinray prepare first"):
        prepare_dataset(settings_for(source, tmp_path / "out", catalog="folders", previous=str(tmp_path / "nothing")))
    assert not (tmp_path / "out").exists()


def test_a_photo_that_changed_is_not_prepared_over(ray_cluster: None, growing: Path) -> None:
    settings = settings_for(growing / "photos", growing / "out")
    prepare_dataset(settings)
    victim = next((growing / "photos" / "images").iterdir())
    victim.write_bytes(victim.read_bytes() + b"more")
    with pytest.raises(OutputExistsError, match=f"1 photos .* not what they were, the first is '{victim.stem}'"):
        prepare_dataset(settings)


def folders(root: Path, photos: dict[str, bytes]) -> Path:
    for path, data in photos.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def some_jpegs(drawn_photos: Path) -> list[bytes]:
    """80 photos of 80 lesions."""
    metadata = pd.read_csv(drawn_photos / "metadata.csv").drop_duplicates("lesion_id")
    return [(drawn_photos / "images" / f"{image_id}.jpg").read_bytes() for image_id in metadata["image_id"]][:80]


def copy_of(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).resize((300, 225)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def class_folders(jpegs: list[bytes]) -> dict[str, bytes]:
    """40 photos in Train, 40 in Test, and a copy of the first Train photo in Test, under the other label."""
    photos = {
        f"{'Train' if number < 40 else 'Test'}/{'malignant' if number % 2 else 'benign'}/{number}.jpg": data
        for number, data in enumerate(jpegs)
    }
    return photos | {"Test/malignant/copy.jpg": copy_of(jpegs[0])}


def test_a_split_that_came_with_leaks_is_kept_reported_and_refused(
    ray_cluster: None, some_jpegs: list[bytes], tmp_path: Path
) -> None:
    source = folders(tmp_path / "in", class_folders(some_jpegs))
    settings = {"catalog": "folders", "keep_split": True, "shard_mb": 64}
    dataset = prepare_dataset(settings_for(source, tmp_path / "out", **settings))
    assert dataset.manifest.leaks["duplicate clusters across splits"] == 1
    assert dataset.manifest.findings["conflicts_duplicates"] == 1
    assert {image_id: side for image_id, (side, _) in places(dataset).items() if image_id.startswith("Test")} == {
        path: "test" for path in class_folders(some_jpegs) if path.startswith("Test")
    }
    audit = storage.read_json(storage.join(dataset.uri, "_audit.json"))
    assert [one["image_id"] for one in audit["leaks"][0]["photos"]] == ["Train/benign/0.jpg", "Test/malignant/copy.jpg"]
    with pytest.raises(LeakError, match=r"leaks: 1 duplicate cluster across splits.*--allow-leaks"):
        check_no_leaks(dataset, allowed=False)
    check_no_leaks(dataset, allowed=True)


def test_duplicates_stay_together_in_our_own_split(ray_cluster: None, some_jpegs: list[bytes], tmp_path: Path) -> None:
    photos = {f"benign/{number}.jpg": data for number, data in enumerate(some_jpegs)}
    photos |= {f"malignant/{number}.jpg": copy_of(data) for number, data in enumerate(some_jpegs)}
    dataset = prepare_dataset(settings_for(folders(tmp_path / "in", photos), tmp_path / "out", catalog="folders"))
    placed = places(dataset)
    assert all(placed[f"benign/{number}.jpg"] == placed[f"malignant/{number}.jpg"] for number in range(80))
    assert dataset.manifest.leaks == {}
    assert dataset.manifest.findings["conflicts_duplicates"] == 80


def test_labels_without_a_class_are_an_error_or_dropped_and_counted(
    ray_cluster: None, some_jpegs: list[bytes], tmp_path: Path
) -> None:
    photos = {
        f"{'wart' if number < 5 else 'mel' if number % 2 else 'nv'}/{number}.jpg": data for number, data in enumerate(some_jpegs)
    }
    source = folders(tmp_path / "in", photos)
    with pytest.raises(CatalogError, match=r"'wart' \(5 photos\)"):
        prepare_dataset(settings_for(source, tmp_path / "out", catalog="folders"))
    assert not (tmp_path / "out").exists()
    dataset = prepare_dataset(settings_for(source, tmp_path / "out", catalog="folders", drop_unknown=True))
    assert (dataset.manifest.rows, dataset.manifest.dropped_labels) == (75, {"wart": 5})


def test_a_target_of_the_users_own(ray_cluster: None, some_jpegs: list[bytes], tmp_path: Path) -> None:
    photos = {f"{'Plantar Wart' if number % 2 else 'MEL'}/{number}.jpg": data for number, data in enumerate(some_jpegs)}
    own = {"classes": {"wart": ("plantar wart",), "melanoma": ("mel",)}, "malignant_classes": ("melanoma",), "target": "own"}
    dataset = prepare_dataset(settings_for(folders(tmp_path / "in", photos), tmp_path / "out", catalog="folders", **own))
    assert dataset.manifest.classes == ("wart", "melanoma")
    assert dataset.manifest.malignant == ("melanoma",)
    assert all_rows(dataset)["label"].value_counts().to_dict() == {"wart": 40, "melanoma": 40}


def test_metadata_of_the_photos_is_not_in_the_shards(ray_cluster: None, some_jpegs: list[bytes], tmp_path: Path) -> None:
    def tagged(data: bytes) -> bytes:
        image = Image.open(io.BytesIO(data))
        exif = Image.Exif()
        exif[0x013B] = "Dr. Erika Mustermann"
        exif.get_ifd(0x8825)[2] = (47.0, 30.0, 12.0)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90, exif=exif, comment=b"patient 12345")
        return buffer.getvalue()

    photos = {f"{'mel' if number % 2 else 'nv'}/{number}.jpg": tagged(data) for number, data in enumerate(some_jpegs)}
    dataset = prepare_dataset(settings_for(folders(tmp_path / "in", photos), tmp_path / "out", catalog="folders"))
    assert dataset.manifest.metadata_removed == {"comment": 80, "exif": 80, "gps": 80}
    assert "location" in dataset.manifest.metadata_statement
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"Mustermann" not in data
            assert b"12345" not in data
    for row in all_rows(dataset).itertuples():
        assert not Image.open(io.BytesIO(row.image_bytes)).getexif()
        assert hashlib.sha256(row.image_bytes).hexdigest() == row.image_sha256


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_dicom_photos_of_one_patient_stay_together_and_lose_their_headers(
    ray_cluster: None, some_jpegs: list[bytes], tmp_path: Path
) -> None:
    from pydicom.uid import JPEGBaseline8Bit

    from tests.test_dicom import SECRETS, dicom

    def scan(number: int, data: bytes) -> bytes:
        size = {"Rows": 450, "Columns": 600, "PhotometricInterpretation": "YBR_FULL_422", "SamplesPerPixel": 3}
        told = SECRETS | {"PatientID": f"MRN-{number // 4:05d}", "PatientAge": "045Y", "PatientSex": "F"}
        if number == 7:
            told["BurnedInAnnotation"] = "YES"
        return dicom(data, JPEGBaseline8Bit, **size, **told)

    photos = {f"{'mel' if number % 2 else 'nv'}/{number}.dcm": scan(number, data) for number, data in enumerate(some_jpegs)}
    dataset = prepare_dataset(settings_for(folders(tmp_path / "in", photos), tmp_path / "out", catalog="folders"))
    rows = all_rows(dataset)
    assert len(rows) == 79
    assert storage.read_json(str(tmp_path / "out" / REJECTED_NAME))[0]["error_code"] == "burned_in"
    assert rows["patient_id"].nunique() == 20
    assert rows.groupby("patient_id")["split"].nunique().max() == 1
    assert set(rows["age"]) == {45.0}
    assert set(rows["sex"]) == {"female"}
    assert set(rows["image_bytes"]) <= set(some_jpegs)  # the very JPEG streams
    for path in (tmp_path / "out").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not [secret for secret in [*SECRETS.values(), "MRN-0"] if secret.encode() in data]


def test_an_inventory_that_was_changed_is_refused(ray_cluster: None, prepared: PreparedDataset, tmp_path: Path) -> None:
    shutil.copytree(prepared.uri, tmp_path / "copy")
    (tmp_path / "copy" / prepared.manifest.photos_path).write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match="is not the one that its manifest names"):
        read_photos(open_dataset(str(tmp_path / "copy")))


def test_a_data_set_of_an_older_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / storage.MANIFEST_NAME).write_text(json.dumps({"kind": "skinray-dataset", "schema_version": 1}))
    with pytest.raises(DatasetError, match="schema version 2"):
        open_dataset(str(tmp_path))


@pytest.mark.s3
def test_a_bucket_is_prepared_and_grows_like_a_folder(ray_cluster: None, growing: Path, s3_bucket: str) -> None:
    storage.upload_folder(growing / "photos", f"{s3_bucket}/in")
    settings = settings_for(growing / "photos", growing / "out")
    remote = settings.model_copy(update={"source": f"{s3_bucket}/in", "output": f"{s3_bucket}/out"})
    local, bucket = prepare_dataset(settings), prepare_dataset(remote)
    assert [file.sha256 for file in bucket.manifest.files] == [file.sha256 for file in local.manifest.files]
    grow(growing)
    storage.upload_folder(growing / "photos", f"{s3_bucket}/in")
    assert [file.sha256 for file in prepare_dataset(remote).manifest.files] == [
        file.sha256 for file in prepare_dataset(settings).manifest.files
    ]


@pytest.mark.data
def test_ham10000_has_no_lesion_on_two_sides_and_even_folds(ray_cluster: None, real_data: Path, tmp_path: Path) -> None:
    dataset = prepare_dataset(
        PrepareSettings(catalog="ham10000", source=str(real_data / "ham10000"), output=str(tmp_path / "ham"), target="ham7")
    )
    rows = all_rows(dataset)
    assert len(rows) == 4001
    assert rows["label"].value_counts().to_dict() == {
        "nv": 2700, "bkl": 448, "mel": 443, "bcc": 182, "akiec": 115, "vasc": 62, "df": 51,
    }  # fmt: skip
    assert dataset.manifest.leaks == {}
    # Two lesions of the published data are one (the same hair lies across both photos): they stay together.
    assert rows[rows["image_id"].isin(["ISIC_0025226", "ISIC_0030074"])]["split"].nunique() == 1
    for column in ("split", "fold"):
        inside = rows[rows[column].notna()]
        assert inside.groupby("lesion_id")[column].nunique().max() == 1
        whole = rows["label"].value_counts(normalize=True)
        for _, part in inside.groupby(column):
            assert (part["label"].value_counts(normalize=True).reindex(whole.index, fill_value=0) - whole).abs().max() < 0.02


@pytest.mark.data
def test_the_nine_class_collection_leaks_as_it_circulates(ray_cluster: None, real_data: Path, tmp_path: Path) -> None:
    source = {"catalog": "folders", "source": str(real_data / "isic9"), "target": "isic9"}
    came = prepare_dataset(PrepareSettings(**source, output=str(tmp_path / "came"), keep_split=True))
    assert came.manifest.leaks == {"duplicate clusters across splits": 18}
    assert came.manifest.findings["conflicts_duplicates"] == 155
    own = prepare_dataset(PrepareSettings(**source, output=str(tmp_path / "own")))
    assert own.manifest.leaks == {}


@pytest.mark.data
def test_patients_of_isic_2020_stay_together(ray_cluster: None, real_data: Path, tmp_path: Path) -> None:
    dataset = prepare_dataset(
        PrepareSettings(catalog="isic2020", source=str(real_data / "isic2020"), output=str(tmp_path / "out"), folds=2)
    )
    rows = all_rows(dataset)
    assert rows["patient_id"].nunique() == 16
    assert rows.groupby("patient_id")["split"].nunique().max() == 1
    assert dataset.manifest.split.groups <= 16
