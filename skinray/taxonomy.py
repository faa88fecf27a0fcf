"""Diagnosis codes, which of them are malignant, and how each public data set's labels map onto them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from skinray.errors import CatalogError

# HAM10000's seven codes (Tschandl et al. 2018, doi:10.1038/sdata.2018.161) and the two of a benign/malignant data set.
DIAGNOSES: Mapping[str, str] = {
    "akiec": "actinic keratosis or intraepithelial carcinoma (Bowen's disease)",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis-like lesion",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
    "benign": "benign lesion, diagnosis not stated",
    "malignant": "malignant lesion, diagnosis not stated",
}

# akiec counts as malignant because the class includes in-situ carcinoma: missing one is the dearer error.
MALIGNANT_DIAGNOSES = frozenset({"akiec", "bcc", "mel", "malignant"})

TargetName = Literal["binary", "ham7"]


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


_HAM7 = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

TARGETS: Mapping[TargetName, Target] = {
    "binary": Target(
        name="binary",
        codes=("benign", "malignant"),
        malignant=("malignant",),
        code_of={code: "malignant" if code in MALIGNANT_DIAGNOSES else "benign" for code in DIAGNOSES},
    ),
    "ham7": Target(
        name="ham7",
        codes=_HAM7,
        malignant=tuple(code for code in _HAM7 if code in MALIGNANT_DIAGNOSES),
        code_of={code: code for code in _HAM7},
    ),
}


def class_labels(diagnoses: list[str], target: Target) -> list[str]:
    """The class code of each diagnosis.

    Args:
        diagnoses: Diagnosis codes, one a photo.
        target: What the model is to tell apart.

    Returns:
        Class codes of `target`, one a photo.

    Raises:
        CatalogError: Diagnoses that the target has no class for; every one is listed with its count.
    """
    unknown = {code: diagnoses.count(code) for code in sorted(set(diagnoses)) if code not in target.code_of}
    if unknown:
        listed = ", ".join(f"{code!r} ({count} photos)" for code, count in unknown.items())
        raise CatalogError(f"unknown labels for target {target.name}: {listed}; it knows {', '.join(sorted(target.code_of))}")
    return [target.code_of[code] for code in diagnoses]
