"""The layouts are those that the challenges published."""

import numpy as np
import pandas as pd

from skinray.bundle import Labels
from skinray.isic_csv import isic_table


def test_seven_diagnoses_stand_as_in_2018() -> None:
    codes = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    rows = pd.DataFrame({"image_id": ["a/ISIC_1.jpg", "b.tar/c/ISIC_2.png"], **{f"prob_{code}": [0.5, np.nan] for code in codes}})
    rows["prob_mel"] = [0.25, np.nan]
    table = isic_table(rows, Labels(codes=codes, malignant=("akiec", "bcc", "mel")))
    assert table.to_csv(index=False).splitlines() == [
        "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC",
        "ISIC_1,0.25,0.5,0.5,0.5,0.5,0.5,0.5",
        "ISIC_2,,,,,,,",
    ]


def test_malignant_or_benign_stands_as_in_2020() -> None:
    rows = pd.DataFrame({"image_id": ["ISIC_1"], "malignancy_score": [0.75], "prob_benign": [0.25], "prob_malignant": [0.75]})
    table = isic_table(rows, Labels(codes=("benign", "malignant"), malignant=("malignant",)))
    assert table.to_csv(index=False).splitlines() == ["image_name,target", "ISIC_1,0.75"]


def test_other_classes_follow_in_their_order() -> None:
    rows = pd.DataFrame({"image_id": ["x"], "prob_wart": [0.1], "prob_mel": [0.7], "prob_other": [0.2]})
    assert [*isic_table(rows, Labels(codes=("wart", "mel", "other"), malignant=("mel",)))] == ["image", "MEL", "WART", "OTHER"]
