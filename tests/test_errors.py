"""Exit codes, and errors that cross process borders."""

import copy
import inspect
import pickle
from typing import get_args

import pytest

from skinray import errors
from skinray.errors import (
    IMAGE_ERRORS,
    ConfigError,
    ImageError,
    ImageErrorCode,
    LeakError,
    OutputExistsError,
    SkinrayError,
    StorageError,
)

TREE = [error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, SkinrayError)]


@pytest.mark.parametrize("error", TREE)
def test_bad_settings_exit_with_2_leaks_with_3_and_all_else_with_1(error: type[SkinrayError]) -> None:
    assert error.exit_code == {ConfigError: 2, LeakError: 3}.get(error, 1)


def test_output_that_exists_is_a_storage_error() -> None:
    assert issubclass(OutputExistsError, StorageError)


def test_a_bad_photo_never_ends_a_job() -> None:
    assert not issubclass(ImageError, SkinrayError)


@pytest.mark.parametrize("error", TREE)
def test_errors_survive_pickling(error: type[SkinrayError]) -> None:
    returned = pickle.loads(pickle.dumps(error("s3://bucket/x: it does not exist")))
    assert type(returned) is error
    assert str(returned) == "s3://bucket/x: it does not exist"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_image_error_survives_pickling(protocol: int) -> None:
    returned = pickle.loads(pickle.dumps(ImageError("truncated", "8 bytes are missing"), protocol))
    assert type(returned) is ImageError
    assert (returned.code, returned.detail) == ("truncated", "8 bytes are missing")
    assert str(returned) == "truncated: 8 bytes are missing"


def test_image_error_survives_copying() -> None:
    returned = copy.copy(ImageError("empty", "the file has 0 bytes"))
    assert (returned.code, returned.detail) == ("empty", "the file has 0 bytes")


def test_every_code_of_a_photo_has_words_for_a_person() -> None:
    assert set(IMAGE_ERRORS) == set(get_args(ImageErrorCode))
