"""The layouts are those that the challenges published."""

import numpy as np
import pandas as pd
import pytest

from skinray.bundle import Labels
from skinray.isic_csv import isic_names, isic_table


def test_seven_diagnoses_stand_as_in_2018() -> None:
    codes = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    rows = pd.DataFrame({f"prob_{code}": [0.5, np.nan] for code in codes})
    rows["prob_mel"] = [0.25, np.nan]
    table = isic_table(
        isic_names(["a/ISIC_1.jpg", "b.tar/c/ISIC_2.PNG"]), rows, Labels(codes=codes, malignant=("akiec", "bcc", "mel"))
    )
    assert table.to_csv(index=False).splitlines() == [
        "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC",
        "ISIC_1,0.25,0.5,0.5,0.5,0.5,0.5,0.5",
        "ISIC_2,,,,,,,",
    ]


def test_malignant_or_benign_stands_as_in_2020() -> None:
    rows = pd.DataFrame({"malignancy_score": [0.75], "prob_benign": [0.25], "prob_malignant": [0.75]})
    table = isic_table(["ISIC_1"], rows, Labels(codes=("benign", "malignant"), malignant=("malignant",)))
    assert table.to_csv(index=False).splitlines() == ["image_name,target", "ISIC_1,0.75"]


def test_other_classes_follow_in_their_order() -> None:
    rows = pd.DataFrame({"prob_wart": [0.1], "prob_mel": [0.7], "prob_other": [0.2]})
    table = isic_table(["x"], rows, Labels(codes=("wart", "mel", "other"), malignant=("mel",)))
    assert [*table] == ["image", "MEL", "WART", "OTHER"]


def test_photos_without_a_file_of_their_own_keep_their_names() -> None:
    ids = ["x/train-00000.parquet#0", "x/train-00000.parquet#1", "1.2.840.5.1", "1.2.840.5.2", "a/ISIC_1.dcm"]
    assert isic_names(ids) == ["train-00000.parquet#0", "train-00000.parquet#1", "1.2.840.5.1", "1.2.840.5.2", "ISIC_1"]


def test_photos_that_would_have_one_name_keep_their_whole_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert isic_names(["a/1.jpg", "b/1.jpg", "a/2.jpg"]) == ["a/1.jpg", "b/1.jpg", "2"]
    assert "the whole image_id of 2 photos" in capsys.readouterr().err
