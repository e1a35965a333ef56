"""The objects that describe models, for clients of the OpenAI API and of KServe's first protocol at once."""

from __future__ import annotations

from typing import Any

from octavo_kserve.served_model import Models, ServedModel


def list_models(models: Models) -> dict[str, Any]:
    """Every name that is served. `models` is the first protocol's list, the rest the OpenAI API's."""
    every = [(served, name) for served in models.all() for name in served.names]
    cards = [model_card(served, name) for served, name in every]
    return {"object": "list", "data": cards, "models": [name for _, name in every]}


def model_card(served: ServedModel, name: str) -> dict[str, Any]:
    """One model under one of its names."""
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "octavo",
        "root": served.name,
        "parent": None,
        "max_model_len": served.engine.config.max_model_len,
        "name": name,
        "ready": served.engine.is_ready(),
    }
