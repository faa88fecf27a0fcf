"""Age, sex and site as numbers: what is missing is told from every value, and one word means one thing in every data set."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skinray.clinical import (
    CLINICAL_COLUMNS,
    CLINICAL_VERSION,
    CLINICAL_WIDTH,
    NO_CLINICAL,
    SITE_NAMES,
    clinical_metadata,
    encode_clinical,
    site_group,
    stated_clinical,
)
from skinray.synthetic import SITES

# What HAM10000 and ISIC write, with the group that each must come to.
LOCALIZATIONS = {
    "back": "torso", "lower extremity": "lower extremity", "trunk": "torso", "upper extremity": "upper extremity",
    "abdomen": "torso", "face": "head and neck", "chest": "torso", "foot": "lower extremity", "scalp": "head and neck",
    "neck": "head and neck", "hand": "upper extremity", "ear": "head and neck", "genital": "oral and genital",
    "acral": "palms and soles",
}  # fmt: skip
ANATOM_SITES = {
    "anterior torso": "torso", "posterior torso": "torso", "torso": "torso", "lateral torso": "torso",
    "head/neck": "head and neck", "upper extremity": "upper extremity", "lower extremity": "lower extremity",
    "palms/soles": "palms and soles", "oral/genital": "oral and genital",
}  # fmt: skip

ages = st.one_of(st.floats(0, 130), st.just(math.nan))
sexes = st.sampled_from(["male", "female", "", None, math.nan])
sites = st.one_of(st.sampled_from([*LOCALIZATIONS, *ANATOM_SITES, "unknown", "", "left elbow pit", None, math.nan]), st.text())


def column(name: str) -> int:
    return CLINICAL_COLUMNS.index(name)


def one(age: float = math.nan, sex: object = None, site: object = None) -> dict[str, float]:
    """One row by the names of its columns, those that are not 0."""
    [row] = encode_clinical([age], [sex], [site])
    return {name: float(value) for name, value in zip(CLINICAL_COLUMNS, row, strict=True) if value}


def test_every_value_has_its_column() -> None:
    everything = one(45, "male", "face")
    assert everything == pytest.approx(
        {"age_known": 1, "age": 0.45, "sex_known": 1, "male": 1, "site_known": 1, "head and neck": 1}
    )


@pytest.mark.parametrize(("name", "group"), [*LOCALIZATIONS.items(), *ANATOM_SITES.items()])
def test_sites_of_the_data_sets_have_their_group(name: str, group: str) -> None:
    assert one(site=name) == {"site_known": 1, group: 1}
    assert one(site=name.upper().replace(" ", "_")) == {"site_known": 1, group: 1}


def test_every_site_of_the_synthetic_photos_is_known() -> None:
    assert {site_group(site) for site in SITES} == set(SITE_NAMES)


def test_no_name_stands_in_two_groups_and_every_name_is_found() -> None:
    listed = [name for names in SITE_NAMES.values() for name in names]
    assert len(set(listed)) == len(listed)
    assert {group: {site_group(name) for name in names} for group, names in SITE_NAMES.items()} == {
        group: {group} for group in SITE_NAMES
    }


@pytest.mark.parametrize("age", [math.nan, math.inf, -math.inf, -1, -0.01])
def test_what_is_no_age_is_unknown(age: float) -> None:
    assert one(age=age) == {}


@pytest.mark.parametrize("age", [0, 0.5, 99.9])
def test_an_age_is_in_centuries_and_a_newborn_is_not_a_gap(age: float) -> None:
    assert one(age=age) == pytest.approx({"age_known": 1} | ({"age": age / 100} if age else {}))


def test_a_very_old_person_is_at_the_end_of_the_scale() -> None:
    assert one(age=100) == one(age=107) == {"age_known": 1, "age": 1}


def test_a_woman_is_not_a_gap() -> None:
    assert one(sex="female") == {"sex_known": 1}
    assert one(sex=" Male ") == {"sex_known": 1, "male": 1}


@pytest.mark.parametrize("gap", [None, math.nan, "", "unknown", "NA", 0, pd.NA, pd.NaT, b"male"], ids=repr)
def test_a_gap_is_unknown_however_it_is_written(gap: object) -> None:
    np.testing.assert_array_equal(encode_clinical([math.nan], [gap], [gap]), NO_CLINICAL)


@given(st.lists(st.tuples(ages, sexes, sites), max_size=20))
def test_rows_are_in_range_and_flags_go_with_values(lesions: list[tuple[float, object, object]]) -> None:
    encoded = encode_clinical([age for age, _, _ in lesions], [sex for _, sex, _ in lesions], [site for _, _, site in lesions])
    assert encoded.dtype == np.float32
    assert encoded.shape == (len(lesions), CLINICAL_WIDTH)
    assert ((encoded >= 0) & (encoded <= 1)).all()
    first_group = column("site_known") + 1
    np.testing.assert_array_equal(encoded[:, first_group:].sum(axis=1), encoded[:, column("site_known")])
    for value, flag in (("age", "age_known"), ("male", "sex_known")):
        assert (encoded[encoded[:, column(flag)] == 0, column(value)] == 0).all()
    np.testing.assert_array_equal(encoded[:, column("age_known")] == 1, [not math.isnan(age) for age, _, _ in lesions])


@given(st.lists(st.tuples(ages, sexes, sites), min_size=1, max_size=8))
def test_a_row_does_not_depend_on_its_neighbours(lesions: list[tuple[float, object, object]]) -> None:
    together = encode_clinical(*(list(values) for values in zip(*lesions, strict=True)))
    alone = [encode_clinical([age], [sex], [site])[0] for age, sex, site in lesions]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(("ages", "sexes", "sites"), [(1, 2, 2), (2, 1, 2), (2, 2, 1), (0, 1, 1)])
def test_columns_of_different_lengths_are_refused(ages: int, sexes: int, sites: int) -> None:
    with pytest.raises(ValueError, match="not of the same lesions"):
        encode_clinical([50.0] * ages, ["male"] * sexes, ["back"] * sites)


def test_no_lesions_have_no_rows() -> None:
    assert encode_clinical([], [], []).shape == (0, CLINICAL_WIDTH)


def test_parquet_gaps_are_gaps_in_pandas_and_in_numpy() -> None:
    table = pa.table(
        {
            "age": pa.array([45, None], pa.float32()),
            "sex": pa.array(["male", None], pa.string()),
            "site": pa.array(["back", None], pa.string()),
        }
    )
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    frame = pq.read_table(pa.BufferReader(buffer.getvalue())).to_pandas()
    expected = np.concatenate([encode_clinical([45], ["male"], ["back"]), NO_CLINICAL])
    np.testing.assert_array_equal(encode_clinical(frame["age"], frame["sex"], frame["site"]), expected)
    as_arrays = (np.array([45, math.nan]), np.array(["male", ""]), np.array(["back", ""]))
    np.testing.assert_array_equal(encode_clinical(*as_arrays), expected)


def test_the_row_of_which_nothing_is_known_cannot_be_changed() -> None:
    assert NO_CLINICAL.shape == (1, CLINICAL_WIDTH)
    assert not NO_CLINICAL.any()
    with pytest.raises(ValueError, match="read-only"):
        NO_CLINICAL[0, 0] = 1


def test_what_bundles_record_changes_with_the_encoding() -> None:
    # A changed table of columns without another version would let old bundles be fed wrongly.
    assert clinical_metadata() == {
        "version": 1,
        "columns": [
            "age_known", "age", "sex_known", "male", "site_known",
            "head and neck", "torso", "upper extremity", "lower extremity", "palms and soles", "oral and genital",
        ],
    }  # fmt: skip
    assert CLINICAL_VERSION == 1


# What a person states


def test_what_is_stated_is_encoded_like_a_data_set() -> None:
    np.testing.assert_array_equal(stated_clinical("45.5", "Female", " Head/Neck "), encode_clinical([45.5], ["female"], ["face"]))
    np.testing.assert_array_equal(stated_clinical("", " ", "unknown"), NO_CLINICAL)
    np.testing.assert_array_equal(stated_clinical("0", "", ""), encode_clinical([0], [None], [None]))
    np.testing.assert_array_equal(stated_clinical("120", "", ""), encode_clinical([120], [None], [None]))


@pytest.mark.parametrize("age", ["-1", "120.5", "nan", "inf", "1e9", "45,5", "fifty", "0x20", "45 years"])
def test_an_age_that_is_none_is_refused(age: str) -> None:
    with pytest.raises(ValueError, match=r"^age .* is no number of years from 0 to 120$"):
        stated_clinical(age, "", "")


@pytest.mark.parametrize("sex", ["m", "woman", "1", "male,female"])
def test_a_sex_that_is_none_is_refused(sex: str) -> None:
    with pytest.raises(ValueError, match=r"^sex .* is neither male nor female$"):
        stated_clinical("", sex, "")


@pytest.mark.parametrize("site", ["bak", "left elbow pit", "torso back", "0"])
def test_a_site_that_is_not_known_is_refused_with_those_that_are(site: str) -> None:
    with pytest.raises(ValueError, match=r"^site .* is not known; known are abdomen, acral, .*, upper limbs$"):
        stated_clinical("", "", site)


def test_a_refusal_does_not_repeat_a_whole_book() -> None:
    with pytest.raises(ValueError, match="is not known") as caught:
        stated_clinical("", "", "x" * 100_000)
    assert len(str(caught.value)) < 2000
