"""Which diagnoses are malignant, and how they become classes."""

import pytest

from skinray.errors import CatalogError
from skinray.taxonomy import DIAGNOSES, MALIGNANT_DIAGNOSES, TARGETS, TargetName, class_labels


def test_melanoma_carcinoma_and_in_situ_carcinoma_are_malignant() -> None:
    assert {code for code in DIAGNOSES if code in MALIGNANT_DIAGNOSES} == {"mel", "bcc", "akiec", "malignant"}


def test_the_seven_classes_of_ham10000_are_in_alphabetical_order() -> None:
    assert TARGETS["ham7"].codes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert TARGETS["ham7"].malignant == ("akiec", "bcc", "mel")


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_consistent(name: TargetName) -> None:
    target = TARGETS[name]
    assert target.name == name
    assert len(set(target.codes)) == len(target.codes)
    assert set(target.code_of.values()) == set(target.codes)
    assert 0 < len(target.malignant) < len(target.codes)
    assert set(target.malignant) < set(target.codes)


@pytest.mark.parametrize("name", TARGETS)
def test_no_target_makes_a_malignant_diagnosis_benign(name: TargetName) -> None:
    target = TARGETS[name]
    for diagnosis, code in target.code_of.items():
        assert (code in target.malignant) == (diagnosis in MALIGNANT_DIAGNOSES), diagnosis


def test_labels_keep_the_order_of_the_photos() -> None:
    diagnoses = ["nv", "mel", "nv", "akiec", "df"]
    assert class_labels(diagnoses, TARGETS["binary"]) == ["benign", "malignant", "benign", "malignant", "benign"]
    assert class_labels(diagnoses, TARGETS["ham7"]) == diagnoses
    assert class_labels([], TARGETS["ham7"]) == []


def test_every_unknown_label_is_listed_with_its_count() -> None:
    with pytest.raises(CatalogError) as caught:
        class_labels(["nv", "scc", "", "scc", "NV"], TARGETS["ham7"])
    message = str(caught.value)
    for part in ("target ham7", "'scc' (2 photos)", "'' (1 photos)", "'NV' (1 photos)", "vasc"):
        assert part in message
    assert "\n" not in message


def test_a_binary_label_is_unknown_to_the_seven_classes() -> None:
    with pytest.raises(CatalogError, match="'malignant' \\(1 photos\\)"):
        class_labels(["nv", "malignant"], TARGETS["ham7"])
