"""Age, sex and site of a lesion -> the second input of a network that takes them. THE encoding: training, evaluation,
scoring and serving call nothing else, so that one lesion gives one answer everywhere.

What is not known is told from every value: each of the three has a column that says whether it is, and where it is not, its
other columns are 0. Nothing is filled in with a mean, because what a clinic leaves out is not the average patient.

Bundles record `clinical_metadata`, and one that was trained on another encoding is refused.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

# Another mapping of the same names, or another order or scale of the columns, is another version.
CLINICAL_VERSION: Final = 1

SiteGroup = Literal["head and neck", "torso", "upper extremity", "lower extremity", "palms and soles", "oral and genital"]

# The groups of ISIC 2020's `anatom_site_general_challenge` (Rotemberg et al. 2021, doi:10.1038/s41597-021-00815-z): the finest
# that all of the data sets can be brought to, because some say "torso" or "trunk" of what others divide into front and back.
# Names as `_site_key` writes them: those of HAM10000's `localization`, of ISIC's `anatom_site_general`, and common words for
# parts of them. A foot or hand is an extremity, as in ISIC 2019; palms and soles are what is called so, or acral.
SITE_NAMES: Mapping[SiteGroup, tuple[str, ...]] = {
    "head and neck": (
        "head neck", "head and neck", "head", "face", "scalp", "neck", "ear", "nose", "lip", "cheek", "forehead", "eyelid",
        "chin",
    ),
    "torso": (
        "torso", "anterior torso", "posterior torso", "lateral torso", "trunk", "abdomen", "back", "chest", "breast", "buttock",
        "buttocks",
    ),
    "upper extremity": (
        "upper extremity", "upper extremities", "upper limb", "upper limbs", "shoulder", "arm", "upper arm", "forearm", "elbow",
        "hand", "finger",
    ),
    "lower extremity": (
        "lower extremity", "lower extremities", "lower limb", "lower limbs", "leg", "thigh", "knee", "lower leg", "calf", "ankle",
        "foot", "toe",
    ),
    "palms and soles": ("palms soles", "palms and soles", "palm", "palms", "sole", "soles", "acral"),
    "oral and genital": ("oral genital", "oral and genital", "oral", "mouth", "genital", "genitals", "genital areas"),
}  # fmt: skip

_GROUP_OF: Mapping[str, SiteGroup] = {name: group for group, names in SITE_NAMES.items() for name in names}
_NOT_STATED = ("", "unknown")
_OLDEST_YEARS = 120

CLINICAL_COLUMNS: tuple[str, ...] = ("age_known", "age", "sex_known", "male", "site_known", *SITE_NAMES)
CLINICAL_WIDTH: int = len(CLINICAL_COLUMNS)

Floats = npt.NDArray[np.float32]


def encode_clinical(age: npt.ArrayLike, sex: Collection[object], site: Collection[object]) -> Floats:
    """Encodes what is known of some lesions.

    Args:
        age: Years, float [N]; NaN where unknown, and what is below 0 or infinite is no age.
        sex: [N] of "male" and "female", in any case; anything else (None, NaN, "", "unknown") is unknown.
        site: [N] of names in `SITE_NAMES`, with any case and punctuation; anything else is unknown.

    Returns:
        float32 [N, CLINICAL_WIDTH], the columns of `CLINICAL_COLUMNS`, all from 0 to 1. Age in centuries, at most one.

    Raises:
        ValueError: The three have different lengths.
    """
    years = np.asarray(age, np.float64)
    if not years.shape == (len(sex),) == (len(site),):
        raise ValueError(f"{years.shape} ages, {len(sex)} sexes and {len(site)} sites are not of the same lesions")
    encoded = np.zeros((len(years), CLINICAL_WIDTH), np.float32)
    rows = {name: encoded[:, column] for column, name in enumerate(CLINICAL_COLUMNS)}
    known = np.isfinite(years) & (years >= 0)
    rows["age_known"][:] = known
    rows["age"][known] = np.minimum(years[known] / 100, 1)
    sexes = [value.strip().casefold() if isinstance(value, str) else "" for value in sex]
    rows["sex_known"][:] = [value in ("male", "female") for value in sexes]
    rows["male"][:] = [value == "male" for value in sexes]
    # Few different names, however many lesions.
    groups = {name: site_group(name) for name in {value for value in site if isinstance(value, str)}}
    for row, value in enumerate(site):
        group = groups.get(value) if isinstance(value, str) else None
        if group is not None:
            rows["site_known"][row] = rows[group][row] = 1
    return encoded


# One row of which nothing is known, float32 [1, CLINICAL_WIDTH]; `np.repeat` makes it as many as needed.
NO_CLINICAL: Floats = encode_clinical([math.nan], [None], [None])
NO_CLINICAL.flags.writeable = False


def site_group(name: str) -> SiteGroup | None:
    """The group of a site that any of the known data sets names.

    Args:
        name: A name in `SITE_NAMES`, with any case and punctuation ("head/neck", "Lower-Extremity").

    Returns:
        The group, or None where the name is not known.
    """
    return _GROUP_OF.get(_site_key(name))


def stated_clinical(age: str, sex: str, site: str) -> Floats:
    """Encodes what a person typed of one lesion; unlike a data set's gaps, what cannot be understood is refused.

    Args:
        age: Years from 0 to 120; "" or "unknown" where it is not stated, as for the others.
        sex: "male" or "female".
        site: A name in `SITE_NAMES`.

    Returns:
        float32 [1, CLINICAL_WIDTH].

    Raises:
        ValueError: One of them is something else; the message says which and what it may be.
    """
    age, sex, site = ("" if value.strip().casefold() in _NOT_STATED else value.strip() for value in (age, sex, site))
    try:
        years = float(age) if age else math.nan
    except ValueError:
        years = math.inf
    if age and not 0 <= years <= _OLDEST_YEARS:
        raise ValueError(f"age {_quoted(age)} is no number of years from 0 to {_OLDEST_YEARS}")
    if sex and sex.casefold() not in ("male", "female"):
        raise ValueError(f"sex {_quoted(sex)} is neither male nor female")
    if site and site_group(site) is None:
        raise ValueError(f"site {_quoted(site)} is not known; known are {', '.join(sorted(_GROUP_OF))}")
    return encode_clinical([years], [sex], [site])


def clinical_metadata() -> dict[str, Any]:
    """What a bundle records of this encoding, as JSON values."""
    return {"version": CLINICAL_VERSION, "columns": list(CLINICAL_COLUMNS)}


def _site_key(name: str) -> str:
    """Lower case, words separated by one space: "Head/Neck" and "head_neck" are one site."""
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def _quoted(value: str) -> str:
    return repr(value if len(value) <= 40 else f"{value[:40]}...")
