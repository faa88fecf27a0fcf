"""The bundle over HTTP: a FastAPI ingress that decodes, in front of a batched deployment that holds the model.

    GET  /            a page to upload a photo
    POST /v1/predict  a photo, as the body itself or as the file of a form; answers with the columns of a prediction row.
                      age, sex and site may be stated in the query or as fields of the form, which win and stay out of logs
    GET  /v1/model    what is being served, and whether it looks at age, sex and site
    GET  /healthz     200 when the model answers

Photos are decoded before they are batched, so that a broken one fails alone. Errors are `application/problem+json`
(RFC 9457): 400, 413, 415, 422, and 503 when more photos wait for the model than it takes. Where more requests come than are
let in at all, Serve itself answers 503, in plain text. Both have Retry-After.

`build_app` is what a Serve config names as `import_path`.
"""

import asyncio
import contextlib
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any

import jinja2
import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatusOverview
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from skinray import storage
from skinray.bundle import load_bundle
from skinray.clinical import NO_CLINICAL, SITE_NAMES, stated_clinical
from skinray.config import ServeSettings
from skinray.errors import ImageError, ImageErrorCode, SkinrayError
from skinray.images import decode_photo
from skinray.input_gate import REASONS, refusal
from skinray.predictions import prediction_answer
from skinray.quality import quality
from skinray.reports import NOT_A_DEVICE
from skinray.telemetry import say

# A 24-megapixel JPEG of the best quality is about 15 MB.
MAX_BODY_BYTES = 20_000_000

MAX_BATCH_SIZE = 8
# How long a photo waits for company: little against the 50 ms or more of a forward pass on a CPU.
BATCH_WAIT_S = 0.01
# Two batches' worth: one is computed while the next fills.
MAX_ONGOING = 2 * MAX_BATCH_SIZE
# What may wait for the model beside them. Both together are fewer than the requests that a SkinrayApi takes, so that who comes
# next is told that it is busy.
MAX_QUEUED = 32
# Requests that are taken at once, each with its body: 1.3 GB at worst.
MAX_UPLOADS = 64
RETRY_AFTER_S = 1
# Photos decoded at once: at worst 3 GB, or 5 GB if they are DICOM (see `skinray.images.MAX_PIXELS`).
MAX_DECODING = 2
# One core's worth together, so that a machine of one core can serve. Not 0: a head that is to run no work (num-cpus 0) must not
# get it.
_API_CPUS = 0.1

_APPLICATION = "skinray"
# How often an application that does not start is said to be waited for, and why.
_SAY_EVERY_S = 60.0
# How long Serve's proxy may take to listen after the application is ready.
_PROXY_WAIT_S = 30.0
# What is asked here is on this machine, and not what http_proxy leads to.
ask_this_machine = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

_STATUS_OF_CODE: dict[ImageErrorCode, HTTPStatus] = {
    "empty": HTTPStatus.BAD_REQUEST,
    "not_an_image": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}

# Without the interactive documentation, whose scripts come from the internet; /openapi.json describes the interface.
api = FastAPI(title="skinray", description=NOT_A_DEVICE, docs_url=None, redoc_url=None)

_CLINICAL = {
    "age": "Years, 0 to 120. Like the others it may be left out, and changes nothing where the model does not look at it.",
    "sex": "male or female.",
    "site": f"Where the lesion sits: {', '.join(SITE_NAMES)}, or a part of them that data sets name.",
}
_FILE = {"type": "string", "format": "binary"}
_FIELDS = {name: {"type": "string", "description": description} for name, description in _CLINICAL.items()}
_PHOTO_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": _FILE},
            "multipart/form-data": {"schema": {"type": "object", "properties": {"file": _FILE, **_FIELDS}}},
        },
    }
}


class BuildArgs(BaseModel):
    """The arguments of the application in a Serve config."""

    model_config = ConfigDict(extra="forbid")

    bundle: str
    refuse: bool = True


class _ProblemError(Exception):
    def __init__(self, status: HTTPStatus, code: str, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.retry_after_s = status, code, detail, retry_after_s


@api.exception_handler(_ProblemError)
async def _answer_problem(request: Request, problem: _ProblemError) -> JSONResponse:
    content = {
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": int(problem.status),
        "detail": problem.detail,
        "error_code": problem.code,
        "instance": request.url.path,
    }
    headers = {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}
    return JSONResponse(content, status_code=int(problem.status), headers=headers, media_type="application/problem+json")


# What the endpoints call stands above their class: Serve pickles the application while the class is being decorated.
async def _upload_of(request: Request) -> tuple[bytes, dict[str, str]]:
    """The photo, and the text fields of the form that it came in."""
    body = await _limited_body(request)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return body, {}

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, once()).parse()
    except (MultiPartException, KeyError) as error:
        raise _ProblemError(HTTPStatus.BAD_REQUEST, "bad_form", f"the form cannot be read: {error}") from error
    fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            return await value.read(), fields
    raise _ProblemError(HTTPStatus.BAD_REQUEST, "bad_form", "the form has no file")


async def _limited_body(request: Request) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise _ProblemError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", f"the body has more than {MAX_BODY_BYTES // 1_000_000} MB"
            )
        chunks.append(chunk)
    return b"".join(chunks)


# uint8 [size, size, 3], and float32 [CLINICAL_WIDTH] of `skinray.clinical`
Lesion = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]


@serve.deployment(max_ongoing_requests=MAX_ONGOING, max_queued_requests=MAX_QUEUED, ray_actor_options={"num_cpus": 1 - _API_CPUS})
class ClassifierReplica:
    """Holds the model and classifies what has come in since the last batch."""

    def __init__(self, bundle_uri: str) -> None:
        from skinray.classifier import Classifier

        self._classifier = Classifier(load_bundle(bundle_uri), MAX_BATCH_SIZE)

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_S)
    async def classify(self, lesions: list[Lesion]) -> list[npt.NDArray[np.float32]]:
        """One lesion in, its float32 [C] probabilities out; Serve gathers callers into the list."""
        pixels, clinical = (np.stack(parts) for parts in zip(*lesions, strict=True))
        # In a thread, because a forward pass in the event loop would stall the health check.
        return list(await asyncio.to_thread(self._classifier.probabilities, pixels, clinical))


@serve.deployment(
    max_ongoing_requests=MAX_UPLOADS,
    max_queued_requests=MAX_UPLOADS,
    backpressure_config={"retry_after_s": RETRY_AFTER_S},
    ray_actor_options={"num_cpus": _API_CPUS},
)
@serve.ingress(api)
class SkinrayApi:
    """Takes photos over HTTP, decodes them and asks the model."""

    def __init__(self, bundle_uri: str, refuse: bool, classifier: DeploymentHandle[Any]) -> None:
        self._bundle = load_bundle(bundle_uri)
        self._refuse = refuse
        self._classifier = classifier
        # Threads and no semaphore: a caller who hangs up frees a semaphore, while the photo is still being decoded.
        self._decoders = ThreadPoolExecutor(MAX_DECODING)
        template = (files("skinray") / "web" / "index.html").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self._page = environment.from_string(template).render(
            model_id=self._bundle.model_id, takes_clinical=self._bundle.takes_clinical, sites=list(SITE_NAMES)
        )

    @api.get("/", response_class=HTMLResponse)
    async def page(self) -> str:
        """The page to upload a photo."""
        return self._page

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Answers when the model does."""
        size = self._bundle.preprocessing.image_size_px
        await self._probabilities(np.zeros((size, size, 3), np.uint8), NO_CLINICAL)
        return {"status": "ok", "model_id": self._bundle.model_id}

    @api.get("/v1/model")
    async def model(self) -> dict[str, Any]:
        """What is being served."""
        bundle = self._bundle
        return {
            "model_id": bundle.model_id,
            "notice": NOT_A_DEVICE,
            "labels": bundle.labels.model_dump(mode="json"),
            "preprocessing": bundle.preprocessing.model_dump(mode="json"),
            "takes_clinical": bundle.takes_clinical,
            "operating_points": bundle.operating_points.model_dump(mode="json"),
        }

    @api.post("/v1/predict", openapi_extra=_PHOTO_BODY)
    async def predict(
        self,
        request: Request,
        age: Annotated[str, Query(description=_CLINICAL["age"])] = "",
        sex: Annotated[str, Query(description=_CLINICAL["sex"])] = "",
        site: Annotated[str, Query(description=_CLINICAL["site"])] = "",
    ) -> dict[str, Any]:
        """Classifies one photo: the body itself, or the first file of a multipart form."""
        data, fields = await _upload_of(request)
        stated = {name: fields.get(name) or value for name, value in (("age", age), ("sex", sex), ("site", site))}
        try:
            clinical = stated_clinical(**stated)
        except ValueError as error:
            raise _ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "bad_clinical", str(error)) from error
        try:
            loop = asyncio.get_running_loop()
            photo = await loop.run_in_executor(self._decoders, decode_photo, data, self._bundle.preprocessing)
        except ImageError as error:
            status = _STATUS_OF_CODE.get(error.code, HTTPStatus.UNPROCESSABLE_ENTITY)
            raise _ProblemError(status, error.code, error.detail) from error
        if self._refuse and (reason := refusal(photo.pixels)):
            raise _ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, reason, f"the photo is refused: {REASONS[reason]}")
        probabilities = await self._probabilities(photo.pixels, clinical)
        return {
            "image_sha256": storage.sha256_of(data),
            "width_px": photo.width_px,
            "height_px": photo.height_px,
            **{name: value.item() for name, value in quality(photo.pixels, photo.width_px, photo.height_px).items()},
            **prediction_answer(probabilities, self._bundle, self._bundle.operating_points.default),
            "notice": NOT_A_DEVICE,
        }

    async def _probabilities(self, pixels: npt.NDArray[np.uint8], clinical: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        try:
            answer: npt.NDArray[np.float32] = await self._classifier.classify.remote((pixels, clinical[0]))
        except BackPressureError as error:
            raise _ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE, "busy", "too many photos are waiting; try again", RETRY_AFTER_S
            ) from error
        return answer


def build_app(args: BuildArgs) -> serve.Application:
    """The Serve application for one bundle.

    Args:
        args: Which bundle.

    Raises:
        BundleError: The bundle does not verify; a broken one is refused before anything is deployed.
    """
    load_bundle(args.bundle)
    replica = ClassifierReplica.bind(args.bundle)  # type: ignore[attr-defined]
    app: serve.Application = SkinrayApi.bind(args.bundle, args.refuse, replica)  # type: ignore[attr-defined]
    return app


def start_serving(settings: ServeSettings) -> str:
    """Serves a bundle on the running Ray and returns the address once it answers.

    Raises:
        BundleError: The bundle does not verify.
        SkinrayError: The port is taken, this Ray serves a bundle already, or the application does not start or answer; nothing of
            it is left then.
    """
    app = build_app(BuildArgs(bundle=settings.bundle, refuse=settings.refuse))
    _check_unused(settings)
    address = f"http://{settings.host}:{settings.port}/"
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        serve.run_many([serve.RunTarget(app, name=_APPLICATION)], wait_for_applications_running=False)
        _wait_until_running()
        _wait_until_answering(address, load_bundle(settings.bundle).model_id)
    except BaseException as error:
        stop_serving()
        if isinstance(error, SkinrayError) or not isinstance(error, Exception):
            raise
        raise SkinrayError(f"Serve cannot start {settings.bundle}: {_last_line(str(error))}") from error
    return address


def _check_unused(settings: ServeSettings) -> None:
    """Refuses to take another's place: on this Ray, which would replace its model, or on its port."""
    status = serve.status()
    if _APPLICATION in status.applications:
        raise SkinrayError(
            f"this Ray cluster serves a bundle already ({_APPLICATION} is {status.applications[_APPLICATION].status.value}): "
            "stop that one first, or serve on a cluster of its own"
        )
    if status.proxies:  # Serve listens already, on its own port
        return
    try:
        # Serve's proxies share a port with whoever shares it too: callers of two of them would get either one's model.
        socket.create_server(
            (settings.host, settings.port), family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        ).close()
    except OSError as error:
        raise SkinrayError(f"cannot listen on {settings.host}, port {settings.port} ({error}): choose another --port") from error


def _wait_until_running() -> None:
    last_said = time.monotonic()
    while (application := serve.status().applications[_APPLICATION]).status != "RUNNING":
        if application.status == "DEPLOY_FAILED":
            raise SkinrayError(f"Serve cannot start the application: {_why_not_running(application)}")
        if time.monotonic() - last_said > _SAY_EVERY_S:
            last_said = time.monotonic()
            say(f"still waiting for Serve to start the application: {_why_not_running(application)}")
        time.sleep(0.5)


def _why_not_running(application: ApplicationStatusOverview) -> str:
    deployments = [each.message for each in application.deployments.values() if each.status != "HEALTHY" and each.message]
    return "; ".join(map(_last_line, deployments)) or application.message or "it does not say why"


def _last_line(message: str) -> str:
    """What went wrong; the lines before are where."""
    return (message.strip().splitlines() or ["it does not say why"])[-1]


def _wait_until_answering(address: str, model_id: str) -> None:
    began = time.monotonic()
    while True:  # Serve says that the application is ready when its proxy, on a busy machine, is not
        try:
            with ask_this_machine(f"{address}healthz", timeout=60) as response:
                answer = response.read().decode(errors="replace")
            break
        except OSError as error:
            if time.monotonic() - began > _PROXY_WAIT_S:
                # Serve has one port a cluster, which the first to start it chose.
                advice = "does Serve run on this cluster with another port?"
                raise SkinrayError(f"{address} does not answer ({error}): {advice}") from error
        time.sleep(0.5)
    if model_id not in answer:
        raise SkinrayError(f"{address} is answered by another server than this one, of model {model_id}: choose another --port")


def stop_serving() -> None:
    """Takes the application down, and Serve with it when nothing else is served: its port is free again."""
    serve.delete(_APPLICATION)
    if not serve.status().applications:
        serve.shutdown()  # type: ignore[no-untyped-call]


def serve_until_stopped(settings: ServeSettings) -> None:
    """Serves a bundle until the process is interrupted or told to end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    address = start_serving(settings)
    with contextlib.suppress(KeyboardInterrupt):
        say(f"serving {settings.bundle} on {address}; {NOT_A_DEVICE} Ctrl-C stops it.")
        threading.Event().wait()
    stop_serving()
