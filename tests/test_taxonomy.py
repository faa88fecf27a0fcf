"""Which diagnoses are malignant, by which names data sets call them, and how they become classes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skinray.errors import CatalogError, ConfigError
from skinray.taxonomy import (
    DIAGNOSES,
    MALIGNANT_DIAGNOSES,
    TARGETS,
    check_known,
    class_labels,
    diagnosis_of,
    label_key,
    target_for,
    unknown_labels,
)

ISIC2019_COLUMNS = {
    "MEL": "mel", "NV": "nv", "BCC": "bcc", "AK": "akiec", "BKL": "bkl", "DF": "df", "VASC": "vasc", "SCC": "scc", "UNK": "unk",
}  # fmt: skip
NINE_CLASSES = {
    "actinic keratosis": "akiec", "basal cell carcinoma": "bcc", "dermatofibroma": "df", "melanoma": "mel", "nevus": "nv",
    "pigmented benign keratosis": "pbk", "seborrheic keratosis": "sek", "squamous cell carcinoma": "scc",
    "vascular lesion": "vasc",
}  # fmt: skip
ISIC2020_DIAGNOSES = {
    "nevus": "nv", "melanoma": "mel", "seborrheic keratosis": "sek", "lentigo NOS": "bkl", "lichenoid keratosis": "bkl",
    "solar lentigo": "bkl", "cafe-au-lait macule": "benign", "atypical melanocytic proliferation": "unk", "unknown": "unk",
}  # fmt: skip
ARCHIVE_DIAGNOSES = {
    "Benign": "benign", "Malignant": "malignant", "Indeterminate": "unk", "Nevus": "nv", "Melanoma, NOS": "mel",
    "Melanoma in situ": "mel", "Melanoma Invasive": "mel", "Melanoma metastasis": "mel", "Basal cell carcinoma": "bcc",
    "Squamous cell carcinoma, NOS": "scc", "Squamous cell carcinoma in situ": "akiec",
    "Squamous cell carcinoma in situ, Bowens disease": "akiec", "Squamous cell carcinoma, Invasive": "scc",
    "Solar or actinic keratosis": "akiec", "Seborrheic keratosis": "sek", "Pigmented benign keratosis": "pbk",
    "Solar lentigo": "bkl", "Lentigo NOS": "bkl", "Lichen planus like keratosis": "bkl", "Dermatofibroma": "df",
    "Hemangioma": "vasc", "Angiokeratoma": "vasc", "Pyogenic granuloma": "vasc",
    "Benign soft tissue proliferations - Vascular": "vasc", "Malignant melanocytic proliferations (Melanoma)": "mel",
}  # fmt: skip
# The names under which HAM10000's classes are listed by those who turn them into folders.
FOLDER_NAMES = {
    "Melanocytic nevi": "nv", "melanocytic_naevus": "nv", "Benign keratosis-like lesions": "bkl", "Actinic keratoses": "akiec",
    "Bowen's disease": "akiec", "Vascular_Lesions": "vasc", "non-malignant": "benign", "cancer": "malignant", "Moles": "nv",
}  # fmt: skip
PUBLISHED = {**ISIC2019_COLUMNS, **NINE_CLASSES, **ISIC2020_DIAGNOSES, **ARCHIVE_DIAGNOSES, **FOLDER_NAMES}


def test_melanoma_carcinoma_and_in_situ_carcinoma_are_malignant() -> None:
    assert {code for code in DIAGNOSES if code in MALIGNANT_DIAGNOSES} == {"mel", "bcc", "scc", "akiec", "malignant"}


@pytest.mark.parametrize(("label", "code"), PUBLISHED.items())
def test_every_published_label_has_its_code(label: str, code: str) -> None:
    assert diagnosis_of(label) == code


@pytest.mark.parametrize("code", DIAGNOSES)
def test_a_code_is_its_own_diagnosis(code: str) -> None:
    assert diagnosis_of(code) == diagnosis_of(code.upper()) == code


@given(st.text())
def test_the_diagnosis_of_a_diagnosis_is_itself(label: str) -> None:
    assert diagnosis_of(diagnosis_of(label)) == diagnosis_of(label)


@given(st.sampled_from(sorted(PUBLISHED)), st.sampled_from([" ", "  ", "_", "-", " - ", "\t", ", "]), st.booleans())
def test_case_spaces_underscores_and_hyphens_make_no_difference(label: str, gap: str, upper: bool) -> None:
    written = f" {gap.join(label.split())}{gap}"
    assert diagnosis_of(written.upper() if upper else written.title()) == PUBLISHED[label]


@given(st.text())
def test_a_key_is_its_own_key(label: str) -> None:
    assert label_key(label_key(label)) == label_key(label)


@pytest.mark.parametrize("label", ["Scar", "verruca", "lentigo maligna of nobody", "no finding", "0", "", "?", "黒子"])
def test_a_label_that_nobody_knows_stays_as_it_is_written(label: str) -> None:
    assert diagnosis_of(f" {label}\n") == label


def test_a_lentigo_maligna_is_no_lentigo() -> None:
    assert (diagnosis_of("lentigo"), diagnosis_of("lentigo maligna")) == ("bkl", "mel")


def test_the_classes_of_each_target_are_in_the_order_of_its_data_set() -> None:
    assert TARGETS["ham7"].codes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert TARGETS["isic8"].codes == tuple(code for code in ISIC2019_COLUMNS.values() if code != "unk")
    assert TARGETS["isic9"].codes == ("akiec", "bcc", "df", "mel", "nv", "pbk", "sek", "scc", "vasc")
    assert TARGETS["ham7"].malignant == ("akiec", "bcc", "mel")
    assert TARGETS["isic8"].malignant == ("mel", "bcc", "akiec", "scc")
    assert TARGETS["isic9"].malignant == ("akiec", "bcc", "mel", "scc")
    assert TARGETS["binary"].malignant == ("malignant",)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_consistent(name: str) -> None:
    target = TARGETS[name]
    assert target.name == name
    assert len(set(target.codes)) == len(target.codes)
    assert set(target.code_of.values()) == set(target.codes)
    assert set(target.code_of) <= set(DIAGNOSES)
    assert 0 < len(target.malignant) < len(target.codes)
    assert set(target.malignant) < set(target.codes)


@pytest.mark.parametrize("name", TARGETS)
def test_no_target_makes_a_malignant_diagnosis_benign(name: str) -> None:
    target = TARGETS[name]
    for diagnosis, code in target.code_of.items():
        assert (code in target.malignant) == (diagnosis in MALIGNANT_DIAGNOSES), diagnosis


@pytest.mark.parametrize("name", TARGETS)
def test_no_target_has_a_class_for_what_nobody_could_name(name: str) -> None:
    assert class_labels(["unk"], TARGETS[name]) == [None]


@pytest.mark.parametrize(
    ("name", "diagnoses", "classes"),
    [
        ("binary", ["nv", "mel", "scc", "akiec", "sek"], ["benign", "malignant", "malignant", "malignant", "benign"]),
        ("binary", ["malignant", "benign"], ["malignant", "benign"]),
        ("ham7", ["nv", "sek", "pbk", "scc", "malignant"], ["nv", "bkl", "bkl", None, None]),
        ("isic8", ["nv", "sek", "pbk", "scc", "benign"], ["nv", "bkl", "bkl", "scc", None]),
        ("isic9", ["nv", "sek", "bkl", "scc", "Scar"], ["nv", "sek", "pbk", "scc", None]),
    ],
)
def test_labels_keep_the_order_of_the_photos(name: str, diagnoses: list[str], classes: list[str | None]) -> None:
    assert class_labels(diagnoses, TARGETS[name]) == classes
    assert class_labels([], TARGETS[name]) == []


def test_unknown_labels_are_counted_and_sorted() -> None:
    diagnoses = ["nv", "scc", "Scar", "scc", "unk"]
    assert unknown_labels(diagnoses, TARGETS["ham7"]) == {"Scar": 1, "scc": 2, "unk": 1}
    assert list(unknown_labels(diagnoses, TARGETS["ham7"])) == ["Scar", "scc", "unk"]
    assert unknown_labels(["nv"], TARGETS["ham7"]) == {}


def test_every_unknown_label_is_listed_with_its_count_and_what_to_do() -> None:
    with pytest.raises(CatalogError) as caught:
        check_known(["nv", "scc", "Scar", "scc", "malignant"], TARGETS["ham7"])
    message = str(caught.value)
    for part in (
        "target ham7",
        "'scc' (2 photos)",
        "'Scar' (1 photo)",
        "'malignant' (1 photo)",
        "vasc",
        "--drop-unknown",
        "`labels`",
    ):
        assert part in message
    assert "'nv'" not in message
    assert "\n" not in message


def test_known_labels_pass() -> None:
    check_known(["nv", "mel", "scc"], TARGETS["isic8"])
    check_known([], TARGETS["isic8"])


def test_a_known_target_is_found_by_its_name() -> None:
    assert target_for("isic8", {}, ()) is TARGETS["isic8"]


def test_an_own_target_takes_names_codes_and_labels_that_nobody_knows() -> None:
    classes = {"pigmented": ("Melanocytic nevi", "mel"), "keratosis": ("AK", "sek", "akiec"), "other": ("Scar Tissue",)}
    target = target_for("own", classes, ("keratosis",))
    assert (target.name, target.codes, target.malignant) == ("own", ("pigmented", "keratosis", "other"), ("keratosis",))
    found = class_labels(["nv", "mel", "akiec", "sek", "scar_tissue", "Scar Tissue", "bcc", "Scar"], target)
    assert found == ["pigmented", "pigmented", "keratosis", "keratosis", "other", "other", None, None]


def test_the_malignant_classes_are_in_the_order_of_the_classes() -> None:
    target = target_for("own", {"a": ("mel",), "b": ("nv",), "c": ("bcc",)}, ("c", "a"))
    assert target.malignant == ("a", "c")


def test_a_label_in_two_classes_is_refused_with_both_their_names() -> None:
    with pytest.raises(ConfigError) as caught:
        target_for("own", {"first": ("mel",), "second": ("nv", "Melanoma in situ")}, ("first",))
    for part in ("first", "second", "'mel'", "'Melanoma in situ'"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="'Scar' stands in a and in b"):
        target_for("own", {"a": ("Scar",), "b": ("Scar",)}, ("a",))


def test_a_class_without_labels_is_refused() -> None:
    with pytest.raises(ConfigError, match="b has no diagnosis"):
        target_for("own", {"a": ("mel",), "b": ()}, ("a",))


def test_a_malignant_class_that_is_no_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="c is not among the classes a, b"):
        target_for("own", {"a": ("mel",), "b": ("nv",)}, ("a", "c"))
