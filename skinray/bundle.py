"""The model artifact: a folder that holds everything a prediction depends on, verified whenever it is loaded.

    model.keras            uint8 [N, size, size, 3] -> float32 [N, C]; normalisation inside. Some take a second input:
                           float32 [N, CLINICAL_WIDTH], age, sex and site as `skinray.clinical` encodes them
    preprocessing.json     how a photo becomes that input
    labels.json            class codes in the order of the outputs, and which are malignant
    operating_points.json  thresholds on the malignancy score, with what they gave where they were chosen
    metadata.json          intended use, data, metrics, versions, settings; "clinical", the encoding of the second input
    README.md              the model card
    checksums.json         SHA-256 of every file above; `model_id` is its short hash

A bundle is written through `save_bundle` and is the only thing that training hands on.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from skinray import storage
from skinray.calibration import Calibration
from skinray.clinical import clinical_metadata
from skinray.errors import BundleError, StorageError
from skinray.images import Preprocessing

if TYPE_CHECKING:
    import keras

SCHEMA_VERSION = 1
CHECKSUMS = "checksums.json"
FILES = ("model.keras", "preprocessing.json", "labels.json", "operating_points.json", "metadata.json", "README.md")


class Labels(BaseModel):
    """What the outputs mean: class codes in the order of the outputs, and the malignant ones among them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    codes: tuple[str, ...]
    malignant: tuple[str, ...]


class OperatingPoint(BaseModel):
    """A threshold on the malignancy score: a photo at or above it is flagged.

    Attributes:
        threshold: Malignancy score, 0 to 1.
        rule: By which it was chosen, in words.
        sensitivity: Share of malignant photos flagged where it was chosen.
        sensitivity_interval: Its 95 % interval.
        specificity: Share of benign photos not flagged where it was chosen.
        specificity_interval: Its 95 % interval.
        measured_on: The split it was chosen on.
        miss_rate_bound: The largest share of further malignant lesions below it that the rule promises; None without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float
    rule: str = ""
    sensitivity: float
    sensitivity_interval: tuple[float, float] | None = None
    specificity: float
    specificity_interval: tuple[float, float] | None = None
    measured_on: str
    miss_rate_bound: float | None = None


class OperatingPoints(BaseModel):
    """The named operating points of a bundle, and which one is used when none is asked for.

    Attributes:
        schema_version: Of this file; its SHA-256 stands in `checksums.json` and in every evaluation.
        default: The point that is used when none is asked for.
        points: Name -> point.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    default: str
    points: dict[str, OperatingPoint]


class _Metadata(BaseModel):
    """What every `metadata.json` says, beside what the training added."""

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: Literal[1]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on the local disk.

    Attributes:
        uri: Where it came from.
        folder: Where its files lie now.
        model_id: Short hash of its checksums, 12 hexadecimal digits; in every row, answer and log line.
        preprocessing: How a photo becomes the model's input.
        labels: What the outputs mean.
        operating_points: Thresholds.
        metadata: The rest, as JSON.
    """

    uri: str
    folder: Path
    model_id: str
    preprocessing: Preprocessing
    labels: Labels
    operating_points: OperatingPoints
    metadata: Mapping[str, Any]

    @property
    def takes_clinical(self) -> bool:
        """True when the model looks at age, sex and site too."""
        return self.metadata.get("clinical") is not None

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks in the model, each once: one, unless it averages models of several."""
        each = self.metadata.get("ensemble", {}).get("networks", [self.metadata.get("network")])
        return tuple(dict.fromkeys(map(str, each)))

    def load_model(self) -> "keras.Model":
        """The Keras model: uint8 [N, size, size, 3] -> float32 [N, C], not compiled for training.

        One that `takes_clinical` takes a list: the photos, and float32 [N, CLINICAL_WIDTH].

        Raises:
            BundleError: Keras cannot load it, or its inputs are not what the metadata say.
        """
        import keras

        try:
            model = keras.saving.load_model(self.folder / "model.keras", compile=False, safe_mode=True)
        except (ValueError, OSError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BundleError(f"bundle {self.uri}: model.keras cannot be loaded: {reason}") from error
        if len(model.inputs) != 1 + self.takes_clinical:
            inputs = " and ".join(one.name for one in model.inputs)
            states = "states" if self.takes_clinical else "does not state"
            raise BundleError(
                f"bundle {self.uri}: the model takes {inputs}, and metadata.json {states} how age, sex and site are encoded "
                "for it; train it again"
            )
        return model


def save_bundle(
    uri: str,
    model: "keras.Model",
    preprocessing: Preprocessing,
    labels: Labels,
    operating_points: OperatingPoints,
    metadata: Mapping[str, Any],
    card: str,
) -> str:
    """Writes a bundle; `checksums.json` comes last and is what makes it exist.

    Args:
        uri: Folder or prefix to write.
        model: uint8 [N, size, size, 3] -> float32 probabilities [N, C]; with a second input, that of `skinray.clinical`.
        preprocessing: How a photo becomes that input.
        labels: What the outputs mean.
        operating_points: Thresholds on the malignancy score.
        metadata: JSON values; "clinical" is added for a model with a second input.
        card: The model card, Markdown.

    Returns:
        The model_id.
    """
    clinical = {"clinical": clinical_metadata()} if len(model.inputs) > 1 else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save(folder / "model.keras")
        _write_json(folder / "preprocessing.json", preprocessing.model_dump(mode="json"))
        _write_json(folder / "labels.json", labels.model_dump(mode="json"))
        _write_json(folder / "operating_points.json", operating_points.model_dump(mode="json"))
        _write_json(folder / "metadata.json", {"schema_version": SCHEMA_VERSION, **metadata, **clinical})
        (folder / "README.md").write_text(card, encoding="utf-8")
        checksums = {name: _sha256(folder / name) for name in FILES}
        storage.upload_folder(folder, uri)
    storage.write_json(storage.join(uri, CHECKSUMS), checksums)
    return _model_id(checksums)


def calibration_of(bundle: Bundle) -> Calibration | None:
    """What the bundle's model does to its logits; None for an ensemble, whose members do each their own."""
    stored = bundle.metadata.get("calibration")
    return Calibration(stored["temperature"], tuple(stored["bias"])) if stored else None


def bundle_exists(uri: str) -> bool:
    """True when a complete bundle stands at `uri`."""
    return storage.exists(storage.join(uri, CHECKSUMS))


def load_bundle(uri: str) -> Bundle:
    """Loads and verifies a bundle; one in an object store is copied to a temporary folder of this process's host.

    Raises:
        BundleError: A file is missing, was changed, or is of another schema version; or age, sex and site were encoded
            otherwise when it was trained.
        StorageError: The bundle cannot be read.
    """
    if not bundle_exists(uri):
        raise BundleError(f"bundle {uri}: no {CHECKSUMS}; give the bundle/ folder that skinray train wrote")
    checksums = storage.read_json(storage.join(uri, CHECKSUMS))
    if not isinstance(checksums, dict) or set(checksums) != set(FILES):
        raise BundleError(f"bundle {uri}: {CHECKSUMS} does not list exactly {', '.join(FILES)}; it was changed")
    model_id = _model_id(checksums)
    folder = _copies_folder(model_id) if storage.is_remote(uri) else Path(storage.path_of(uri))
    if storage.is_remote(uri):
        _fetch(uri, folder, checksums)
    for name, expected in checksums.items():
        if not (folder / name).is_file():
            raise BundleError(f"bundle {uri}: {name} is missing; copy the whole folder again")
        if _sha256(folder / name) != expected:
            raise BundleError(f"bundle {uri}: {name} was changed since it was written; copy it again from its source")
    try:
        metadata = _Metadata.model_validate_json((folder / "metadata.json").read_bytes()).model_dump(mode="json")
        _check_encoding(uri, metadata)
        return Bundle(
            uri=storage.normalize(uri),
            folder=folder,
            model_id=model_id,
            preprocessing=Preprocessing.model_validate_json((folder / "preprocessing.json").read_bytes()),
            labels=Labels.model_validate_json((folder / "labels.json").read_bytes()),
            operating_points=OperatingPoints.model_validate_json((folder / "operating_points.json").read_bytes()),
            metadata=metadata,
        )
    except ValidationError as error:
        raise BundleError(f"bundle {uri}: {error.title.strip('_')} is of another version: {error.errors()[0]['msg']}") from error


def _check_encoding(uri: str, metadata: Mapping[str, Any]) -> None:
    stored, ours = metadata.get("clinical"), clinical_metadata()
    if stored is None or stored == ours:
        return
    version = stored.get("version") if isinstance(stored, dict) else stored
    raise BundleError(
        f"bundle {uri}: it was trained with version {version} of the encoding of age, sex and site, and this skinray has version "
        f"{ours['version']}: their columns mean something else. Use the skinray that trained it, or train it again"
    )


def _copies_folder(model_id: str) -> Path:
    folder = Path(tempfile.gettempdir()) / f"skinray-bundles-{os.getuid()}"  # another user could change what is there
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / model_id


def _fetch(uri: str, folder: Path, checksums: Mapping[str, str]) -> None:
    """Copies what is not yet there, or not there unchanged; processes of one host share the copies."""
    for name, expected in checksums.items():
        target = folder / name
        if target.is_file() and _sha256(target) == expected:
            continue
        try:
            storage.write_bytes(str(target), storage.read_bytes(storage.join(uri, name)))
        except StorageError as error:
            raise BundleError(f"bundle {uri}: {name} is missing or cannot be read: {error}") from error


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model_id(checksums: Mapping[str, str]) -> str:
    return storage.sha256_of(json.dumps(checksums, sort_keys=True).encode())[:12]
