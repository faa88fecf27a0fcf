"""The settings of training, and of what is built on it: cross-validation, search, the check of its workers."""

from typing import Annotated, Any, Literal

import tyro
from pydantic import Field, model_validator

from skinray.config import ModelName, Settings, VerbSettings
from skinray.images import Preprocessing


class ModelSettings(Settings):
    """Which network, and where its weights come from."""

    name: ModelName = "resnet50"
    """Network: resnet50, vgg16, mobilenet, cnn_sequential or cnn_functional."""
    weights: str | None = None
    """Backbone weights: none, imagenet (downloaded by Keras), or a local or s3:// .weights.h5 file."""
    mobilenet_alpha: float = Field(1.0, ge=1 / 32, le=1)
    """Width multiplier of MobileNet, from 1/32; ImageNet weights exist for 0.25, 0.5, 0.75 and 1.0."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Share of the features dropped before the last layer while training."""
    clinical_input: bool = False
    """Also look at age, sex and site, where they are known; for cnn_functional."""

    @property
    def has_backbone(self) -> bool:
        """True for networks with a part that can be pretrained."""
        return self.name in ("resnet50", "vgg16", "mobilenet")

    @model_validator(mode="after")
    def _takes_clinical_input(self) -> "ModelSettings":
        if self.clinical_input and self.name != "cnn_functional":
            raise ValueError(f"clinical_input: {self.name} looks at the photo alone; cnn_functional can take age, sex and site")
        return self


class TransferSettings(Settings):
    """How pretrained weights are adapted: first the new layers alone, then the backbone with them."""

    frozen_epochs: int = Field(0, ge=0)
    """Epochs at the start in which the backbone is frozen and only the layers after it learn."""
    frozen_learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of those epochs."""
    from_layer: str | None = None
    """Backbone layer from which fine-tuning goes upwards; none: all layers learn."""
    batch_norm: Literal["train", "frozen"] = "train"
    """BatchNorm of the layers that learn: train (statistics of each global batch) or frozen (those that came with the weights).
    In layers that do not learn it is always frozen."""


class AugmentationSettings(Settings):
    """Random changes to training photos, made in the graph."""

    flip: bool = True
    """Mirror left-right and up-down: a lesion has no upright."""
    rotation_turns: float = Field(0.5, ge=0, le=0.5)
    """Largest rotation in turns of 360 degrees, either way."""
    zoom: float = Field(0.1, ge=0, lt=1)
    """Largest zoom in or out, as a share of the size."""
    brightness: float = Field(0.1, ge=0, le=1)
    """Largest change of brightness, as a share of the range."""
    contrast: float = Field(0.2, ge=0, lt=1)
    """Largest change of contrast, as a share."""
    saturation: float = Field(0.0, ge=0, lt=1)
    """Largest change of the colours' strength, as a share: skin and lamps differ."""
    colour_cast: float = Field(0.0, ge=0, lt=1)
    """Largest change of red, green and blue each on its own, as a share: white balance differs."""
    vignette: float = Field(0.0, ge=0, le=1)
    """Share of photos that get the dark corners of a dermatoscope's round field of view."""


# The folder of a run's checkpoints, below its output.
CHECKPOINTS = "checkpoints"


class TrainSettings(VerbSettings):
    """Trains a classifier on prepared shards and writes a bundle."""

    data: str
    """Folder or s3:// prefix that `skinray prepare` wrote."""
    fold: int | None = Field(None, ge=0)
    """Validate on this fold of the data set and train on the others; none: its train and validation splits."""
    allow_leaks: bool = False
    """Train although photos leak between the splits; the bundle and its card will say so."""
    output: str
    """Folder or s3:// prefix of the run: bundle/, checkpoints/, history.jsonl. The same one resumes a killed run."""
    model: ModelSettings = ModelSettings()
    transfer: TransferSettings = TransferSettings()
    preprocessing: Preprocessing = Preprocessing()
    augmentation: AugmentationSettings = AugmentationSettings()
    num_workers: int = Field(2, ge=1)
    """Processes that train together, one gradient for all of them."""
    cpus_per_worker: int = Field(1, ge=1)
    """CPU cores of each worker; TensorFlow uses as many threads."""
    gpus_per_worker: int = Field(0, ge=0)
    """GPUs of each worker."""
    epochs: int = Field(10, ge=1)
    """Passes over the training photos, those with a frozen backbone included."""
    steps_per_epoch: int | None = Field(None, ge=1)
    """Stop each epoch after this many steps; none takes every photo once."""
    early_stopping_epochs: int | None = Field(None, ge=1)
    """End when the validation ROC-AUC has not risen for this many epochs; none: never."""
    global_batch_size: int = Field(32, ge=1)
    """Photos in one step over all workers; a multiple of the number of workers (times GPUs)."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """adamw, adam (without weight decay), or sgd with momentum 0.9."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate at a global batch of `learning_rate_batch_size`, after warm-up and before the cosine decay to zero."""
    learning_rate_batch_size: int = Field(32, ge=1)
    """The global batch that both learning rates are meant for. Another one scales them: by its ratio for sgd, by the ratio's
    square root for adam and adamw."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises from zero."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decoupled weight decay."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the whole gradient, over all workers; none: not clipped."""
    weight_averaging: float = Field(0.0, ge=0, lt=1)
    """Decay a step of an exponential moving average of the weights, which is then what is validated and kept; 0: none."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """cross_entropy, or focal: less weight on what is easy."""
    focal_gamma: float = Field(2.0, ge=0)
    """How much less; 0 is cross-entropy."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target spread evenly over all classes."""
    balance: Literal["class_weights", "sampling", "none"] = "class_weights"
    """Against rare classes: class_weights (each class's loss by the inverse of its frequency), sampling (every class as often
    as the others, by repeating the rare ones) or none."""
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """auto: on GPUs bfloat16 where they have it, else float16; on CPUs with bfloat16 arithmetic bfloat16, else float32. The
    weights are float32 in all of these, and validation is computed in float32, as the bundle is. float64 is for proofs: it shows
    what float32's rounding hides."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """Decoded photos: memory (decoded once, kept in Ray's object store), none (decoded again for every epoch), or auto: memory
    where they fit."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of weights, order, augmentation and dropout."""
    checkpoint_minutes: float = Field(5.0, gt=0)
    """Least time between two checkpoints within an epoch; there is always one at its end."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Steps between two checkpoints within an epoch, instead of checkpoint_minutes."""
    max_failures: int = Field(2, ge=0)
    """How often a lost worker is replaced, or a search's lost trial tried again, from the last checkpoint, before it is given
    up."""
    collective_timeout_s: int = Field(600, ge=10)
    """Seconds after which waiting for a lost peer becomes an error instead of a hang."""
    tensorboard: bool = True
    """Also write the metrics for TensorBoard, below the output."""
    mlflow_uri: str | None = None
    """MLflow tracking server (http://...) or folder that also gets settings and metrics; needs the extra skinray[mlflow]."""

    @property
    def checkpoints_uri(self) -> str:
        """Where the run's checkpoints lie."""
        return f"{self.output.rstrip('/')}/{CHECKPOINTS}"

    @property
    def peak_learning_rates(self) -> tuple[float, float]:
        """Peak learning rates at this global batch: with the backbone frozen, and after."""
        ratio = self.global_batch_size / self.learning_rate_batch_size
        # Goyal et al. 2017 (SGD); Malladi et al. 2022 (adaptive optimizers).
        factor = ratio if self.optimizer == "sgd" else ratio**0.5
        return self.transfer.frozen_learning_rate * factor, self.learning_rate * factor

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainSettings":
        replicas = self.num_workers * max(1, self.gpus_per_worker)
        if self.global_batch_size % replicas:
            raise ValueError(f"global_batch_size {self.global_batch_size} is not a multiple of {replicas} replicas")
        return self

    @model_validator(mode="after")
    def _photos_are_large_enough(self) -> "TrainSettings":
        size = self.preprocessing.image_size_px
        if self.model.has_backbone and size < 32:
            raise ValueError(f"preprocessing.image_size_px {size}: {self.model.name} takes photos of at least 32 pixels")
        return self

    @model_validator(mode="after")
    def _transfer_fits(self) -> "TrainSettings":
        if self.transfer != TransferSettings() and not self.model.has_backbone:
            raise ValueError(f"transfer: {self.model.name} has no pretrained backbone; leave its settings out")
        if self.transfer.frozen_epochs > self.epochs:
            raise ValueError(f"transfer.frozen_epochs {self.transfer.frozen_epochs} is more than all epochs, {self.epochs}")
        return self


# What says where a run goes, how it is watched and how it survives, and changes nothing in its result.
STEERING = frozenset(
    (
        "output",
        "max_failures",
        "collective_timeout_s",
        "checkpoint_minutes",
        "checkpoint_steps",
        "tensorboard",
        "mlflow_uri",
        "cache",
    )
)


def with_changes(settings: TrainSettings, changes: dict[str, Any]) -> TrainSettings:
    """The settings with some of them replaced.

    Args:
        settings: To start from.
        changes: Dotted names, as on the command line ("model.dropout"), -> values.

    Raises:
        ValueError: A name is unknown or a value out of range.
    """
    content = settings.model_dump(include=set(TrainSettings.model_fields))
    for name, value in changes.items():
        *parents, last = name.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ValueError(f"{name}: {parent} is one setting and has none below it")
        place[last] = value
    return TrainSettings.model_validate(content)


class CrossValidateSettings(TrainSettings):
    """Trains once for every fold of the data set, measures the spread, and averages the models into one bundle."""

    @model_validator(mode="after")
    def _all_folds(self) -> "CrossValidateSettings":
        if self.fold is not None:
            raise ValueError(f"fold {self.fold}: cross-validation trains every fold; use skinray train for one of them")
        return self


class SearchSettings(TrainSettings):
    """Tries settings of training at random, stops the poor ones early, and keeps the best model."""

    space: dict[str, str] = Field(default_factory=dict)
    """Setting -> where its values come from: "log 1e-5 1e-2" (even on a logarithmic scale), "uniform 0 0.5", "int 0 3" (both ends
    included) or "choice adamw sgd". Settings in groups by their dotted name, as in
    --space model.dropout "uniform 0 0.5" learning_rate "log 1e-5 1e-2"; they are drawn in place of the file's."""
    trials: int = Field(10, ge=1)
    """How many combinations to try."""
    concurrent_trials: int = Field(1, ge=1)
    """How many to train at a time; each takes num_workers."""
    grace_epochs: int = Field(2, ge=1)
    """Epochs that every trial gets before the poorer ones are stopped."""

    @model_validator(mode="after")
    def _something_to_search(self) -> "SearchSettings":
        if not self.space:
            raise ValueError("space: name at least one setting to try, as in learning_rate: log 1e-5 1e-2")
        return self


class VerifySettings(VerbSettings):
    """Shows that one worker and many end with the same weights, or that no published score was changed."""

    what: Annotated[Literal["distributed", "audit"], tyro.conf.Positional] = "distributed"
    """What to verify: distributed, the workers of training; audit, the chain of hashes through all scoring runs."""
    predictions: str | None = None
    """For audit: root of the predictions, as skinray score --output had it."""
    head: str | None = None
    """For audit: the newest run's hash as an earlier audit printed it; it must still be there."""
    num_workers: tuple[int, ...] = (1, 2)
    """Numbers of workers to compare, the first with all others; each divides global_batch_size."""
    cpus_per_worker: int = Field(1, ge=1)
    """CPU cores of each worker."""
    gpus_per_worker: int = Field(0, ge=0)
    """GPUs of each worker."""
    global_batch_size: int = Field(32, ge=1)
    """Photos in one step over all workers."""
    steps: int = Field(50, ge=1)
    """SGD steps to take."""
    precisions: tuple[Literal["float64", "float32"], ...] = ("float64", "float32")
    """What to compute in, one after the other: float64 decides; float32 shows what rounding does."""
    tolerance: float = Field(1e-5, gt=0)
    """Largest difference of a weight or a BatchNorm statistic that passes."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of photos, weights, order, augmentation and dropout."""

    @model_validator(mode="after")
    def _audit_has_predictions(self) -> "VerifySettings":
        if (self.what == "audit") != (self.predictions is not None):
            raise ValueError("audit and predictions belong together: give both or neither")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> "VerifySettings":
        for workers in self.num_workers:
            replicas = workers * max(1, self.gpus_per_worker)
            if workers < 1 or self.global_batch_size % replicas:
                raise ValueError(f"global_batch_size {self.global_batch_size} is not a multiple of {replicas} replicas")
        if "float64" not in self.precisions:
            raise ValueError(f"precisions {list(self.precisions)}: float64 decides, so it must be among them")
        if len(set(self.num_workers)) < 2:
            raise ValueError(f"num_workers {list(self.num_workers)}: give at least two different numbers")
        return self
