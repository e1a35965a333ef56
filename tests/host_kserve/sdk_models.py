"""Reads manifests into the SDK's own models, run as a script: JSON list of documents in, JSON list of complaints out.

A process of its own, because the SDK and tritonclient.grpc cannot be imported into the same one. The SDK's models
take anything for a value and have no reader, so this one goes by the types that they name.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import kserve
from kubernetes.client import models as kubernetes_models
from pydantic import BaseModel, ValidationError

NATIVE = {"str": str, "int": int, "bool": bool, "object": object}
# Where the SDK's generator and the Kubernetes client call one type by two names.
RENAMED = re.compile(r"^K8sIoApi(?:Apps|Autoscaling)(?=V\d)")


def complaints(value: Any, type_name: str, where: str) -> list[str]:
    """What keeps `value` from being of that type, each with its place in the document."""
    if item := re.fullmatch(r"list\[(\w+)\]", type_name):
        if not isinstance(value, list):
            return [f"{where}: a list is needed"]
        return [line for i, each in enumerate(value) for line in complaints(each, item[1], f"{where}[{i}]")]
    if item := re.fullmatch(r"dict\(str, (\w+)\)", type_name):
        if not isinstance(value, dict):
            return [f"{where}: a mapping is needed"]
        return [line for key, each in value.items() for line in complaints(each, item[1], f"{where}.{key}")]
    if type_name in NATIVE:
        fits = isinstance(value, NATIVE[type_name]) and (type_name != "int" or not isinstance(value, bool))
        return [] if fits else [f"{where}: {value!r} is not of type {type_name}"]
    if sdk := getattr(kserve.models, type_name, None):
        return _of_sdk(value, sdk, where)
    return _of_kubernetes(value, RENAMED.sub("", type_name), where)


def _of_sdk(value: Any, model: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: a mapping is needed"]
    attributes = {key: name for name, key in model.attribute_map.items()}
    found = [f"{where}: {model.__name__} has no field {key!r}" for key in value if key not in attributes]
    known = {key: each for key, each in value.items() if key in attributes}
    for key, each in known.items():
        found += complaints(each, model.openapi_types[attributes[key]], f"{where}.{key}")
    try:
        model(**{attributes[key]: each for key, each in known.items()})
    except ValueError as error:
        found.append(f"{where}: {error}")
    return found


def _of_kubernetes(value: Any, type_name: str, where: str) -> list[str]:
    model = getattr(kubernetes_models, type_name, None)
    # Quantities and the few types that neither package has: the rules and the CRDs look at those.
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return []
    try:
        model.model_validate(value)
    except ValidationError as error:
        return [f"{where}.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return []


def complaints_about(document: dict[str, Any]) -> list[str]:
    """Of the whole document; a kind that the SDK does not have is one itself."""
    version = document["apiVersion"].rpartition("/")[2].capitalize()
    if document["apiVersion"] == "v1":
        return complaints(document, f"{version}{document['kind']}", document["kind"])
    name = f"{version}{document['kind']}"
    if not hasattr(kserve.models, name):
        return [f"kserve.models has no {name}"]
    found = complaints(document, name, document["kind"])
    # The SDK has no type for what is inside this kind, but its pod is a pod.
    if document["kind"] == "LLMInferenceService":
        found += complaints(document["spec"]["template"], "V1PodSpec", "LLMInferenceService.spec.template")
    return found


if __name__ == "__main__":
    json.dump([complaints_about(document) for document in json.load(sys.stdin)], sys.stdout)
