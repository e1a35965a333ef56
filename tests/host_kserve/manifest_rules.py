"""What a manifest must keep to that no schema says: KServe's webhooks, Knative's limits, and what a slow load needs.

Each rule yields complaints about one document. Pure functions of the documents; nothing here knows the SDK.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]

RUNTIMES = {"ServingRuntime", "ClusterServingRuntime"}
MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
DEADLINE = "serving.knative.dev/progress-deadline"
SLOWEST_LOAD_S = 1800
PRE_STOP_S = 15


def annotations(document: Document) -> dict[str, str]:
    return document["metadata"].get("annotations", {})


def predictors(document: Document) -> list[Document]:
    """Of an InferenceService: the stable one and its canaries."""
    spec = document["spec"]
    return [spec["predictor"], *(canary["predictor"] for canary in spec.get("canary", []))]


def containers(document: Document) -> list[Document]:
    """Every container of ours in any kind, a predictor's `model` among them."""
    spec, found = document.get("spec", {}), []
    pods = [spec, spec.get("template", {}), *(predictors(document) if "predictor" in spec else [])]
    for pod in [*pods, *(pod["workerSpec"] for pod in pods if "workerSpec" in pod)]:
        found += pod.get("containers", []) + (
            [pod["model"]] if "containers" not in pod and "storageUri" in pod.get("model", {}) else []
        )
    return found


def containers_have_their_names(document: Document) -> Iterator[str]:
    spec = document.get("spec", {})
    wanted = {"kserve-container": spec} if document["kind"] in RUNTIMES else {}
    if document["kind"] in RUNTIMES and "workerSpec" in spec:
        wanted["worker-container"] = spec["workerSpec"]
    if document["kind"] == "LLMInferenceService":
        wanted["main"] = spec["template"]
    for name, pod in wanted.items():
        if name not in [container.get("name") for container in pod["containers"]]:
            yield f"no container is named {name}"


def environments_are_allowed(document: Document) -> Iterator[str]:
    multinode = any("workerSpec" in each for each in (document["spec"], *_predictors(document)))
    forbidden = {"PYTHONPATH"} | ({"TENSOR_PARALLEL_SIZE", "PIPELINE_PARALLEL_SIZE"} if multinode else set())
    for container in containers(document):
        for variable in container.get("env", []):
            if variable["name"] in forbidden:
                yield f"env {variable['name']} is refused by the webhook"


def probes_survive_a_slow_load(document: Document) -> Iterator[str]:
    if document["kind"] not in RUNTIMES | {"LLMInferenceService"}:
        return
    pod = document["spec"] if document["kind"] in RUNTIMES else document["spec"]["template"]
    for container in pod["containers"]:
        startup, ready, live = (container.get(f"{kind}Probe") for kind in ("startup", "readiness", "liveness"))
        if not (startup and ready and live):
            yield "startup, readiness and liveness probes are all needed"
            return
        if startup["periodSeconds"] * startup["failureThreshold"] < SLOWEST_LOAD_S:
            yield f"the startup probe gives up before {SLOWEST_LOAD_S} s"
        if startup["httpGet"] != ready["httpGet"]:
            yield "startup and readiness ask different things"
        if live["httpGet"]["path"] != "/v2/health/live":
            yield "liveness must not ask whether the model is ready"


def shared_memory_is_large(document: Document) -> Iterator[str]:
    if document["kind"] not in RUNTIMES | {"LLMInferenceService"}:
        return
    pod = document["spec"] if document["kind"] in RUNTIMES else document["spec"]["template"]
    for each in [pod, *([pod["workerSpec"]] if "workerSpec" in pod else [])]:
        memory = {v["name"] for v in each.get("volumes", []) if v.get("emptyDir", {}).get("medium") == "Memory"}
        for container in each["containers"]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
            if mounts.get("/dev/shm") not in memory:
                yield f"{container.get('name')}: /dev/shm is not a volume in memory"


def runtimes_are_scraped(document: Document) -> Iterator[str]:
    if document["kind"] in RUNTIMES:
        where = document["spec"].get("annotations", {})
        if not where.get("prometheus.kserve.io/port", "").isdecimal() or "prometheus.kserve.io/path" not in where:
            yield "prometheus.kserve.io/port and path are needed"


def modes_get_what_they_allow(document: Document) -> Iterator[str]:
    """Knative takes no preStop hook and no grace period; Standard needs both to stop without cutting streams."""
    if document["kind"] != "InferenceService":
        return
    mode = annotations(document).get(MODE)
    if mode not in {"Standard", "Knative"}:
        yield f"{MODE} is {mode!r}, not Standard or Knative"
    knative = mode == "Knative"
    if knative and DEADLINE not in annotations(document):
        yield f"Knative gives up on a slow load without {DEADLINE}"
    if knative and "canary" in document["spec"]:
        yield "spec.canary works in Standard mode only"
    for predictor in predictors(document):
        if not knative and "canaryTrafficPercent" in predictor:
            yield "canaryTrafficPercent works in Knative mode only"
        hook, grace = predictor["model"].get("lifecycle"), predictor.get("terminationGracePeriodSeconds")
        if knative and (hook or grace):
            yield "Knative refuses lifecycle and terminationGracePeriodSeconds"
        if not knative and (not hook or hook["preStop"]["exec"]["command"] != ["sleep", str(PRE_STOP_S)]):
            yield f"a pod in Standard mode sleeps {PRE_STOP_S} s before it stops"
        if not knative and (grace or 0) < _stopping_s(predictor):
            yield f"terminationGracePeriodSeconds must be at least {_stopping_s(predictor)}"


def autoscalers_fit(document: Document) -> Iterator[str]:
    if document["kind"] != "InferenceService":
        return
    scaler = annotations(document).get(AUTOSCALER)
    standard = annotations(document).get(MODE) == "Standard"
    for predictor in predictors(document):
        if "autoScaling" in predictor and scaler != "keda":
            yield "autoScaling metrics of these types need autoscalerClass keda"
        if standard and predictor.get("scaleMetric") not in {None, "cpu", "memory"}:
            yield "HPA scales on cpu or memory only"
        if standard and predictor.get("minReplicas") == 0 and scaler != "keda":
            yield "only KEDA and Knative scale to zero"
        if "workerSpec" in predictor and scaler != "none":
            yield "several nodes need autoscalerClass none"
        if "workerSpec" in predictor and not predictor["model"]["storageUri"].startswith(("pvc://", "oci://")):
            yield "several nodes need a model from pvc:// or oci://"


def _predictors(document: Document) -> list[Document]:
    return predictors(document) if document["kind"] == "InferenceService" else []


def _stopping_s(predictor: Document) -> int:
    """preStop, the grace periods of the server (one each for HTTP and gRPC; the Triton server has one), and 5 s."""
    return PRE_STOP_S + (30 if "triton" in predictor["model"]["runtime"] else 60) + 5


RULES = (
    containers_have_their_names,
    environments_are_allowed,
    probes_survive_a_slow_load,
    shared_memory_is_large,
    runtimes_are_scraped,
    modes_get_what_they_allow,
    autoscalers_fit,
)


def broken_rules(document: Document) -> list[str]:
    """Complaints of all the rules, for KServe's kinds."""
    if not document["apiVersion"].startswith("serving.kserve.io/"):
        return []
    return [complaint for rule in RULES for complaint in rule(document)]
