"""Pages and plots made from the artifacts alone: what they say can be looked up in the files they were made from."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn.metrics

from skinray.audit import leaks_in_words
from skinray.bundle import OperatingPoints
from skinray.calibration import Reliability
from skinray.groups import in_short

NOT_A_DEVICE = "Research software, not a medical device. The output is not a diagnosis."


def _chosen_in_words(metadata: Mapping[str, Any]) -> str:
    if "ensemble" not in metadata:
        return f"epoch {metadata['validation']['epoch']}, chosen by this figure, which is therefore optimistic"
    ensemble = metadata["ensemble"]
    members = len(ensemble["members"])
    models = f"{members} models" if members > 1 else "one model"
    if "cross_validation" in ensemble:
        return (
            f"of {models}, one a fold, each on the photos that it had not learnt from; each one's epoch was chosen on them, and "
            "the figure is therefore optimistic; the bundle is the models' mean"
        )
    over = " over a photo and its mirror images" if ensemble["flips"] else ""
    return f"the mean of {models}{over}; each one's epoch was chosen on these photos, and the figure is therefore optimistic"


def _thresholds_in_words(metadata: Mapping[str, Any]) -> list[str]:
    if "cross_validation" not in metadata.get("ensemble", {}):
        return []
    return [
        "The thresholds, and what they gave, are of the scores of the single models. Their mean scores somewhat otherwise: no "
        "threshold can promise its miss rate.",
        "",
    ]


def model_card(metadata: Mapping[str, Any], points: OperatingPoints, metrics: Mapping[str, Any] | None = None) -> str:
    """The model card, Markdown in the layout of the Hugging Face hub: made from what is stored, and from nothing else.

    Args:
        metadata: As stored in the bundle.
        points: As stored in the bundle.
        metrics: What metrics.json of an evaluation holds; None for a bundle that was not evaluated yet.
    """
    validation = metadata["validation"]
    rows = [
        f"| {name}{' (default)' if name == points.default else ''} | {point.threshold:.4f} "
        f"| {_with_interval(point.sensitivity, point.sensitivity_interval)} "
        f"| {_with_interval(point.specificity, point.specificity_interval)} | {point.rule} |"
        for name, point in points.points.items()
    ]
    counts = [
        f"| {split} | " + " | ".join(str(classes[code]) for code in metadata["classes"]) + " |"
        for split, classes in metadata["dataset"]["split_classes"].items()
    ]
    source = metadata["dataset"]["settings"]
    return "\n".join(
        [
            "---",
            "library_name: keras",
            "pipeline_tag: image-classification",
            "tags: [dermatology, skin-lesion]",
            "---",
            f"# {metadata['network']}: {', '.join(metadata['classes'])}",
            "",
            f"**{NOT_A_DEVICE}**",
            "",
            f"Trained on the `{source['catalog']}` catalog{_split_in_words(metadata['leaks'])}",
            "",
            *_clinical_in_words(metadata),
            "## Data",
            "",
            "| split | " + " | ".join(metadata["classes"]) + " |",
            "| --- |" + " --- |" * len(metadata["classes"]),
            *counts,
            "",
            "## Validation",
            "",
            f"ROC-AUC, malignant against benign: {validation['roc_auc']:.3f} on {validation['photos']} photos "
            f"({_chosen_in_words(metadata)}: what counts is the evaluation on the test split).",
            "",
            *([metadata["gap"][0].upper() + metadata["gap"][1:], ""] if "gap" in metadata else []),
            "| operating point | threshold | sensitivity | specificity | chosen as |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            *_thresholds_in_words(metadata),
            *(_evaluation_in_card(metrics) if metrics else []),
            "## Limits",
            "",
            "Photos from other cameras, skin tones, sites or age groups than those trained on may be judged worse. "
            "Figures from another data set than the user's own say little about the user's patients.",
            "",
        ]
    )


def overlap_remarks(metrics: Mapping[str, Any]) -> list[str]:
    """What is not known of the photos that were measured and those that were trained on, from metrics.json."""
    remarks = []
    if metrics["overlap_with_training"] is None:
        remarks.append("the training data is not there any more: overlap with it could not be looked for")
    if metrics["namesakes_in_training"]:
        remarks.append(
            f"{metrics['namesakes_in_training']:,} patient ids also occur in the training data, from another source: if they are "
            "the same people, the figures are too high"
        )
    return remarks


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _evaluation_in_card(metrics: Mapping[str, Any]) -> list[str]:
    def told(figure: Mapping[str, float | None]) -> str:
        return "too few" if figure["value"] is None else f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"

    named = {
        "roc_auc": "ROC-AUC, malignant against benign",
        "partial_auc": "ROC-AUC above 80 % sensitivity (at most 0.2)",
        "pr_auc": "average precision",
        "class_balanced_accuracy": "balanced accuracy over classes, the most probable one taken",
        "by rarity.class_balanced_accuracy": "balanced accuracy over classes, the most probable one for its frequency taken",
        "ece": f"expected calibration error ({metrics['ece_by_chance']:.3f} by chance alone)",
        "brier": "Brier score",
    }
    points = metrics["operating_points"].items()
    return [
        "## Evaluation",
        "",
        f"Model {metrics['model_id']} on the {metrics['split']} split of {metrics['dataset']}: {metrics['photos']:,} photos, "
        f"{metrics['malignant_photos']:,} malignant. Intervals hold 95 % and are drawn by {metrics['clusters']['by']}.",
        "",
        *(
            line
            for what, count in (metrics["overlap_with_training"] or {}).items()
            for line in (
                f"**{count:,} {what} were trained on, or the model was chosen on them: these figures are too high.**",
                "",
            )
        ),
        *(line for remark in overlap_remarks(metrics) for line in (f"{remark[0].upper()}{remark[1:]}.", "")),
        "| figure | value |",
        "| --- | --- |",
        *(f"| {words} | {told(metrics['figures'][name])} |" for name, words in named.items() if name in metrics["figures"]),
        *(f"| sensitivity at {name} | {told(point['recall'])} |" for name, point in points),
        *(f"| specificity at {name} | {told(point['specificity'])} |" for name, point in points),
        *_lesions_in_card(metrics["lesions"], told),
        "",
        *(
            ["Judged worse than the rest:", "", *(f"- {warning}" for warning in in_short(metrics["warnings"])), ""]
            if metrics["warnings"]
            else []
        ),
    ]


def _lesions_in_card(lesions: Mapping[str, Any], told: Callable[[Mapping[str, float | None]], str]) -> list[str]:
    patients = lesions["patients"]
    return [
        f"| ROC-AUC of {lesions['lesions']:,} lesions, {lesions['malignant_lesions']:,} malignant | {told(lesions['roc_auc'])} |",
        *(
            f"| malignant lesions missed at {name}, at most {at['promised']:.0%} promised | {told(at['miss_rate'])} |"
            for name, at in lesions["missed"].items()
            if at["promised"] is not None
        ),
        *([f"| ROC-AUC of {patients['patients']:,} patients | {told(patients['roc_auc'])} |"] if patients else []),
        *(
            f"| malignant lesions among the first {top} of their patient | {told(at)} |"
            for top, at in (patients["top_sensitivity"].items() if patients else ())
            if at["malignant_lesions"]
        ),
    ]


def _clinical_in_words(metadata: Mapping[str, Any]) -> list[str]:
    if not metadata["training_settings"]["model"]["clinical_input"]:
        return []
    return [
        "Besides the photo it looks at age, sex and site, each where it is known. It was also trained on photos without them.",
        "",
    ]


def _split_in_words(leaks: Mapping[str, int]) -> str:
    if not leaks:
        return ", split so that no patient, lesion or duplicate stands on two sides."
    listed = ", ".join(leaks_in_words(leaks))
    return (
        f".\n\n**The data set leaks: {listed}. Every figure below is too high, and so is any that is measured on its other "
        "splits. It was trained with --allow-leaks.**"
    )


def roc_plot(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating[Any]], title: str) -> bytes:
    """The ROC curve as PNG.

    Args:
        positive: bool [N], both kinds present.
        scores: float [N].
        title: Above the plot.
    """
    figure, axes = _figure(5.2, 5.2)
    false_positive_rate, true_positive_rate, _ = sklearn.metrics.roc_curve(positive, scores)
    area = sklearn.metrics.auc(false_positive_rate, true_positive_rate)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--", label="chance")
    axes.plot(false_positive_rate, true_positive_rate, color="#1f5f8b", linewidth=2, label=f"AUC {area:.3f}")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=title, xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    axes.legend(loc="lower right", frameon=False)
    return _png(figure)


def precision_recall_plot(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating[Any]], title: str) -> bytes:
    """The precision-recall curve as PNG, with the precision of flagging everybody.

    Args:
        positive: bool [N], both kinds present.
        scores: float [N].
        title: Above the plot.
    """
    figure, axes = _figure(5.2, 5.2)
    precision, recall, _ = sklearn.metrics.precision_recall_curve(positive, scores)
    average = sklearn.metrics.average_precision_score(positive, scores)
    axes.axhline(positive.mean(), color="0.7", linewidth=1, linestyle="--", label=f"all flagged: {positive.mean():.3f}")
    # A step: between two thresholds there is none.
    axes.plot(recall, precision, color="#1f5f8b", linewidth=2, drawstyle="steps-post", label=f"average precision {average:.3f}")
    axes.set(xlabel="sensitivity", ylabel="precision", title=title, xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    axes.legend(loc="upper right", frameon=False)
    return _png(figure)


def reliability_plot(curves: Mapping[str, Reliability], title: str) -> bytes:
    """What probabilities promised against what came, as PNG; a dot is a bin, its area the number of photos.

    Args:
        curves: What to call it -> its bins; those of the model as it is come last.
        title: Above the plot.
    """
    figure, axes = _figure(5.2, 5.2)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--", label="kept")
    for (name, curve), color in zip(curves.items(), ("#d1792a", "#1f5f8b")[-len(curves) :], strict=True):
        axes.plot(curve.promised, curve.came, color=color, linewidth=1)
        axes.scatter(curve.promised, curve.came, s=8 + 250 * curve.photos / curve.photos.sum(), color=color, label=name)
    axes.set(xlabel="malignancy score", ylabel="share malignant", title=title, xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    axes.legend(loc="upper left", frameon=False)
    return _png(figure)


def distribution_plot(
    scores: npt.NDArray[np.floating[Any]], reference: npt.NDArray[np.floating[Any]] | None, threshold: float, title: str
) -> bytes:
    """How malignancy scores are distributed, as PNG that keeps its meaning in black and white.

    Args:
        scores: float [N], 0 to 1; NaN is left out.
        reference: float [M], likewise, to be compared with; None without.
        threshold: Where photos begin to be flagged.
        title: Above the plot.
    """
    figure, axes = _figure(8.2, 3.4)
    edges = np.linspace(0, 1, 41)
    series = [("reference", reference, {"color": "0.78", "fill": True})] if reference is not None else []
    series.append(("this run", scores, {"color": "#1f5f8b", "linewidth": 2}))
    for name, values, style in series:
        known = values[~np.isnan(values)]
        shares = np.histogram(known, edges)[0] / max(len(known), 1) * 100
        axes.stairs(shares, edges, label=f"{name}: {len(known):,} photos", **style)
    axes.axvline(threshold, color="0.15", linewidth=1.2, linestyle="--", label=f"flagged from {threshold:.3f}")
    # A square root, so that the few photos with high scores are seen beside the many with low ones.
    axes.set_yscale("function", functions=(lambda share: np.sqrt(np.maximum(share, 0)), np.square))
    axes.set(xlabel="malignancy score", ylabel="photos (%, root scale)", title=title, xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def confusion_plot(matrix: npt.NDArray[np.int64], codes: Sequence[str], title: str) -> bytes:
    """The confusion matrix as PNG: counts, shaded by the share of the true class.

    Args:
        matrix: int64 [C, C], true class by predicted class.
        codes: Class codes.
        title: Above the plot.
    """
    size = 2.2 + 0.9 * len(codes)
    figure, axes = _figure(size + 0.6, size)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(codes)):
        for column in range(len(codes)):
            color = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column, row, f"{matrix[row, column]:,}\n{shares[row, column]:.0%}", ha="center", va="center", color=color)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.set_xticks(range(len(codes)), codes)
    axes.set_yticks(range(len(codes)), codes)
    return _png(figure)


def training_curves(history: Sequence[Mapping[str, Any]], best_epoch: int, title: str) -> bytes:
    """Loss and ROC-AUC by epoch as PNG of 1200x500, training against validation.

    The losses tell by their direction, not by their distance: the training loss may be weighted, focal or smoothed.

    Args:
        history: One record an epoch, in order; figures that are missing, or are no numbers, leave a hole.
        best_epoch: The epoch that is kept, from 1.
        title: Above the plots.
    """
    figure, both = _figure(10, 500 / 120, columns=2)
    epochs = [int(record["epoch"]) for record in history]
    dot = 4 if len(epochs) <= 40 else 0
    left, right = epochs[0] - 0.5, epochs[-1] + 0.5
    phases = [record.get("phase") for record in history]
    border = next((epoch - 0.5 for epoch, phase in zip(epochs, phases, strict=True) if phase != phases[0]), None)
    best_auc = next((record.get("validation_auc") for record in history if record["epoch"] == best_epoch), None)
    best_label = f"best epoch: {best_epoch}" + (f", AUC {best_auc:.3f}" if best_auc is not None else "")
    curves = (("train", "#d1792a", "training (photos as learnt from)"), ("validation", "#1f5f8b", "validation"))
    for axes, name, label in zip(both, ("loss", "auc"), ("loss", "ROC-AUC, malignant against benign"), strict=True):
        if border is not None:
            axes.axvspan(left, border, color="0.93", zorder=0, label=f"{phases[0]}, then {phases[-1]}")
        axes.axvline(best_epoch, color="0.35", linewidth=1, linestyle="--", label=best_label)
        for split, color, legend in curves:
            values = np.array([record.get(f"{split}_{name}") for record in history], float)  # None becomes NaN
            if np.isfinite(values).any():
                axes.plot(epochs, values, color=color, linewidth=2, marker="o", markersize=dot, label=legend)
        axes.set(xlabel="epoch", ylabel=label, xlim=(left, right))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    # One legend for both, outside, where it covers no curve.
    entries = {label: handle for axes in both for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries), frameon=False)
    return _png(figure)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    # Not pyplot: it keeps every figure alive and picks a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    return figure, figure.subplots(ncols=columns)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
