"""The audit job on drawn and real data sets: what it finds, what it writes, and how the command ends."""

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from skinray import auditing, storage
from skinray.audit import Audit, examine
from skinray.auditing import audit_dataset
from skinray.cli import main
from skinray.config import AuditSettings, PrepareSettings
from skinray.errors import DatasetError, OutputExistsError
from skinray.preparation import prepare_dataset
from skinray.shards import PreparedDataset
from skinray.synthetic import break_file, draw_dataset
from tests.test_dicom import dicom, rgb

pytestmark = pytest.mark.ray

# Pairs of the nine-class folders whose files have different names: looked at, one by one. The first is one lesion in one view
# under two lights; the others are one photo.
LOOKED_AT = {
    ("Train/pigmented benign keratosis/ISIC_0025434.jpg", "Train/pigmented benign keratosis/ISIC_0028165.jpg"),
    ("Train/nevus/ISIC_0000477.jpg", "Train/nevus/ISIC_0000512.jpg"),
    ("Train/melanoma/ISIC_0000520.jpg", "Train/melanoma/ISIC_0010302.jpg"),
    ("Train/melanoma/ISIC_0000521.jpg", "Train/melanoma/ISIC_0010990.jpg"),
    ("Train/melanoma/ISIC_0000399.jpg", "Train/melanoma/ISIC_0001124.jpg"),
    ("Train/melanoma/ISIC_0000279.jpg", "Train/melanoma/ISIC_0000280.jpg"),
    ("Train/basal cell carcinoma/ISIC_0025601.jpg", "Train/basal cell carcinoma/ISIC_0025601_1.jpg"),
    ("Train/basal cell carcinoma/ISIC_0025509.jpg", "Train/basal cell carcinoma/ISIC_0025509_1.jpg"),
}


def settings_for(data: Path | str, output: Path | str, **changes: Any) -> AuditSettings:
    return AuditSettings(data=str(data), output=str(output), **changes)


def report(output: Path | str) -> tuple[Audit, str]:
    """What was written: audit.json and the page."""
    assert storage.read_json(storage.join(str(output), storage.MANIFEST_NAME))["kind"] == "skinray-audit"
    assert not storage.exists(storage.join(str(output), storage.INCOMPLETE_NAME))
    audit = Audit.model_validate(storage.read_json(storage.join(str(output), auditing.AUDIT_NAME)))
    return audit, storage.read_bytes(storage.join(str(output), auditing.PAGE_NAME)).decode()


def thumbnails(page: str) -> Counter[str]:
    return Counter(re.findall(r'<img src="(data:image/jpeg;base64,[^"]+)"', page))


@pytest.fixture
def leaky(drawn_photos: Path, tmp_path: Path) -> Path:
    """Folders of 72 photos of as many lesions, the first three in Train as nv, and again in Test as mel."""
    lesions = pd.read_csv(drawn_photos / "metadata.csv").drop_duplicates("lesion_id")["image_id"].tolist()[:72]
    root = tmp_path / "leaky"
    for number, name in enumerate(lesions):
        folders = (
            ["Train/nv", "Test/mel"]
            if number < 3
            else [f"{'Test' if number % 4 == 0 else 'Train'}/{'mel' if number % 3 else 'nv'}"]
        )
        for folder in folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(drawn_photos / "images" / f"{name}.jpg", root / folder)
    return root


def test_the_command_ends_with_0_on_a_prepared_data_set_without_leaks(
    prepared: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "--data", prepared.uri, "--output", str(tmp_path / "out")]) == 0
    assert "no leaks" in capsys.readouterr().out
    audit, page = report(tmp_path / "out")
    assert (audit.photos, audit.leak_counts, audit.leaks, audit.unreadable) == (240, {}, (), ())
    assert "No leaks found among 240 photos." in page
    # What prepare found when it wrote the shards is what stands in them.
    own = Audit.model_validate(storage.read_json(storage.join(prepared.uri, "_audit.json")))
    for name in ("counts", "class_counts", "sizes", "missing", "leaked_photos", "contradicted_photos"):
        assert getattr(audit, name) == getattr(own, name)


def test_the_command_ends_with_3_where_photos_leak(
    ray_cluster: None, leaky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["audit", "--catalog", "folders", "--data", str(leaky), "--output", str(tmp_path / "out")]
    assert main(arguments) == 3
    assert "LEAK: 3 duplicate clusters across splits" in capsys.readouterr().out
    audit, page = report(tmp_path / "out")
    assert audit.leaked_photos == {"train": 3, "test": 3}
    assert audit.contradicted_photos == {"mel": 3, "nv": 3}
    # Each pair is shown among the leaks, and again among the contradicting labels.
    assert len(thumbnails(page)) == 3
    assert set(thumbnails(page).values()) == {4}
    assert "cannot be shown" not in page


def test_thumbnails_of_shards_are_those_of_the_files_and_row_groups_are_read_once(
    ray_cluster: None, leaky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit_dataset(settings_for(leaky, tmp_path / "files", catalog="folders"))
    prepare = {"catalog": "folders", "source": str(leaky), "keep_split": True, "shard_mb": 0.5}
    prepare_dataset(PrepareSettings(**prepare, output=str(tmp_path / "shards")))
    read: list[tuple[str, int]] = []

    class Counted(pq.ParquetFile):
        def __init__(self, path: str, **options: Any) -> None:
            super().__init__(path, **options)
            self.path = path

        def read_row_group(self, number: int, **options: Any) -> Any:
            read.append((self.path, number))
            return super().read_row_group(number, **options)

    monkeypatch.setattr(auditing.pq, "ParquetFile", Counted)
    audit_dataset(settings_for(tmp_path / "shards", tmp_path / "audit"))
    assert thumbnails(report(tmp_path / "audit")[1]) == thumbnails(report(tmp_path / "files")[1])
    assert 1 < len(read) == len(set(read)) < 6


def test_a_photo_that_is_gone_by_then_leaves_a_gap_in_the_page(
    ray_cluster: None, leaky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine_slowly(*arguments: Any) -> Audit:
        one, other, *_ = sorted((leaky / "Test" / "mel").iterdir())
        one.unlink()
        other.write_bytes(b"no photo any more")
        return examine(*arguments)

    monkeypatch.setattr(auditing, "examine", examine_slowly)
    audit_dataset(settings_for(leaky, tmp_path / "out", catalog="folders"))
    page = report(tmp_path / "out")[1]
    assert page.count("cannot be shown") == 2 * 2  # among the leaks and among the contradicting labels
    assert len(thumbnails(page)) == 3


def test_a_shard_that_is_gone_by_then_leaves_gaps(prepared: PreparedDataset, tmp_path: Path) -> None:
    shard = storage.join(prepared.uri, prepared.manifest.files[0].path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    uris = [f"{tmp_path}/gone.parquet#0#0", f"{shard}#0#3", f"{tmp_path}/broken.parquet#0#0", f"{shard}#99#0"]
    ((uri, data),) = auditing._read_shards(uris)
    assert (uri, data[:3]) == (f"{shard}#0#3", b"\xff\xd8\xff")


def test_files_that_cannot_be_read_are_listed(ray_cluster: None, tmp_path: Path) -> None:
    draw_dataset(tmp_path / "photos", 60, seed=3)
    broken, empty = sorted((tmp_path / "photos" / "images").iterdir())[7:9]
    broken.write_bytes(break_file(broken.read_bytes(), "truncated"))
    empty.write_bytes(b"")
    audit_dataset(settings_for(tmp_path / "photos", tmp_path / "out", catalog="synthetic"))
    audit, page = report(tmp_path / "out")
    assert {one["image_id"]: one["error_code"] for one in audit.unreadable} == {broken.stem: "truncated", empty.stem: "empty"}
    assert (audit.photos, audit.counts["unreadable"]) == (58, 2)
    assert broken.stem in page
    assert "2 files (3.3" in page


def test_where_no_photo_can_be_used_that_is_an_error(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "photos" / "nv").mkdir(parents=True)
    (tmp_path / "photos" / "nv" / "a.jpg").write_bytes(b"no photo")
    with pytest.raises(DatasetError, match="none of its 1 photos can be used"):
        audit_dataset(settings_for(tmp_path / "photos", tmp_path / "out", catalog="folders"))


def test_an_output_that_exists_is_refused_before_a_photo_is_read(
    prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "inspect_shards", None)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="is not empty"):
        audit_dataset(settings_for(prepared.uri, tmp_path))
    with pytest.raises(OutputExistsError, match="already exists"):
        audit_dataset(settings_for(prepared.uri, prepared.uri))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_patient_that_only_dicom_files_name_leaks_too(ray_cluster: None, tmp_path: Path) -> None:
    for split, pixels in (("Train", rgb()), ("Test", 255 - rgb())):
        (tmp_path / "photos" / split / "nv").mkdir(parents=True)
        (tmp_path / "photos" / split / "nv" / f"{split}.dcm").write_bytes(dicom(pixels, PatientID="MRN-0012345"))
    audit = audit_dataset(settings_for(tmp_path / "photos", tmp_path / "out", catalog="folders"))
    assert audit.leak_counts["patients across splits"] == 1
    assert "MRN-0012345" not in report(tmp_path / "out")[1]


@pytest.mark.s3
def test_a_bucket_is_audited_like_a_folder(ray_cluster: None, leaky: Path, tmp_path: Path, s3_bucket: str) -> None:
    storage.upload_folder(leaky, f"{s3_bucket}/in")
    local = audit_dataset(settings_for(leaky, tmp_path / "out", catalog="folders"))
    assert audit_dataset(settings_for(f"{s3_bucket}/in", f"{s3_bucket}/out", catalog="folders")) == local
    assert thumbnails(report(f"{s3_bucket}/out")[1]) == thumbnails(report(tmp_path / "out")[1])


@pytest.mark.data
def test_the_nine_class_collection_is_found_as_dirty_as_it_is(ray_cluster: None, real_data: Path, tmp_path: Path) -> None:
    source = real_data / "isic9"
    assert main(["audit", "--catalog", "folders", "--data", str(source), "--output", str(tmp_path / "out")]) == 3
    audit, page = report(tmp_path / "out")
    assert audit.leak_counts == {"duplicate clusters across splits": 18}
    assert audit.leaked_photos == {"train": 18, "test": 18}
    assert (audit.counts["exact_pairs"], audit.counts["near_pairs"]) == (159, 4)
    assert (audit.counts["conflicts_duplicates"], audit.counts["clusters"]) == (155, 162)
    assert "18 of the 118 test photos" in page
    pairs = {(one.image_id, other.image_id) for one, other in (pair.photos for pair in audit.pairs)}
    same_name = {pair for pair in pairs if Path(pair[0]).name == Path(pair[1]).name}
    assert pairs - same_name == LOOKED_AT
    # And every name that stands in two folders is found.
    repeated = Counter(path.name for path in source.rglob("*.jpg"))
    assert sorted(Path(one).name for one, _ in same_name) == sorted(name for name, count in repeated.items() if count == 2)
    assert max(repeated.values()) == 2
