"""kserve/*.yaml: what the SDK's models, KServe's webhooks and (where at hand) the CRDs take; bad ones are refused."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from host_kserve.manifest_rules import RUNTIMES, Document, annotations, broken_rules, containers, predictors

import octavo
from octavo.metrics import METRICS
from octavo_kserve.options import ModelOptions, parse_options

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / "kserve").glob("*.yaml"))
CRDS = REPOSITORY.parent / "shared/kserve-crds"
ALL: dict[str, Document] = {
    f"{path.name}#{i}": document
    for path in FILES
    for i, document in enumerate(yaml.safe_load_all(path.read_text(encoding="utf-8")))
}
INFERENCE_SERVICES = {name: each for name, each in ALL.items() if each["kind"] == "InferenceService"}


def by_sdk(documents: list[Document]) -> list[list[str]]:
    """What the SDK's models complain of, a list for each document."""
    command = [sys.executable, Path(__file__).with_name("sdk_models.py")]
    done = subprocess.run(command, input=json.dumps(documents), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def by_crds(folder: Path, documents: dict[str, Document]) -> dict[str, str]:
    """The CRDs' verdict on each document, "OK" or "INVALID ..." with all that is wrong."""
    for name, document in documents.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    command = [sys.executable, CRDS / "validate.py", "--crds", CRDS, folder]
    report = subprocess.run(command, capture_output=True, text=True).stdout
    parts = re.split(r"^(?=OK|INVALID|SKIP|UNPARSABLE|\d+ valid)", report, flags=re.MULTILINE)
    return {name: part for part in parts for name in documents if f"/{name}.yaml#0 " in part}


def knative_canary_in_standard(document: Document) -> None:
    document["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = "Standard"


def change(*path: str | int, to: Any = None) -> Callable[[Document], None]:
    """Sets the field at `path`, or takes it out."""

    def apply(document: Document) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        if to is None:
            del place[path[-1]]
        else:
            place[path[-1]] = to

    return apply


CONTAINER = ("spec", "containers", 0)
MODEL = ("spec", "predictor", "model")
PYTHONPATH = [{"name": "PYTHONPATH", "value": "/mnt/models"}]

# What is done to which document, a word of the complaint, and whether the CRDs (with the webhooks) know of it too.
BAD = {
    "a wrong field": ("clusterservingruntime.yaml#0", change(*CONTAINER, "arguments", to=[]), "arguments", True),
    "a wrong field of a model": ("inferenceservice.yaml#0", change(*MODEL, "storageURI", to="pvc://m"), "URI", True),
    "a wrong field of a probe": (
        "servingruntime.yaml#0",
        change(*CONTAINER, "startupProbe", "retries", to=3),
        "retries",
        True,
    ),
    "a wrong type": ("inferenceservice.yaml#0", change("spec", "predictor", "minReplicas", to="one"), "int", True),
    "a number among args": ("inferenceservice.yaml#0", change(*MODEL, "args", to=["--max_model_len", 8]), "args", True),
    "a version that is not there": (
        "inferenceservice.yaml#0",
        change("apiVersion", to="serving.kserve.io/v1"),
        "V1InferenceService",
        True,
    ),
    "no model format": ("inferenceservice.yaml#0", change(*MODEL, "modelFormat"), "model_format", False),
    "no container name": ("clusterservingruntime.yaml#0", change(*CONTAINER, "name"), "kserve-container", True),
    "another container name": (
        "clusterservingruntime.yaml#0",
        change(*CONTAINER, "name", to="octavo"),
        "kserve-container",
        True,
    ),
    "another worker name": (
        "multinode.yaml#0",
        change("spec", "workerSpec", "containers", 0, "name", to="octavo"),
        "worker-container",
        False,
    ),
    "no container main": (
        "llminferenceservice.yaml#0",
        change("spec", "template", "containers", 0, "name", to="octavo"),
        "main",
        True,
    ),
    "PYTHONPATH in a runtime": (
        "clusterservingruntime.yaml#0",
        change(*CONTAINER, "env", to=PYTHONPATH),
        "PYTHONPATH",
        True,
    ),
    "PYTHONPATH in a service": ("inferenceservice.yaml#0", change(*MODEL, "env", to=PYTHONPATH), "PYTHONPATH", True),
    "sizes in the env of several nodes": (
        "multinode.yaml#0",
        change(*CONTAINER, "env", to=[{"name": "TENSOR_PARALLEL_SIZE", "value": "2"}]),
        "TENSOR_PARALLEL_SIZE",
        True,
    ),
    "several nodes from S3": ("multinode.yaml#1", change(*MODEL, "storageUri", to="s3://models/m"), "pvc://", True),
    "several nodes that scale": (
        "multinode.yaml#1",
        change("metadata", "annotations", "serving.kserve.io/autoscalerClass", to="hpa"),
        "autoscalerClass none",
        True,
    ),
    "an external metric without KEDA": (
        "autoscaling.yaml#1",
        change("metadata", "annotations", "serving.kserve.io/autoscalerClass", to="hpa"),
        "keda",
        True,
    ),
    "an HPA on concurrency": (
        "autoscaling.yaml#0",
        change("spec", "predictor", "scaleMetric", to="concurrency"),
        "HPA",
        True,
    ),
    "an HPA down to zero": ("autoscaling.yaml#0", change("spec", "predictor", "minReplicas", to=0), "zero", False),
    "a canary in the wrong mode": ("canary.yaml#0", knative_canary_in_standard, "canaryTrafficPercent", True),
    "a list of canaries in the wrong mode": (
        "canary.yaml#1",
        change("metadata", "annotations", "serving.kserve.io/deploymentMode", to="Knative"),
        "spec.canary",
        True,
    ),
    "a hook in Knative mode": (
        "autoscaling.yaml#3",
        change(*MODEL, "lifecycle", to={"preStop": {"exec": {"command": ["sleep", "15"]}}}),
        "lifecycle",
        False,
    ),
    "Knative's short patience": (
        "autoscaling.yaml#3",
        change("metadata", "annotations", "serving.knative.dev/progress-deadline"),
        "progress-deadline",
        False,
    ),
    "too little time to stop": (
        "inferenceservice.yaml#0",
        change("spec", "predictor", "terminationGracePeriodSeconds", to=30),
        "at least 80",
        False,
    ),
    "no preStop": ("inferenceservice.yaml#0", change(*MODEL, "lifecycle"), "sleeps 15 s", False),
    "a load cut short": (
        "clusterservingruntime.yaml#0",
        change(*CONTAINER, "startupProbe", "failureThreshold", to=30),
        "1800",
        False,
    ),
    "no startup probe": ("servingruntime.yaml#0", change(*CONTAINER, "startupProbe"), "startup", False),
    "a liveness that kills loads": (
        "servingruntime.yaml#0",
        change(*CONTAINER, "livenessProbe", "httpGet", "path", to="/v2/health/ready"),
        "liveness",
        False,
    ),
    "shared memory on disk": (
        "triton.yaml#0",
        change("spec", "volumes", 0, "emptyDir", to={"sizeLimit": "1Gi"}),
        "/dev/shm",
        False,
    ),
    "nothing to scrape": (
        "triton.yaml#0",
        change("spec", "annotations", "prometheus.kserve.io/port"),
        "prometheus",
        False,
    ),
}
SPOILT = {name: copy.deepcopy(ALL[which]) for name, (which, _, _, _) in BAD.items()}
for _name, (_, _spoil, _, _) in BAD.items():
    _spoil(SPOILT[_name])


@pytest.fixture(scope="module")
def sdk() -> dict[str, list[str]]:
    """The SDK's complaints about every document, good and bad; importing it once takes a second."""
    named = ALL | SPOILT
    return dict(zip(named, by_sdk(list(named.values())), strict=True))


@pytest.fixture(scope="module")
def crds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if not CRDS.is_dir() or importlib.util.find_spec("jsonschema") is None:
        pytest.skip("the CRDs, or jsonschema, are not at hand")
    return by_crds(tmp_path_factory.mktemp("manifests"), ALL | SPOILT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_sdks_models_take_it(name: str, sdk: dict[str, list[str]]) -> None:
    assert sdk[name] == []


@pytest.mark.parametrize("name", ALL)
def test_it_keeps_the_rules(name: str) -> None:
    assert broken_rules(ALL[name]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_crds_take_it(name: str, crds: dict[str, str]) -> None:
    verdict = crds[name]
    assert verdict.startswith("OK" if ALL[name]["apiVersion"] != "v1" else "SKIP"), verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_a_bad_one_is_refused(name: str, sdk: dict[str, list[str]]) -> None:
    assert BAD[name][2] in " ".join(sdk[name] + broken_rules(SPOILT[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_the_crds_refuse_a_bad_one_where_they_can(name: str, crds: dict[str, str]) -> None:
    assert crds[name].startswith("INVALID" if BAD[name][3] else "OK"), crds[name]


def parsed(args: list[str], model: Path, **values: str) -> ModelOptions:
    """What a server makes of a container's args once KServe and the kubelet have filled in the rest."""
    sdk_parser = argparse.ArgumentParser(add_help=False)
    for flag in ("--model_name", "--http_port", "--ssl_certfile", "--ssl_keyfile"):
        sdk_parser.add_argument(flag)
    sdk_parser.add_argument("--workers", type=int, default=1)
    filled = [re.sub(r"\{\{\.(\w+)\}\}|\$\((\w+)\)", lambda name: values[name[1] or name[2]], arg) for arg in args]
    (served,) = parse_options([arg.replace("/mnt/models", str(model)) for arg in filled], sdk_parser, {}).models
    return served


@pytest.mark.parametrize("name", INFERENCE_SERVICES)
def test_the_server_understands_the_runtimes_and_the_services_args(name: str, fake_model: Path) -> None:
    document = INFERENCE_SERVICES[name]
    runtimes = {each["metadata"]["name"]: each["spec"] for each in ALL.values() if each["kind"] in RUNTIMES}
    for model in (predictor["model"] for predictor in predictors(document)):
        args = runtimes[model["runtime"]]["containers"][0]["args"] + model.get("args", [])
        if args[0] == "tritonserver":
            continue
        sizes = {"TENSOR_PARALLEL_SIZE": "1", "PIPELINE_PARALLEL_SIZE": "1"}
        served = parsed(args, fake_model, Name=document["metadata"]["name"], **sizes)
        assert (served.name, served.engine.model) == (document["metadata"]["name"], str(fake_model))


def test_the_server_understands_the_args_of_an_llminferenceservice(fake_model: Path) -> None:
    document = ALL["llminferenceservice.yaml#0"]
    (container,) = document["spec"]["template"]["containers"]
    adapters = ["--enable-lora", "--max-lora-rank=16", "--max-loras=2", "--max-cpu-loras=4"]
    adapters += ["--lora-modules", '{"name": "a", "path": "/mnt/lora/a"}']
    tracing = ["--otlp-traces-endpoint", "http://collector:4317", "--collect-detailed-traces", "all"]
    for appended in ([], adapters, tracing, adapters + tracing):
        served = parsed(container["args"] + appended, fake_model)
        assert served.name == document["spec"]["model"]["name"]


def test_several_nodes_are_refused_by_name_as_the_manifest_says(fake_model: Path) -> None:
    args = ALL["multinode.yaml#0"]["spec"]["containers"][0]["args"]
    with pytest.raises(octavo.ModelLoadError, match="pipeline_parallel_size"):
        parsed(args, fake_model, Name="llama", TENSOR_PARALLEL_SIZE="1", PIPELINE_PARALLEL_SIZE="2")


@pytest.mark.parametrize("name", INFERENCE_SERVICES)
def test_a_service_names_a_runtime_of_ours_that_serves_its_format(name: str) -> None:
    runtimes = {each["metadata"]["name"]: each["spec"] for each in ALL.values() if each["kind"] in RUNTIMES}
    for predictor in predictors(ALL[name]):
        model = predictor["model"]
        runtime = runtimes[model["runtime"]]
        assert model["modelFormat"]["name"] in [each["name"] for each in runtime["supportedModelFormats"]]
        assert model["protocolVersion"] in runtime["protocolVersions"]


def test_the_clusters_runtime_works_in_knative_mode_too() -> None:
    for name in ("clusterservingruntime.yaml#0", "triton.yaml#0"):
        (container,) = ALL[name]["spec"]["containers"]
        assert "lifecycle" not in container
        assert len(container.get("ports", [])) <= 1


def test_a_service_account_and_its_secrets_are_in_the_same_file() -> None:
    there = {(name.partition("#")[0], each["kind"], each["metadata"]["name"]) for name, each in ALL.items()}
    for name, document in ALL.items():
        file = name.partition("#")[0]
        assert all((file, "Secret", secret["name"]) in there for secret in document.get("secrets", []))
        for predictor in predictors(document) if document["kind"] == "InferenceService" else []:
            account = predictor.get("serviceAccountName")
            assert account is None or (file, "ServiceAccount", account) in there


def test_autoscalers_ask_for_metrics_that_there_are() -> None:
    queries = [
        metric["external"]["metric"]["query"]
        for document in INFERENCE_SERVICES.values()
        for metric in document["spec"]["predictor"].get("autoScaling", {}).get("metrics", [])
    ]
    asked = [name for query in queries for name in re.findall(r"vllm:\w+", query)]
    assert set(asked) == {"vllm:num_requests_waiting"}
    assert set(asked) <= {metric.name for metric in METRICS}


def test_a_query_names_the_service_that_it_scales() -> None:
    for document in INFERENCE_SERVICES.values():
        for metric in document["spec"]["predictor"].get("autoScaling", {}).get("metrics", []):
            quoted = re.findall(r'"([\w-]+)"', metric["external"]["metric"]["query"])
            assert {document["metadata"]["name"], f"{document['metadata']['name']}-predictor"} & set(quoted)


@pytest.mark.parametrize("name", ALL)
def test_templates_hold_nothing_but_the_services_name(name: str) -> None:
    # KServe renders the whole container as a Go template, so a chat template in it would be rendered as well.
    for container in containers(ALL[name]):
        assert set(re.findall(r"\{\{.*?\}\}", json.dumps(container))) <= {"{{.Name}}"}


def test_every_storage_scheme_and_mode_is_shown() -> None:
    uris = [p["model"]["storageUri"] for each in INFERENCE_SERVICES.values() for p in predictors(each)]
    assert {uri.partition(":")[0] for uri in uris} == {"pvc", "s3", "hf", "oci"}
    modes = {annotations(each)["serving.kserve.io/deploymentMode"] for each in INFERENCE_SERVICES.values()}
    assert modes == {"Standard", "Knative"}


def test_the_documentation_explains_every_file_and_no_other() -> None:
    table = (REPOSITORY / "docs/kserve.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| \[`([\w.]+)`\]\(\.\./kserve/\1\)", table, re.MULTILINE))
    assert named == {path.name for path in FILES}
