"""What each verb of the command line does: calls one function and prints what it made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skinray import screening_verbs, telemetry
from skinray.config import (
    AuditSettings,
    BenchmarkSettings,
    CompareSettings,
    DemoSettings,
    EnsembleSettings,
    EvaluateSettings,
    NightlySettings,
    PrepareSettings,
    ReportSettings,
    ScoreSettings,
    ServeSettings,
    VerbSettings,
)
from skinray.errors import LIMIT_PASSED
from skinray.ray_session import ray_session
from skinray.telemetry import say
from skinray.training_config import CrossValidateSettings, SearchSettings, TrainSettings, VerifySettings

if TYPE_CHECKING:
    from skinray.shards import PreparedDataset


@dataclass(frozen=True)
class Verb:
    """One verb of the command line.

    Attributes:
        settings: Its settings; their docstring is its help.
        run: Does it, and returns the exit code.
        dry_run: Looks at the inputs and returns what would happen, as lines for a person.
    """

    settings: type[VerbSettings]
    run: Callable[[Any], int]
    dry_run: Callable[[Any], list[str]]


def _prepare(settings: PrepareSettings) -> int:
    from skinray.preparation import prepare_dataset

    with ray_session():
        dataset = prepare_dataset(settings)
    manifest = dataset.manifest
    for split, counts in manifest.split_classes.items():
        print(
            f"{split:<10} {sum(counts.values()):>7,} photos: " + ", ".join(f"{code} {count:,}" for code, count in counts.items())
        )
    found = manifest.findings
    conflicts = found["conflicts_duplicates"] + found["conflicts_lesion"]
    pairs = f"{found['exact_pairs']:,} exact and {found['near_pairs']:,} near duplicate pairs"
    print(f"{pairs}, {conflicts:,} contradicting labels; {dataset.uri}/_audit.json lists them")
    for what, count in manifest.dropped_labels.items():
        print(f"left out   {count:>7,} photos labelled {what!r}, which is no class of target {settings.target}")
    if manifest.rejected_rows:
        print(f"left out   {manifest.rejected_rows:>7,} photos that cannot be used; {dataset.uri}/_rejected.json says why")
    print(f"data set   {dataset.uri}")
    return _leak_code(manifest.leaks, settings.allow_leaks)


def _leak_code(leaks: Mapping[str, int], allowed: bool) -> int:
    from skinray.audit import leaks_in_words

    for words in leaks_in_words(leaks):
        say(f"skinray: LEAK: {words}")
    return LIMIT_PASSED if leaks and not allowed else 0


def _prepare_dry(settings: PrepareSettings) -> list[str]:
    from skinray.preparation import preview_dataset

    photos, dropped = preview_dataset(settings)
    counts = photos.value_counts(["split", "label"], sort=False).reset_index()
    lines = [f"{row.split:<10} {row.label:<10} {row.count:>7,} photos" for row in counts.itertuples()]
    lines += [f"left out   {label!r} {count:>7,} photos" for label, count in dropped.items()]
    size_mb = photos["image_bytes"].sum() / 1e6
    shards = f"about {size_mb / settings.shard_mb + 3:.0f} shards, to {settings.output}"
    duplicates = "duplicates, which stay together, are found when photos are read"
    return [*lines, f"{len(photos):,} photos, {size_mb:,.0f} MB, {shards}", duplicates]


def _audit(settings: AuditSettings) -> int:
    from skinray.auditing import audit_dataset

    with ray_session():
        audit = audit_dataset(settings)
    print("\n".join(audit.summary()))
    print(f"report     {settings.output}/audit.html")
    return LIMIT_PASSED if audit.leak_counts else 0


def _audit_dry(settings: AuditSettings) -> list[str]:
    if settings.catalog is None:
        from skinray.shards import open_dataset

        return [f"{open_dataset(settings.data).manifest.rows:,} prepared photos, to {settings.output}"]
    from skinray.catalogs import CatalogSource, read_catalog

    photos = read_catalog(CatalogSource(settings.catalog, settings.data, settings.csv, settings.labels)).photos
    return [f"{len(photos):,} photos, {photos['image_bytes'].sum() / 1e6:,.0f} MB, to {settings.output}"]


def _train(settings: TrainSettings) -> int:
    telemetry.import_tensorflow()
    from skinray.training import train

    with ray_session():
        trained = train(settings)
    print(f"best epoch     {trained.best_epoch}")
    print(f"validation AUC {trained.validation_auc:.4f}")
    print(f"model_id       {trained.model_id}")
    print(f"bundle         {trained.bundle_uri}")
    return 0


def _train_dry(settings: TrainSettings) -> list[str]:
    from skinray.shards import open_dataset

    return _training_preview(settings, open_dataset(settings.data), [settings.fold])


def _training_preview(settings: TrainSettings, dataset: "PreparedDataset", folds: Sequence[int | None]) -> list[str]:
    from skinray.division import divide
    from skinray.firewall import check_no_leaks

    check_no_leaks(dataset, settings.allow_leaks)
    lines = []
    for division in divide(dataset, settings, folds):
        fold = "" if division.fold is None else f"fold {division.fold}: "
        train, validation = (sum(counts.values()) for counts in (division.train, division.validation))
        steps = f"{settings.epochs} epochs of {division.steps_per_epoch(settings)} steps of {settings.global_batch_size} photos"
        lines.append(f"{fold}{train:,} training and {validation:,} validation photos, {steps} on {settings.num_workers} workers")
    cached_mb = (dataset.rows("train") + dataset.rows("validation")) * settings.preprocessing.image_size_px**2 * 3 / 1e6
    return [
        *lines,
        f"classes {', '.join(dataset.manifest.classes)}",
        f"decoded photos take {cached_mb:,.0f} MB of the object store",
    ]


def _cross_validate(settings: CrossValidateSettings) -> int:
    telemetry.import_tensorflow()
    from skinray.cross_validation import cross_validate

    with ray_session():
        found = cross_validate(settings)
    for name, each in found.summary.items():
        by_fold = " ".join(f"{fold[name]:.3f}" for fold in found.folds)
        print(f"{name:<18} {each['mean']:.3f}, 95 % interval {each['low']:.3f} to {each['high']:.3f}; by fold {by_fold}")
    low, high = found.pooled["roc_auc_interval"]
    print(f"all unseen photos  ROC-AUC {found.pooled['roc_auc']:.3f}, 95 % interval {low:.3f} to {high:.3f} (drawn by lesion)")
    print("                   each model's epoch was chosen on the photos of its fold, so these figures are optimistic")
    print(f"model_id           {found.model_id}, the mean of {len(found.folds)} models")
    print(f"bundle             {found.bundle_uri}")
    return 0


def _cross_validate_dry(settings: CrossValidateSettings) -> list[str]:
    from skinray.division import all_folds
    from skinray.shards import open_dataset

    dataset = open_dataset(settings.data)
    folds = all_folds(dataset)
    return [f"{len(folds)} folds, a run each:", *_training_preview(settings, dataset, folds)]


def _search(settings: SearchSettings) -> int:
    telemetry.import_tensorflow()
    from skinray.search import in_words, search

    with ray_session():
        found = search(settings)
    for trial in found.trials:
        auc = "failed" if trial["validation_auc"] is None else f"{trial['validation_auc']:.4f}"
        print(f"{trial['name']}  validation AUC {auc} after {trial['epochs']} epochs: {in_words(trial['drawn'])}")
    print(f"model_id   {found.model_id}")
    print(f"bundle     {found.bundle_uri}")
    return 0


def _search_dry(settings: SearchSettings) -> list[str]:
    from skinray.search import parse_space

    parse_space(settings)
    space = "; ".join(f"{name}: {text}" for name, text in settings.space.items())
    return [f"{settings.trials} trials over {space}, each:", *_train_dry(settings)]


def _verify(settings: VerifySettings) -> int:
    if settings.predictions is not None:
        return screening_verbs.verify_audit(settings.predictions, settings.head)
    from skinray.verification import agreement_table, verify_distributed

    with ray_session():
        agreements = verify_distributed(settings)
    print(agreement_table(agreements, settings.tolerance))
    passed = all(each.passes(settings.tolerance) for each in agreements if each.precision == "float64")
    return 0 if passed else LIMIT_PASSED


def _verify_dry(settings: VerifySettings) -> list[str]:
    if settings.predictions is not None:
        from skinray.published_runs import find_runs

        return [f"the chain of {len(find_runs(settings.predictions)):,} runs below {settings.predictions}"]
    workers = ", ".join(str(number) for number in settings.num_workers)
    precisions = " and ".join(settings.precisions)
    return [f"{settings.steps} SGD steps of {settings.global_batch_size} photos with {workers} workers, in {precisions}"]


def _evaluate(settings: EvaluateSettings) -> int:
    from skinray.evaluation import evaluate
    from skinray.measurement import figures_in_words
    from skinray.reports import overlap_remarks

    with ray_session():
        metrics = evaluate(settings)
    for line in figures_in_words(metrics):
        print(line)
    for remark in overlap_remarks(metrics):
        say(f"skinray: {remark}")
    for where in ("leaks", "leaks_in_training", "overlap_with_training"):
        for what, count in (metrics[where] or {}).items():
            say(f"skinray: {where.replace('_', ' ')}: {count:,} {what}; these figures are too high")
    print(f"model_id     {metrics['model_id']}")
    print(f"report       {settings.output}")
    for failure in metrics["gate_failures"]:
        say(f"skinray: GATE: {failure}")
    return LIMIT_PASSED if metrics["gate_failures"] else 0


def _ensemble(settings: EnsembleSettings) -> int:
    from skinray.ensembling import make_ensemble

    with ray_session():
        made = make_ensemble(settings)
    for member in made.members:
        gain = f": {member.gain.value:+.4f} ({member.gain.low:+.4f} to {member.gain.high:+.4f}) together" if member.gain else ""
        print(f"validation ROC-AUC {member.validation_auc:.4f}  member {member.model_id}{gain}")
    print(f"validation ROC-AUC {made.validation_auc:.4f}  their mean{', over flips' if settings.flips else ''}")
    print(f"model_id           {made.model_id}")
    print(f"bundle             {made.bundle_uri}")
    return 0


def _ensemble_dry(settings: EnsembleSettings) -> list[str]:
    from skinray.ensembling import open_members

    dataset, members = open_members(settings)
    names = ", ".join(member.model_id for member in members)
    return [f"the mean of {names}, thresholds from {dataset.rows('validation'):,} validation photos, to {settings.output}"]


def _compare(settings: CompareSettings) -> int:
    from skinray.comparing import compare_evaluations, comparison_in_words

    for line in comparison_in_words(compare_evaluations(settings)):
        print(line)
    print(f"comparison   {settings.output}")
    return 0


def _compare_dry(settings: CompareSettings) -> list[str]:
    from skinray.comparing import read_pair

    pair = read_pair(settings)
    return [f"{pair.model_ids[0]} against {pair.model_ids[1]} on {len(pair.rows):,} photos, to {settings.output}"]


def _evaluate_dry(settings: EvaluateSettings) -> list[str]:
    from skinray.bundle import load_bundle
    from skinray.evaluation import check_comparable, read_own_gate, splits_of
    from skinray.firewall import check_no_leaks
    from skinray.shards import open_dataset

    bundle, dataset = load_bundle(settings.bundle), open_dataset(settings.data)
    check_no_leaks(dataset, settings.allow_leaks)
    check_comparable(bundle, dataset, settings)
    read_own_gate(settings, bundle)
    photos = sum(dataset.rows(split) for split in splits_of(settings))
    return [f"model {bundle.model_id} on {photos:,} photos of {settings.split}, to {settings.output}"]


def _serve(settings: ServeSettings) -> int:
    from skinray.serving import serve_until_stopped

    with ray_session():
        serve_until_stopped(settings)
    return 0


def _serve_dry(settings: ServeSettings) -> list[str]:
    from skinray.bundle import load_bundle

    return [f"model {load_bundle(settings.bundle).model_id} on http://{settings.host}:{settings.port}/"]


def _demo(settings: DemoSettings) -> int:
    telemetry.import_tensorflow()
    from skinray.demo import run_demo

    with ray_session():
        return run_demo(settings)


def _demo_dry(settings: DemoSettings) -> list[str]:
    stages = f"draws {settings.photos:,} photos, trains {settings.epochs} epochs, scores 1,000, serves one"
    return [f"{stages}; all below {settings.output}"]


def _benchmark(settings: BenchmarkSettings) -> int:
    if settings.stage != "prepare":
        telemetry.import_tensorflow()
    from skinray.benchmark import run_benchmark

    return run_benchmark(settings)


def _benchmark_dry(settings: BenchmarkSettings) -> list[str]:
    what = "prepare" if settings.stage == "prepare" else f"{settings.model} at {settings.image_size_px}"
    return [f"{settings.rounds} rounds of {settings.photos:,} photos through {what}"]


VERBS: Mapping[str, Verb] = {
    "demo": Verb(DemoSettings, _demo, _demo_dry),
    "prepare": Verb(PrepareSettings, _prepare, _prepare_dry),
    "audit": Verb(AuditSettings, _audit, _audit_dry),
    "train": Verb(TrainSettings, _train, _train_dry),
    "cross-validate": Verb(CrossValidateSettings, _cross_validate, _cross_validate_dry),
    "search": Verb(SearchSettings, _search, _search_dry),
    "evaluate": Verb(EvaluateSettings, _evaluate, _evaluate_dry),
    "ensemble": Verb(EnsembleSettings, _ensemble, _ensemble_dry),
    "compare": Verb(CompareSettings, _compare, _compare_dry),
    "score": Verb(ScoreSettings, screening_verbs.score, screening_verbs.score_dry),
    "report": Verb(ReportSettings, screening_verbs.report, screening_verbs.report_dry),
    "nightly": Verb(NightlySettings, screening_verbs.nightly, screening_verbs.score_dry),
    "serve": Verb(ServeSettings, _serve, _serve_dry),
    "benchmark": Verb(BenchmarkSettings, _benchmark, _benchmark_dry),
    "verify": Verb(VerifySettings, _verify, _verify_dry),
}
