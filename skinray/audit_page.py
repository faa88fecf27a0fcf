"""The audit's findings -> one HTML page for a person who must decide whether to trust a data set.

`skinray.auditing` asks `shown_photos` which photos the page shows, makes their thumbnails and writes what `audit_page` makes
of both. The page needs no network and runs no script: labels and file names come from the data set and are not to be
trusted, so the template escapes them all, and the page's content security policy forbids what escaping might have missed.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TypeVar

import jinja2

import skinray
from skinray.audit import MOST_LISTED, SHORTCUT_AUC, Audit, Conflict, Leak, Pair
from skinray.duplicates import SMALLEST_DETAIL
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

_ONE_AND_MANY = {
    "patient": ("patient", "patients"),
    "lesion": ("lesion", "lesions"),
    "duplicates": ("duplicate cluster", "duplicate clusters"),
}
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
_UNREADABLE = {
    "missing": "listed, but gone",
    "unreadable": "could not be fetched from where it lies",
    "empty": "has no bytes",
    "not_an_image": "no photo in a known format",
    "truncated": "ends before the photo does",
    "corrupt": "damaged",
    "too_large": "more pixels than are decoded",
    "burned_in": "identifying text is part of the picture",
}
_SPLIT_ORDER = ("train", "validation", "test")

_FindingT = TypeVar("_FindingT", Leak, Conflict, Pair)


@dataclass(frozen=True)
class _Photo:
    """One photo of a case; label and split are empty where the findings do not say them."""

    image_id: str
    label: str
    split: str


@dataclass(frozen=True)
class _Case:
    """One finding as it is shown.

    Attributes:
        name: What it is called in audit.json.
        match: How alike its photos are, in words; empty where the findings do not say it.
        values: The sides or labels that it has beside those of `photos`.
        photos: The first of them.
        hidden: How many more there are.
    """

    name: str
    match: str
    values: tuple[str, ...]
    photos: tuple[_Photo, ...]
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


class _Known:
    """What the pairs say about photos. They are duplicates only: of most photos of a patient or a lesion they say nothing."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self.label: dict[str, str] = {}
        self.split: dict[str, str] = {}
        self._pairs_of: dict[str, list[Pair]] = defaultdict(list)
        for pair in pairs:
            self.label.update(zip(pair.image_ids, pair.labels, strict=True))
            self.split.update(zip(pair.image_ids, pair.splits, strict=True))
            self._pairs_of[pair.image_ids[0]].append(pair)

    def case(self, name: str, values: tuple[str, ...], image_ids: Sequence[str], apart: Mapping[str, str]) -> _Case:
        """A case with its first photos, one of each value of `apart` before a second of any."""
        within = set(image_ids)
        pairs = [pair for one in image_ids for pair in self._pairs_of.get(one, ()) if pair.image_ids[1] in within]
        similarity = [pair.similarity for pair in pairs if pair.kind == "near" and pair.similarity is not None]
        kinds = {pair.kind for pair in pairs}
        match = _listed([words for kind, words in _KINDS.items() if kind in kinds])
        first: dict[tuple[str, str], str] = {}
        for image_id in image_ids:
            value = apart.get(image_id, "")
            first.setdefault((value, "" if value else image_id), image_id)  # an unknown value may be another one
        picked = list(dict.fromkeys([*first.values(), *image_ids]))[:_MOST_PHOTOS_OF_CASE]
        told = {apart.get(one, "") for one in picked}
        return _Case(
            name=name,
            match=f"{match}, similarity {min(similarity):.3f}" if similarity else match,
            values=tuple(value for value in _in_order(values) if value not in told),
            photos=tuple(_Photo(one, self.label.get(one, ""), self.split.get(one, "")) for one in picked),
            hidden=len(image_ids) - len(picked),
        )


def shown_photos(audit: Audit) -> list[str]:
    """The photos whose thumbnails the page needs, each once and 240 at most: of leaks, of conflicts, of other duplicates.

    Args:
        audit: The findings.
    """
    cases = itertools.chain(_leaks(audit), _conflicts(audit), _others(audit)[0])
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
        leaks=_leaks(audit),
        leak_rows=_leak_rows(audit),
        leaked=_leaked(audit),
        conflicts=_conflicts(audit),
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
    environment.filters.update(count="{:,}".format, percent=_percent, plural=_plural)
    return environment.from_string((files("skinray") / "web" / "audit.html").read_text(encoding="utf-8"))


def _percent(share: float) -> str:
    """With one decimal; only none and all are called 0 and 100 %."""
    number = "0" if share == 0 else "100" if share == 1 else f"{100 * share:.1f}"
    number = {"0.0": "< 0.1", "100.0": "> 99.9"}.get(number, number)
    return f"{number}\N{NO-BREAK SPACE}%"


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _listed(words: Sequence[str], last: str = "and") -> str:
    """One, two and three."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def _verdict(audit: Audit, alarming: bool) -> tuple[str, str]:
    """How bad it is ("leak", "doubt" or "clear"), and the same in words; `alarming` is whether there is more to be said."""
    if not audit.leak_counts and _no_split(audit):
        return "doubt", f"{_plural(audit.photos, 'photo')} in no split: there was none to look for leaks across."
    if not audit.leak_counts:
        return "doubt" if alarming else "clear", f"No leaks found among {_plural(audit.photos, 'photo')}."
    sides = {side for leak in audit.leaks if leak.between == "splits" for side in leak.sides}
    places = _PLACES | ({"splits": "on both sides of the split"} if len(sides) == 2 else {})
    said = []
    for between, place in places.items():
        counts = [(kind, count) for kind, across, count in _leak_counts(audit) if across == between]
        if counts:
            who = _listed([_plural(count, *_ONE_AND_MANY.get(kind, (kind, kind))) for kind, count in counts])
            said.append(f"{who} {'stands' if sum(count for _, count in counts) == 1 else 'stand'} {place}")
    return "leak", f"Leaks: {'; '.join(said)}. Figures measured on this data set would be too high."


def _leak_counts(audit: Audit) -> list[tuple[str, str, int]]:
    """Kind, what it stands across, and how many: of all leaks, which the audit counts under their names in words."""
    kind_of = {many: kind for kind, (_, many) in _ONE_AND_MANY.items()}
    found = []
    for words, count in audit.leak_counts.items():
        many, _, between = words.rpartition(" across ")
        found.append((kind_of.get(many, many), between, count))
    return found


def _remarks(audit: Audit) -> list[tuple[str, str]]:
    """What else a reader must know first: anchors of the page's sections, and sentences."""
    counts = Counter(audit.counts)
    remarks = [
        (
            "leaks",
            f"At least {part.count:,} of the {part.total:,} {part.name} photos ({_percent(part.share)}) have {_shared(audit)} on "
            "another side.",
        )
        for part in _leaked(audit)
        if part.name != "train"
    ]
    conflicts = [(kind, count) for kind in ("duplicates", "lesion") if (count := counts[f"conflicts_{kind}"])]
    if conflicts:
        who = _listed([_plural(count, *_ONE_AND_MANY[kind]) for kind, count in conflicts])
        has = "has" if sum(count for _, count in conflicts) == 1 else "have"
        worst = [
            f", at least {one.count:,} of the {one.total:,} photos labelled {one.name} among them"
            for one in _contradicted(audit)[:1]
        ]
        remarks.append(("conflicts", f"{who} {has} contradicting labels{''.join(worst)}."))
    best = max(audit.shortcuts, key=lambda one: one.roc_auc, default=None)
    if best and best.roc_auc > SHORTCUT_AUC:
        feature = _FEATURES.get(best.feature, best.feature)
        remarks.append(
            ("shortcuts", f"The file alone ({feature}) tells malignant from benign with a ROC-AUC of {best.roc_auc:.3f}.")
        )
    if counts["unreadable"]:
        share = _percent(counts["unreadable"] / (audit.photos + counts["unreadable"]))
        remarks.append(
            ("files", f"{_plural(counts['unreadable'], 'file')} ({share}) could not be used: all other figures leave them out.")
        )
    return remarks + _unchecked(audit)


def _unchecked(audit: Audit) -> list[tuple[str, str]]:
    """What could not be looked for, because the data set does not say it."""
    remarks = []
    without = sum(audit.class_counts.get("all", {}).values())
    clusters = audit.counts.get("clusters", 0)
    if _no_split(audit) and clusters:
        who = f"{_plural(clusters, *_ONE_AND_MANY['duplicates'])} of {audit.counts.get('photos_in_clusters', 0):,} photos"
        remarks.append(("duplicates", f"{who}: a split that takes photos one by one would divide them."))
    elif without and not _no_split(audit):
        remarks.append(("classes", f"{_plural(without, 'photo')} in no split: not looked at for leaks across it."))
    names = [(column, _ONE_AND_MANY[column.removesuffix("_id")][0]) for column in ("patient_id", "lesion_id")]
    absent = [name for column, name in names if audit.missing.get(column) == 1]
    if absent:
        who = _listed(absent, "or")
        remarks.append(("files", f"No photo names its {who}: a {who} on both sides shows only where photos are duplicates."))
    for column, name in names:
        if 0 < audit.missing.get(column, 0) < 1:
            share = _percent(audit.missing[column])
            remarks.append(("files", f"{share} of the photos name no {name}: not looked at for a {name} on both sides."))
    return remarks


def _no_split(audit: Audit) -> bool:
    return set(audit.class_counts) == {"all"}


def _shared(audit: Audit) -> str:
    """What photos have on two sides of the split, in words."""
    kinds = {leak.kind for leak in audit.leaks if leak.between == "splits"}
    words = {"patient": "their patient", "lesion": "their lesion", "duplicates": "a copy"}
    return _listed([words[kind] for kind in words if kind in kinds], "or")


def _shown(
    findings: Iterable[_FindingT], group_of: Callable[[_FindingT], Hashable], case_of: Callable[[_FindingT], _Case]
) -> list[_Case]:
    """As many cases as a page has room for: one of each group, the largest group first, then another of each, and so on."""
    groups: dict[Hashable, list[_FindingT]] = defaultdict(list)
    for finding in findings:
        groups[group_of(finding)].append(finding)
    ranked = sorted(groups.values(), key=len, reverse=True)
    in_turn = (one for one_of_each in itertools.zip_longest(*ranked) for one in one_of_each if one is not None)
    cases: list[_Case] = []
    photos = 0
    for finding in itertools.islice(in_turn, _MOST_CASES):
        case = case_of(finding)
        photos += len(case.photos)
        if photos > _MOST_PHOTOS:
            break
        cases.append(case)
    return cases


def _leaks(audit: Audit) -> list[_Case]:
    known = _Known(audit.pairs)

    def case(leak: Leak) -> _Case:
        return known.case(_name(leak), leak.sides, leak.image_ids, known.split if leak.between == "splits" else {})

    return _shown(audit.leaks, lambda leak: (leak.between, leak.kind, leak.sides), case)


def _conflicts(audit: Audit) -> list[_Case]:
    known = _Known(audit.pairs)

    def case(conflict: Conflict) -> _Case:
        return known.case(_name(conflict), conflict.labels, conflict.image_ids, known.label)

    return _shown(audit.conflicts, lambda conflict: (conflict.kind, conflict.labels), case)


def _others(audit: Audit) -> tuple[list[_Case], int]:
    """Pairs with one label and on one side, the least alike first; and how many of them the audit lists."""
    told: set[str] = set()
    for leak in audit.leaks:
        told.update(leak.image_ids if leak.kind == "duplicates" else ())
    for conflict in audit.conflicts:
        told.update(conflict.image_ids if conflict.kind == "duplicates" else ())
    others = [
        pair
        for pair in audit.pairs
        if pair.labels[0] == pair.labels[1]
        and (pair.splits[0] == pair.splits[1] or "" in pair.splits)
        and not told.issuperset(pair.image_ids)
    ]
    order = ("near", "listed", "exact")
    others.sort(key=lambda pair: (order.index(pair.kind), pair.similarity or 0))
    known = _Known(others)
    return _shown(others, lambda _: "", lambda pair: known.case("", (), pair.image_ids, {})), len(others)


def _name(finding: Leak | Conflict) -> str:
    return finding.name if finding.kind == "duplicates" else f"{finding.kind} {finding.name}"


def _leak_rows(audit: Audit) -> list[tuple[str, str, int, list[tuple[tuple[str, ...], int]], int]]:
    """What stands across, what it stands across, how many, on which sides how many of those listed, how many more sides."""
    rows = []
    for kind, between, count in _leak_counts(audit):
        leaks = [leak for leak in audit.leaks if (leak.kind, leak.between) == (kind, between)]
        sides = Counter(tuple(_in_order(leak.sides)) for leak in leaks).most_common()
        many = _ONE_AND_MANY.get(kind, (kind, kind))[1]
        rows.append((many, between, count, sides[:_MOST_SIDES], len(sides[_MOST_SIDES:])))
    return rows


def _conflict_rows(audit: Audit) -> list[tuple[tuple[str, str], int, int]]:
    """Pairs of labels, and how many duplicate clusters and lesions have both."""
    counts: Counter[tuple[tuple[str, str], str]] = Counter()
    for conflict in audit.conflicts:
        counts.update((pair, conflict.kind) for pair in itertools.combinations(sorted(conflict.labels), 2))
    rows = [(pair, counts[pair, "duplicates"], counts[pair, "lesion"]) for pair in {pair for pair, _ in counts}]
    return sorted(rows, key=lambda row: (-row[1] - row[2], row[0]))


def _leaked(audit: Audit) -> list[_Part]:
    """At least how many photos of each split stand on another side too."""
    totals = {split: sum(counts.values()) for split, counts in audit.class_counts.items()}
    leaks = [(leak.kind, leak.sides) for leak in audit.leaks if leak.between == "splits"]
    return _at_least(leaks, {split: totals[split] for split in _in_order(totals)})


def _contradicted(audit: Audit) -> list[_Part]:
    """At least how many photos of each class have another label too, the most contradicted class first."""
    totals: Counter[str] = Counter()
    for counts in audit.class_counts.values():
        totals.update(counts)
    parts = _at_least([(conflict.kind, conflict.labels) for conflict in audit.conflicts], totals)
    return sorted(parts, key=lambda part: -part.share)


def _at_least(findings: Iterable[tuple[str, tuple[str, ...]]], totals: Mapping[str, int]) -> list[_Part]:
    """Findings of one kind share no photo and have one for each value: so many photos at least have the value."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, values in findings:
        counts[kind].update(set(values))
    parts = [_Part(name, max((one[name] for one in counts.values()), default=0), total) for name, total in totals.items()]
    return [part for part in parts if part.count]


def _in_order(splits: Iterable[str]) -> list[str]:
    """Train, validation, test, and then what else there is."""
    return sorted(splits, key=lambda split: (_SPLIT_ORDER.index(split) if split in _SPLIT_ORDER else len(_SPLIT_ORDER), split))


def _classes(audit: Audit) -> tuple[list[_Part], list[tuple[str, list[_Part]]]]:
    """Photos by split; and by class and split, the largest class first."""
    counts = {split: audit.class_counts[split] for split in _in_order(audit.class_counts)}
    if len(counts) > 1:
        everywhere: Counter[str] = Counter()
        for classes in counts.values():
            everywhere.update(classes)
        counts["all splits"] = everywhere
    columns = [
        _Part("no split" if split == "all" else split, sum(classes.values()), audit.photos) for split, classes in counts.items()
    ]
    labels = sorted({label for classes in counts.values() for label in classes})
    last = list(counts.values())[-1] if counts else {}
    rows = [
        (
            label,
            [_Part(label, classes.get(label, 0), column.count) for column, classes in zip(columns, counts.values(), strict=True)],
        )
        for label in sorted(labels, key=lambda label: -last.get(label, 0))
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
    rows = [(code, _UNREADABLE.get(code, ""), len(found), found[:_MOST_EXAMPLES]) for code, found in files_of.items()]
    return sorted(rows, key=lambda row: -row[2])
