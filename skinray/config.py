"""The typed settings of every verb: frozen, unknown keys refused. Every field's docstring is its `--help`.

`skinray.flags` fills them from defaults, YAML and the command line.
"""

from typing import Annotated, Any, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field, model_validator

from skinray.taxonomy import TargetName

CatalogName = Literal["ham10000", "isic2019", "isic2020", "isic", "folders", "csv", "synthetic"]
ModelName = Literal["resnet50", "vgg16", "mobilenet", "cnn_sequential", "cnn_functional"]
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class Settings(BaseModel):
    """The base of all settings: immutable, and a key that nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class VerbSettings(Settings):
    """What every verb takes."""

    config: str | None = None
    """YAML file of settings; flags given beside it win."""
    dry_run: bool = False
    """Resolve the settings, look at the inputs, print what would happen, and stop."""

    def recorded(self) -> dict[str, Any]:
        """The settings as stored with the output: plain JSON values, without those that only steer the command."""
        return self.model_dump(mode="json", exclude={"config", "dry_run"})


class CsvSettings(Settings):
    """Which columns of a CSV say what; for --catalog csv."""

    file: str | None = None
    """The CSV file, by its path below the source; none: the only one there."""
    image: str = "image"
    """Column of the photo: its path below the source, its file name, or its file name without the ending."""
    label: str = "label"
    """Column of the diagnosis."""
    lesion_id: str | None = None
    """Column of the lesion."""
    patient_id: str | None = None
    """Column of the patient."""
    age: str | None = None
    """Column of the age in years."""
    sex: str | None = None
    """Column of the sex."""
    site: str | None = None
    """Column of the site on the body."""
    skin_type: str | None = None
    """Column of Fitzpatrick's skin type: 1 to 6, I to VI, or pairs as I-II."""
    split: str | None = None
    """Column of the split: train, validation (or val) and test, in any case."""


class CatalogSettings(VerbSettings):
    """How a data set's own files are read; shared by prepare and audit."""

    csv: CsvSettings = CsvSettings()
    labels: dict[str, str] = Field(default_factory=dict)
    """The data set's own labels -> diagnosis codes, for those that skinray does not know: --labels naevus nv "bowen's" akiec, in
    place of the file's."""


class PrepareSettings(CatalogSettings):
    """Turns a published data set into split Parquet shards, audited for leaks."""

    catalog: CatalogName
    """Layout of the source: ham10000, isic2019, isic2020 (as published), isic (the ISIC archive's export), folders (a folder a
    class, with or without Train and Test above), csv (see --csv) or synthetic (drawn by skinray)."""
    source: str
    """Folder or s3:// prefix that holds the data set."""
    output: str
    """Folder or s3:// prefix of the shards. The same command adds what is new in the source."""
    target: TargetName = "binary"
    """What a model is to tell apart: binary (malignant or benign), ham7, isic8, isic9 (those data sets' diagnoses) or own."""
    classes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """For --target own: class -> the diagnoses (or labels of the source) that belong to it: --classes melanoma mel other nv,bkl,
    in place of the file's."""
    malignant_classes: tuple[str, ...] = ()
    """For --target own: the classes whose probabilities add up to the malignancy score."""
    drop_unknown: bool = False
    """Leave out and count photos whose label has no class in the target; otherwise they are an error."""
    keep_split: bool = False
    """Keep the split that came with the data set instead of making one; validation is taken from train where it has none."""
    allow_leaks: bool = False
    """End with exit code 0 although photos leak between the splits; train and evaluate still refuse the data set."""
    previous: str | None = None
    """A data set prepared before: its photos keep their split and fold in this one."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the photos set aside for choosing among checkpoints."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the photos set aside for evaluation."""
    folds: int = Field(5, ge=2, le=20)
    """Number of cross-validation folds over what is not test."""
    seed: int = 0
    """Seed of the split: the same seed puts the same lesion on the same side."""
    shard_mb: float = Field(64, gt=0)
    """Megabytes of photos in one Parquet file; about 1,000 photos of 600x450."""

    @model_validator(mode="after")
    def _something_to_train_on(self) -> "PrepareSettings":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} + test_fraction {self.test_fraction} leaves nothing to train on"
            )
        return self

    @model_validator(mode="after")
    def _one_split_is_kept(self) -> "PrepareSettings":
        if self.keep_split and self.previous:
            raise ValueError("keep_split and previous each say which split to keep: give one of them")
        return self

    @model_validator(mode="after")
    def _own_target_is_complete(self) -> "PrepareSettings":
        if (self.target == "own") != bool(self.classes):
            raise ValueError("target own and classes belong together: give both or neither")
        strangers = set(self.malignant_classes) - set(self.classes)
        if strangers:
            raise ValueError(f"malignant_classes {', '.join(sorted(strangers))} are not among the classes")
        if self.classes and not 0 < len(self.malignant_classes) < len(self.classes):
            raise ValueError("malignant_classes must name some of the classes, and not all")
        return self


class AuditSettings(CatalogSettings):
    """Looks for leaks, duplicates, contradicting labels and shortcuts, and writes a report."""

    data: str
    """Folder or s3:// prefix: a data set that skinray prepare wrote, or with --catalog one as published."""
    output: str
    """Folder or s3:// prefix of audit.json and audit.html; must not exist."""
    catalog: CatalogName | None = None
    """Layout of the data where it is not prepared; see skinray prepare --help."""


class ClassifySettings(VerbSettings):
    """How photos are run through a bundle; shared by evaluate and score."""

    batch_size: int = Field(32, ge=1)
    """Photos in one forward pass."""
    actors: int | None = Field(None, ge=1)
    """Processes that hold the model; none: one a GPU, or one on a machine without."""
    cpus_per_actor: int | None = Field(None, ge=1)
    """TensorFlow threads of each actor; none: every core of the machine, shared between its actors."""
    gpus_per_actor: float = Field(0, ge=0)
    """GPUs of each actor."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What is computed in; auto: bfloat16 for ResNet-50 on CPUs that multiply it (avx512_bf16, amx_bf16), where it is four
    times as fast, else float32. MobileNet's probabilities it moves by up to 0.12."""


class EvaluateSettings(ClassifySettings):
    """Scores a split and writes metrics.json, plots and the predictions."""

    bundle: str
    """Bundle folder, local or s3://."""
    data: str
    """Folder or s3:// prefix that `skinray prepare` wrote."""
    output: str
    """Folder or s3:// prefix to write to; must not exist."""
    split: SplitName | Literal["all"] = "test"
    """Which part of the data set to score; all for a data set that nothing was trained on. Of the bundle's own data, what is not
    test needs --allow-leaks: it was trained or chosen on that."""
    external: str | None = None
    """Folder that evaluate wrote for the same bundle on its own test split: this data set may then have other classes, malignant
    and benign are compared, and the gap between the two is told first."""
    allow_leaks: bool = False
    """Measure although photos leak between the splits, or were trained on; metrics.json will say so."""
    leave_out_overlap: bool = False
    """Leave out of the figures what shares a patient, lesion or picture with the training data, instead of refusing."""
    gate: str | None = None
    """YAML file of limits that the figures must keep, see jobs/gates/; exit code 3 when they do not."""
    prevalence: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.01,)
    """Shares of malignant lesions for which to say what a flag means (PPV, NPV, number needed to refer), beside the share among
    the photos; judged.parquet has the scores corrected to each."""


class EnsembleSettings(ClassifySettings):
    """Averages bundles, or one over flipped photos, into a bundle with thresholds of its own."""

    bundles: tuple[str, ...] = Field(min_length=1)
    """Bundle folders, local or s3://, all trained on the same data set."""
    flips: bool = False
    """Also average what each says of the photo's three mirror images; takes four times as long."""
    data: str
    """The data set that they were trained on: thresholds are chosen on its validation photos."""
    output: str
    """Folder or s3:// prefix to write to; must not exist."""
    allow_leaks: bool = False
    """Go on although photos leak between the data set's splits; the bundle's card says so."""

    @model_validator(mode="after")
    def _something_to_average(self) -> "EnsembleSettings":
        if len(self.bundles) == 1 and not self.flips:
            raise ValueError("one bundle without flips is no ensemble: give several bundles, or flips")
        return self


class CompareSettings(VerbSettings):
    """Compares two bundles on the same photos: paired intervals, DeLong's and McNemar's tests, who is judged otherwise."""

    first: str
    """Folder or s3:// prefix that skinray evaluate wrote."""
    second: str
    """Another one, of another bundle on the same photos."""
    output: str
    """Folder or s3:// prefix to write comparison.json and changes.parquet to; must not exist."""


class ScoreSettings(ClassifySettings):
    """Scores a whole archive into Parquet: every photo is exactly one row."""

    bundle: str
    """Bundle folder, local or s3://."""
    input: str
    """Folder or s3:// prefix of image files, tar and Parquet shards at any depth; one such shard; a manifest, which is a CSV or
    Parquet file of URIs; or a data set that `skinray prepare` wrote."""
    output: str
    """Root of the predictions; this run writes its own model_id=/scored_date=/run_id= folder below it."""
    run_id: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Name of this run's folder; none: the time of the start."""
    image_id: Literal["path", "stem"] = "path"
    """What names a photo that has no name of its own: its path below the input, or its file name without the ending."""
    rows_per_block: int = Field(192, ge=1, le=512)
    """Photos read, decoded and scored as one block, but no more than a hundredth of them. A killed run does those blocks
    again that were being scored: one an actor, or two where it has two cores."""
    only_new: bool = False
    """Leave out what a published run of the same bundle below the output has already, as its file is now."""
    retry: Literal["failed", "refused"] | None = None
    """Take only the photos that the newest published run of the same bundle that had them could not read; or refused, which
    somebody has looked at since and which are scored now."""
    refuse: bool = True
    """Refuse what is no photo of skin, with the reason, instead of scoring it."""
    embeddings: bool = False
    """Also write what the network's head judges from, a list of numbers a photo."""
    isic_csv: bool = False
    """Also write _isic.csv, in the layout of the ISIC challenges."""
    max_bad_fraction: float = Field(0.05, ge=0, le=1)
    """Share of unusable photos above which the command ends with exit code 3."""

    @model_validator(mode="after")
    def _one_selection(self) -> "ScoreSettings":
        if self.only_new and self.retry:
            raise ValueError("only_new leaves out what failed before, retry takes it: give one of them")
        if self.retry == "refused" and self.refuse:
            raise ValueError("retry refused would refuse the same photos again: add no-refuse")
        return self


class ReportOptions(VerbSettings):
    """What a run's report takes; shared by report and nightly."""

    reference: str | None = None
    """What scores are compared with: a published run, or a folder that evaluate wrote for the same bundle; none: the first
    published run of the same model below the same root."""
    thumbnails: int = Field(50, ge=0, le=500)
    """Flagged photos that the page shows as pictures; 0 shows none at all, refused ones and patients' included."""
    fail_on_drift: bool = False
    """End with exit code 3 when the scores' drift is large."""


class ReportSettings(ReportOptions):
    """Makes the report of a scoring run: worklist, patients, drift, groups, and what could not be judged."""

    predictions: str
    """Folder of a published run, or the root that score wrote below: then its newest run."""
    output: str
    """Folder or s3:// prefix of report.html, report.json, worklist.csv and without_score.csv; must not exist."""


class NightlySettings(ScoreSettings, ReportOptions):
    """Scores what is new, reports on it, and publishes the newest report as latest.html and latest.json."""

    only_new: bool = True
    """Leave out what a published run of the same bundle below the output has already, as its file is now."""


class ServeSettings(VerbSettings):
    """Serves a bundle over HTTP, with a page to upload a photo."""

    bundle: str
    """Bundle folder, local or s3://."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens it to the network, which nothing here protects."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    refuse: bool = True
    """Refuse what is no photo of skin, with the reason, instead of judging it."""


class DemoSettings(VerbSettings):
    """Draws lesions and runs everything on them: prepare, train, evaluate, score, serve."""

    output: str = "demo"
    """Folder to write everything to; must not exist."""
    photos: int = Field(900, ge=600)
    """Photos to draw for training and evaluation."""
    epochs: int = Field(15, ge=1)
    """Training epochs of the small network."""
    seed: int = Field(0, ge=0, lt=2**31 - 1)
    """Seed of the drawings, the split and the training."""


class BenchmarkSettings(VerbSettings):
    """Measures this machine's ceiling, this pipeline's rate and a plain Keras script's rate in one run."""

    stage: Annotated[Literal["score", "train", "prepare"], tyro.conf.Positional] = "score"
    """What to measure: score, train, or prepare (which has no network and is set beside a plain loop)."""
    input: str | None = None
    """Folder of JPEG photos to use, repeated when they are too few; none draws 600x450 ones, as train always does."""
    photo_width_px: int = Field(600, ge=64)
    """Width of the photos that are drawn for score, four to three; 4000 are 12 megapixels."""
    bundle: str | None = None
    """For score: bundle folder in place of a network with random weights."""
    model: ModelName = "resnet50"
    """Network, with random weights: speed does not depend on them."""
    image_size_px: int = Field(224, ge=32)
    """Side of the model's input."""
    photos: int = Field(512, ge=64)
    """Photos in one measurement."""
    rounds: int = Field(3, ge=1)
    """Measurements of each rate, in turn; medians are printed."""
    batch_size: int = Field(32, ge=1)
    """Photos in one forward pass, or in one step of training over all workers."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json")] = None
    """Also write the figures to this file."""
