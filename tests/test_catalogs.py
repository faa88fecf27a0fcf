"""What a catalog promises for every layout, shown on HAM10000: the good download, and every way in which one can be wrong."""

import io
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from skinray import storage
from skinray.catalogs import CATALOG_COLUMNS, Catalog, CatalogSource, read_catalog
from skinray.errors import CatalogError, ConfigError, StorageError

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


def read(folder: Path | str, labels: Mapping[str, str] | None = None) -> Catalog:
    return read_catalog(CatalogSource("ham10000", str(folder), labels=labels or {}))


def photos(folder: Path | str) -> pd.DataFrame:
    return read(folder).photos


def refusal(source: Path) -> str:
    with pytest.raises(CatalogError) as caught:
        read(source)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert str(source) in message
    return message


def test_the_published_layout_is_one_row_a_photo(ham10000: Path) -> None:
    catalog = photos(ham10000)
    assert tuple(catalog.columns) == CATALOG_COLUMNS
    assert list(catalog["image_id"]) == ["ISIC_1", "ISIC_2", "ISIC_3"]
    assert list(catalog["diagnosis"]) == ["nv", "bkl", "mel"]
    assert list(catalog["lesion_id"]) == ["HAM_1", "HAM_1", "HAM_2"]
    assert list(catalog["site"]) == [None, "scalp", "back"]
    assert set(catalog["source"]) == {"ham10000"}
    assert set(catalog["image_bytes"]) == {len(jpeg())}


def test_every_image_uri_can_be_read(ham10000: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ham10000.parent)
    catalog = photos(ham10000.name)
    monkeypatch.chdir("/")
    assert [storage.read_bytes(uri) for uri in catalog["image_uri"]] == [jpeg()] * 3


def test_an_ending_may_be_tab_with_tabs_as_on_harvard_dataverse(ham10000: Path) -> None:
    before = photos(ham10000)
    (ham10000 / "HAM10000_metadata.csv").unlink()
    write_metadata(ham10000, tuple(row.replace(",", "\t") for row in ROWS), HEADER.replace(",", "\t"), "HAM10000_metadata.tab")
    assert photos(ham10000).equals(before)


def test_text_is_str_or_none_whatever_the_column(ham10000: Path) -> None:
    catalog = photos(ham10000)
    for column in set(CATALOG_COLUMNS) - {"image_bytes", "age"}:
        assert catalog[column].dtype == object
        assert {type(value) for value in catalog[column]} <= {str, type(None)}, column
    assert set(catalog["split"]) == {None}
    assert read(ham10000).listed_duplicates == ()


@pytest.mark.parametrize(("written", "sex"), [("Male", "male"), ("F", "female"), ("m", "male"), ("other", None), ("", None)])
def test_sexes_are_male_female_or_none(ham10000: Path, written: str, sex: str | None) -> None:
    write_metadata(ham10000, tuple(row.replace(",male,", f",{written},") for row in ROWS))
    assert list(photos(ham10000)["sex"]) == [None, None, sex]


def test_ids_written_as_nothing_are_no_lesion(ham10000: Path) -> None:
    # One lesion called None would put all its photos on one side.
    write_metadata(ham10000, tuple(row.replace("HAM_1", "None").replace("HAM_2", "Unknown") for row in ROWS))
    assert list(photos(ham10000)["lesion_id"]) == [None, None, None]


def test_what_is_not_stated_is_none(ham10000: Path) -> None:
    catalog = photos(ham10000)
    assert list(catalog["sex"]) == [None, None, "male"]
    assert list(catalog["patient_id"]) == [None, None, None]
    assert catalog["age"].dtype == float
    assert [age if age == age else None for age in catalog["age"]] == [None, 0.0, 45.0]


def test_metadata_may_lack_its_ending_as_on_harvard_dataverse(ham10000: Path) -> None:
    (ham10000 / "HAM10000_metadata.csv").rename(ham10000 / "HAM10000_metadata")
    assert len(photos(ham10000)) == 3


def test_photos_may_lie_anywhere_and_others_may_lie_among_them(ham10000: Path) -> None:
    (ham10000 / "ISIC_1.txt").write_text("a note")
    (ham10000 / "ISIC_9.jpg").write_bytes(jpeg())
    (ham10000 / "deep" / "er").mkdir(parents=True)
    (ham10000 / "HAM10000_images_part_2" / "ISIC_3.jpg").rename(ham10000 / "deep" / "er" / "ISIC_3.JPG")
    assert list(photos(ham10000)["image_id"]) == ["ISIC_1", "ISIC_2", "ISIC_3"]


def test_missing_metadata_is_named(ham10000: Path) -> None:
    (ham10000 / "HAM10000_metadata.csv").unlink()
    assert "HAM10000_metadata.csv" in refusal(ham10000)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere: it does not exist"):
        photos(tmp_path / "nowhere")


def test_every_missing_column_is_named(ham10000: Path) -> None:
    write_metadata(ham10000, ("HAM_1,ISIC_1,nv",), header="lesion_id,image_id,diagnosis")
    assert "missing columns dx, age, sex, localization; it has lesion_id, image_id, diagnosis" in refusal(ham10000)


def test_a_label_that_nobody_knows_stays_for_the_target_to_decide(ham10000: Path) -> None:
    write_metadata(ham10000, tuple(row.replace(",nv,", ", Collision Tumour ,") for row in ROWS))
    assert list(photos(ham10000)["diagnosis"]) == ["Collision Tumour", "bkl", "mel"]


def test_a_users_label_wins_in_any_spelling(ham10000: Path) -> None:
    write_metadata(ham10000, tuple(row.replace(",nv,", ",collision_tumour,") for row in ROWS))
    labels = {"Collision tumour": "malignant", "BKL": "Seborrheic keratosis"}
    assert list(read(ham10000, labels).photos["diagnosis"]) == ["malignant", "sek", "mel"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"Scar": "scarr"}, "'Scar' -> 'scarr' is no diagnosis code; known are akiec, bcc"),
        ({"Scar": "benign", "SCAR": "malignant"}, "'SCAR' stands twice in different spellings, as benign and malignant"),
    ],
)
def test_a_users_label_without_one_code_is_refused(ham10000: Path, labels: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(ham10000, labels)


def test_photos_without_a_label_are_counted_and_the_first_is_named(ham10000: Path) -> None:
    write_metadata(ham10000, tuple(row.replace(",nv,", ",,").replace(",bkl,", ", ,") for row in ROWS))
    message = refusal(ham10000)
    assert "2 of 3 photos have no label" in message
    assert "'ISIC_1'" in message


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


def test_a_download_that_holds_each_folder_twice_is_read_once(ham10000: Path) -> None:
    (ham10000 / "ham10000_images_part_2").mkdir()
    (ham10000 / "ham10000_images_part_2" / "ISIC_3.jpg").write_bytes(jpeg())
    catalog = photos(ham10000)
    assert len(catalog) == 3
    assert catalog["image_uri"].iloc[2] == str(ham10000 / "HAM10000_images_part_2" / "ISIC_3.jpg")


def test_two_photos_of_one_name_that_differ_are_refused(ham10000: Path) -> None:
    (ham10000 / "HAM10000_images_part_2" / "ISIC_1.jpg").write_bytes(jpeg() + b"more")
    assert "2 photos are called ISIC_1" in refusal(ham10000)


def test_photos_that_the_metadata_does_not_name_may_stand_twice(ham10000: Path) -> None:
    for ending in ("jpg", "png"):
        (ham10000 / f"ISIC_9.{ending}").write_bytes(jpeg())
    assert len(photos(ham10000)) == 3


def test_the_metadata_nearest_to_the_source_counts(ham10000: Path) -> None:
    (ham10000 / "old").mkdir()
    write_metadata(ham10000 / "old", (ROWS[0].replace(",mel,", ",nv,"),))
    assert list(photos(ham10000)["diagnosis"]) == ["nv", "bkl", "mel"]


def test_two_metadata_files_of_one_rank_are_refused(ham10000: Path) -> None:
    for name in ("a", "b"):
        (ham10000 / name).mkdir()
        write_metadata(ham10000 / name, ROWS)
    (ham10000 / "HAM10000_metadata.csv").unlink()
    assert "2 files are called HAM10000_metadata.csv: a/HAM10000_metadata.csv, b/HAM10000_metadata.csv" in refusal(ham10000)


def test_rows_longer_than_the_header_are_refused(ham10000: Path) -> None:
    # pandas would shift every column by one.
    write_metadata(ham10000, tuple(f"{row},more" for row in ROWS))
    assert "more fields than its header" in refusal(ham10000)


def test_a_byte_order_mark_and_spaces_after_commas_do_no_harm(ham10000: Path) -> None:
    before = photos(ham10000)
    content = (ham10000 / "HAM10000_metadata.csv").read_text().replace(",", ", ")
    (ham10000 / "HAM10000_metadata.csv").write_bytes(content.replace("\n", "\r\n").encode("utf-8-sig"))
    assert photos(ham10000).equals(before)


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


@pytest.mark.parametrize("age", ["eighty", "-", "inf", "-1"])
def test_an_age_that_is_no_number_is_unknown(ham10000: Path, age: str) -> None:
    write_metadata(ham10000, tuple(row.replace("45.0", age) for row in ROWS))
    assert photos(ham10000)["age"].isna().sum() == 2


def test_ids_that_look_like_numbers_or_nothing_stay_text(ham10000: Path) -> None:
    write_metadata(ham10000, ("007,0010,nv,histo,45,male,back,x", "NA1,null,mel,histo,45,male,back,x"))
    for image_id in ("0010", "null"):
        (ham10000 / f"{image_id}.jpg").write_bytes(jpeg())
    catalog = photos(ham10000)
    assert list(catalog["image_id"]) == ["0010", "null"]
    assert list(catalog["lesion_id"]) == ["007", "NA1"]


@pytest.mark.s3
def test_a_bucket_reads_as_a_folder_does(ham10000: Path, s3_bucket: str) -> None:
    storage.upload_folder(ham10000, f"{s3_bucket}/raw")
    catalog = photos(f"{s3_bucket}/raw")
    local = photos(ham10000)
    columns = [column for column in CATALOG_COLUMNS if column != "image_uri"]
    assert catalog[columns].equals(local[columns])
    assert list(catalog["image_uri"]) == [uri.replace(str(ham10000), f"{s3_bucket}/raw") for uri in local["image_uri"]]


@pytest.mark.data
def test_the_real_sample_has_its_published_counts(real_data: Path) -> None:
    catalog = photos(real_data / "ham10000")
    counts = Counter(catalog["diagnosis"])
    assert counts == {"nv": 2700, "bkl": 448, "mel": 443, "bcc": 182, "akiec": 115, "vasc": 62, "df": 51}
    assert catalog["lesion_id"].nunique() == 2995
    known: Callable[[str], set[str]] = lambda column: set(catalog[column].dropna())  # noqa: E731
    assert known("sex") == {"male", "female"}
    assert "unknown" not in known("site")
    assert catalog["age"].dropna().between(0, 90).all()


def test_a_file_name_that_is_no_utf8_names_a_photo(tmp_path: Path) -> None:
    (tmp_path / "mel").mkdir()
    (tmp_path / "mel" / os.fsdecode(b"\xe9t\xe9.jpg")).write_bytes(b"x")
    (photo,) = read_catalog(CatalogSource("folders", str(tmp_path))).photos["image_uri"]
    assert photo == rf"{tmp_path}/mel/\xe9t\xe9.jpg"
    assert storage.read_bytes(photo) == b"x"
