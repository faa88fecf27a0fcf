"""A bundle that looks at age, sex and site: over HTTP what a data set states can be stated too, and the answer is the same.

And how serving begins, what it does when it cannot, and what it says when too much is asked of it.
"""

import asyncio
import contextlib
import datetime
import http.server
import io
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeStatus
from starlette.requests import Request

from skinray import serving
from skinray.bundle import Labels, OperatingPoint, OperatingPoints, load_bundle, save_bundle
from skinray.clinical import SITE_NAMES
from skinray.config import EvaluateSettings, ScoreSettings, ServeSettings
from skinray.errors import ImageError, SkinrayError
from skinray.evaluation import evaluate
from skinray.images import Preprocessing, decode_photo
from skinray.quality import QUALITY_FLAGS, QUALITY_MEASURES
from skinray.scoring import score_archive
from skinray.serving import start_serving, stop_serving
from skinray.shards import PreparedDataset
from skinray.training_config import ModelSettings
from tests.conftest import free_port
from tests.test_reports import metadata

pytestmark = pytest.mark.ray

COLUMNS = ["prob_benign", "prob_malignant"]


@pytest.fixture(scope="module")
def bundle_uri(drawn_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of an untrained network to which what is known of a lesion matters as much as its photo."""
    import keras

    from skinray.model import build_model, with_probabilities

    keras.utils.set_random_seed(7)
    preprocessing = Preprocessing(image_size_px=48)
    network = build_model(ModelSettings(name="cnn_functional", clinical_input=True), 48, 2)
    some = [decode_photo(path.read_bytes(), preprocessing).pixels for path in sorted((drawn_photos / "images").iterdir())[:16]]
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network([np.stack(some), np.zeros((16, network.inputs[1].shape[1]), np.float32)], training=True)
    uri = str(tmp_path_factory.mktemp("clinical") / "bundle")
    point = OperatingPoint(threshold=0.5, sensitivity=0.8, specificity=0.8, measured_on="validation")
    save_bundle(
        uri,
        with_probabilities(network),
        preprocessing,
        Labels(codes=("benign", "malignant"), malignant=("malignant",)),
        OperatingPoints(default="youden", points={"youden": point}),
        metadata(("benign", "malignant"), clinical_input=True),
        "# card",
    )
    return uri


# Before `served`, because one Ray serves one bundle.
def test_what_does_not_start_is_one_line_and_is_taken_down(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_app(args: serving.BuildArgs) -> serve.Application:
        replica = serving.ClassifierReplica.bind(args.bundle)  # type: ignore[attr-defined]
        return serving.SkinrayApi.bind(args.bundle, True, replica)  # type: ignore[attr-defined,no-any-return]

    monkeypatch.setattr(serving, "build_app", build_app)  # which looks at the bundle here, where it may be another one
    with pytest.raises(SkinrayError, match=r"cannot start the application: .*BundleError: .*/nowhere/bundle") as caught:
        start_serving(ServeSettings(bundle="/nowhere/bundle", port=free_port()))
    assert len(str(caught.value)) < 400
    assert serve.status().applications == {}


def test_a_port_that_another_server_shares_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "build_app", lambda args: None)
    monkeypatch.setattr(serve, "status", ServeStatus)  # of a Ray on which Serve does not run
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SkinrayError, match=rf"cannot listen on 127\.0\.0\.1, port {port} .*: choose another --port"):
            start_serving(ServeSettings(bundle="/runs/bundle", port=port))


@contextlib.contextmanager
def answering(body: bytes) -> Iterator[str]:
    """A server that answers everything with this."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_the_server_that_answers_is_our_own_and_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with answering(b'{"status": "ok", "model_id": "0123456789ab"}') as address:
        serving._wait_until_answering(address, "0123456789ab")
        with pytest.raises(SkinrayError, match="answered by another server"):
            serving._wait_until_answering(address, "ba9876543210")


def test_a_machine_of_one_core_has_room_for_both() -> None:
    both = (serving.SkinrayApi, serving.ClassifierReplica)
    shares = [deployment.ray_actor_options["num_cpus"] for deployment in both]  # type: ignore[attr-defined]
    assert sum(shares) <= 1
    assert min(shares) > 0


@pytest.fixture
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_stopped_while_it_starts_and_while_it_serves(
    number: signal.Signals, own_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, done = ServeSettings(bundle="/runs/bundle"), []

    def start(settings: ServeSettings) -> str:
        signal.raise_signal(number)
        done.append("went on")
        return "http://127.0.0.1:8000/"

    monkeypatch.setattr(serving, "start_serving", start)
    monkeypatch.setattr(serving, "stop_serving", lambda: done.append("stopped"))
    with pytest.raises(KeyboardInterrupt):
        serving.serve_until_stopped(settings)
    assert done == []
    monkeypatch.setattr(serving, "start_serving", lambda settings: "http://127.0.0.1:8000/")
    monkeypatch.setattr(serving, "say", lambda line: signal.raise_signal(number))
    serving.serve_until_stopped(settings)
    assert done == ["stopped"]


def test_of_many_photos_that_come_at_once_a_few_are_decoded_at_once(bundle_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = []
    most: list[int] = []

    def decode(data: bytes, preprocessing: Preprocessing) -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()
        raise ImageError("corrupt", "for this test")

    async def ask_at_once(requests: int) -> list[Any]:
        api = own_class(bundle_uri, True, None)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"a photo"}

        calls = [api.predict(Request({"type": "http", "headers": []}, receive)) for _ in range(requests)]
        return await asyncio.gather(*calls, return_exceptions=True)

    own_class = serving.SkinrayApi.func_or_class.__bases__[0]  # type: ignore[attr-defined]
    monkeypatch.setitem(own_class.predict.__globals__, "decode_photo", decode)
    answers = asyncio.run(ask_at_once(12))
    assert [answer.code for answer in answers] == ["corrupt"] * 12
    assert max(most) == serving.MAX_DECODING


@pytest.fixture(scope="module")
def served(ray_cluster: None, bundle_uri: str) -> Iterator[str]:
    yield start_serving(ServeSettings(bundle=bundle_uri, port=free_port()))
    stop_serving()


@pytest.fixture(scope="module")
def stated(drawn_photos: Path) -> pd.DataFrame:
    """What the data set says of each lesion, as written: text, "" where nothing is."""
    return pd.read_csv(drawn_photos / "metadata.csv", dtype=str, keep_default_na=False).set_index("image_id")


def predict(served: str, photo: bytes, query: dict[str, str], fields: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """Posts a photo, as the body or, with fields, in a form."""
    body, content_type = photo, "application/octet-stream"
    if fields is not None:
        parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
        parts.append(b'Content-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n' + photo)
        body, content_type = (
            b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n",
            "multipart/form-data; boundary=x",
        )
    url = f"{served}v1/predict?{urllib.parse.urlencode(query)}"
    request = urllib.request.Request(url, data=body, headers={"Content-Type": content_type}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error) | {"content_type": error.headers["content-type"]}


def test_one_lesion_has_one_probability_from_evaluate_score_and_serve(
    served: str, bundle_uri: str, prepared: PreparedDataset, drawn_photos: Path, stated: pd.DataFrame, tmp_path: Path
) -> None:
    evaluate(EvaluateSettings(bundle=bundle_uri, data=prepared.uri, output=str(tmp_path / "evaluation")))
    evaluated = pd.read_parquet(tmp_path / "evaluation" / "predictions").set_index("image_id")
    now = datetime.datetime.now(datetime.UTC)
    settings = ScoreSettings(bundle=bundle_uri, input=prepared.uri, output=str(tmp_path / "scores"), batch_size=5)
    scored = pd.read_parquet(score_archive(settings, now).uri).set_index("image_id")
    loose = ScoreSettings(bundle=bundle_uri, input=str(drawn_photos), output=str(tmp_path / "loose"), image_id="stem")
    unknown = pd.read_parquet(score_archive(loose, now).uri).set_index("image_id").loc[scored.index]
    assert (len(evaluated), len(scored)) == (prepared.rows("test"), len(stated))
    assert (evaluated[COLUMNS] - scored.loc[evaluated.index, COLUMNS]).abs().to_numpy().max() <= 1e-5
    # Otherwise nothing here means anything.
    assert (scored[COLUMNS] - unknown[COLUMNS]).abs().to_numpy().max() > 0.05
    gaps = [stated.index[stated[name] == ""].tolist()[0] for name in ("age", "sex", "site")]
    for number, image_id in enumerate([*evaluated.index[:6], *gaps]):
        photo = (drawn_photos / "images" / f"{image_id}.jpg").read_bytes()
        known = stated.loc[image_id, ["age", "sex", "site"]].to_dict()
        status, answer = predict(served, photo, {}, known) if number % 2 else predict(served, photo, known)
        assert status == 200
        assert max(abs(answer[name] - scored.loc[image_id, name]) for name in COLUMNS) <= 1e-5
        _, answer = predict(served, photo, {})
        assert max(abs(answer[name] - unknown.loc[image_id, name]) for name in COLUMNS) <= 1e-5


@pytest.fixture(scope="module")
def photo(drawn_photos: Path) -> bytes:
    return min((drawn_photos / "images").iterdir()).read_bytes()


def test_a_field_of_the_form_wins_over_the_query(served: str, photo: bytes) -> None:
    young, old = predict(served, photo, {"age": "5"}), predict(served, photo, {"age": "90"})
    assert abs(young[1]["prob_malignant"] - old[1]["prob_malignant"]) > 1e-3
    assert predict(served, photo, {"age": "5"}, {"age": "90"}) == old
    assert predict(served, photo, {"age": "5"}, {"age": "", "sex": ""}) == young


def test_one_site_has_one_answer_in_any_spelling(served: str, photo: bytes) -> None:
    answers = [predict(served, photo, {"site": site}) for site in ("head/neck", "HEAD_NECK", "face", "head and neck")]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0] != predict(served, photo, {"site": "torso"})
    assert predict(served, photo, {"site": "unknown", "sex": " "}) == predict(served, photo, {})


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"age": "121"}, "no number of years from 0 to 120"),
        ({"age": "-1"}, "no number of years from 0 to 120"),
        ({"age": "forty"}, "no number of years from 0 to 120"),
        ({"sex": "m"}, "neither male nor female"),
        ({"site": "elbo", "age": "40"}, "known are abdomen, acral, "),
        ({"site": "<b>back</b>"}, "known are abdomen, acral, "),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("in_form", [False, True], ids=["query", "form"])
def test_what_cannot_be_understood_is_refused(
    served: str, photo: bytes, stated: dict[str, str], said: str, in_form: bool
) -> None:
    status, problem = predict(served, photo, {}, stated) if in_form else predict(served, photo, stated)
    assert (status, problem["status"], problem["error_code"]) == (422, 422, "bad_clinical")
    assert problem["content_type"] == "application/problem+json"
    assert said in problem["detail"]


def test_what_is_no_photo_of_skin_is_refused_and_a_photo_of_skin_is_measured(served: str, photo: bytes) -> None:
    page = Image.new("RGB", (300, 300), "white")
    for line in range(20, 280, 20):
        page.paste("black", (20, line, 20 + line % 90 + 60, line + 3))
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    status, problem = predict(served, buffer.getvalue(), {})
    assert (status, problem["error_code"]) == (422, "graphic")
    assert "drawn or written" in problem["detail"]
    status, answer = predict(served, photo, {})
    assert status == 200
    assert set(answer) >= {*QUALITY_MEASURES, *QUALITY_FLAGS}
    assert 0 < answer["brightness"] < 100


def test_the_page_asks_for_what_the_model_looks_at(served: str) -> None:
    with urllib.request.urlopen(served, timeout=30) as response:
        page = response.read().decode()
    for name in ("age", "sex", "site"):
        assert f'name="{name}"' in page
    assert all(f"<option>{group}</option>" in page for group in SITE_NAMES)
    assert "{{" not in page
    assert "{%" not in page


def test_the_interface_says_what_it_takes(served: str, bundle_uri: str) -> None:
    with urllib.request.urlopen(f"{served}v1/model", timeout=30) as response:
        model = json.load(response)
    assert (model["model_id"], model["takes_clinical"]) == (load_bundle(bundle_uri).model_id, True)
    with urllib.request.urlopen(f"{served}openapi.json", timeout=30) as response:
        predict = json.load(response)["paths"]["/v1/predict"]["post"]
    assert [(one["name"], one["in"], one["required"]) for one in predict["parameters"]] == [
        ("age", "query", False),
        ("sex", "query", False),
        ("site", "query", False),
    ]
    assert set(predict["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]) == {"file", "age", "sex", "site"}


def test_a_second_bundle_does_not_take_the_place_of_the_first(served: str, bundle_uri: str) -> None:
    with pytest.raises(SkinrayError, match="serves a bundle already"):
        start_serving(ServeSettings(bundle=bundle_uri, port=free_port()))
    with urllib.request.urlopen(f"{served}healthz", timeout=30) as response:
        assert response.status == 200


@contextlib.contextmanager
def held_up(deployment: str) -> Iterator[None]:
    """While this lasts, the replicas of a deployment do nothing."""
    details = _get_global_client().get_serve_details()["applications"]["skinray"]["deployments"][deployment]
    ours = [replica["pid"] for replica in details["replicas"]]
    assert ours
    for process in ours:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in ours:
            os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize(
    ("deployment", "let_in", "content_type"),
    [
        ("ClassifierReplica", serving.MAX_ONGOING + serving.MAX_QUEUED, "application/problem+json"),
        ("SkinrayApi", 2 * serving.MAX_UPLOADS, "text/plain"),
    ],
)
def test_who_comes_when_too_many_wait_is_told_to_come_again(served: str, deployment: str, let_in: int, content_type: str) -> None:
    refused: list[tuple[str, str, bytes]] = []

    def ask(_: int) -> int:
        try:
            with urllib.request.urlopen(f"{served}healthz", timeout=120) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                refused.append((error.headers["content-type"], error.headers["retry-after"], error.read()))
                return error.code

    wanted = 8
    most = 2 * let_in
    with ThreadPoolExecutor(most) as callers:
        with held_up(deployment):
            answers = []
            while len(refused) < wanted and len(answers) < most:
                answers.append(callers.submit(ask, len(answers)))
                time.sleep(0.01)  # of a burst Serve lets in dozens more than it says, because it counts a moment late
            deadline = time.monotonic() + 30
            while len(refused) < wanted and time.monotonic() < deadline:
                time.sleep(0.05)
            told = list(refused)
        statuses = [answer.result() for answer in answers]
    assert len(told) >= wanted, "at once, and not when there is room again"
    assert (statuses.count(503), statuses.count(200)) == (len(refused), len(statuses) - len(refused))
    for said_as, retry_after, body in told:
        assert said_as.startswith(content_type)
        assert retry_after == "1"
        if content_type.endswith("json"):
            assert json.loads(body)["error_code"] == "busy"
