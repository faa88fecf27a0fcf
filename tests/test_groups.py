"""Groups are told apart, those too small say nothing, and a group that is judged worse is named."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from skinray.counts import Measure, ScoreCounts, ThresholdCounts
from skinray.groups import LEAST_PHOTOS, UNKNOWN, Group, age_bands, attributes_of, group_measures, in_short, judged_groups
from skinray.intervals import Clusters, resample


def test_every_age_has_a_band() -> None:
    ages = np.array([0, 29.9, 30, 44, 45, 60, 75, 120, np.nan])
    bands = ["under 30", "under 30", "30 to 44", "30 to 44", "45 to 59", "60 to 74", "75 and over", "75 and over", UNKNOWN]
    assert age_bands(ages).tolist() == bands


def test_gaps_of_every_kind_are_unknown_and_a_single_group_is_none() -> None:
    photos = pd.DataFrame(
        {
            "age": [40, None, np.nan, 80],
            "sex": ["male", "", None, "female"],
            "site": ["face", "scalp", pd.NA, "back"],
            "skin_type": [None] * 4,
            "source": ["HAM"] * 4,
            "ita_degrees": [20.0, 50.0, np.nan, 50.0],
        }
    )
    found = attributes_of(photos)
    assert found["age"].tolist() == ["30 to 44", UNKNOWN, UNKNOWN, "75 and over"]
    assert found["sex"].tolist() == ["male", UNKNOWN, UNKNOWN, "female"]
    assert len(set(found["site"])) == 3, "face and scalp are one group"
    assert "source" not in found
    assert found["estimated skin tone"].tolist() == ["tan", "light", UNKNOWN, "light"]
    stated = attributes_of(photos.assign(skin_type=["II", None, "", "VI"]))
    assert stated["skin type"].tolist() == ["II", UNKNOWN, UNKNOWN, "VI"]
    assert "estimated skin tone" not in stated, "what is stated is no estimate"


def test_photos_are_grouped_by_the_quality_flags_that_enough_of_them_have() -> None:
    count = 3 * LEAST_PHOTOS
    photos = pd.DataFrame({name: [None] * count for name in ("age", "sex", "site", "skin_type", "source", "ita_degrees")})
    photos["ita_degrees"] = np.nan
    blurred = np.arange(count) < LEAST_PHOTOS
    photos = photos.assign(blurred=blurred, marked=np.arange(count) < LEAST_PHOTOS - 1, small=False)
    photos["vignetted"] = pd.array([None, *[True] * LEAST_PHOTOS, *[False] * (2 * LEAST_PHOTOS - 1)], "boolean")
    found = attributes_of(photos)
    assert set(found) == {"blurred", "vignetted"}
    assert found["blurred"].tolist() == np.where(blurred, "yes", "no").tolist()
    assert found["vignetted"][0] == "no", "a photo that was not looked at has no flag"


@pytest.fixture(scope="module")
def judged() -> dict[str, np.ndarray]:
    """Women's malignant lesions score as benign ones do; 9 photos are of nobody known."""
    generator = np.random.default_rng(1)
    positive = generator.random(1209) < 0.3
    sex = np.array(["female"] * 400 + ["male"] * 800 + [UNKNOWN] * 9)
    scores = generator.normal(size=1209) + 2.0 * (positive & (sex != "female"))
    return {"positive": positive, "sex": sex, "scores": scores, "flagged": scores > 1}


def judge(judged: dict[str, np.ndarray]) -> list[Group]:
    positive, scores, flagged = judged["positive"], judged["scores"], judged["flagged"]
    measures = [
        Measure("", ScoreCounts(positive, scores)),
        Measure("", ThresholdCounts(positive, flagged)),
        *group_measures({"sex": judged["sex"]}, positive, scores, flagged),
    ]
    found = resample(measures, Clusters(np.arange(len(positive))), rounds=200)
    return judged_groups({"sex": judged["sex"]}, positive, found, found)


def test_figures_of_a_group_are_those_of_its_photos_alone(judged: dict[str, np.ndarray]) -> None:
    groups = judge(judged)
    assert [(group.attribute, group.name, group.photos) for group in groups] == [
        ("sex", "female", 400),
        ("sex", "male", 800),
        ("sex", UNKNOWN, 9),
    ]
    for group in groups[:2]:
        of = judged["sex"] == group.name
        auc, recall = group.figures["roc_auc"], group.figures["recall"]
        assert auc is not None
        assert recall is not None
        assert auc.value == pytest.approx(sklearn.metrics.roc_auc_score(judged["positive"][of], judged["scores"][of]))
        assert recall.value == pytest.approx(judged["flagged"][of & judged["positive"]].mean())
        assert auc.low < auc.value < auc.high


def test_a_group_that_is_judged_worse_is_named_and_the_others_are_not(judged: dict[str, np.ndarray]) -> None:
    female, male, unknown = judge(judged)
    assert len(female.warnings()) == 2
    assert female.warnings()[0].startswith("sex female: ROC-AUC 0.5")
    assert "sensitivity" in female.warnings()[1]
    assert not any("chance" in warning for warning in female.warnings())
    assert male.warnings() == []
    assert unknown.photos < LEAST_PHOTOS
    assert set(unknown.figures.values()) == {None}
    assert unknown.warnings() == []


def test_what_chance_could_have_made_is_told_last_and_in_one_line() -> None:
    warnings = [
        "age under 30: ROC-AUC 0.700, 0.200 below all photos (-0.010 to 0.300; chance alone could make such a gap)",
        "sex female: ROC-AUC 0.500, 0.400 below all photos (0.300 to 0.500)",
        "site face: sensitivity 0.600, 0.100 below all photos (-0.100 to 0.300; chance alone could make such a gap)",
    ]
    assert in_short(warnings) == [
        warnings[1],
        "gaps that chance alone could make: age under 30: ROC-AUC 0.700, 0.200 below; site face: sensitivity 0.600, 0.100 below",
    ]
    assert in_short([]) == []
