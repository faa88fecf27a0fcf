import hashlib
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from skinray import storage
from skinray.config import PrepareSettings
from skinray.errors import CatalogError, DatasetError, OutputExistsError
from skinray.shards import REJECTED_NAME, SHARD_SCHEMA, PreparedDataset, open_dataset, prepare_dataset
from skinray.synthetic import break_file, draw_dataset

pytestmark = pytest.mark.ray


def settings_for(source: Path, output: Path) -> PrepareSettings:
    return PrepareSettings(
        catalog="synthetic", source=str(source), output=str(output), validation_fraction=0.2, rows_per_shard=50
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


def test_an_output_that_exists_is_not_touched(prepared: PreparedDataset, drawn_photos: Path) -> None:
    before = storage.read_bytes(storage.join(prepared.uri, storage.MANIFEST_NAME))
    with pytest.raises(OutputExistsError, match="choose another --output"):
        prepare_dataset(settings_for(drawn_photos, Path(prepared.uri)))
    assert storage.read_bytes(storage.join(prepared.uri, storage.MANIFEST_NAME)) == before


def test_what_a_killed_prepare_left_is_no_data_set_and_the_same_command_finishes_it(
    ray_cluster: None, drawn_photos: Path, tmp_path: Path
) -> None:
    settings = settings_for(drawn_photos, tmp_path / "out")
    storage.claim_folder(settings.output, "dataset", settings.recorded())
    storage.write_bytes(str(tmp_path / "out" / "split=train" / "part-00000.parquet"), b"half a shard")
    with pytest.raises(DatasetError, match="did not finish"):
        open_dataset(settings.output)
    assert prepare_dataset(settings).manifest.rows == 240


def test_a_source_that_is_no_catalog_leaves_nothing_behind(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalogError, match=r"metadata\.csv"):
        prepare_dataset(settings_for(tmp_path / "empty", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.data
def test_ham10000_as_published_is_prepared_without_a_lesion_on_two_sides(
    ray_cluster: None, real_data: Path, tmp_path: Path
) -> None:
    dataset = prepare_dataset(
        PrepareSettings(catalog="ham10000", source=str(real_data / "ham10000"), output=str(tmp_path / "ham"), target="ham7")
    )
    rows = all_rows(dataset)
    assert len(rows) == 4001
    assert rows["label"].value_counts().to_dict() == {
        "nv": 2700, "bkl": 448, "mel": 443, "bcc": 182, "akiec": 115, "vasc": 62, "df": 51,
    }  # fmt: skip
    assert rows.groupby("lesion_id")["split"].nunique().max() == 1
    share = (rows["label"] == "mel").mean()
    for _, part in rows.groupby("split"):
        assert abs((part["label"] == "mel").mean() - share) < 0.02
