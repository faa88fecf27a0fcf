"""Readers of data sets as published: the good layout, and every way in which a download can be wrong."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from skinray import storage
from skinray.catalogs import CATALOG_COLUMNS, read_catalog
from skinray.errors import CatalogError, StorageError

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
ROWS = (
    "HAM_2,ISIC_3,mel,histo,45.0,male,back,vidir_modern",
    "HAM_1,ISIC_1,nv,follow_up,,unknown,unknown,vidir_molemax",
    "HAM_1,ISIC_2,bkl,histo,0.0,,scalp,rosendahl",
)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "tan").save(buffer, "JPEG")
    return buffer.getvalue()


def write_metadata(folder: Path, rows: tuple[str, ...], header: str = HEADER, name: str = "HAM10000_metadata.csv") -> None:
    (folder / name).write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture
def ham10000(tmp_path: Path) -> Path:
    """Three photos of two lesions in the two folders of the published download."""
    write_metadata(tmp_path, ROWS)
    for part, image_ids in {1: ("ISIC_1", "ISIC_2"), 2: ("ISIC_3",)}.items():
        folder = tmp_path / f"HAM10000_images_part_{part}"
        folder.mkdir()
        for image_id in image_ids:
            (folder / f"{image_id}.jpg").write_bytes(jpeg())
    return tmp_path


def refusal(source: Path) -> str:
    with pytest.raises(CatalogError) as caught:
        read_catalog("ham10000", str(source))
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert str(source) in message
    return message


def test_the_published_layout_is_one_row_a_photo(ham10000: Path) -> None:
    catalog = read_catalog("ham10000", str(ham10000))
    assert tuple(catalog.columns) == CATALOG_COLUMNS
    assert list(catalog["image_id"]) == ["ISIC_1", "ISIC_2", "ISIC_3"]
    assert list(catalog["diagnosis"]) == ["nv", "bkl", "mel"]
    assert list(catalog["lesion_id"]) == ["HAM_1", "HAM_1", "HAM_2"]
    assert list(catalog["site"]) == [None, "scalp", "back"]
    assert set(catalog["source"]) == {"ham10000"}
    assert set(catalog["image_bytes"]) == {len(jpeg())}


def test_every_image_uri_can_be_read(ham10000: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ham10000.parent)
    catalog = read_catalog("ham10000", ham10000.name)
    monkeypatch.chdir("/")
    assert [storage.read_bytes(uri) for uri in catalog["image_uri"]] == [jpeg()] * 3


def test_what_is_not_stated_is_none(ham10000: Path) -> None:
    catalog = read_catalog("ham10000", str(ham10000))
    assert list(catalog["sex"]) == [None, None, "male"]
    assert list(catalog["patient_id"]) == [None, None, None]
    assert catalog["age"].dtype == float
    assert [age if age == age else None for age in catalog["age"]] == [None, 0.0, 45.0]


def test_metadata_may_lack_its_ending_as_on_harvard_dataverse(ham10000: Path) -> None:
    (ham10000 / "HAM10000_metadata.csv").rename(ham10000 / "HAM10000_metadata")
    assert len(read_catalog("ham10000", str(ham10000))) == 3


def test_photos_may_lie_anywhere_and_others_may_lie_among_them(ham10000: Path) -> None:
    (ham10000 / "ISIC_1.txt").write_text("a note")
    (ham10000 / "ISIC_9.jpg").write_bytes(jpeg())
    (ham10000 / "deep" / "er").mkdir(parents=True)
    (ham10000 / "HAM10000_images_part_2" / "ISIC_3.jpg").rename(ham10000 / "deep" / "er" / "ISIC_3.JPG")
    assert list(read_catalog("ham10000", str(ham10000))["image_id"]) == ["ISIC_1", "ISIC_2", "ISIC_3"]


def test_missing_metadata_is_named(ham10000: Path) -> None:
    (ham10000 / "HAM10000_metadata.csv").unlink()
    assert "HAM10000_metadata.csv" in refusal(ham10000)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere: it does not exist"):
        read_catalog("ham10000", str(tmp_path / "nowhere"))


def test_every_missing_column_is_named(ham10000: Path) -> None:
    write_metadata(ham10000, ("HAM_1,ISIC_1,nv",), header="lesion_id,image_id,diagnosis")
    assert "missing columns dx, age, sex, localization; it has lesion_id, image_id, diagnosis" in refusal(ham10000)


def test_every_unknown_diagnosis_is_named_with_its_count(ham10000: Path) -> None:
    changed = tuple(row.replace(",nv,", ",scc,").replace(",mel,", ",,") for row in ROWS)
    write_metadata(ham10000, changed)
    message = refusal(ham10000)
    assert "'scc' (1 photos)" in message
    assert "'' (1 photos)" in message


def test_missing_photos_are_counted_and_the_first_is_named(ham10000: Path) -> None:
    for image_id in ("ISIC_1", "ISIC_2"):
        (ham10000 / "HAM10000_images_part_1" / f"{image_id}.jpg").unlink()
    message = refusal(ham10000)
    assert "2 of 3" in message
    assert "ISIC_1" in message


def test_an_image_id_that_stands_twice_is_named(ham10000: Path) -> None:
    write_metadata(ham10000, (*ROWS, ROWS[0].replace("HAM_2", "HAM_3")))
    assert "'ISIC_3'" in refusal(ham10000)


def test_two_photos_of_one_name_are_named(ham10000: Path) -> None:
    (ham10000 / "HAM10000_images_part_2" / "ISIC_1.png").write_bytes(jpeg())
    message = refusal(ham10000)
    assert "HAM10000_images_part_1/ISIC_1.jpg" in message
    assert "HAM10000_images_part_2/ISIC_1.png" in message


def test_metadata_without_rows_is_refused(ham10000: Path) -> None:
    write_metadata(ham10000, ())
    assert "no photos" in refusal(ham10000)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xd8\xff\xe0\x00\x10JFIF", b'image_id,dx\n"ISIC_1,nv\n', b"a,b\n1,2,3\n1,2,3,4,5\n"],
    ids=["empty", "JPEG", "quote", "ragged"],
)
def test_metadata_that_is_no_csv_is_refused(ham10000: Path, content: bytes) -> None:
    (ham10000 / "HAM10000_metadata.csv").write_bytes(content)
    assert "HAM10000_metadata.csv: not a CSV file" in refusal(ham10000)


@pytest.mark.parametrize("age", ["eighty", "-"])
def test_an_age_that_is_no_number_is_unknown(ham10000: Path, age: str) -> None:
    write_metadata(ham10000, tuple(row.replace("45.0", age) for row in ROWS))
    assert read_catalog("ham10000", str(ham10000))["age"].isna().sum() == 2


def test_ids_that_look_like_numbers_or_nothing_stay_text(ham10000: Path) -> None:
    write_metadata(ham10000, ("007,0010,nv,histo,45,male,back,x", "NA1,null,mel,histo,45,male,back,x"))
    for image_id in ("0010", "null"):
        (ham10000 / f"{image_id}.jpg").write_bytes(jpeg())
    catalog = read_catalog("ham10000", str(ham10000))
    assert list(catalog["image_id"]) == ["0010", "null"]
    assert list(catalog["lesion_id"]) == ["007", "NA1"]


@pytest.mark.s3
def test_a_bucket_reads_as_a_folder_does(ham10000: Path, s3_bucket: str) -> None:
    storage.upload_folder(ham10000, f"{s3_bucket}/raw")
    catalog = read_catalog("ham10000", f"{s3_bucket}/raw")
    local = read_catalog("ham10000", str(ham10000))
    columns = [column for column in CATALOG_COLUMNS if column != "image_uri"]
    assert catalog[columns].equals(local[columns])
    assert list(catalog["image_uri"]) == [uri.replace(str(ham10000), f"{s3_bucket}/raw") for uri in local["image_uri"]]


@pytest.mark.data
def test_the_real_sample_has_its_published_counts(real_data: Path) -> None:
    catalog = read_catalog("ham10000", str(real_data / "ham10000"))
    counts = Counter(catalog["diagnosis"])
    assert counts == {"nv": 2700, "bkl": 448, "mel": 443, "bcc": 182, "akiec": 115, "vasc": 62, "df": 51}
    assert catalog["lesion_id"].nunique() == 2995
    known: Callable[[str], set[str]] = lambda column: set(catalog[column].dropna())  # noqa: E731
    assert known("sex") == {"male", "female"}
    assert "unknown" not in known("site")
    assert catalog["age"].dropna().between(0, 90).all()
