"""How a cluster is described: the manifests say what Kubernetes, Ray and the rest of the repository understand."""

import copy
import functools
import json
import os
import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from skinray.config import ScoreSettings, VerbSettings
from skinray.errors import ConfigError
from skinray.flags import resolve
from skinray.training_config import TrainSettings
from skinray.verbs import VERBS

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "cluster"

# Manifest -> its kind, the CRD that describes it, where it holds the cluster's specification, and the job's.
MANIFESTS: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "ray-cluster.yaml": ("RayCluster", "ray.io_rayclusters.yaml", ("spec",), ()),
    "ray-job-train.yaml": ("RayJob", "ray.io_rayjobs.yaml", ("spec", "rayClusterSpec"), ("spec",)),
    "ray-cron-job-score.yaml": (
        "RayCronJob",
        "ray.io_raycronjobs.yaml",
        ("spec", "jobTemplate", "rayClusterSpec"),
        ("spec", "jobTemplate"),
    ),
    "ray-service.yaml": ("RayService", "ray.io_rayservices.yaml", ("spec", "rayClusterConfig"), ()),
}
JOBS = [name for name, (_, _, _, job) in MANIFESTS.items() if job]

manifests = pytest.mark.parametrize("name", MANIFESTS)
jobs = pytest.mark.parametrize("name", JOBS)

# Maps whose keys are anybody's, so that a misspelt one is still a valid one.
FREE_MAPS = {"labels", "annotations", "rayStartParams", "limits", "requests"}


def load(name: str) -> dict[str, Any]:
    content = yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def at(content: Any, path: tuple[str | int, ...]) -> Any:
    return functools.reduce(lambda part, key: part[key], path, content)


def cluster_spec(name: str) -> dict[str, Any]:
    spec = at(load(name), MANIFESTS[name][2])
    assert isinstance(spec, dict)
    return spec


def job_spec(name: str) -> dict[str, Any]:
    spec = at(load(name), MANIFESTS[name][3])
    assert isinstance(spec, dict)
    return spec


def groups(name: str) -> list[dict[str, Any]]:
    found = cluster_spec(name)["workerGroupSpecs"]
    assert isinstance(found, list)
    return found


def templates(name: str) -> list[dict[str, Any]]:
    """The pod templates of the head and of every worker group."""
    return [group["template"]["spec"] for group in [cluster_spec(name)["headGroupSpec"], *groups(name)]]


def containers(name: str) -> list[dict[str, Any]]:
    return [container for template in templates(name) for container in template["containers"]]


def gpus(group: dict[str, Any]) -> int:
    return int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))


def cores(group: dict[str, Any]) -> int:
    return int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])


def ray_pin() -> str:
    lines = (CLUSTER / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.removeprefix("ray==").strip() for line in lines if line.startswith("ray==")]
    assert len(pins) == 1, "constraints.txt pins Ray once, as ray==VERSION"
    return pins[0]


# --- KubeRay's own schemas -------------------------------------------------------------------------------------------


def strict(schema: Any) -> Any:
    """A CRD's schema in which a field that it does not list is an error; Kubernetes drops such a field without a word."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        made["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    closed = schema.get("type") == "object" and "additionalProperties" not in schema
    if closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    if schema.get("nullable"):
        made = {"anyOf": [made, {"type": "null"}]}
    return made


@functools.cache
def validator(name: str, folder: Path) -> jsonschema.Draft202012Validator:
    kind, file, _, _ = MANIFESTS[name]
    # The C loader, because each CRD has some 20,000 lines.
    crd = yaml.load((folder / file).read_bytes(), Loader=yaml.CSafeLoader)
    assert crd["spec"]["names"]["kind"] == kind
    [version] = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    assert version["served"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    # Kubernetes itself knows what every object's metadata is; a CRD only says that there is some.
    text = {"type": "string", "minLength": 1}
    texts = {"type": "object", "additionalProperties": text}
    schema["properties"] |= {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": kind},
        "metadata": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {"name": text, "namespace": text, "labels": texts, "annotations": texts},
        },
    }
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def crds() -> Path:
    """The folder of KubeRay's CRDs, beside the real photos."""
    data = os.environ.get("SKINRAY_TEST_DATA")
    if not data:
        pytest.skip("needs KubeRay's CRDs in kuberay-crds/ beside the folder that SKINRAY_TEST_DATA names: it is not set")
    folder = Path(data).resolve().parent / "kuberay-crds"
    absent = [file for _, file, _, _ in MANIFESTS.values() if not (folder / file).is_file()]
    if absent:
        pytest.skip(f"needs KubeRay's CRDs: {folder} has no {', '.join(absent)}")
    return folder


def fields(content: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every field that a schema gives its name to."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*path, key)
            if key not in FREE_MAPS:
                yield from fields(value, (*path, key))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from fields(value, (*path, number))


@pytest.mark.data
@manifests
def test_the_operator_knows_every_field_of_a_manifest(name: str, crds: Path) -> None:
    problems = [f"{error.json_path}: {error.message}" for error in validator(name, crds).iter_errors(load(name))]
    assert not problems


@pytest.mark.data
@manifests
def test_a_misspelt_field_is_refused_wherever_it_stands(name: str, crds: Path) -> None:
    content = load(name)
    paths = list(fields(content))
    assert len(paths) > 40
    accepted = []
    for path in paths:
        # Through JSON, so that what the YAML file shares between places is not misspelt in all of them.
        misspelt = json.loads(json.dumps(content))
        parent = at(misspelt, path[:-1])
        parent[f"{path[-1]}s"] = parent.pop(path[-1])
        if validator(name, crds).is_valid(misspelt):
            accepted.append(path)
    assert not accepted


@pytest.mark.data
@manifests
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("apiVersion",), "ray.io/v1alpha1"),
        (("kind",), "RayCrunch"),
        (("cluster", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("cluster", "authOptions", "mode"), "none"),
        (("cluster", "workerGroupSpecs", 0, "maxReplicas"), "4"),
        (("cluster", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "envFrom"), {"secretRef": {}}),
        (("cluster", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "limits", "cpu"), "two"),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_a_wrong_value_is_refused(name: str, path: tuple[str | int, ...], value: Any, crds: Path) -> None:
    content = copy.deepcopy(load(name))
    if path[0] == "cluster":
        path = (*MANIFESTS[name][2], *path[1:])
    at(content, path[:-1])[path[-1]] = value
    assert not validator(name, crds).is_valid(content)


# --- What every manifest has in common -------------------------------------------------------------------------------


@manifests
def test_ray_is_the_pinned_one_everywhere(name: str) -> None:
    assert cluster_spec(name)["rayVersion"] == ray_pin()
    # A registry before the name is the user's to add.
    images = {container["image"].rsplit("/", 1)[-1] for container in containers(name)}
    assert images <= {f"skinray:ray{ray_pin()}-{target}" for target in ("cpu", "gpu")}


@manifests
def test_gpus_go_to_containers_with_the_image_for_them(name: str) -> None:
    for template in templates(name):
        [container] = template["containers"]
        has_gpus = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith("-gpu" if has_gpus else "-cpu")
        environment = {variable["name"]: variable["value"] for variable in container.get("env", [])}
        assert (environment.get("TF_FORCE_GPU_ALLOW_GROWTH") == "true") == has_gpus
        assert ({"nvidia.com/gpu"} == {toleration["key"] for toleration in template.get("tolerations", [])}) == has_gpus


@manifests
def test_containers_get_what_they_ask_for(name: str) -> None:
    for container in containers(name):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])


@manifests
def test_credentials_come_from_the_secret_and_stand_nowhere(name: str) -> None:
    for container in containers(name):
        assert container["envFrom"] == [{"secretRef": {"name": "skinray-s3"}}]
        assert not [variable for variable in container.get("env", []) if variable["name"].startswith("AWS_")]


@manifests
def test_pods_are_not_root_and_ray_asks_for_its_token(name: str) -> None:
    assert cluster_spec(name)["authOptions"] == {"mode": "token"}
    assert all(template["securityContext"]["runAsNonRoot"] is True for template in templates(name))


@manifests
def test_the_head_takes_no_tasks(name: str) -> None:
    assert cluster_spec(name)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@manifests
def test_names_are_valid_and_short_enough_for_what_is_appended(name: str) -> None:
    kind, _, _, _ = MANIFESTS[name]
    content = load(name)
    assert content["kind"] == kind
    # The operator's limit is 47 characters for a RayJob; a RayCronJob's jobs have six more than it.
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,39}[a-z0-9])?", content["metadata"]["name"])
    names = [group["groupName"] for group in groups(name)]
    assert len(set(names)) == len(names)


def test_no_two_manifests_make_a_service_of_the_same_name() -> None:
    assert len({load(name)["metadata"]["name"] for name in MANIFESTS}) == len(MANIFESTS)


# --- Jobs ------------------------------------------------------------------------------------------------------------


def job_settings(entrypoint: str) -> VerbSettings:
    """The settings that an entry point's command line resolves to."""
    program, script, *flags = shlex.split(entrypoint)
    verb = Path(script).stem
    assert program == "python"
    assert (ROOT / script).is_file()
    assert f'main(["{verb}", *sys.argv[1:]])' in (ROOT / script).read_text(encoding="utf-8")
    return resolve(VERBS[verb].settings, verb, flags)


@jobs
def test_the_entry_point_exists_and_takes_its_flags(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # as in the image, where --config is relative to the folder that has jobs/
    entrypoint = job_spec(name)["entrypoint"]
    assert "\n" not in entrypoint
    settings = job_settings(entrypoint)
    uris = [word for word in shlex.split(entrypoint) if "://" in word]
    assert uris
    assert set(uris) <= set(map(str, settings.model_dump().values()))
    with pytest.raises(ConfigError, match="--outputs"):
        job_settings(entrypoint.replace("--output", "--outputs"))


@jobs
def test_jobs_find_all_their_machines_when_they_begin(name: str) -> None:
    assert not cluster_spec(name).get("enableInTreeAutoscaling")
    for group in groups(name):
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


def test_training_has_the_gpus_that_its_settings_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = job_settings(job_spec("ray-job-train.yaml")["entrypoint"])
    assert isinstance(settings, TrainSettings)
    assert settings.gpus_per_worker > 0
    room = 0
    for group in groups("ray-job-train.yaml"):
        room += group["replicas"] * (gpus(group) // settings.gpus_per_worker)
        # Free cores beside the workers': photos that a lost machine held are decoded again on them.
        assert cores(group) > settings.cpus_per_worker * gpus(group) // settings.gpus_per_worker
    assert room == settings.num_workers


def test_the_standing_cluster_can_grow_to_a_training_run() -> None:
    settings = resolve(TrainSettings, "train", ["--config", str(ROOT / "jobs/train.yaml"), "--data", "d", "--output", "o"])
    room = sum(group["maxReplicas"] * (gpus(group) // settings.gpus_per_worker) for group in groups("ray-cluster.yaml"))
    assert room >= settings.num_workers


def test_training_goes_on_after_its_cluster_was_lost() -> None:
    spec = job_spec("ray-job-train.yaml")
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert "deletionStrategy" not in spec  # the operator refuses both


def test_scoring_has_a_gpu_for_each_of_its_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = job_settings(job_spec("ray-cron-job-score.yaml")["entrypoint"])
    assert isinstance(settings, ScoreSettings)
    assert settings.gpus_per_actor > 0
    assert all(gpus(group) >= settings.gpus_per_actor for group in groups("ray-cron-job-score.yaml"))


def cron_problem(schedule: str) -> str | None:
    """What is wrong with a standard five-field cron schedule; nothing: None."""
    limits = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 6)}
    parts = schedule.split()
    if len(parts) != len(limits):
        return f"{len(parts)} fields"
    for (field, (low, high)), part in zip(limits.items(), parts, strict=True):
        for item in part.split(","):
            match = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?", item)
            numbers = [int(number) for number in match.groups()[:2] if number] if match else [high + 1]
            if any(not low <= number <= high for number in numbers) or numbers != sorted(numbers):
                return f"{field} {item}"
    return None


def test_the_night_begins_at_a_time_that_exists() -> None:
    assert cron_problem(load("ray-cron-job-score.yaml")["spec"]["schedule"]) is None


@pytest.mark.parametrize(
    ("schedule", "valid"),
    [
        ("*/15 0-6 1,15 * 1-5", True),
        ("0 1 * *", False),
        ("60 1 * * *", False),
        ("0 24 * * *", False),
        ("0 1 0 * *", False),
        ("0 6-1 * * *", False),
        ("0 1 * * mond", False),
        ("*/0 1 * * *", False),
    ],
)
def test_the_check_of_schedules_can_fail(schedule: str, valid: bool) -> None:
    assert (cron_problem(schedule) is None) == valid


def test_two_nights_never_overlap_and_none_is_scored_twice() -> None:
    content = load("ray-cron-job-score.yaml")
    _, _, *days = content["spec"]["schedule"].split()
    assert days == ["*", "*", "*"]
    assert job_spec("ray-cron-job-score.yaml")["activeDeadlineSeconds"] < 24 * 3600
    assert job_spec("ray-cron-job-score.yaml")["backoffLimit"] == 0


def test_every_end_of_a_night_gives_back_the_machines_and_then_the_record() -> None:
    spec = job_spec("ray-cron-job-score.yaml")
    assert "shutdownAfterJobFinishes" not in spec  # the operator refuses both
    after: dict[str, dict[str, int]] = {}
    for rule in spec["deletionStrategy"]["deletionRules"]:
        condition = dict(rule["condition"])
        seconds = condition.pop("ttlSeconds")
        [end] = condition.values()
        after.setdefault(end, {})[rule["policy"]] = seconds
    assert set(after) == {"SUCCEEDED", "Failed"}
    for policies in after.values():
        assert policies["DeleteCluster"] < policies["DeleteSelf"]


# --- Serve -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serve() -> Any:
    """ray.serve.schema; Ray warns about its own code when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.serve.schema

        return ray.serve.schema


@pytest.fixture(scope="module")
def serving(serve: Any) -> Any:
    """skinray.serving."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import skinray.serving

        return skinray.serving


def serve_configs() -> dict[str, dict[str, Any]]:
    inline = yaml.safe_load(load("ray-service.yaml")["spec"]["serveConfigV2"])
    return {"serve-config.yaml": load("serve-config.yaml"), "ray-service.yaml": inline}


def deployments(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    [application] = config["applications"]
    return {deployment["name"]: deployment for deployment in application["deployments"]}


def test_both_ways_to_serve_run_the_same_application() -> None:
    configs = serve_configs()
    assert configs["serve-config.yaml"]["applications"] == configs["ray-service.yaml"]["applications"]


@pytest.mark.parametrize("name", ["serve-config.yaml", "ray-service.yaml"])
def test_serve_accepts_the_config(name: str, serve: Any) -> None:
    config = serve_configs()[name]
    parsed = serve.ServeDeploySchema.model_validate(config)
    [application] = parsed.applications
    assert (application.name, application.route_prefix) == ("skinray", "/")
    # Serve takes keys that it does not know, so they are looked for here.
    assert set(config) <= set(serve.ServeDeploySchema.model_fields)
    assert set(config["http_options"]) <= set(serve.HTTPOptionsSchema.model_fields)
    assert set(config["applications"][0]) <= set(serve.ServeApplicationSchema.model_fields)
    for deployment in deployments(config).values():
        assert set(deployment) <= set(serve.DeploymentSchema.model_fields)
        assert set(deployment["ray_actor_options"]) <= set(serve.RayActorOptionsSchema.model_fields)


def test_serve_refuses_a_config_that_is_wrong(serve: Any) -> None:
    config = serve_configs()["serve-config.yaml"]
    deployments(config)["ClassifierReplica"]["max_ongoing_requests"] = 0
    with pytest.raises(ValueError, match="max_ongoing_requests"):
        serve.ServeDeploySchema.model_validate(config)


def test_the_config_names_what_serving_has(serving: Any) -> None:
    [application] = serve_configs()["serve-config.yaml"]["applications"]
    module, builder = application["import_path"].split(":")
    assert module == serving.__name__
    assert callable(getattr(serving, builder))
    serving.BuildArgs.model_validate(application["args"])
    found = {name for name, value in vars(serving).items() if type(value).__name__ == "Deployment"}
    assert {deployment["name"] for deployment in application["deployments"]} == found
    assert all(getattr(serving, name).name == name for name in found)


def test_batches_can_fill_and_queues_are_bounded(serving: Any) -> None:
    found = deployments(serve_configs()["serve-config.yaml"])
    classifier = found["ClassifierReplica"]
    # One batch computed while the next fills.
    assert classifier["max_ongoing_requests"] >= 2 * serving.MAX_BATCH_SIZE
    assert (
        serving.MAX_BATCH_SIZE <= classifier["autoscaling_config"]["target_ongoing_requests"] < classifier["max_ongoing_requests"]
    )
    assert all(deployment["max_queued_requests"] > 0 for deployment in found.values())
    # Busy is for the application to say, so its queue is full before Serve's own is.
    for most, waiting, requests in (
        (serving.MAX_ONGOING, serving.MAX_QUEUED, serving.MAX_UPLOADS),
        (classifier["max_ongoing_requests"], classifier["max_queued_requests"], found["SkinrayApi"]["max_ongoing_requests"]),
    ):
        assert most + waiting < requests
    assert found["SkinrayApi"]["backpressure_config"] == {"retry_after_s": serving.RETRY_AFTER_S}
    threads = classifier["ray_actor_options"]["runtime_env"]["env_vars"]["TF_NUM_INTRAOP_THREADS"]
    assert threads == str(classifier["ray_actor_options"]["num_cpus"])
    bodies = found["SkinrayApi"]["max_ongoing_requests"] * serving.MAX_BODY_BYTES
    assert bodies < 2e9


def test_the_service_has_room_for_its_replicas() -> None:
    found = deployments(serve_configs()["ray-service.yaml"])
    classifier, api = found["ClassifierReplica"], found["SkinrayApi"]
    scaling = classifier["autoscaling_config"]
    cpus = classifier["ray_actor_options"]["num_cpus"]
    [group] = groups("ray-service.yaml")
    assert cores(group) >= cpus + api["ray_actor_options"]["num_cpus"]
    assert group["minReplicas"] * (cores(group) // cpus) >= scaling["min_replicas"]
    assert group["maxReplicas"] * (cores(group) // cpus) >= scaling["max_replicas"]
    assert group["minReplicas"] >= 2


def test_the_port_is_open_on_kubernetes_and_on_this_machine_only_elsewhere() -> None:
    configs = serve_configs()
    assert configs["ray-service.yaml"]["http_options"] == {"host": "0.0.0.0", "port": 8000}
    assert configs["serve-config.yaml"]["http_options"] == {"host": "127.0.0.1", "port": 8000}
    head = cluster_spec("ray-service.yaml")["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "serve", "containerPort": 8000} in head["ports"]


# --- ray up ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_up_schema() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_bytes())
    assert isinstance(schema, dict)
    return schema


def test_ray_up_accepts_its_file(ray_up_schema: dict[str, Any]) -> None:
    config = load("ray-up.yaml")
    jsonschema.validate(config, ray_up_schema)
    assert config["head_node_type"] in config["available_node_types"]
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate({**config, "max_worker": 4}, ray_up_schema)
    with pytest.raises(jsonschema.ValidationError, match="head_images"):
        jsonschema.validate({**config, "docker": {"head_images": "skinray"}}, ray_up_schema)


def test_ray_up_runs_the_same_images_and_leaves_nothing_to_defaults() -> None:
    config = load("ray-up.yaml")
    for role, target in (("head", "cpu"), ("worker", "gpu")):
        assert config["docker"][f"{role}_image"].endswith(f"/skinray:ray{ray_pin()}-{target}")
    # Ray's own commands would install another Ray.
    assert config["setup_commands"] == config["head_setup_commands"] == []
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_ray_up_has_room_for_a_training_run() -> None:
    settings = resolve(TrainSettings, "train", ["--config", str(ROOT / "jobs/train.yaml"), "--data", "d", "--output", "o"])
    config = load("ray-up.yaml")
    worker = config["available_node_types"]["gpu_worker"]
    workers = min(config["max_workers"], worker["max_workers"])
    assert workers * (worker["resources"]["GPU"] // settings.gpus_per_worker) >= settings.num_workers
    assert worker["resources"]["CPU"] > settings.cpus_per_worker


# --- The image -------------------------------------------------------------------------------------------------------


def dockerfile() -> dict[str, list[tuple[str, str]]]:
    """Stage -> its instructions and those of the stages that it builds on."""
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    stages: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in lines.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        instruction, arguments = line.split(maxsplit=1)
        if instruction == "FROM":
            base, keyword, name = arguments.split()
            assert keyword == "AS"
            assert base in stages or base == "python:3.11-slim"
            stages[name] = list(stages.get(base, []))
        stages[name].append((instruction, " ".join(arguments.split())))
    return stages


def argument(stage: list[tuple[str, str]], instruction: str) -> str:
    """What the last instruction of a kind says."""
    return [arguments for name, arguments in stage if name == instruction][-1]


def test_what_the_image_copies_exists() -> None:
    for name, stage in dockerfile().items():
        for arguments in [arguments for instruction, arguments in stage if instruction == "COPY"]:
            *sources, _ = [word for word in arguments.split() if not word.startswith("--")]
            if arguments.startswith("--from="):
                origin = arguments.split()[0].removeprefix("--from=")
                assert origin in dockerfile(), (name, arguments)
                assert any(sources[0] in made for _, made in dockerfile()[origin])
            else:
                assert all((ROOT / source).exists() for source in sources), (name, arguments)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_both_targets_can_run_jobs_and_be_probed(target: str) -> None:
    stage = dockerfile()[target]
    assert re.fullmatch(r"[1-9]\d*", argument(stage, "USER"))
    assert ("COPY", f"jobs {argument(stage, 'WORKDIR')}/jobs") in stage
    installs = [arguments for instruction, arguments in stage if instruction == "RUN"]
    assert any("apt-get install" in command and "wget" in command.split() for command in installs)
    resolved = [command for command in installs if command.startswith("pip install") and "--no-deps" not in command]
    assert resolved
    assert all("-c cluster/constraints.txt" in command for command in resolved)
    assert any(".[gpu]" in command for command in resolved) == (target == "gpu")
    assert any(".[dicom,mlflow]" in command for command in resolved)


def test_the_image_is_built_under_the_tags_that_the_manifests_use() -> None:
    for file in ("Dockerfile", "README.md"):
        text = (CLUSTER / file).read_text(encoding="utf-8")
        tags = set(re.findall(r"--target (\w+) --tag (\S+)", text))
        assert tags == {(target, f"skinray:ray{ray_pin()}-{target}") for target in ("cpu", "gpu")}


# --- What they all say -----------------------------------------------------------------------------------------------


def test_readme_names_every_file_and_no_other() -> None:
    text = (CLUSTER / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE))
    assert listed == {path.name for path in CLUSTER.iterdir() if path.is_file()} - {"README.md"}


@pytest.mark.parametrize(
    "find",
    [r"cluster/[\w.-]+\.(?:yaml|txt|md)", r"jobs/\w+\.(?:py|yaml)", r"cluster/Dockerfile"],
    ids=["cluster", "jobs", "image"],
)
def test_files_that_are_mentioned_exist(find: str) -> None:
    checked: list[str] = []
    for file in CLUSTER.iterdir():
        mentioned = re.findall(find, file.read_text(encoding="utf-8"))
        assert not [path for path in mentioned if not (ROOT / path).is_file()], file.name
        checked += mentioned
    assert checked
