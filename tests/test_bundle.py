"""The bundle: what was saved is what is loaded, and nothing that was changed is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from skinray import storage
from skinray.bundle import CHECKSUMS, FILES, Labels, OperatingPoint, OperatingPoints, bundle_exists, load_bundle, save_bundle
from skinray.clinical import clinical_metadata
from skinray.errors import BundleError, StorageError
from skinray.images import Preprocessing
from skinray.training_config import ModelSettings

LABELS = Labels(codes=("benign", "malignant"), malignant=("malignant",))
POINTS = OperatingPoints(
    default="balanced",
    points={
        "balanced": OperatingPoint(threshold=0.5, sensitivity=0.8, specificity=0.8, measured_on="validation"),
        "sensitive": OperatingPoint(threshold=0.1, sensitivity=0.95, specificity=0.5, measured_on="validation"),
    },
)
PREPROCESSING = Preprocessing(image_size_px=32, fit="center_crop", filter="bicubic")
METADATA = {"network": "cnn_sequential", "seed": 0}


def save(uri: str) -> str:
    import keras

    from skinray.model import build_model, with_probabilities

    keras.utils.set_random_seed(0)
    model = with_probabilities(build_model(ModelSettings(name="cnn_sequential"), 32, 2))
    return save_bundle(uri, model, PREPROCESSING, LABELS, POINTS, METADATA, "# card ü\n")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle that no test changes, and its model_id."""
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    return folder, save(str(folder))


@pytest.fixture
def folder(saved: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the bundle to change."""
    return Path(shutil.copytree(saved[0], tmp_path / "bundle"))


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(str(folder))
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert f"bundle {folder}" in message
    return message


def write_again(folder: Path, name: str, content: bytes) -> None:
    """Changes a file and its checksum, as another version of skinray would have written them."""
    (folder / name).write_bytes(content)
    checksums = json.loads((folder / CHECKSUMS).read_text())
    checksums[name] = storage.sha256_of(content)
    (folder / CHECKSUMS).write_text(json.dumps(checksums))


def test_what_was_saved_is_loaded(saved: tuple[Path, str]) -> None:
    folder, model_id = saved
    bundle = load_bundle(str(folder))
    assert (bundle.uri, bundle.folder, bundle.model_id) == (str(folder), folder, model_id)
    assert (bundle.preprocessing, bundle.labels, bundle.operating_points) == (PREPROCESSING, LABELS, POINTS)
    assert METADATA.items() <= bundle.metadata.items()
    assert (folder / "README.md").read_text(encoding="utf-8") == "# card ü\n"


def test_the_folder_holds_exactly_the_files_of_a_bundle(saved: tuple[Path, str]) -> None:
    assert {path.name for path in saved[0].iterdir()} == {*FILES, CHECKSUMS}


def test_the_model_gives_probabilities(saved: tuple[Path, str]) -> None:
    model = load_bundle(str(saved[0])).load_model()
    probabilities = np.asarray(model(np.zeros((2, 32, 32, 3), np.uint8), training=False))
    assert probabilities.shape == (2, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_the_model_id_is_12_hexadecimal_digits_and_goes_with_the_content(saved: tuple[Path, str], folder: Path) -> None:
    _, model_id = saved
    assert len(model_id) == 12
    assert int(model_id, 16) >= 0
    assert load_bundle(str(folder)).model_id == model_id
    write_again(folder, "README.md", b"# another card\n")
    assert load_bundle(str(folder)).model_id != model_id


def test_the_model_id_does_not_depend_on_how_checksums_are_written(saved: tuple[Path, str], folder: Path) -> None:
    checksums = json.loads((folder / CHECKSUMS).read_text())
    (folder / CHECKSUMS).write_text(json.dumps(dict(reversed(checksums.items()))))
    assert load_bundle(str(folder)).model_id == saved[1]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 0.5, 1], ids=["first", "middle", "last"])
def test_one_changed_byte_is_refused(folder: Path, name: str, place: float) -> None:
    content = bytearray((folder / name).read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    (folder / name).write_bytes(content)
    assert f"{name} was changed" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_refused(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    assert f"{name} was changed" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} is missing" in refusal(folder)


def test_a_folder_without_checksums_is_no_bundle(folder: Path) -> None:
    assert bundle_exists(str(folder))
    (folder / CHECKSUMS).unlink()
    assert not bundle_exists(str(folder))
    assert CHECKSUMS in refusal(folder)


def test_a_folder_that_is_not_there_is_no_bundle(tmp_path: Path) -> None:
    assert not bundle_exists(str(tmp_path / "nothing"))
    assert CHECKSUMS in refusal(tmp_path / "nothing")


@pytest.mark.parametrize("extra", ["../../etc/passwd", "weights.bin", "/etc/passwd", CHECKSUMS])
def test_an_entry_too_many_in_the_checksums_is_refused(folder: Path, extra: str) -> None:
    checksums = json.loads((folder / CHECKSUMS).read_text())
    (folder / CHECKSUMS).write_text(json.dumps({**checksums, extra: "0" * 64}))
    assert CHECKSUMS in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_an_entry_too_few_in_the_checksums_is_refused(folder: Path, name: str) -> None:
    checksums = json.loads((folder / CHECKSUMS).read_text())
    del checksums[name]
    (folder / CHECKSUMS).write_text(json.dumps(checksums))
    assert CHECKSUMS in refusal(folder)


@pytest.mark.parametrize("content", [b"[]", b"null", b'"text"', b"{}"])
def test_checksums_of_another_shape_are_refused(folder: Path, content: bytes) -> None:
    (folder / CHECKSUMS).write_bytes(content)
    assert CHECKSUMS in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_checksums_that_are_no_json_are_refused(folder: Path, content: bytes) -> None:
    (folder / CHECKSUMS).write_bytes(content)
    with pytest.raises((BundleError, StorageError), match=f"{folder}/{CHECKSUMS}"):
        load_bundle(str(folder))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.json", {"schema_version": 2}),
        ("metadata.json", {}),
        ("metadata.json", []),
        ("preprocessing.json", {"version": 2}),
        ("preprocessing.json", {"mean": 0.5}),
        ("labels.json", {"codes": ["a"]}),
        ("operating_points.json", {"default": "balanced"}),
    ],
    ids=str,
)
def test_files_of_another_version_are_refused(folder: Path, name: str, content: object) -> None:
    write_again(folder, name, json.dumps(content).encode())
    assert "version" in refusal(folder)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_files_that_are_no_json_are_refused(folder: Path, name: str) -> None:
    write_again(folder, name, b"not JSON")
    refusal(folder)


def test_a_model_that_keras_cannot_load_is_refused(folder: Path) -> None:
    write_again(folder, "model.keras", b"PK\x03\x04 not a model")
    bundle = load_bundle(str(folder))
    with pytest.raises(BundleError, match=r"model\.keras cannot be loaded") as caught:
        bundle.load_model()
    assert len(str(caught.value).splitlines()) == 1


# The second input


def save_with_clinical(uri: str, metadata: dict[str, object]) -> str:
    from skinray.model import build_model, with_probabilities

    model = with_probabilities(build_model(ModelSettings(name="cnn_functional", clinical_input=True), 32, 2))
    return save_bundle(uri, model, PREPROCESSING, LABELS, POINTS, metadata, "# card")


@pytest.fixture(scope="module")
def saved_with_clinical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clinical") / "bundle"
    save_with_clinical(str(folder), METADATA)
    return folder


@pytest.fixture
def clinical_folder(saved_with_clinical: Path, tmp_path: Path) -> Path:
    """A copy of a bundle with a second input, to change."""
    return Path(shutil.copytree(saved_with_clinical, tmp_path / "bundle"))


def test_a_second_input_is_recorded_with_its_encoding(saved_with_clinical: Path, saved: tuple[Path, str]) -> None:
    bundle = load_bundle(str(saved_with_clinical))
    assert bundle.takes_clinical
    assert bundle.metadata["clinical"] == clinical_metadata()
    assert METADATA.items() <= bundle.metadata.items()
    assert [one.name for one in bundle.load_model().inputs] == ["photo", "clinical"]
    plain = load_bundle(str(saved[0]))
    assert not plain.takes_clinical
    assert "clinical" not in plain.metadata


def test_metadata_may_say_the_encoding_themselves_but_not_another(tmp_path: Path) -> None:
    save_with_clinical(str(tmp_path / "same"), {"clinical": clinical_metadata()})
    save_with_clinical(str(tmp_path / "other"), {"clinical": {"version": 0, "columns": []}})
    for name in ("same", "other"):
        assert load_bundle(str(tmp_path / name)).metadata["clinical"] == clinical_metadata()


@pytest.mark.parametrize(
    "stored",
    [
        {**clinical_metadata(), "version": 2},
        {**clinical_metadata(), "columns": [*clinical_metadata()["columns"], "diameter_mm"]},
        {**clinical_metadata(), "columns": clinical_metadata()["columns"][::-1]},
        {"version": 1},
        {},
        [],
        "1",
        False,
    ],
    ids=["version", "column", "order", "none", "empty", "list", "text", "false"],
)
def test_another_encoding_is_refused(clinical_folder: Path, stored: object) -> None:
    content = json.loads((clinical_folder / "metadata.json").read_bytes())
    write_again(clinical_folder, "metadata.json", json.dumps({**content, "clinical": stored}).encode())
    message = refusal(clinical_folder)
    assert "encoding of age, sex and site" in message
    assert "train it again" in message


def test_a_second_input_without_its_encoding_is_refused(clinical_folder: Path) -> None:
    write_again(clinical_folder, "metadata.json", json.dumps({"schema_version": 1}).encode())
    with pytest.raises(BundleError, match=r"the model takes photo and clinical, and metadata\.json does not state"):
        load_bundle(str(clinical_folder)).load_model()


def test_an_encoding_without_its_input_is_refused(folder: Path) -> None:
    content = json.loads((folder / "metadata.json").read_bytes())
    write_again(folder, "metadata.json", json.dumps({**content, "clinical": clinical_metadata()}).encode())
    with pytest.raises(BundleError, match=r"the model takes photo, and metadata\.json states"):
        load_bundle(str(folder)).load_model()


@pytest.mark.s3
def test_a_bundle_in_a_bucket_is_the_same_bundle(
    saved: tuple[Path, str], s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    local, model_id = saved
    storage.upload_folder(local, f"{s3_bucket}/bundle")
    for _ in range(2):  # the second time from the copy of this host
        bundle = load_bundle(f"{s3_bucket}/bundle")
        assert (bundle.uri, bundle.model_id) == (f"{s3_bucket}/bundle", model_id)
        assert bundle.labels == LABELS
        assert tmp_path in bundle.folder.parents


@pytest.mark.s3
def test_a_changed_file_in_a_bucket_is_refused(
    saved: tuple[Path, str], s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uri = f"{s3_bucket}/bundle"
    storage.upload_folder(saved[0], uri)
    storage.write_bytes(f"{uri}/labels.json", b"{}")
    with pytest.raises(BundleError, match=r"labels\.json was changed"):
        load_bundle(uri)
    storage.write_bytes(f"{uri}/labels.json", (saved[0] / "labels.json").read_bytes())
    assert load_bundle(uri).model_id == saved[1]  # the bad copy does not stay


@pytest.mark.s3
def test_a_missing_file_in_a_bucket_is_refused(
    saved: tuple[Path, str], s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in (*FILES[1:], CHECKSUMS):
        storage.write_bytes(f"{s3_bucket}/bundle/{name}", (saved[0] / name).read_bytes())
    with pytest.raises(BundleError, match=r"model\.keras"):
        load_bundle(f"{s3_bucket}/bundle")
