"""The ensemble job: several bundles, or one on flipped photos, as one bundle with thresholds of its own.

What a model says of a photo then depends on the bundle alone, in evaluation, screening and service alike: averaging over
flips is no setting that one of them could forget.

<output>/bundle/          the averaged model
<output>/validation.parquet  what it says of the validation photos, from which the thresholds were chosen
<output>/_manifest.json   written last
"""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from skinray import outputs, storage
from skinray.bundle import Bundle, load_bundle, save_bundle
from skinray.config import EnsembleSettings
from skinray.counts import Measure, ScoreCounts
from skinray.errors import ConfigError, StorageError
from skinray.evaluation import read_rows
from skinray.firewall import check_no_leaks
from skinray.intervals import Clusters, Estimate, resample
from skinray.listing import list_dataset
from skinray.metrics import roc_auc
from skinray.operating_points import choose_operating_points
from skinray.reports import model_card
from skinray.scoring_pipeline import write_predictions
from skinray.shards import PreparedDataset, open_dataset
from skinray.splits import lesion_names, names
from skinray.training_export import VALIDATION_NAME, lesions_or_photos, read_validation_predictions


@dataclass(frozen=True)
class Ensembled:
    """What was made.

    Attributes:
        bundle_uri: Where the bundle lies.
        model_id: Its id.
        validation_auc: Its ROC-AUC on validation.
        members: What it was made of.
    """

    bundle_uri: str
    model_id: str
    validation_auc: float
    members: tuple["Member", ...]


@dataclass(frozen=True)
class Member:
    """One of the averaged bundles.

    Attributes:
        model_id: Its id.
        validation_auc: Its ROC-AUC on validation, as its own bundle says.
        gain: By how much the ensemble's is higher, with its interval, drawn by lesion for both at once; None where what the
            member says of the validation photos does not lie beside its bundle.
    """

    model_id: str
    validation_auc: float
    gain: Estimate | None


def make_ensemble(settings: EnsembleSettings) -> Ensembled:
    """Averages models, and chooses the average's thresholds on the validation photos.

    Args:
        settings: Which bundles, flips, the data set they were trained on.

    Raises:
        What `open_members` raises.
        OutputExistsError: The output is already there.
    """
    from skinray.ensemble import averaged, flipped

    dataset, members = open_members(settings)
    outputs.claim_folder(settings.output, "ensemble", settings.recorded())
    models = [member.load_model() for member in members]
    model = averaged([flipped(each) for each in models] if settings.flips else models)
    first = members[0]
    networks = [str(member.metadata["network"]) for member in members]
    metadata = {
        **{name: first.metadata[name] for name in _shared_names(first)},
        "network": " + ".join(dict.fromkeys(networks)),
        "ensemble": {"members": [member.model_id for member in members], "networks": networks, "flips": settings.flips},
    }
    draft_uri = storage.join(settings.output, "draft")
    # With a member's thresholds until it has its own: they take no part in what is scored.
    save_bundle(draft_uri, model, first.preprocessing, first.labels, first.operating_points, metadata, "")
    rows = _validated(load_bundle(draft_uri), dataset, settings)
    positive = rows["label"].isin(list(first.labels.malignant)).to_numpy(bool)
    scores = rows["malignancy_score"].to_numpy(np.float64)
    lesions = lesions_or_photos(rows["lesion_id"].to_numpy(str), rows["image_id"].to_numpy(str))
    points = choose_operating_points(positive, scores, lesions, "validation")
    auc = roc_auc(positive, scores)
    metadata["validation"] = {"photos": len(rows), "roc_auc": auc, "epoch": None}
    bundle_uri = storage.join(settings.output, "bundle")
    card = model_card(metadata, points)
    model_id = save_bundle(bundle_uri, model, first.preprocessing, first.labels, points, metadata, card)
    storage.delete_folder(draft_uri)
    storage.write_parquet(storage.join(settings.output, VALIDATION_NAME), rows)
    compared = [
        Member(each.model_id, each.metadata["validation"]["roc_auc"], _gain(each, rows, positive, lesions)) for each in members
    ]
    made = Ensembled(bundle_uri, model_id, auc, tuple(compared))
    manifest = {"kind": "skinray-ensemble", "schema_version": 1, "settings": settings.recorded(), **asdict(made)}
    outputs.publish_folder(storage.normalize(settings.output), manifest)
    return made


def open_members(settings: EnsembleSettings) -> tuple[PreparedDataset, list[Bundle]]:
    """The data set and the bundles that were trained on it.

    Raises:
        ConfigError: They were not, or do not tell the same classes apart, or in photos of other sizes.
        LeakError: The data set has leaks, and that was not allowed.
    """
    dataset = open_dataset(settings.data)
    check_no_leaks(dataset, settings.allow_leaks)
    members = [load_bundle(uri) for uri in settings.bundles]
    _check_members(members, dataset)
    return dataset, members


def _gain(member: Bundle, rows: pd.DataFrame, positive: npt.NDArray[np.bool_], lesions: npt.NDArray[np.str_]) -> Estimate | None:
    """By how much the ROC-AUC of `rows` is higher than the member's on the same photos."""
    try:
        alone = read_validation_predictions(member.uri)
    except StorageError:
        return None
    alone = rows[["image_id"]].merge(alone, on="image_id", how="left", validate="one_to_one")
    malignant = alone[[f"prob_{code}" for code in member.labels.malignant]].sum(axis=1, skipna=False).to_numpy(np.float64)
    if np.isnan(malignant).any():
        return None
    both = {"alone": malignant, "together": rows["malignancy_score"].to_numpy(np.float64)}
    found = resample([Measure(name, ScoreCounts(positive, scores)) for name, scores in both.items()], Clusters(lesions))
    return (found["together.roc_auc"] - found["alone.roc_auc"]).estimate()


def _shared_names(bundle: Bundle) -> list[str]:
    """What an ensemble takes over from a member: all that is true of each, because they come from the same data."""
    own = {"schema_version", "network", "validation", "gap", "calibration", "ensemble", "clinical"}
    return [name for name in bundle.metadata if name not in own]


def _check_members(members: list[Bundle], dataset: PreparedDataset) -> None:
    first = members[0]
    for member in members:
        if member.metadata["dataset"]["sha256"] != dataset.sha256:
            raise ConfigError(
                f"bundle {member.uri} was not trained on {dataset.uri}: thresholds are chosen on its validation photos"
            )
        if member.metadata["training_settings"].get("fold") is not None or "ensemble" in member.metadata:
            raise ConfigError(
                f"bundle {member.uri} has learnt from validation photos; skinray cross-validate averages folds itself"
            )
        if (member.labels, member.preprocessing, member.takes_clinical) != (
            first.labels,
            first.preprocessing,
            first.takes_clinical,
        ):
            sizes = " and ".join(str(each.preprocessing.image_size_px) for each in (first, member))
            raise ConfigError(f"bundles {first.uri} and {member.uri} differ in classes, size ({sizes} pixels) or input")


def _validated(bundle: Bundle, dataset: PreparedDataset, settings: EnsembleSettings) -> pd.DataFrame:
    predictions_uri = storage.join(settings.output, "draft", "predictions")
    _, files = write_predictions(bundle, list_dataset(dataset, ("validation",)), settings, predictions_uri)
    rows = read_rows(predictions_uri, [file["path"] for file in files])
    columns = ["image_id", "lesion_id", "label", *(f"prob_{code}" for code in bundle.labels.codes), "malignancy_score"]
    scored = rows[rows["status"] == "scored"]
    lesions = lesion_names(names(scored["lesion_id"]), names(scored["patient_id"]))
    return scored.assign(lesion_id=[lesion or "" for lesion in lesions])[columns]
