"""The predictor: the model's own answer for any number of photos, and for each photo whatever its neighbours are."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from skinray.bundle import Bundle, Labels, OperatingPoint, OperatingPoints, load_bundle, save_bundle
from skinray.classifier import Classifier, resolved_precision, use_threads
from skinray.clinical import CLINICAL_WIDTH, NO_CLINICAL, encode_clinical
from skinray.images import Preprocessing, decode_photo
from skinray.training_config import ModelSettings

if TYPE_CHECKING:
    import keras

BATCH = 4
SIZE_PX = 32


def photos(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE_PX, SIZE_PX, 3), np.uint8)


def make_lively(network: "keras.Model") -> None:
    """Gives every BatchNormalization the statistics of some photos: untrained, a deep network answers 1/3 to anything."""
    import keras

    layers = [*network.layers, *(inner for layer in network.layers if isinstance(layer, keras.Model) for inner in layer.layers)]
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network([photos(32), clinical(32)][: len(network.inputs)], training=True)


def clinical(count: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(4)
    sites = rng.choice(["face", "back", "foot", "acral", ""], count)
    return encode_clinical(rng.uniform(0, 99, count), rng.choice(["male", "female", ""], count), sites)


def saved(settings: ModelSettings, folder: Path) -> Bundle:
    """A bundle of an untrained network whose answers differ."""
    import keras

    from skinray.model import build_model, with_probabilities

    keras.utils.set_random_seed(2)
    network = build_model(settings, SIZE_PX, 3)
    make_lively(network)
    uri = str(folder / "bundle")
    point = OperatingPoint(threshold=0.5, sensitivity=0.8, specificity=0.8, measured_on="validation")
    save_bundle(
        uri,
        with_probabilities(network),
        Preprocessing(image_size_px=SIZE_PX),
        Labels(codes=("bkl", "mel", "nv"), malignant=("mel",)),
        OperatingPoints(default="balanced", points={"balanced": point}),
        {},
        "# card",
    )
    return load_bundle(uri)


@pytest.fixture(scope="module", params=["cnn_sequential", "mobilenet"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return saved(ModelSettings(name=request.param, mobilenet_alpha=0.25), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def clinical_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return saved(ModelSettings(name="cnn_functional", clinical_input=True), tmp_path_factory.mktemp("clinical"))


@pytest.fixture(scope="module")
def clinical_classifier(clinical_bundle: Bundle) -> Classifier:
    return Classifier(clinical_bundle, batch_size=BATCH)


@pytest.fixture(scope="module")
def classifier(bundle: Bundle) -> Classifier:
    return Classifier(bundle, batch_size=BATCH)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> "keras.Model":
    return bundle.load_model()


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH + 2])
def test_the_answer_is_that_of_the_model(classifier: Classifier, model: "keras.Model", count: int) -> None:
    expected = model.predict(photos(count), batch_size=BATCH, verbose=0)
    probabilities = classifier.probabilities(photos(count))
    assert probabilities.dtype == np.float32
    # Folding BatchNorm into the convolutions rounds differently, and noise in a network of noise makes much of it.
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_no_photos_have_no_answers(classifier: Classifier) -> None:
    assert classifier.probabilities(photos(0)).shape == (0, 3)


def test_photos_differ_in_their_answers(classifier: Classifier) -> None:
    # Otherwise nothing in this module means anything.
    assert classifier.probabilities(photos(9)).std(axis=0).max() > 0.01


def test_an_answer_does_not_depend_on_its_neighbours(classifier: Classifier) -> None:
    pixels = photos(2 * BATCH + 1)
    together = classifier.probabilities(pixels)
    order = np.random.default_rng(1).permutation(len(pixels))
    np.testing.assert_allclose(classifier.probabilities(pixels[order]), together[order], atol=1e-5)
    for number in range(len(pixels)):
        np.testing.assert_allclose(classifier.probabilities(pixels[number : number + 1])[0], together[number], atol=1e-5)


def test_an_answer_does_not_depend_on_the_batch_size(bundle: Bundle, classifier: Classifier) -> None:
    np.testing.assert_allclose(Classifier(bundle, 32).probabilities(photos(9)), classifier.probabilities(photos(9)), atol=1e-5)


def test_the_same_photos_have_the_same_answers_again(classifier: Classifier) -> None:
    np.testing.assert_array_equal(classifier.probabilities(photos(6)), classifier.probabilities(photos(6)))


def test_the_photos_are_left_as_they_are(classifier: Classifier) -> None:
    pixels = photos(5)
    pixels.flags.writeable = False
    classifier.probabilities(pixels)
    np.testing.assert_array_equal(pixels, photos(5))


def test_a_slice_of_other_pixels_is_classified_as_its_copy(classifier: Classifier) -> None:
    pixels = photos(10)[::2]
    assert not pixels.flags.c_contiguous
    np.testing.assert_array_equal(classifier.probabilities(pixels), classifier.probabilities(pixels.copy()))


def test_decoded_photos_are_what_it_takes(classifier: Classifier, bundle: Bundle, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photos(1)[0]).resize((90, 70)).save(buffer, "JPEG")
    decoded = decode_photo(buffer.getvalue(), bundle.preprocessing).pixels
    assert classifier.probabilities(decoded[np.newaxis]).shape == (1, 3)


def test_threads_may_be_asked_for_when_tensorflow_already_runs(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = classifier.probabilities(photos(3))
    use_threads(1)
    np.testing.assert_array_equal(classifier.probabilities(photos(3)), before)


# Age, sex and site


@pytest.mark.parametrize("count", [0, 1, BATCH, 2 * BATCH + 1])
def test_the_answer_for_two_inputs_is_that_of_the_model(
    clinical_classifier: Classifier, clinical_bundle: Bundle, count: int
) -> None:
    model = clinical_bundle.load_model()
    probabilities = clinical_classifier.probabilities(photos(count), clinical(count))
    assert probabilities.shape == (count, 3)
    if count:
        expected = np.asarray(model([photos(count), clinical(count)], training=False))
        np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_every_lesion_goes_with_its_own_data(clinical_classifier: Classifier) -> None:
    count = 2 * BATCH + 1
    pixels = np.repeat(photos(1), count, axis=0)
    together = clinical_classifier.probabilities(pixels, clinical(count))
    alone = [clinical_classifier.probabilities(photos(1), row[np.newaxis])[0] for row in clinical(count)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.std(axis=0).max() > 0.01  # otherwise the line above means nothing


def test_nothing_said_is_nothing_known(clinical_classifier: Classifier) -> None:
    assert clinical_classifier.takes_clinical
    unknown = clinical_classifier.probabilities(photos(6))
    np.testing.assert_array_equal(unknown, clinical_classifier.probabilities(photos(6), np.repeat(NO_CLINICAL, 6, axis=0)))
    assert np.abs(unknown - clinical_classifier.probabilities(photos(6), clinical(6))).max() > 0.01


def test_a_bundle_with_one_input_ignores_the_second(classifier: Classifier) -> None:
    assert not classifier.takes_clinical
    np.testing.assert_array_equal(classifier.probabilities(photos(6), clinical(6)), classifier.probabilities(photos(6)))


@pytest.mark.parametrize("shape", [(5, CLINICAL_WIDTH), (1, CLINICAL_WIDTH), (6, CLINICAL_WIDTH + 1), (CLINICAL_WIDTH,)])
def test_data_of_other_lesions_are_refused(
    clinical_classifier: Classifier, classifier: Classifier, shape: tuple[int, ...]
) -> None:
    for either in (clinical_classifier, classifier):
        with pytest.raises(ValueError, match="for 6 photos"):
            either.probabilities(photos(6), np.zeros(shape, np.float32))


# Precision


def test_bfloat16_gives_probabilities_and_leaves_float32_as_it_was(bundle: Bundle, classifier: Classifier) -> None:
    before = classifier.probabilities(photos(20))
    coarse = Classifier(bundle, BATCH, precision="bfloat16")
    assert coarse.precision == "bfloat16"
    np.testing.assert_allclose(coarse.probabilities(photos(20)).sum(axis=1), 1, atol=0.01)
    exact = Classifier(bundle, BATCH, precision="float32")
    np.testing.assert_array_equal(exact.probabilities(photos(20)), before)


def test_auto_is_what_the_processor_multiplies_and_the_network_bears() -> None:
    native = {"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split())
    assert resolved_precision("auto", ["resnet50"]) == ("bfloat16" if native else "float32")
    assert resolved_precision("auto", ["mobilenet"]) == "float32"
    assert resolved_precision("bfloat16", ["mobilenet"]) == "bfloat16"


def test_an_ensemble_is_computed_in_bfloat16_only_where_every_member_bears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skinray.classifier._multiplies_bfloat16", lambda: True)
    assert resolved_precision("auto", ["resnet50"]) == "bfloat16"
    assert resolved_precision("auto", ["resnet50", "mobilenet"]) == "float32"
