"""Plots are PNGs that do not change from run to run; the card says what a reader must know."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skinray.bundle import OperatingPoint, OperatingPoints
from skinray.reports import NOT_A_DEVICE, confusion_plot, model_card, roc_plot, training_curves
from skinray.taxonomy import TARGETS

POSITIVE = np.array([True, False, True, True, False, False])
SCORES = np.array([0.9, 0.8, 0.7, 0.4, 0.3, 0.1])
POINTS = OperatingPoints(
    default="balanced",
    points={
        "balanced": OperatingPoint(
            threshold=0.4321,
            rule="the best of both",
            sensitivity=0.812,
            sensitivity_interval=(0.7, 0.9),
            specificity=0.834,
            specificity_interval=(0.8, 0.86),
            measured_on="validation",
        ),
        "sensitive": OperatingPoint(threshold=0.0567, sensitivity=0.951, specificity=0.523, measured_on="validation"),
    },
)


def metadata(classes: tuple[str, ...], clinical_input: bool = False) -> dict[str, Any]:
    return {
        "network": "resnet50",
        "leaks": {},
        "classes": list(classes),
        "dataset": {
            "settings": {"catalog": "ham10000"},
            "split_classes": {
                split: {code: 1000 * row + column for column, code in enumerate(classes)}
                for row, split in enumerate(("train", "validation", "test"), start=1)
            },
        },
        "validation": {"roc_auc": 0.8765, "photos": 801, "epoch": 7},
        "training_settings": {"model": {"clinical_input": clinical_input}},
    }


def opened(png: bytes) -> Image.Image:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def test_the_roc_plot_is_a_square_png() -> None:
    image = opened(roc_plot(POSITIVE, SCORES, "validation"))
    assert image.size == (624, 624)
    assert len(set(image.convert("L").tobytes())) > 10


@pytest.mark.parametrize("target", ["binary", "ham7"])
def test_the_confusion_plot_grows_with_the_classes(target: Any) -> None:
    codes = TARGETS[target].codes
    image = opened(confusion_plot(np.eye(len(codes), dtype=np.int64) * 1234, codes, "test"))
    assert image.height == pytest.approx(120 * (2.2 + 0.9 * len(codes)), abs=1)


def test_a_class_without_photos_is_drawn_too() -> None:
    opened(confusion_plot(np.array([[5, 1], [0, 0]]), ("benign", "malignant"), "test"))


def test_the_same_figures_are_the_same_bytes() -> None:
    assert roc_plot(POSITIVE, SCORES, "test") == roc_plot(POSITIVE, SCORES, "test")
    matrix = np.array([[5, 1], [2, 3]])
    assert confusion_plot(matrix, ("a", "b"), "test") == confusion_plot(matrix, ("a", "b"), "test")


def test_other_figures_are_other_bytes() -> None:
    assert roc_plot(POSITIVE, SCORES, "test") != roc_plot(POSITIVE, SCORES[::-1], "test")
    assert confusion_plot(np.array([[5, 1], [2, 3]]), ("a", "b"), "") != confusion_plot(
        np.array([[5, 2], [1, 3]]), ("a", "b"), ""
    )


def history(epochs: int, frozen: int = 0, **changes: Any) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "phase": "frozen backbone" if epoch <= frozen else "fine-tuning",
            "train_loss": 0.7 / epoch,
            "validation_loss": 0.8 / epoch,
            "train_auc": 1 - 0.5 / epoch,
            "validation_auc": 0.95 - 0.5 / epoch,
        }
        | changes
        for epoch in range(1, epochs + 1)
    ]


def shades(png: bytes, color: tuple[int, int, int]) -> int:
    """How many pixels have a color."""
    pixels = np.asarray(opened(png).convert("RGB"))
    return int((pixels == color).all(axis=-1).sum())


TRAINING_COLOR, VALIDATION_COLOR, FROZEN_COLOR = (0xD1, 0x79, 0x2A), (0x1F, 0x5F, 0x8B), (237, 237, 237)


@pytest.mark.parametrize("epochs", [1, 2, 20, 100])
def test_the_curves_are_two_plots_side_by_side(epochs: int) -> None:
    png = training_curves(history(epochs, frozen=epochs // 4), 1, "resnet50")
    assert opened(png).size == (1200, 500)
    for side in (slice(None, 600), slice(600, None)):
        pixels = np.asarray(opened(png).convert("RGB"))[:420, side]  # the legend lies below
        for color in (TRAINING_COLOR, VALIDATION_COLOR):
            assert (pixels == color).all(axis=-1).any()


def test_the_curves_shade_the_epochs_with_a_frozen_backbone() -> None:
    assert shades(training_curves(history(8), 8, ""), FROZEN_COLOR) < 100  # some of the letters' edges
    narrow, wide = (shades(training_curves(history(8, frozen=frozen), 8, ""), FROZEN_COLOR) for frozen in (2, 4))
    assert 1.5 * narrow < wide < 2.5 * narrow


def test_the_curves_mark_the_best_epoch() -> None:
    assert training_curves(history(8), 3, "") != training_curves(history(8), 4, "")
    assert training_curves(history(8), 3, "") == training_curves(history(8), 3, "")


@pytest.mark.parametrize("changes", [{"train_loss": None, "train_auc": None}, {"train_loss": np.nan, "train_auc": np.nan}])
def test_curves_that_were_not_measured_are_left_out(changes: dict[str, Any]) -> None:
    png = training_curves(history(5, **changes), 5, "")
    assert shades(png, TRAINING_COLOR) == 0
    assert shades(png, VALIDATION_COLOR) > 100


def test_old_histories_without_phase_and_training_auc_are_drawn() -> None:
    old = [{name: epoch[name] for name in ("epoch", "train_loss", "validation_loss", "validation_auc")} for epoch in history(3)]
    assert shades(training_curves(old, 3, ""), TRAINING_COLOR) > 0


@pytest.mark.parametrize("target", ["binary", "ham7"])
def test_the_card_names_every_class_with_its_photos(target: Any) -> None:
    codes = TARGETS[target].codes
    lines = model_card(metadata(codes), POINTS).splitlines()
    assert f"| split | {' | '.join(codes)} |" in lines
    for row, split in enumerate(("train", "validation", "test"), start=1):
        assert f"| {split} | {' | '.join(str(1000 * row + column) for column in range(len(codes)))} |" in lines


def test_the_card_says_what_the_model_looks_at_besides_the_photo() -> None:
    assert "age, sex and site" in model_card(metadata(("benign", "malignant"), clinical_input=True), POINTS)
    assert "age, sex and site" not in model_card(metadata(("benign", "malignant")), POINTS)


def test_the_card_says_that_it_is_no_medical_device() -> None:
    assert NOT_A_DEVICE in model_card(metadata(("benign", "malignant")), POINTS)
    assert "not a medical device" in NOT_A_DEVICE
    assert "not a diagnosis" in NOT_A_DEVICE


def test_the_card_has_every_operating_point_and_marks_the_default() -> None:
    lines = model_card(metadata(("benign", "malignant")), POINTS).splitlines()
    assert "| balanced (default) | 0.4321 | 0.812 (0.700 to 0.900) | 0.834 (0.800 to 0.860) | the best of both |" in lines
    assert "| sensitive | 0.0567 | 0.951 | 0.523 |  |" in lines, "a bundle from before there were intervals"


def test_the_card_says_on_what_the_figure_was_measured() -> None:
    card = model_card(metadata(("benign", "malignant")), POINTS)
    assert "0.876 on 801 photos (epoch 7" in card or "0.877 on 801 photos (epoch 7" in card
    assert "ham10000" in card


def test_the_card_of_an_ensemble_says_what_was_averaged_and_on_what_it_was_chosen() -> None:
    def said(**ensemble: Any) -> str:
        of_several = metadata(("benign", "malignant")) | {"ensemble": ensemble}
        return model_card(of_several | {"validation": {"roc_auc": 0.8765, "photos": 801, "epoch": None}}, POINTS)

    pair = said(members=["a", "b"], networks=["resnet50", "mobilenet"], flips=False)
    assert "(the mean of 2 models; each one's epoch was chosen on these photos, and the figure is therefore optimistic:" in pair
    flipped = said(members=["a"], networks=["resnet50"], flips=True)
    assert "(the mean of one model over a photo and its mirror images; each one's epoch was chosen" in flipped
    folds = said(members=["a", "b"], cross_validation={})
    assert "of 2 models, one a fold, each on the photos that it had not learnt from; each one's epoch was chosen on them" in folds
    promise = "no threshold can promise its miss rate"
    assert (promise in folds, promise in pair, "one a fold" in pair + flipped) == (True, False, False)


def test_the_tables_of_the_card_have_as_many_cells_in_every_row() -> None:
    lines = model_card(metadata(TARGETS["ham7"].codes), POINTS).splitlines()
    tables: list[list[int]] = [[]]
    for line in lines:
        if line.startswith("|"):
            tables[-1].append(line.count("|"))
        elif tables[-1]:
            tables.append([])
    assert [set(table) for table in tables if table] == [{9}, {6}]


def test_the_card_of_an_evaluated_bundle_says_what_was_measured() -> None:
    from tests.test_evaluation_page import metrics_of
    from tests.test_measurement import BINARY

    metrics = metrics_of(BINARY, warnings=["sex female: ROC-AUC 0.500"])
    card = model_card(metadata(("benign", "malignant")), POINTS, metrics)
    auc = metrics["figures"]["roc_auc"]
    row = f"| ROC-AUC, malignant against benign | {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}) |"
    assert row in card.splitlines()
    assert "- sex female: ROC-AUC 0.500" in card
    assert "## Evaluation" not in model_card(metadata(("benign", "malignant")), POINTS)
    assert "too high" not in card
    seen = model_card(metadata(("benign", "malignant")), POINTS, metrics | {"overlap_with_training": {"photos": 1402}})
    assert "**1,402 photos were trained on, or the model was chosen on them: these figures are too high.**" in seen
    unknown = model_card(metadata(("benign", "malignant")), POINTS, metrics | {"overlap_with_training": None})
    assert "The training data is not there any more: overlap with it could not be looked for." in unknown.splitlines()


def test_the_card_begins_with_the_hubs_front_matter() -> None:
    import yaml

    _, front, body = model_card(metadata(("benign", "malignant")), POINTS).split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "image-classification"
    assert body.startswith("# resnet50: benign, malignant")


def test_a_card_of_a_model_trained_on_leaks_says_so_before_any_figure() -> None:
    card = model_card(metadata(("benign", "malignant")) | {"leaks": {"lesions across splits": 2}}, POINTS)
    assert card.index("**The data set leaks: 2 lesions across splits.") < card.index("## Data")
    assert "no patient, lesion or duplicate stands on two sides" not in card
