"""Diagnosis codes, which of them are malignant, how each public data set's labels map onto them, and codes -> classes.

The first step after a data set's own files are read: `diagnosis_of` makes one code of every name that a diagnosis goes
by, and a `Target` makes classes of the codes. A label that is none of those names stays as it is, because only the
target can say whether it has a class: a user's own target may name it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from skinray.errors import CatalogError, ConfigError

# HAM10000's seven codes (Tschandl et al. 2018, doi:10.1038/sdata.2018.161), what other data sets tell apart besides, and
# what is left where no diagnosis is stated.
DIAGNOSES: Mapping[str, str] = {
    "akiec": "actinic keratosis or intraepithelial carcinoma (Bowen's disease)",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis-like lesion: seborrheic or lichenoid keratosis, solar lentigo",
    "df": "dermatofibroma",
    "mel": "melanoma, in situ, invasive or metastatic",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
    "scc": "squamous cell carcinoma, invasive or not stated",
    "sek": "seborrheic keratosis",
    "pbk": "pigmented benign keratosis",
    "unk": "examined, but indeterminate, unknown or none of the data set's classes",
    "benign": "benign lesion, diagnosis not stated or without a code",
    "malignant": "malignant lesion, diagnosis not stated or without a code",
}

# akiec counts as malignant because the class includes in-situ carcinoma: missing one is the dearer error. ISIC 2019's AK
# and the nine-class "actinic keratosis" hold HAM10000's akiec photos, so they are akiec too: one photo is on one side,
# whichever data set it comes from.
MALIGNANT_DIAGNOSES = frozenset({"akiec", "bcc", "mel", "scc", "malignant"})

# Every name as `label_key` writes it. Exact names only: a lentigo is benign, a lentigo maligna is a melanoma.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "akiec": (
        "ak", "ack", "actinic keratosis", "actinic keratoses", "solar keratosis", "solar or actinic keratosis",
        "actinic keratosis / bowens disease", "actinic keratoses and intraepithelial carcinoma",
        "actinic keratoses and intraepithelial carcinoma / bowens disease",
        "intraepithelial carcinoma", "bowens disease", "bowen disease", "squamous cell carcinoma in situ",
        "scc in situ", "squamous cell carcinoma in situ bowens disease",
    ),
    "bcc": ("basal cell carcinoma", "basal cell carcinomas"),
    "bkl": (
        "benign keratosis", "benign keratoses", "benign keratosis like lesion", "benign keratosis like lesions",
        "lentigo", "lentigo nos", "lentigo simplex", "solar lentigo", "ink spot lentigo",
        "lichenoid keratosis", "lichen planus like keratosis",
    ),
    "df": ("dermatofibroma", "dermatofibromas"),
    "mel": (
        "melanoma", "melanomas", "malignant melanoma", "melanoma nos", "melanoma in situ", "melanoma invasive",
        "invasive melanoma", "melanoma metastasis", "lentigo maligna", "lentigo maligna melanoma",
        "malignant melanocytic proliferations (melanoma)",
    ),
    "nv": (
        "nev", "nevus", "nevi", "naevus", "naevi", "melanocytic nevus", "melanocytic nevi", "melanocytic naevus",
        "melanocytic naevi", "mole", "moles", "blue nevus", "clark nevus", "congenital nevus", "dysplastic nevus",
        "atypical nevus", "spitz nevus", "reed nevus", "reed or spitz nevus", "dermal nevus", "compound nevus",
        "junctional nevus", "combined nevus", "recurrent nevus", "halo nevus", "nevus spilus",
    ),
    "vasc": (
        "vascular", "vascular lesion", "vascular lesions", "angioma", "cherry angioma", "hemangioma", "haemangioma",
        "angiokeratoma", "pyogenic granuloma", "lymphangioma", "hemorrhage", "hemorrhagic lesions",
        "benign soft tissue proliferations vascular",
    ),
    "scc": (
        "squamous cell carcinoma", "squamous cell carcinomas", "squamous cell carcinoma nos",
        "squamous cell carcinoma invasive", "invasive squamous cell carcinoma",
    ),
    "sek": ("sk", "seborrheic keratosis", "seborrheic keratoses", "seborrhoeic keratosis", "seborrhoeic keratoses"),
    "pbk": ("pigmented benign keratosis", "pigmented benign keratoses"),
    "unk": (
        "unknown", "indeterminate", "atypical melanocytic proliferation", "atypical melanocytic neoplasm", "aimp",
        "atypical intraepithelial melanocytic proliferation",
    ),
    "benign": ("benign lesion", "benign lesions", "non malignant", "not malignant", "cafe au lait macule"),
    "malignant": ("malign", "malignant lesion", "malignant lesions", "malignancy", "cancer", "cancerous", "skin cancer"),
}  # fmt: skip

_CODE_OF: Mapping[str, str] = {name: code for code in DIAGNOSES for name in (code, *_NAMES[code])}

TargetName = Literal["binary", "ham7", "isic8", "isic9", "own"]


@dataclass(frozen=True)
class Target:
    """What a model is asked to tell apart.

    Attributes:
        name: The name in the settings.
        codes: Class codes in the order of the model's outputs.
        malignant: The codes whose probabilities add up to the malignancy score.
        code_of: Diagnosis -> class code.
    """

    name: str
    codes: tuple[str, ...]
    malignant: tuple[str, ...]
    code_of: Mapping[str, str]


def _target(name: str, codes: tuple[str, ...], also: Mapping[str, str]) -> Target:
    """A target whose classes are diagnoses; `also` says which class other diagnoses belong to."""
    malignant = tuple(code for code in codes if code in MALIGNANT_DIAGNOSES)
    return Target(name=name, codes=codes, malignant=malignant, code_of={**{code: code for code in codes}, **also})


TARGETS: Mapping[str, Target] = {
    "binary": _target(
        "binary",
        ("benign", "malignant"),
        # unk has no class: a model must not learn that what nobody could name is benign.
        {code: "malignant" if code in MALIGNANT_DIAGNOSES else "benign" for code in DIAGNOSES if code != "unk"},
    ),
    # scc has no class among HAM10000's seven: its akiec holds carcinoma in situ, not invasive carcinoma.
    "ham7": _target("ham7", ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"), {"sek": "bkl", "pbk": "bkl"}),
    "isic8": _target("isic8", ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc", "scc"), {"sek": "bkl", "pbk": "bkl"}),
    # The ISIC archive lists HAM10000's bkl photos as pigmented benign keratosis.
    "isic9": _target("isic9", ("akiec", "bcc", "df", "mel", "nv", "pbk", "sek", "scc", "vasc"), {"bkl": "pbk"}),
}


def label_key(label: str) -> str:
    """A label without what data sets write differently: case, apostrophes, and spaces, underscores, hyphens and commas.

    Args:
        label: A label as a data set writes it.

    Returns:
        Lower case, words separated by one space. Two labels are the same when their keys are.
    """
    return re.sub(r"[\s_,-]+", " ", re.sub("['\u2019]", "", label).casefold()).strip()


def diagnosis_of(label: str) -> str:
    """The diagnosis code of a label that any of the known data sets uses.

    Args:
        label: A code of `DIAGNOSES`, a name of the diagnosis, a column or folder name; in any case, with spaces,
            underscores or hyphens.

    Returns:
        The code; or the label itself without outer spaces, when it is no known name.
    """
    return _CODE_OF.get(label_key(label), label.strip())


def target_for(name: TargetName, classes: Mapping[str, Sequence[str]], malignant_classes: Sequence[str]) -> Target:
    """The target that the settings name.

    Args:
        name: A known target, or "own".
        classes: For "own": class -> diagnoses or labels of the source, in any spelling. Its order is the order of the
            model's outputs.
        malignant_classes: For "own": the classes that count as malignant.

    Returns:
        The target. The one of "own" knows diagnosis codes, and by their `label_key` labels that are no diagnosis.

    Raises:
        ConfigError: A label stands in two classes, a class has none, or a malignant class is no class.
    """
    if name != "own":
        return TARGETS[name]
    class_of: dict[str, str] = {}
    written: dict[str, str] = {}
    for own_class, labels in classes.items():
        if not labels:
            raise ConfigError(f"classes: {own_class} has no diagnosis; list at least one, or take the class out")
        for label in labels:
            key = _known_or_key(label)
            if class_of.setdefault(key, own_class) != own_class:
                same = f"{label!r}" if written[key] == label else f"{written[key]!r} and {label!r} are both {key}, which"
                raise ConfigError(f"classes: {same} stands in {class_of[key]} and in {own_class}; keep it in one of them")
            written.setdefault(key, label)
    strangers = [malignant for malignant in malignant_classes if malignant not in classes]
    if strangers:
        raise ConfigError(f"malignant_classes: {', '.join(strangers)} is not among the classes {', '.join(classes)}")
    return Target(
        name="own",
        codes=tuple(classes),
        malignant=tuple(own_class for own_class in classes if own_class in malignant_classes),
        code_of=class_of,
    )


def class_labels(diagnoses: Sequence[str], target: Target) -> list[str | None]:
    """The class code of each diagnosis.

    Args:
        diagnoses: Diagnosis codes or labels without one, one a photo.
        target: What the model is to tell apart.

    Returns:
        Class codes of `target`, one a photo; None where the target has no class.
    """
    classes = {diagnosis: target.code_of.get(_known_or_key(diagnosis)) for diagnosis in set(diagnoses)}
    return [classes[diagnosis] for diagnosis in diagnoses]


def unknown_labels(diagnoses: Sequence[str], target: Target) -> dict[str, int]:
    """The diagnoses that a target has no class for.

    Args:
        diagnoses: Diagnosis codes or labels without one, one a photo.
        target: What the model is to tell apart.

    Returns:
        Label -> number of its photos, sorted by label.
    """
    classes = class_labels(diagnoses, target)
    counts = Counter(diagnosis for diagnosis, code in zip(diagnoses, classes, strict=True) if code is None)
    return dict(sorted(counts.items()))


def check_known(diagnoses: Sequence[str], target: Target) -> None:
    """Makes sure that every photo has a class.

    Args:
        diagnoses: Diagnosis codes or labels without one, one a photo.
        target: What the model is to tell apart.

    Raises:
        CatalogError: Diagnoses that the target has no class for; every one is listed with its count.
    """
    unknown = unknown_labels(diagnoses, target)
    if unknown:
        raise CatalogError(
            f"target {target.name} has no class for {_counted(unknown.items())}; it knows {', '.join(sorted(target.code_of))}. "
            "--drop-unknown leaves these photos out; `labels` maps a label to a diagnosis code"
        )


def _known_or_key(label: str) -> str:
    code = diagnosis_of(label)
    return code if code in DIAGNOSES else label_key(label)


def _counted(labels: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{label!r} ({count} photo{'' if count == 1 else 's'})" for label, count in labels)
