"""Rows: one a photo, with figures or with a reason, and the same figures as the answer over HTTP."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from skinray.bundle import Bundle, Labels, OperatingPoint, OperatingPoints
from skinray.errors import ConfigError
from skinray.images import Preprocessing
from skinray.predictions import malignancy_scores, prediction_answer, prediction_rows, prediction_schema, threshold_of
from skinray.quality import QUALITY_FLAGS, QUALITY_MEASURES
from skinray.taxonomy import TARGETS

HAM7 = Labels(codes=TARGETS["ham7"].codes, malignant=TARGETS["ham7"].malignant)
BINARY = Labels(codes=TARGETS["binary"].codes, malignant=TARGETS["binary"].malignant)

Probabilities = NDArray[np.float32]


def point(threshold: float) -> OperatingPoint:
    return OperatingPoint(threshold=threshold, sensitivity=0.9, specificity=0.8, measured_on="validation")


def bundle_of(labels: Labels, **thresholds: float) -> Bundle:
    points = {name: point(threshold) for name, threshold in (thresholds or {"balanced": 0.5}).items()}
    return Bundle(
        uri="/models/one",
        folder=Path("/models/one"),
        model_id="0123456789ab",
        preprocessing=Preprocessing(),
        labels=labels,
        operating_points=OperatingPoints(default=next(iter(points)), points=points),
        metadata={},
    )


def photos(*error_codes: str) -> dict[str, NDArray[Any]]:
    """The columns of a block, one photo for each error code, "" for a usable one."""
    usable = np.array([code == "" for code in error_codes], bool)
    numbers = range(len(error_codes))
    return {
        "index": np.arange(len(error_codes)),
        "image_id": np.array([f"a/{number}.jpg" for number in numbers], dtype=object),
        "image_uri": np.array([f"s3://bucket/a/{number}.jpg" for number in numbers], dtype=object),
        "image_sha256": np.array(["" if code == "missing" else "0" * 64 for code in error_codes], dtype=object),
        "label": np.array(["mel" if number % 2 else "" for number in numbers], dtype=object),
        "patient_id": np.array(["p1"] * len(usable), dtype=object),
        "lesion_id": np.array([""] * len(usable), dtype=object),
        "sex": np.array(["female"] * len(usable), dtype=object),
        "site": np.array([""] * len(usable), dtype=object),
        "age": np.where(usable, 61.0, np.nan),
        "status": np.array(["scored" if code == "" else "failed" for code in error_codes], dtype=object),
        "width_px": np.where(usable, 600, 0),
        **{name: np.where(usable, 30.0, np.nan) for name in ("ita_degrees", *QUALITY_MEASURES)},
        **{name: usable & (np.arange(len(usable)) == 2) for name in QUALITY_FLAGS},
        "height_px": np.where(usable, 450, 0),
        "error_code": np.array(error_codes, dtype=object),
        "error_detail": np.array([code and f"it is {code}" for code in error_codes], dtype=object),
    }


def softmax(logits: NDArray[np.float64]) -> Probabilities:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def some_probabilities(count: int, labels: Labels, seed: int = 0, scale: float = 3) -> Probabilities:
    return softmax(np.random.default_rng(seed).normal(0, scale, (count, len(labels.codes))))


MIXED = ("", "truncated", "", "missing", "empty", "")
MIXED_PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], np.float32)


def test_every_photo_is_one_row_in_order() -> None:
    rows = prediction_rows(photos(*MIXED), MIXED_PROBABILITIES, bundle_of(BINARY), "balanced")
    assert rows.schema == prediction_schema(BINARY)
    assert rows["image_id"].to_pylist() == [f"a/{number}.jpg" for number in range(6)]
    assert rows["status"].to_pylist() == ["scored", "failed", "scored", "failed", "failed", "scored"]


def test_a_usable_photo_has_figures_and_no_error() -> None:
    rows = prediction_rows(photos(*MIXED), MIXED_PROBABILITIES, bundle_of(BINARY), "balanced")
    assert rows["prob_benign"].to_pylist() == pytest.approx([0.9, None, 0.2, None, None, 0.5])
    assert rows["malignancy_score"].to_pylist() == pytest.approx([0.1, None, 0.8, None, None, 0.5])
    assert rows["flagged"].to_pylist() == [False, None, True, None, None, True]
    assert rows["error_code"].to_pylist() == [None, "truncated", None, "missing", "empty", None]
    assert rows["error_detail"].to_pylist() == [None, "it is truncated", None, "it is missing", "it is empty", None]


def test_what_is_not_known_of_a_photo_is_null() -> None:
    rows = prediction_rows(photos("", "missing"), MIXED_PROBABILITIES[:1], bundle_of(BINARY), "balanced")
    assert rows["image_sha256"].to_pylist() == ["0" * 64, None]
    assert rows["label"].to_pylist() == [None, "mel"]
    assert rows["width_px"].to_pylist() == [600, None]
    assert rows["height_px"].to_pylist() == [450, None]


@pytest.mark.parametrize("labels", [BINARY, HAM7], ids=["binary", "ham7"])
@pytest.mark.parametrize("codes", [(), ("",), ("corrupt",), ("corrupt",) * 3, ("",) * 3], ids=str)
def test_blocks_of_any_make_up_have_one_schema(labels: Labels, codes: tuple[str, ...]) -> None:
    rows = prediction_rows(photos(*codes), some_probabilities(codes.count(""), labels), bundle_of(labels), "balanced")
    assert rows.schema == prediction_schema(labels)
    assert rows.num_rows == len(codes)
    for name in ("malignancy_score", "flagged", f"prob_{labels.codes[0]}", "width_px"):
        assert rows[name].null_count == sum(code != "" for code in codes), name


def test_the_schema_names_one_probability_a_class_in_order() -> None:
    names = [name for name in prediction_schema(HAM7).names if name.startswith("prob_")]
    assert names == [f"prob_{code}" for code in HAM7.codes]
    assert {prediction_schema(HAM7).field(name).type for name in names} == {pa.float32()}


def test_the_score_is_the_sum_of_the_malignant_classes() -> None:
    #                 akiec bcc  bkl  df   mel  nv   vasc
    row = np.array([[0.1, 0.2, 0.1, 0.0, 0.3, 0.2, 0.1]], np.float32)
    assert malignancy_scores(row, HAM7).tolist() == pytest.approx([0.6])
    assert malignancy_scores(row, Labels(codes=HAM7.codes, malignant=("mel",))).tolist() == pytest.approx([0.3])


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.1, 3.0, 30.0]), count=st.integers(0, 50))
def test_a_score_is_a_probability(seed: int, scale: float, count: int) -> None:
    probabilities = some_probabilities(count, HAM7, seed, scale)
    for labels in (HAM7, Labels(codes=HAM7.codes, malignant=HAM7.codes)):
        scores = malignancy_scores(probabilities, labels)
        assert scores.shape == (count,)
        assert scores.dtype == np.float32
        assert ((scores >= 0) & (scores <= 1)).all()


def test_a_score_at_the_threshold_is_flagged() -> None:
    bundle = bundle_of(BINARY, at=0.5, above=0.5000001)
    row = np.array([[0.5, 0.5]], np.float32)
    assert prediction_rows(photos(""), row, bundle, "at")["flagged"].to_pylist() == [True]
    assert prediction_rows(photos(""), row, bundle, "above")["flagged"].to_pylist() == [False]


def test_a_score_equal_to_a_threshold_measured_in_single_precision_is_flagged() -> None:
    score = np.float32(0.7)
    bundle = bundle_of(BINARY, chosen=float(score))
    row = np.array([[1 - score, score]], np.float32)
    assert prediction_answer(row[0], bundle, "chosen")["flagged"] is True
    assert prediction_rows(photos(""), row, bundle, "chosen")["flagged"].to_pylist() == [True]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 1), take_a_score=st.booleans())
def test_an_answer_and_a_row_agree(seed: int, threshold: float, take_a_score: bool) -> None:
    probabilities = some_probabilities(5, HAM7, seed)
    if take_a_score:
        threshold = float(malignancy_scores(probabilities, HAM7)[seed % 5])
    bundle = bundle_of(HAM7, chosen=threshold)
    rows = prediction_rows(photos(*[""] * 5), probabilities, bundle, "chosen").to_pylist()
    for row, given_probabilities in zip(rows, probabilities, strict=True):
        answer = prediction_answer(given_probabilities, bundle, "chosen")
        shared = set(answer) & set(row)
        assert shared >= {"status", "malignancy_score", "operating_point", "flagged", *(f"prob_{code}" for code in HAM7.codes)}
        assert {name: answer[name] for name in shared} == {name: row[name] for name in shared}
        assert (answer["model_id"], answer["threshold"]) == (bundle.model_id, threshold)


def test_the_operating_point_named_is_the_one_used() -> None:
    bundle = bundle_of(BINARY, screening=0.05, balanced=0.5)
    for name, flagged in {"screening": [True, True, True], "balanced": [False, True, True]}.items():
        rows = prediction_rows(photos(*[""] * 3), MIXED_PROBABILITIES, bundle, name)
        assert rows["flagged"].to_pylist() == flagged
        assert rows["operating_point"].to_pylist() == [name] * 3


def test_an_unknown_operating_point_is_named_with_those_there_are() -> None:
    bundle = replace(bundle_of(BINARY, screening=0.05, balanced=0.5), uri="s3://models/one")
    with pytest.raises(ConfigError) as caught:
        threshold_of(bundle, "strict")
    assert str(caught.value) == "operating point 'strict' is not in bundle s3://models/one; it has balanced, screening"


@pytest.mark.parametrize("count", [2, 4])
def test_probabilities_for_other_photos_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="NumPy boolean array indexing assignment"):
        prediction_rows(photos(*MIXED), some_probabilities(count, BINARY), bundle_of(BINARY), "balanced")
