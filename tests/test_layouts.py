"""Each published layout, written as it is published, and what is refused in it."""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skinray import storage
from skinray.catalogs import CATALOG_COLUMNS, Catalog, CatalogSource, read_catalog
from skinray.config import CatalogName, CsvSettings
from skinray.errors import CatalogError, ConfigError
from skinray.layouts import LAYOUTS, Files, csv, folders
from skinray.synthetic import draw_dataset
from skinray.taxonomy import DIAGNOSES, TARGETS, diagnosis_of, unknown_labels

CLASSES_2019 = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
HEADER_2020 = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target"
ROWS_2020 = (
    "ISIC_1,IP_1,male,45.0,head/neck,unknown,benign,0",
    "ISIC_2,IP_1,male,45.0,,melanoma,malignant,1",
    "ISIC_3,IP_2,female,50.0,torso,nevus,benign,0",
    "ISIC_4,IP_2,,,torso,atypical melanocytic proliferation,benign,0",
    "ISIC_5,IP_3,female,70.0,torso,lentigo NOS,benign,0",
)
HEADER_ARCHIVE = (
    "isic_id,age_approx,anatom_site_general,diagnosis_1,diagnosis_2,diagnosis_3,diagnosis_4,diagnosis_5,lesion_id,sex"
)


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def table(header: str, *rows: str) -> str:
    return "\n".join([header, *rows]) + "\n"


def read(name: CatalogName, folder: Path | str, **settings: Any) -> Catalog:
    return read_catalog(CatalogSource(name, str(folder), **settings))


def column(catalog: Catalog, name: str) -> list[Any]:
    return list(catalog.photos[name])


def refusal(name: CatalogName, folder: Path, **settings: Any) -> str:
    with pytest.raises(CatalogError) as caught:
        read(name, folder, **settings)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def one_hot(image: str, name: str, more: str = "") -> str:
    return ",".join([image, *("1.0" if column == name else "0.0" for column in CLASSES_2019)]) + more


@pytest.fixture
def isic2019(tmp_path: Path) -> Path:
    """Three photos of Training and two of Test."""
    header = "image," + ",".join(CLASSES_2019)
    return write(
        tmp_path,
        {
            "ISIC_2019_Training_GroundTruth.csv": table(
                header, one_hot("ISIC_1", "NV"), one_hot("ISIC_2_downsampled", "AK"), one_hot("ISIC_3", "SCC")
            ),
            "ISIC_2019_Training_Metadata.csv": table(
                "image,age_approx,anatom_site_general,lesion_id,sex",
                "ISIC_3,80.0,head/neck,BCN_0000003,male",
                "ISIC_1,55.0,anterior torso,HAM_0000001,female",
                "ISIC_2_downsampled,,,,",
                "ISIC_9,20.0,,,",
            ),
            "ISIC_2019_Training_Input/ISIC_2019_Training_Input/ISIC_1.jpg": b"1",
            "ISIC_2019_Training_Input/ISIC_2019_Training_Input/ISIC_2_downsampled.jpg": b"22",
            "ISIC_2019_Training_Input/ISIC_2019_Training_Input/ISIC_3.jpg": b"333",
            "test/ISIC_2019_Test_GroundTruth.csv": table(
                f"{header},score_weight,validation_weight",
                one_hot("ISIC_4", "UNK", ",1.0,0.0"),
                one_hot("ISIC_5", "MEL", ",1.0,1.0"),
            ),
            "test/ISIC_2019_Test_Metadata.csv": table(
                "image,age_approx,anatom_site_general,sex", "ISIC_4,30.0,,male", "ISIC_5,35.0,palms/soles,female"
            ),
            "test/ISIC_2019_Test_Input/ISIC_4.jpg": b"4444",
            "test/ISIC_2019_Test_Input/ISIC_5.jpg": b"55555",
        },
    )


def test_isic2019_reads_training_and_test_as_the_given_split(isic2019: Path) -> None:
    catalog = read("isic2019", isic2019)
    assert tuple(catalog.photos.columns) == CATALOG_COLUMNS
    assert column(catalog, "image_id") == ["ISIC_1", "ISIC_2_downsampled", "ISIC_3", "ISIC_4", "ISIC_5"]
    assert column(catalog, "diagnosis") == ["nv", "akiec", "scc", "unk", "mel"]
    assert column(catalog, "lesion_id") == ["HAM_0000001", None, "BCN_0000003", None, None]
    assert column(catalog, "split") == ["train", "train", "train", "test", "test"]
    assert column(catalog, "image_bytes") == [1, 2, 3, 4, 5]
    assert column(catalog, "sex") == ["female", None, "male", "male", "female"]
    assert column(catalog, "site") == ["anterior torso", None, "head/neck", None, "palms/soles"]
    assert catalog.photos["age"].fillna(-1).tolist() == [55, -1, 80, 30, 35]
    assert column(catalog, "patient_id") == [None] * 5


def test_isic2019_without_test_has_no_given_split(isic2019: Path) -> None:
    (isic2019 / "test" / "ISIC_2019_Test_GroundTruth.csv").unlink()
    catalog = read("isic2019", isic2019)
    assert column(catalog, "image_id") == ["ISIC_1", "ISIC_2_downsampled", "ISIC_3"]
    assert column(catalog, "split") == [None] * 3


def test_isic2019_without_training_metadata_says_why_it_is_needed(isic2019: Path) -> None:
    (isic2019 / "ISIC_2019_Training_Metadata.csv").unlink()
    message = refusal("isic2019", isic2019)
    for part in ("ISIC_2019_Training_Metadata.csv", "lesion_id", "one side", "--catalog csv"):
        assert part in message


def test_isic2019_with_half_of_test_is_refused(isic2019: Path) -> None:
    (isic2019 / "test" / "ISIC_2019_Test_Metadata.csv").unlink()
    assert "ISIC_2019_Test_Metadata.csv is not" in refusal("isic2019", isic2019)


@pytest.mark.parametrize(
    "row",
    [
        "0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
        "1.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0",
        "1.0,0.5,,0.0,0.0,0.0,0.0,0.0,0.0",
        "x" + "," * 8,
    ],
    ids=["none", "two", "half", "text"],
)
def test_isic2019_refuses_a_row_that_is_not_one_hot(isic2019: Path, row: str) -> None:
    path = isic2019 / "ISIC_2019_Training_GroundTruth.csv"
    path.write_text(path.read_text() + f"ISIC_9,{row}\n")
    assert "1 of 4 rows are not one 1.0 and else 0.0, the first is 'ISIC_9'" in refusal("isic2019", isic2019)


def test_isic2019_refuses_images_without_metadata(isic2019: Path) -> None:
    path = isic2019 / "ISIC_2019_Training_GroundTruth.csv"
    path.write_text(path.read_text() + one_hot("ISIC_8", "DF") + "\n")
    assert "1 of 4 images of the ground truth have no row, the first is ISIC_8" in refusal("isic2019", isic2019)


def test_isic2019_refuses_metadata_that_name_an_image_twice(isic2019: Path) -> None:
    path = isic2019 / "ISIC_2019_Training_Metadata.csv"
    path.write_text(path.read_text() + "ISIC_1,1.0,,HAM_2,male\n")
    assert "1 images stand more than once, the first is 'ISIC_1'" in refusal("isic2019", isic2019)


def test_isic2019_takes_a_users_label_for_a_column(isic2019: Path) -> None:
    assert column(read("isic2019", isic2019, labels={"AK": "unk"}), "diagnosis")[1] == "unk"


@pytest.fixture
def isic2020(tmp_path: Path) -> Path:
    """Five photos as Kaggle publishes them, and two of its unlabelled test set."""
    images = {f"train/ISIC_{number}.jpg": b"x" * number for number in range(1, 6)}
    return write(tmp_path, {"train.csv": table(HEADER_2020, *ROWS_2020), "test/ISIC_6.jpg": b"", "test.csv": "x\n", **images})


def test_isic2020_names_the_diagnosis_where_it_is_known_and_else_the_malignancy(isic2020: Path) -> None:
    catalog = read("isic2020", isic2020)
    assert column(catalog, "diagnosis") == ["benign", "mel", "nv", "benign", "bkl"]
    assert column(catalog, "patient_id") == ["IP_1", "IP_1", "IP_2", "IP_2", "IP_3"]
    assert column(catalog, "lesion_id") == [None] * 5
    assert column(catalog, "site") == ["head/neck", None, "torso", "torso", "torso"]
    assert column(catalog, "split") == [None] * 5
    assert catalog.listed_duplicates == ()


def test_isic2020_version_2_has_lesions_and_comes_first(isic2020: Path) -> None:
    header = HEADER_2020.replace("patient_id,", "patient_id,lesion_id,")
    rows = [row.replace(",IP_", f",IL_{number},IP_", 1) for number, row in enumerate(ROWS_2020)]
    rows = [",".join([fields[0], fields[2], fields[1], *fields[3:]]) for fields in (row.split(",") for row in rows)]
    write(isic2020, {"ISIC_2020_Training_GroundTruth_v2.csv": table(header, *rows)})
    assert column(read("isic2020", isic2020), "lesion_id") == ["IL_0", "IL_1", "IL_2", "IL_3", "IL_4"]


def test_isic2020_lists_the_duplicates_that_are_in_the_catalog(isic2020: Path) -> None:
    write(
        isic2020,
        {"ISIC_2020_Training_Duplicates.csv": "image_name_1,image_name_2\nISIC_1,ISIC_3\nISIC_1,ISIC_99\nISIC_98,ISIC_2\n"},
    )
    assert read("isic2020", isic2020).listed_duplicates == (("ISIC_1", "ISIC_3"),)


def test_isic2020_takes_the_jpeg_of_a_photo_that_is_there_as_dicom_too(isic2020: Path) -> None:
    write(isic2020, {f"dicom/ISIC_{number}.dcm": b"DICOM" for number in range(1, 5)})
    assert column(read("isic2020", isic2020), "image_bytes") == [1, 2, 3, 4, 5]


def test_isic2020_takes_dicom_where_there_is_nothing_else(isic2020: Path) -> None:
    (isic2020 / "train" / "ISIC_2.jpg").rename(isic2020 / "train" / "ISIC_2.dcm")
    assert column(read("isic2020", isic2020), "image_uri")[1] == str(isic2020 / "train" / "ISIC_2.dcm")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("ISIC_1,IP_1,male,45.0,torso,nevus,benign,1", "contradict their target, the first is ISIC_1 with diagnosis 'nevus'"),
        ("ISIC_1,IP_1,male,45.0,torso,melanoma,malignant,0", "contradict their target, the first is ISIC_1 with diagnosis 'mela"),
        ("ISIC_1,IP_1,male,45.0,torso,nevus,benign,", "are neither 0 nor 1, the first is ISIC_1 with target ''"),
    ],
)
def test_isic2020_refuses_a_target_that_contradicts(isic2020: Path, row: str, message: str) -> None:
    write(isic2020, {"train.csv": table(HEADER_2020, row, *ROWS_2020[1:])})
    assert f"1 rows {message}" in refusal("isic2020", isic2020)


@pytest.mark.data
def test_the_real_isic2020_sample_has_its_published_counts(real_data: Path) -> None:
    if not (real_data / "isic2020").is_dir():
        pytest.skip("needs isic2020 among the real photos")
    catalog = read("isic2020", real_data / "isic2020")
    assert Counter(column(catalog, "diagnosis")) == {"benign": 202, "mel": 5, "nv": 1}
    assert catalog.photos["patient_id"].nunique() == 16
    assert unknown_labels(column(catalog, "diagnosis"), TARGETS["binary"]) == {}


def archive(folder: Path, *levels: str, header: str = HEADER_ARCHIVE) -> Path:
    """An export of the archive with one photo for each row of five levels, separated by |."""
    quoted = [",".join(f'"{level}"' if level else "" for level in row.split("|")) for row in levels]
    rows = [f"ISIC_{number},45.0,anterior torso,{row},IL_{number},female" for number, row in enumerate(quoted)]
    return write(folder, {"metadata.csv": table(header, *rows), **{f"ISIC_{number}.jpg": b"x" for number in range(len(rows))}})


@pytest.mark.parametrize(
    ("levels", "code"),
    [
        ("Benign|Benign melanocytic proliferations|Nevus|Nevus, Atypical, Dysplastic, or Clark|Nevus, Dysplastic", "nv"),
        ("Malignant|Malignant melanocytic proliferations (Melanoma)|Melanoma, NOS||", "mel"),
        ("Malignant||Squamous cell carcinoma in situ|Squamous cell carcinoma in situ, Bowens disease|", "akiec"),
        ("Malignant|Malignant epidermal proliferations|Squamous cell carcinoma, Invasive||", "scc"),
        ("Indeterminate|Indeterminate epidermal proliferations|Solar or actinic keratosis||", "akiec"),
        ("Benign|Benign epidermal proliferations|Solar or actinic keratosis||", "akiec"),
        ("Benign|Benign soft tissue proliferations - Vascular|||", "vasc"),
        ("Benign|Benign soft tissue proliferations - Fibro-histiocytic|Scar||", "benign"),
        ("Malignant|Merkel cell proliferation|||", "malignant"),
        ("Indeterminate|Indeterminate melanocytic proliferations|Atypical melanocytic neoplasm||", "unk"),
        ("Benign||||", "benign"),
        ("||||", "unk"),
        ("|Something of tomorrow|Something finer||", "Something finer"),
    ],
)  # fmt: skip
def test_the_archives_most_specific_known_level_is_the_diagnosis(tmp_path: Path, levels: str, code: str) -> None:
    assert column(read("isic", archive(tmp_path, levels)), "diagnosis") == [code]


def test_the_archives_export_has_lesions_sites_and_ages(tmp_path: Path) -> None:
    catalog = read("isic", archive(tmp_path, "Benign||||", "Malignant||||"))
    assert column(catalog, "lesion_id") == ["IL_0", "IL_1"]
    assert column(catalog, "patient_id") == [None, None]
    assert (column(catalog, "sex"), column(catalog, "site")) == (["female"] * 2, ["anterior torso"] * 2)
    assert column(catalog, "age") == [45.0, 45.0]


def test_the_archives_older_export_is_read_too(tmp_path: Path) -> None:
    rows = ("ISIC_0,lichenoid keratosis,benign", "ISIC_1,other,malignant", "ISIC_2,,", "ISIC_3,unknown,indeterminate/benign")
    images = {f"{number}/ISIC_{number}.JPG": b"x" for number in range(4)}
    write(tmp_path, {"metadata.csv": table("isic_id,diagnosis,benign_malignant", *rows), **images})
    assert column(read("isic", tmp_path), "diagnosis") == ["bkl", "malignant", "unk", "indeterminate/benign"]


def test_a_users_label_wins_at_its_own_level(tmp_path: Path) -> None:
    spitz = "Benign|Benign melanocytic proliferations|Nevus|Nevus, Spitz|"
    folder = archive(tmp_path, spitz, "Benign|Benign melanocytic proliferations|Nevus||", "Benign||||")
    assert column(read("isic", folder, labels={"nevus spitz": "unk", "Benign": "nv"}), "diagnosis") == ["unk", "nv", "nv"]


def test_metadata_without_any_diagnosis_are_no_export_of_the_archive(tmp_path: Path) -> None:
    write(tmp_path, {"metadata.csv": "isic_id,sex\nISIC_1,male\n", "ISIC_1.jpg": b"x"})
    assert "no column says a diagnosis; expected diagnosis_1" in refusal("isic", tmp_path)


@given(
    st.lists(
        st.sampled_from(["", "Benign", "Malignant", "Indeterminate", "Nevus", "Melanoma, NOS", "Scar"]), min_size=5, max_size=5
    )
)
def test_an_export_of_the_archive_never_has_an_empty_diagnosis(levels: list[str]) -> None:
    from skinray.layouts import _most_specific

    found = _most_specific(Files("/", {}, CsvSettings(), {}), levels)
    specific = [diagnosis_of(level) for level in levels if diagnosis_of(level) in ("nv", "mel")]
    assert found == specific[0] if specific else found in {"benign", "malignant", "unk", "Scar"}


@pytest.fixture
def nine_classes(tmp_path: Path) -> Path:
    """Class folders as they circulate: two folders deep, spaces in names, one file name in two classes."""
    outer = "Skin cancer ISIC The International Skin Imaging Collaboration"
    names = ("Train/nevus/ISIC_1.jpg", "Train/melanoma/ISIC_1.jpg", "Test/actinic keratosis/ISIC_2.JPG", "Valid/Nevus/a b.jpg")
    return write(tmp_path, {f"{outer}/{name}": b"x" for name in names} | {f"{outer}/readme.txt": b"x"})


def test_folders_are_classes_and_what_stands_above_them_is_the_split(nine_classes: Path) -> None:
    outer = nine_classes / "Skin cancer ISIC The International Skin Imaging Collaboration"
    catalog = read("folders", outer)
    assert column(catalog, "image_id") == [
        "Test/actinic keratosis/ISIC_2.JPG", "Train/melanoma/ISIC_1.jpg", "Train/nevus/ISIC_1.jpg", "Valid/Nevus/a b.jpg",
    ]  # fmt: skip
    assert column(catalog, "diagnosis") == ["akiec", "mel", "nv", "nv"]
    assert column(catalog, "split") == ["test", "train", "train", "validation"]
    assert [Path(uri).is_file() for uri in column(catalog, "image_uri")] == [True] * 4
    assert column(read("folders", nine_classes), "diagnosis") == column(catalog, "diagnosis")
    assert column(read("folders", outer / "Train"), "split") == [None, None]


@pytest.mark.parametrize("path", ["x.jpg", "Train/x.jpg", "benign/test/x.jpg"])
def test_a_photo_in_no_class_folder_is_refused(tmp_path: Path, path: str) -> None:
    write(tmp_path, {path: b"x", "Train/benign/y.jpg": b"y"})
    assert f"1 of 2 photos lie in no class folder, the first is {path}" in refusal("folders", tmp_path)


def test_folders_without_photos_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"nevus/notes.txt": b"x"})
    assert "lists no photos" in refusal("folders", tmp_path)


def test_a_class_folder_that_nobody_knows_keeps_its_name_or_the_users(tmp_path: Path) -> None:
    write(tmp_path, {"Grade 1/x.jpg": b"x", "benign/y.jpg": b"y"})
    assert column(read("folders", tmp_path), "diagnosis") == ["Grade 1", "benign"]
    assert column(read("folders", tmp_path, labels={"grade_1": "malignant"}), "diagnosis") == ["malignant", "benign"]


SPLIT_FOLDERS = {"Train": "train", "training": "train", "TEST": "test", "val": "validation", "Validation": "validation"}


@given(
    st.lists(st.sampled_from(["photos", "2019", "Train images", *SPLIT_FOLDERS]), max_size=3),
    st.sampled_from(["nevus", "Melanoma", "Grade 1"]),
)
def test_the_split_of_a_photo_is_the_nearest_folder_of_that_name(above: list[str], own: str) -> None:
    path = "/".join([*above, own, "x.jpg"])
    row = folders(Files("/data", {path: 1}, CsvSettings(), {})).rows.iloc[0]
    splits = [SPLIT_FOLDERS[name] for name in above if name in SPLIT_FOLDERS]
    assert row["split"] == (splits[-1] if splits else "")
    assert row["diagnosis"] == diagnosis_of(own)


@pytest.mark.data
def test_the_real_nine_classes_have_their_counts_and_split(real_data: Path) -> None:
    if not (real_data / "isic9").is_dir():
        pytest.skip("needs isic9 among the real photos")
    catalog = read("folders", real_data / "isic9")
    assert Counter(column(catalog, "split")) == {"train": 2241, "test": 118}
    assert Counter(column(catalog, "diagnosis")) == {
        "pbk": 478, "mel": 454, "bcc": 394, "nv": 373, "scc": 197, "vasc": 142, "akiec": 130, "df": 111, "sek": 80,
    }  # fmt: skip
    assert unknown_labels(column(catalog, "diagnosis"), TARGETS["isic9"]) == {}


@pytest.fixture
def own_csv(tmp_path: Path) -> Path:
    """A user's own list: a path, a file name and a file name without its ending."""
    rows = ("images/a.jpg,Melanoma,L1,P1,70,M,back,2,Train", "b.png,nevus,L2,P1,,f,,vi,val", "c,Wart,,NA,33,,scalp,-1,TEST")
    header = "photo,finding,lesion,patient,years,gender,where,skin,part"
    images = {"images/a.jpg": b"a", "images/deep/b.png": b"bb", "c.jpg": b"ccc", "other.jpg": b"", "notes.txt": b""}
    return write(tmp_path, {"list.csv": table(header, *rows), **images})


OWN = CsvSettings(
    image="photo",
    label="finding",
    lesion_id="lesion",
    patient_id="patient",
    age="years",
    sex="gender",
    site="where",
    skin_type="skin",
    split="part",
)


def test_a_csv_is_read_by_the_columns_that_the_settings_name(own_csv: Path) -> None:
    catalog = read("csv", own_csv, csv=OWN)
    assert column(catalog, "image_id") == ["b.png", "c", "images/a.jpg"]
    assert column(catalog, "image_bytes") == [2, 3, 1]
    assert column(catalog, "diagnosis") == ["nv", "Wart", "mel"]
    assert column(catalog, "lesion_id") == ["L2", None, "L1"]
    assert column(catalog, "patient_id") == ["P1", None, "P1"]
    assert column(catalog, "split") == ["validation", "test", "train"]
    assert column(catalog, "sex") == ["female", None, "male"]
    assert column(catalog, "skin_type") == ["VI", None, "II"]
    assert catalog.photos["age"].fillna(-1).tolist() == [-1, 33, 70]


def test_columns_that_the_settings_do_not_name_are_none(own_csv: Path) -> None:
    catalog = read("csv", own_csv, csv=CsvSettings(image="photo", label="finding"))
    for name in ("lesion_id", "patient_id", "sex", "site", "skin_type", "split"):
        assert column(catalog, name) == [None] * 3
    assert catalog.photos["age"].isna().all()


def test_a_missing_column_is_named_with_those_that_are_there(own_csv: Path) -> None:
    message = refusal("csv", own_csv, csv=OWN.model_copy(update={"age": "age"}))
    assert "missing columns age; it has photo, finding, lesion, patient, years, gender, where, skin, part" in message
    assert "--csv" in message


@pytest.mark.parametrize(
    ("written", "skin_type"),
    [("1", "I"), ("3.0", "III"), ("IV", "IV"), ("v", "V"), ("34", "III-IV"), ("V-VI", "V-VI"), ("unknown", None), ("-1.0", None)],
)
def test_skin_types_are_read_as_data_sets_write_them(own_csv: Path, written: str, skin_type: str | None) -> None:
    (own_csv / "list.csv").write_text((own_csv / "list.csv").read_text().replace(",vi,", f",{written},"))
    assert column(read("csv", own_csv, csv=OWN), "skin_type") == [skin_type, None, "II"]


@pytest.mark.parametrize("written", ["0", "7", "2.5", "dark"])
def test_a_skin_type_that_is_none_is_refused(own_csv: Path, written: str) -> None:
    (own_csv / "list.csv").write_text((own_csv / "list.csv").read_text().replace(",vi,", f",{written},"))
    assert f"{written!r} is no skin type" in refusal("csv", own_csv, csv=OWN)


def test_a_split_that_is_none_is_refused(own_csv: Path) -> None:
    (own_csv / "list.csv").write_text((own_csv / "list.csv").read_text().replace(",TEST", ",holdout"))
    assert "column part says 'holdout'; known splits are train, training, val" in refusal("csv", own_csv, csv=OWN)


def test_two_csv_files_need_a_name(own_csv: Path) -> None:
    write(own_csv, {"tables/second.csv": table("photo,finding", "../c.jpg,scc")})
    assert "2 CSV files (list.csv, tables/second.csv)" in refusal("csv", own_csv, csv=OWN)
    settings = CsvSettings(file="./tables/second.csv", image="photo", label="finding")
    assert column(read("csv", own_csv, csv=settings), "diagnosis") == ["scc"]
    assert "no third.csv; CSV files there are list.csv, tables/second.csv" in refusal(
        "csv", own_csv, csv=CsvSettings(file="third.csv")
    )


def test_a_folder_without_a_csv_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": b"x"})
    assert "0 CSV files (none)" in refusal("csv", tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("images/a.jpg,nv", "elsewhere/b.png,mel"), "1 of 2 photos in list.csv have no file, the first is 'elsewhere/b.png'"),
        (("images/a.jpg,nv", "a,mel"), "1 photos stand more than once, the first is 'images/a.jpg'"),
        (("c,nv", "c,mel"), "1 image_ids stand more than once, the first is 'c'"),
        (("c,nv", "a,"), "1 of 2 photos have no label, the first is 'a'"),
        (("notes.txt,nv",), "have no file, the first is 'notes.txt'"),
    ],
    ids=["no file", "one file twice", "one name twice", "no label", "no photo"],
)
def test_a_csv_that_does_not_fit_its_photos_is_refused(own_csv: Path, rows: tuple[str, ...], message: str) -> None:
    write(own_csv, {"list.csv": table("image,label", *rows)})
    assert message in refusal("csv", own_csv)


def test_a_file_name_that_stands_twice_needs_its_path(own_csv: Path) -> None:
    write(own_csv, {"second/b.png": b"other", "list.csv": table("image,label", "b.png,nv")})
    assert "2 photos are called b.png: images/deep/b.png, second/b.png" in refusal("csv", own_csv)
    write(own_csv, {"list.csv": table("image,label", "second\\b.png,nv")})
    assert column(read("csv", own_csv), "image_bytes") == [5]


NAMES = st.text(st.sampled_from("ab. -(ü1"), min_size=1, max_size=6).filter(lambda name: name.strip(" .") == name)


@given(st.lists(NAMES, min_size=1, max_size=6, unique=True), st.sampled_from(["path", "name", "stem"]))
def test_a_photo_is_found_by_its_path_its_name_or_its_stem(
    tmp_path_factory: pytest.TempPathFactory, stems: list[str], written: str
) -> None:
    folder = tmp_path_factory.mktemp("own")
    paths = {stem: f"in {number}/{stem}.jpg" for number, stem in enumerate(stems)}
    as_written = {"path": paths, "name": {stem: f"{stem}.jpg" for stem in stems}, "stem": {stem: stem for stem in stems}}[written]
    pd.DataFrame({"image": as_written.values(), "label": "nv"}).to_csv(folder / "list.csv", index=False)
    files = Files(str(folder), {**dict.fromkeys(paths.values(), 1), "list.csv": 1}, CsvSettings(), {})
    assert list(csv(files).rows["path"]) == list(paths.values())


def test_drawn_lesions_are_read(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "drawn", 6, seed=1)
    catalog = read("synthetic", tmp_path / "drawn")
    assert len(catalog.photos) == 6
    assert set(column(catalog, "diagnosis")) <= set(DIAGNOSES)
    assert set(column(catalog, "source")) == {"synthetic"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_empty_folder_is_refused_by_every_layout(tmp_path: Path, name: CatalogName) -> None:
    (tmp_path / "empty").mkdir()
    refusal(name, tmp_path / "empty")


def test_a_users_label_without_a_code_is_refused_by_every_layout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'x' -> 'y' is no diagnosis code"):
        read("folders", write(tmp_path, {"x/a.jpg": b"x"}), labels={"x": "y"})


@pytest.mark.s3
def test_a_bucket_of_folders_reads_as_the_folder_does(nine_classes: Path, s3_bucket: str) -> None:
    storage.upload_folder(nine_classes, f"{s3_bucket}/raw")
    remote, local = read("folders", f"{s3_bucket}/raw").photos, read("folders", nine_classes).photos
    assert remote.drop(columns="image_uri").equals(local.drop(columns="image_uri"))
    assert [storage.read_bytes(uri) for uri in remote["image_uri"]] == [b"x"] * 4


@pytest.mark.s3
def test_a_bucket_of_isic2019_reads_as_the_folder_does(isic2019: Path, s3_bucket: str) -> None:
    storage.upload_folder(isic2019, s3_bucket)
    remote, local = read("isic2019", s3_bucket).photos, read("isic2019", isic2019).photos
    assert remote.drop(columns="image_uri").equals(local.drop(columns="image_uri"))
    assert list(remote["image_uri"]) == [uri.replace(str(isic2019), s3_bucket) for uri in local["image_uri"]]
