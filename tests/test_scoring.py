import datetime
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from skinray import scoring, storage
from skinray.audit_chain import check_chain
from skinray.cli import main
from skinray.config import ScoreSettings
from skinray.errors import BundleError, OutputExistsError, StorageError
from skinray.images import Preprocessing
from skinray.listing import Listing, list_photos, listed
from skinray.photos import decoded_photos
from skinray.scoring import score_archive
from skinray.screening_runs import open_run
from skinray.shards import PreparedDataset
from skinray.synthetic import BROKEN_KINDS, break_file
from skinray.training import TrainedModel

pytestmark = pytest.mark.ray

NOW = datetime.datetime(2026, 11, 21, 2, 0, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def archive(drawn_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photos in two folders, one of each broken kind among them, and a file that is no photo."""
    folder = tmp_path_factory.mktemp("archive")
    paths = sorted((drawn_photos / "images").iterdir())[:60]
    for number, path in enumerate(paths):
        # A name that a shell would take for a pattern is a name.
        target = folder / f"visit {number % 2}" / path.name.replace("SYN_", "[*] ?")
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    for kind, path in zip(BROKEN_KINDS, sorted(folder.rglob("*.jpg"))[::9], strict=False):
        path.write_bytes(break_file(path.read_bytes(), kind))
    (folder / "notes.txt").write_text("not a photo and not an input")
    return folder


def settings_for(trained: TrainedModel, archive: Path, output: Path, **changes: object) -> ScoreSettings:
    return ScoreSettings.model_validate(
        {"bundle": trained.bundle_uri, "input": str(archive), "output": str(output), "rows_per_block": 16, **changes}
    )


def test_every_photo_is_exactly_one_row_and_the_broken_ones_say_why(trained: TrainedModel, archive: Path, tmp_path: Path) -> None:
    summary = score_archive(settings_for(trained, archive, tmp_path), NOW)
    rows = pd.read_parquet(summary.uri)
    expected = {path.relative_to(archive).as_posix() for path in archive.rglob("*.jpg")}
    assert len(rows) == 60
    assert set(rows["image_id"]) == expected
    assert rows["status"].value_counts().to_dict() == {"scored": 55, "failed": 5} == summary.statuses
    failed, scored = rows[rows["status"] == "failed"], rows[rows["status"] == "scored"]
    assert Counter(failed["error_code"]) == Counter(summary.errors)
    assert set(failed["error_code"]) <= {"empty", "not_an_image", "truncated", "corrupt"}
    assert failed["error_detail"].str.len().min() > 5
    assert failed[["malignancy_score", "prob_benign", "prob_malignant"]].isna().all().all()
    assert np.allclose(scored["prob_benign"] + scored["prob_malignant"], 1, atol=1e-6)
    assert scored["error_code"].isna().all()
    assert (scored["flagged"].astype(bool)).sum() == summary.flagged


def test_the_manifest_is_written_last_and_names_files_that_hold_what_it_says(
    trained: TrainedModel, archive: Path, tmp_path: Path
) -> None:
    summary = score_archive(settings_for(trained, archive, tmp_path, run_id="night"), NOW)
    assert summary.uri == str(tmp_path / f"model_id={trained.model_id}" / "scored_date=2026-11-21" / "run_id=night")
    manifest = storage.read_json(storage.join(summary.uri, storage.MANIFEST_NAME))
    assert manifest["rows"] == 60 == sum(file["rows"] for file in manifest["files"])
    for file in manifest["files"]:
        assert storage.sha256_of(storage.read_bytes(storage.join(summary.uri, file["path"]))) == file["sha256"]
    left = sorted(path.name for path in Path(summary.uri).iterdir())
    assert left == ["_ledger.pq", "_listing.pq", storage.MANIFEST_NAME, "_progress.json", "part-00000.parquet"], (
        "no blocks, no markers"
    )
    progress = storage.read_json(storage.join(summary.uri, "_progress.json"))
    assert (progress["done"], progress["total"], progress["failed"]) == (60, 60, 5)
    with pytest.raises(OutputExistsError, match="night"):
        score_archive(settings_for(trained, archive, tmp_path, run_id="night"), NOW)


@pytest.mark.slow
def test_a_night_costs_what_is_new_and_what_failed_can_be_taken_again(
    trained: TrainedModel, archive: Path, drawn_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "archive", tmp_path / "scores"
    shutil.copytree(archive, source)
    asked = ["score", "--bundle", trained.bundle_uri, "--input", str(source), "--output", str(output), "--max-bad-fraction", "1"]

    def night(*more: str) -> pd.DataFrame:
        """The rows of the run that the command made; of none when it made none."""
        before = set(output.rglob(storage.MANIFEST_NAME))
        assert main([*asked, *more]) == 0
        made = set(output.rglob(storage.MANIFEST_NAME)) - before
        return pd.concat([pd.read_parquet(manifest.parent) for manifest in made]) if made else pd.DataFrame()

    first = night("--only-new")
    assert len(first) == 60
    failed = set(first["image_id"][first["status"] == "failed"])
    assert night("--only-new").empty
    assert "nothing to do: 60 photos need no score" in capsys.readouterr().out

    new, changed = source / "new.jpg", source / min(set(first["image_id"]) - failed)
    others = sorted((drawn_photos / "images").iterdir())[100:102]
    shutil.copy(others[0], new)
    changed.write_bytes(others[1].read_bytes())
    second = night("--only-new")
    assert set(second["image_id"]) == {"new.jpg", str(changed.relative_to(source))}
    assert second.set_index("image_id").loc["new.jpg", "image_sha256"] == storage.sha256_of(others[0].read_bytes())

    mended = min(failed)
    shutil.copy(others[0], source / mended)
    third = night("--retry", "failed")
    assert set(third["image_id"]) == failed
    assert set(third["image_id"][third["status"] == "scored"]) == {mended}
    assert set(night("--retry", "failed")["image_id"]) == failed - {mended}

    Image.new("RGB", (64, 64), "blue").save(source / "screen.jpg")
    assert [*night("--only-new")["status"]] == ["refused"]
    assert night("--only-new").empty
    assert [*night("--retry", "refused", "--no-refuse")["status"]] == ["scored"]
    assert night("--retry", "refused", "--no-refuse").empty


def test_shards_and_the_loose_files_they_were_made_from_give_the_same_scores(
    trained: TrainedModel, prepared: PreparedDataset, drawn_photos: Path, tmp_path: Path
) -> None:
    from_shards = pd.read_parquet(score_archive(settings_for(trained, Path(prepared.uri), tmp_path / "a"), NOW).uri)
    loose = settings_for(trained, drawn_photos, tmp_path / "b", image_id="stem", batch_size=7, actors=2)
    from_files = pd.read_parquet(score_archive(loose, NOW).uri)
    both = from_shards.merge(from_files, on=["image_id", "image_sha256"])
    assert len(both) == 240
    assert np.abs(both["malignancy_score_x"] - both["malignancy_score_y"]).max() <= 1e-5
    nothing = score_archive(settings_for(trained, Path(prepared.uri), tmp_path / "a", only_new=True), NOW)
    assert (nothing.rows, nothing.skipped_rows) == (0, 240), "photos in shards are known by their hash"


def test_embeddings_and_the_challenges_csv_on_request(trained: TrainedModel, archive: Path, tmp_path: Path) -> None:
    asked = settings_for(trained, archive, tmp_path, embeddings=True, isic_csv=True)
    summary = score_archive(asked, NOW)
    rows = pd.read_parquet(summary.uri)
    scored = rows["status"] == "scored"
    assert rows["embedding"][~scored].isna().all()
    embeddings = np.stack(rows["embedding"][scored].to_list())
    assert embeddings.shape == (55, 96), "what the last of the toy's four convolutions has"
    assert embeddings.std(axis=0).max() > 0.01
    isic = pd.read_csv(Path(summary.uri) / "_isic.csv")
    assert [*isic] == ["image_name", "target"]
    np.testing.assert_allclose(isic["target"], rows["malignancy_score"], rtol=1e-6)
    assert [*isic["image_name"]] == [Path(name).stem for name in rows["image_id"]]
    assert check_chain(str(tmp_path)).problems == ()
    plain = pd.read_parquet(score_archive(settings_for(trained, archive, tmp_path), NOW + datetime.timedelta(hours=1)).uri)
    np.testing.assert_allclose(plain["malignancy_score"], rows["malignancy_score"], atol=1e-6)
    chain = check_chain(str(tmp_path))
    assert (chain.runs, chain.problems, len(chain.heads)) == (2, (), 1)


def test_blocks_carry_what_the_data_set_says_of_age_sex_and_site(prepared: PreparedDataset, drawn_photos: Path) -> None:
    listing = list_photos(prepared.uri, 100, "path")
    blocks = [*decoded_photos(listing, Preprocessing(image_size_px=16)).iter_batches(batch_size=None, batch_format="numpy")]
    columns = ["image_id", "age", "sex", "site"]
    found = pd.concat([pd.DataFrame({name: block[name] for name in columns}) for block in blocks]).set_index("image_id")
    stated = pd.read_csv(drawn_photos / "metadata.csv", keep_default_na=False).set_index("image_id").loc[found.index]
    assert found["sex"].tolist() == stated["sex"].tolist()
    assert found["site"].tolist() == stated["site"].tolist()
    np.testing.assert_array_equal(found["age"], [float(age or "nan") for age in stated["age"]])
    assert {found["age"].isna().any(), (found["sex"] == "").any(), (found["site"] == "").any()} == {True}


def test_of_loose_files_nothing_is_known(ray_cluster: None, archive: Path) -> None:
    listing = list_photos(str(archive), 16, "path")
    for block in decoded_photos(listing, Preprocessing(image_size_px=16)).iter_batches(batch_size=None, batch_format="numpy"):
        assert np.isnan(block["age"]).all()
        assert {*block["sex"], *block["site"]} == {""}


def test_blocks_stay_whole_however_large_they_are(ray_cluster: None, archive: Path) -> None:
    photos = pa.concat_tables([list_photos(str(archive), 16, "path").photos] * 3)
    listing = Listing(listed(photos, 16).photos.slice(0, 130), 120, 120)  # 212 MB, which Ray Data cuts when it is not told
    size = Preprocessing(image_size_px=768)
    blocks = [*decoded_photos(listing, size).iter_batches(batch_size=None, batch_format="numpy")]
    assert sorted((int(block["block"][0]), len(block["block"])) for block in blocks) == [(0, 120), (120, 10)]


def test_a_parquet_shard_is_read_in_a_few_tasks_that_yield_many_blocks(
    ray_cluster: None, drawn_photos: Path, tmp_path: Path
) -> None:
    photos = [path.read_bytes() for path in sorted(drawn_photos.rglob("*.jpg"))[:90]] * 4
    pq.write_table(pa.table({"image_bytes": photos}), tmp_path / "night.parquet")
    listing = Listing(list_photos(str(tmp_path / "night.parquet"), 4, "path").photos, 4, 4)
    found: list[tuple[int, int]] = []
    for block in decoded_photos(listing, Preprocessing(image_size_px=16)).iter_batches(batch_size=None, batch_format="numpy"):
        assert set(block["status"]) == {"scored"}
        firsts, counts = np.unique(block["block"], return_counts=True)
        found += zip(firsts.tolist(), counts.tolist(), strict=True)
    assert sorted(found) == [*listing.blocks().items()]


def test_too_many_bad_photos_end_with_exit_code_3_and_still_publish(
    trained: TrainedModel, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["score", "--bundle", trained.bundle_uri, "--input", str(archive), "--output", str(tmp_path)]
    assert main([*common, "--run-id", "strict", "--max-bad-fraction", "0.05"]) == 3
    assert "8.3% of the photos have no score" in capsys.readouterr().err
    assert main([*common, "--run-id", "lenient", "--max-bad-fraction", "0.1"]) == 0
    assert len(list(tmp_path.rglob(storage.MANIFEST_NAME))) == 2


def test_a_disk_that_goes_away_stops_the_run_and_the_same_command_goes_on(
    trained: TrainedModel, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(archive, tmp_path / "archive")
    command = ["score", "--bundle", trained.bundle_uri, "--input", str(source), "--output", str(tmp_path / "scores")]
    with monkeypatch.context() as patch:

        def opened_and_lost(*asked: Any) -> tuple[str, Listing]:
            run = open_run(*asked)
            source.rename(tmp_path / "away")
            return run

        patch.setattr(scoring, "open_run", opened_and_lost)
        assert main(command) == 1
    assert f"cannot list {source}: it does not exist" in capsys.readouterr().err
    assert not [*tmp_path.rglob(storage.MANIFEST_NAME)]
    (tmp_path / "away").rename(source)
    assert main([*command, "--max-bad-fraction", "0.1"]) == 0
    (manifest,) = tmp_path.rglob(storage.MANIFEST_NAME)
    assert storage.read_json(str(manifest))["statuses"] == {"failed": 5, "scored": 55}


def test_a_changed_bundle_scores_nothing(trained: TrainedModel, archive: Path, tmp_path: Path) -> None:
    shutil.copytree(trained.bundle_uri, tmp_path / "bundle")
    (tmp_path / "bundle" / "labels.json").write_text('{"codes": ["malignant", "benign"], "malignant": ["malignant"]}')
    with pytest.raises(BundleError, match=r"labels\.json was changed"):
        score_archive(settings_for(trained, archive, tmp_path / "out", bundle=str(tmp_path / "bundle")), NOW)
    assert not (tmp_path / "out").exists()


def test_an_input_without_photos_is_an_error(trained: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="holds no image files"):
        score_archive(settings_for(trained, tmp_path / "empty", tmp_path / "out"), NOW)
    assert not (tmp_path / "out").exists()
