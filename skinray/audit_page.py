"""The audit's findings -> one HTML page for a person who must decide whether to trust a data set.

`skinray.auditing` asks `shown_photos` which photos the page shows, makes their thumbnails and writes what `audit_page` makes
of both. The page needs no network and runs no script: labels and file names come from the data set and are not to be
trusted, so the template escapes them all, and the page's content security policy forbids what escaping might have missed.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import jinja2

import skinray
from skinray.audit import MOST_LISTED, PLURALS, SHORTCUT_AUC, Audit, Conflict, Leak, Pair, PhotoFact, leaks_in_words, plural
from skinray.duplicates import SMALLEST_DETAIL
from skinray.errors import IMAGE_ERRORS
from skinray.taxonomy import DIAGNOSES

# Of each of the three sections with photos: leaks, contradicting labels, other duplicates.
_MOST_CASES = 40
_MOST_UNFOLDED = 12
_MOST_PHOTOS = 80
_MOST_PHOTOS_OF_CASE = 4

_MOST_ROWS = 24
_MOST_SIDES = 6
_MOST_SIZES = 8
_MOST_EXAMPLES = 3

# On 30 photos the 95 % interval of a share near one half is 18 points wide to either side.
_FEW_PHOTOS = 30

_PLACES = {"splits": "on more than one side of the split", "folds": "in more than one fold"}
_KINDS = {"exact": "the same file", "near": "alike to the eye", "listed": "listed by the data set"}
_COLUMNS = {"patient_id": "patient", "lesion_id": "lesion", "age": "age", "sex": "sex", "site": "site on the body"}
_FEATURES = {
    "width_px": "width in pixels",
    "height_px": "height in pixels",
    "aspect_ratio": "width to height",
    "file_bytes": "size of the file",
    "bytes_per_pixel": "bytes for each pixel",
    "jpeg_quality": "JPEG quality",
    "has_metadata": "metadata inside the file",
    "all of them together": "all properties together",
}


@dataclass(frozen=True)
class _Case:
    """One finding as it is shown.

    Attributes:
        name: What it is called in audit.json.
        match: How alike its photos are, in words; empty where the pairs do not say it.
        apart: Which fact of its photos is at odds.
        others: The sides or labels that it has beside those of `photos`.
        photos: The first of them.
        hidden: How many more there are.
    """

    name: str
    match: str
    apart: Literal["split", "fold", "label", ""]
    others: tuple[str, ...]
    photos: tuple[PhotoFact, ...]
    hidden: int


@dataclass(frozen=True)
class _Part:
    """So many of all that have this name: a bar of a table."""

    name: str
    count: int
    total: int

    @property
    def share(self) -> float:
        return self.count / self.total if self.total else 0.0


def shown_photos(audit: Audit) -> list[str]:
    """The photos whose thumbnails the page needs, each once and 240 at most: of leaks, of conflicts, of other duplicates.

    Args:
        audit: The findings.
    """
    cases = [*_cases(audit, audit.leaks), *_cases(audit, audit.conflicts), *_others(audit)[0]]
    return list(dict.fromkeys(photo.image_id for case in cases for photo in case.photos))


def audit_page(audit: Audit, data: str, thumbnails: Mapping[str, str]) -> str:
    """The page, as HTML.

    Args:
        audit: The findings.
        data: Where the data set lies, as the user named it.
        thumbnails: image_id -> data: URI, of `shown_photos`; empty for a photo that cannot be shown.
    """
    remarks = _remarks(audit)
    page = _template().render(
        data=data,
        audit=audit,
        counts=Counter(audit.counts),
        version=skinray.__version__,
        verdict=_verdict(audit, alarming=bool(remarks) or not audit.photos),
        remarks=remarks,
        leaks=_cases(audit, audit.leaks),
        leak_rows=_leak_rows(audit),
        leaked=_leaked(audit),
        conflicts=_cases(audit, audit.conflicts),
        shared=_shared(audit),
        conflict_rows=_conflict_rows(audit),
        contradicted=_contradicted(audit),
        others=_others(audit),
        classes=_classes(audit),
        no_split=_no_split(audit),
        meanings=DIAGNOSES,
        sizes=_sizes(audit),
        missing=[(_COLUMNS.get(column, column), share) for column, share in audit.missing.items()],
        unreadable=_unreadable(audit),
        features=[(_FEATURES.get(one.feature, one.feature), one.roc_auc) for one in audit.shortcuts],
        thumbnails={image_id: uri for image_id, uri in thumbnails.items() if uri.startswith("data:image/")},
        limits={
            "listed": MOST_LISTED,
            "unfolded": _MOST_UNFOLDED,
            "rows": _MOST_ROWS,
            "few": _FEW_PHOTOS,
            "auc": SHORTCUT_AUC,
            "similarity": SMALLEST_DETAIL,
        },
    )
    return page.encode("utf-8", "replace").decode()  # a file name may hold bytes that are no UTF-8


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(count="{:,}".format, percent=_percent, plural=plural)
    return environment.from_string((files("skinray") / "web" / "audit.html").read_text(encoding="utf-8"))


def _percent(share: float) -> str:
    """With one decimal; only none and all are called 0 and 100 %."""
    number = "0" if share == 0 else "100" if share == 1 else f"{100 * share:.1f}"
    number = {"0.0": "< 0.1", "100.0": "> 99.9"}.get(number, number)
    return f"{number}\N{NO-BREAK SPACE}%"


def _listed(words: Sequence[str], last: str = "and") -> str:
    """One, two and three."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def _verb(count: int, one: str, many: str) -> str:
    return one if count == 1 else many


def _verdict(audit: Audit, alarming: bool) -> tuple[str, str]:
    """How bad it is ("leak", "doubt" or "clear"), and the same in words; `alarming` is whether there is more to be said."""
    if not audit.leak_counts and _no_split(audit):
        return "doubt", f"{plural(audit.photos, 'photo')} in no split: there was none to look for leaks across."
    if not audit.leak_counts:
        return "doubt" if alarming else "clear", f"No leaks found among {plural(audit.photos, 'photo')}."
    sides = {side for leak in audit.leaks if leak.between == "splits" for side in leak.sides}
    places = _PLACES | ({"splits": "on both sides of the split"} if len(sides) == 2 else {})
    said = []
    for between, place in places.items():
        across = {what: count for what, count in audit.leak_counts.items() if what.endswith(f" across {between}")}
        if across:
            who = _listed([words.removesuffix(f" across {between}") for words in leaks_in_words(across)])
            said.append(f"{who} {_verb(sum(across.values()), 'stands', 'stand')} {place}")
    return "leak", f"Leaks: {'; '.join(said)}. Figures measured on this data set would be too high."


def _remarks(audit: Audit) -> list[tuple[str, str]]:
    """What else a reader must know first: anchors of the page's sections, and sentences."""
    counts = Counter(audit.counts)
    remarks = []
    for part in _leaked(audit):
        if part.name != "train":
            who = f"{part.count:,} of the {part.total:,} {part.name} photos ({_percent(part.share)})"
            remarks.append(("leaks", f"{who} {_verb(part.count, 'has', 'have')} {_shared(audit)} on another side."))
    clusters, lesions = counts["conflicts_duplicates"], counts["conflicts_lesion"]
    if clusters or lesions:
        who = _listed([plural(count, one) for count, one in ((clusters, "duplicate cluster"), (lesions, "lesion")) if count])
        worst = [
            f", {one.count:,} of the {one.total:,} photos labelled {one.name} among them" for one in _contradicted(audit)[:1]
        ]
        verb = _verb(clusters + lesions, "has", "have")
        remarks.append(("conflicts", f"{who} {verb} contradicting labels{''.join(worst)}."))
    two = counts["pairs_under_two_ids"]
    if two:
        stands = _verb(two, "stands", "stand")
        remarks.append(
            ("duplicates", f"{plural(two, 'duplicate pair')} {stands} under two lesion_ids or patient_ids: one is wrong.")
        )
    best = max(audit.shortcuts, key=lambda one: one.roc_auc, default=None)
    if best and best.roc_auc > SHORTCUT_AUC:
        feature = _FEATURES.get(best.feature, best.feature)
        remarks.append(
            ("shortcuts", f"The file alone ({feature}) tells malignant from benign with a ROC-AUC of {best.roc_auc:.3f}.")
        )
    if counts["unreadable"]:
        share = _percent(counts["unreadable"] / (audit.photos + counts["unreadable"]))
        remarks.append(
            ("files", f"{plural(counts['unreadable'], 'file')} ({share}) could not be used: all other figures leave them out.")
        )
    return remarks + _unchecked(audit)


def _unchecked(audit: Audit) -> list[tuple[str, str]]:
    """What could not be looked for, because the data set does not say it."""
    remarks = []
    without = sum(audit.class_counts.get("all", {}).values())
    clusters = audit.counts.get("clusters", 0)
    if _no_split(audit) and clusters:
        who = f"{plural(clusters, 'duplicate cluster')} of {audit.counts.get('photos_in_clusters', 0):,} photos"
        remarks.append(("duplicates", f"{who}: a split that takes photos one by one would divide them."))
    elif without and not _no_split(audit):
        remarks.append(("classes", f"{plural(without, 'photo')} in no split: not looked at for leaks across it."))
    missing = {name: audit.missing.get(f"{name}_id", 0) for name in ("patient", "lesion")}
    who = _listed([name for name, share in missing.items() if share == 1], "or")
    if who:
        remarks.append(("files", f"No photo names its {who}: a {who} on both sides shows only where photos are duplicates."))
    remarks += [
        ("files", f"{_percent(share)} of the photos name no {name}: not looked at for a {name} on both sides.")
        for name, share in missing.items()
        if 0 < share < 1
    ]
    return remarks


def _no_split(audit: Audit) -> bool:
    return set(audit.class_counts) == {"all"}


def _shared(audit: Audit) -> str:
    """What photos have on two sides of the split, in words."""
    words = {"patient": "their patient", "lesion": "their lesion", "duplicates": "a copy"}
    return _listed([words[kind] for kind in words if f"{PLURALS[kind]} across splits" in audit.leak_counts], "or")


def _cases(audit: Audit, findings: Sequence[Leak] | Sequence[Conflict]) -> list[_Case]:
    """As many as a page has room for: one of each kind and sides, the most frequent first, then another of each, and so on."""
    groups: dict[tuple[str, tuple[str, ...]], list[Leak | Conflict]] = defaultdict(list)
    for finding in findings:
        groups[finding.kind, _sides(finding)].append(finding)
    ranked = sorted(groups.values(), key=len, reverse=True)
    in_turn = (one for one_of_each in itertools.zip_longest(*ranked) for one in one_of_each if one is not None)
    pairs_of: dict[str, list[Pair]] = defaultdict(list)
    for pair in audit.pairs:
        pairs_of[pair.photos[0].image_id].append(pair)
    cases = [_case(finding, pairs_of) for finding in itertools.islice(in_turn, _MOST_CASES)]
    photos = itertools.accumulate(len(case.photos) for case in cases)
    return [case for case, so_far in zip(cases, photos, strict=True) if so_far <= _MOST_PHOTOS]


def _sides(finding: Leak | Conflict) -> tuple[str, ...]:
    return finding.sides if isinstance(finding, Leak) else finding.labels


def _case(finding: Leak | Conflict, pairs_of: Mapping[str, Sequence[Pair]]) -> _Case:
    within = {photo.image_id for photo in finding.photos}
    # A finding begins with a photo of each side.
    shown = finding.photos[:_MOST_PHOTOS_OF_CASE]
    return _Case(
        name=finding.name if finding.kind == "duplicates" else f"{finding.kind} {finding.name}",
        match=_match([pair for one in within for pair in pairs_of.get(one, ()) if pair.photos[1].image_id in within]),
        apart="label" if isinstance(finding, Conflict) else "split" if finding.between == "splits" else "fold",
        others=_sides(finding)[len(shown) :],
        photos=shown,
        hidden=finding.photo_count - len(shown),
    )


def _others(audit: Audit) -> tuple[list[_Case], int]:
    """Pairs of no other finding, with one label and on one side; and how many of them there are.

    Those under two ids come first, then the least alike.
    """
    above: list[Leak | Conflict] = [*audit.leaks, *audit.conflicts]
    told = {photo.image_id for one in above if one.kind == "duplicates" for photo in one.photos}
    others = [pair for pair in audit.pairs if pair.photos[0].image_id not in told and _is_harmless(pair)]
    order = ("near", "listed", "exact")
    others.sort(key=lambda pair: (not pair.ids_differ, order.index(pair.kind), pair.similarity or 0))
    cases = [
        _Case(name=_ids(pair), match=_match([pair]), apart="", others=(), photos=pair.photos, hidden=0)
        for pair in others[:_MOST_CASES]
    ]
    return cases, len(others)


def _ids(pair: Pair) -> str:
    """The two lesions or patients that the data set says one photo shows."""
    one, other = pair.photos
    for what, here, there in (("lesion", one.lesion_id, other.lesion_id), ("patient", one.patient_id, other.patient_id)):
        if here and there and here != there:
            return f"{what} {here} and {there}"
    return ""


def _is_harmless(pair: Pair) -> bool:
    one, other = pair.photos
    sides = ((one.split, other.split), (one.fold, other.fold))
    return one.label == other.label and all(here == there or here is None or there is None for here, there in sides)


def _match(pairs: Sequence[Pair]) -> str:
    """How alike photos are, in words."""
    kinds = {pair.kind for pair in pairs}
    similarity = [pair.similarity for pair in pairs if pair.kind == "near" and pair.similarity is not None]
    words = _listed([words for kind, words in _KINDS.items() if kind in kinds])
    return f"{words}, similarity {min(similarity):.3f}" if similarity else words


def _leak_rows(audit: Audit) -> list[tuple[str, str, int, list[tuple[tuple[str, ...], int]], int]]:
    """What stands across, what it stands across, how many, on which sides how many of those listed, how many more sides."""
    sides_of: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for leak in audit.leaks:
        sides_of[f"{PLURALS[leak.kind]} across {leak.between}"][leak.sides] += 1
    rows = []
    for words, count in audit.leak_counts.items():
        what, _, between = words.partition(" across ")
        sides = sides_of[words].most_common()
        rows.append((what, between, count, sides[:_MOST_SIDES], len(sides[_MOST_SIDES:])))
    return rows


def _conflict_rows(audit: Audit) -> list[tuple[tuple[str, str], int, int]]:
    """Pairs of labels, and how many duplicate clusters and lesions have both."""
    counts: Counter[tuple[tuple[str, str], str]] = Counter()
    for conflict in audit.conflicts:
        counts.update((pair, conflict.kind) for pair in itertools.combinations(sorted(conflict.labels), 2))
    rows = [(pair, counts[pair, "duplicates"], counts[pair, "lesion"]) for pair in {pair for pair, _ in counts}]
    return sorted(rows, key=lambda row: (-row[1] - row[2], row[0]))


def _leaked(audit: Audit) -> list[_Part]:
    """How many photos of each split stand on another side too."""
    return [_Part(split, count, sum(audit.class_counts[split].values())) for split, count in audit.leaked_photos.items()]


def _contradicted(audit: Audit) -> list[_Part]:
    """How many photos of each class have another label too, the most contradicted class first."""
    totals = _totals(audit)
    parts = [_Part(label, count, totals[label]) for label, count in audit.contradicted_photos.items()]
    return sorted(parts, key=lambda part: -part.share)


def _totals(audit: Audit) -> Counter[str]:
    """Photos of each class in all splits."""
    return sum(map(Counter, audit.class_counts.values()), Counter[str]())


def _classes(audit: Audit) -> tuple[list[_Part], list[tuple[str, list[_Part]]]]:
    """Photos by split; and by class and split, the largest class first."""
    totals = _totals(audit)
    counts: dict[str, Mapping[str, int]] = {
        "no split" if split == "all" else split: by_label for split, by_label in audit.class_counts.items()
    }
    if len(counts) > 1:
        counts["all splits"] = totals
    columns = [_Part(name, sum(by_label.values()), audit.photos) for name, by_label in counts.items()]
    rows = [
        (label, [_Part(label, counts[column.name].get(label, 0), column.count) for column in columns])
        for label in sorted(totals, key=lambda label: (-totals[label], label))
    ]
    return columns, rows


def _sizes(audit: Audit) -> list[_Part]:
    sizes = [_Part(size.replace("x", " \N{MULTIPLICATION SIGN} "), count, audit.photos) for size, count in audit.sizes.items()]
    sizes.sort(key=lambda part: -part.count)
    rest = audit.photos - sum(part.count for part in sizes[:_MOST_SIZES])
    return [*sizes[:_MOST_SIZES], *([_Part("other sizes", rest, audit.photos)] if rest > 0 else [])]


def _unreadable(audit: Audit) -> list[tuple[str, str, int, list[dict[str, str]]]]:
    """Codes, what they mean, how many files of those listed, and the first of them."""
    files_of: dict[str, list[dict[str, str]]] = defaultdict(list)
    for one in audit.unreadable:
        files_of[one["error_code"]].append(one)
    rows = [(code, IMAGE_ERRORS.get(code, ""), len(found), found[:_MOST_EXAMPLES]) for code, found in files_of.items()]
    return sorted(rows, key=lambda row: -row[2])
