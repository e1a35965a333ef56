"""TritonPythonModel: what the Triton server calls to load, run and unload a model.

Only wires the parts together; the engine runs in a process of its own and this one never imports torch.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

import octavo
from octavo.v2 import INPUTS, OUTPUTS, ModelFacts, RawRequest, decode_request
from octavo_triton.health import HealthCheck, can_unload_models
from octavo_triton.log_handler import log_to_server
from octavo_triton.metrics import MetricsReporter, labels_of, start_reporting
from octavo_triton.model_json import Instance, read_engine_config
from octavo_triton.sender import Sender

logger = logging.getLogger(__name__)

# At its own end the server waits for its exit timeout (30 s unless told otherwise), of which this must leave something.
# An unload comes here only when the last request has ended: a server of release 24.10 does not tell its models before.
DRAIN_S = 15.0


class TritonPythonModel:
    """One instance of a model: its engine, its sender thread and its metrics reporter."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Adds what the model's config.pbtxt leaves out: inputs, outputs, decoupled, max_batch_size 0."""
        config = auto_complete_model_config.as_dict()
        size = config["max_batch_size"]
        if size:
            raise pb_utils.TritonModelException(
                f"max_batch_size: {size} is not allowed; expected 0: the engine batches"
            )
        inputs = {entry["name"] for entry in config["input"]}
        outputs = {entry["name"] for entry in config["output"]}
        for spec in INPUTS:
            if spec.name not in inputs:
                auto_complete_model_config.add_input(spec.as_config())
        for spec in OUTPUTS:
            if spec.name not in outputs:
                auto_complete_model_config.add_output(spec.as_config())
        if "model_transaction_policy" not in config:
            auto_complete_model_config.set_model_transaction_policy({"decoupled": True})
        auto_complete_model_config.set_max_batch_size(0)
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model; returns when the engine can serve. Any failure fails the load with one line of text."""
        self._engine: octavo.AsyncEngine | None = None
        self._health: HealthCheck | None = None
        self._sender: Sender | None = None
        self._metrics: MetricsReporter | None = None
        self._numbers = itertools.count()
        log_to_server()
        try:
            check_numpy()
            self._start(args)
        except BaseException as error:
            self.finalize()
            if isinstance(error, octavo.OctavoError):
                raise pb_utils.TritonModelException(str(error)) from None
            raise

    def _start(self, args: dict[str, str]) -> None:
        model_config = json.loads(args["model_config"])
        decoupled = bool(model_config.get("model_transaction_policy", {}).get("decoupled"))
        name, version = args["model_name"], args["model_version"]
        if model_config.get("response_cache", {}).get("enable"):
            logger.warning(
                "response_cache of model %s: the server's cache sees input tensors but no request parameters, and it "
                "keeps errors as empty successes",
                name,
            )
        config = read_engine_config(Path(args["model_repository"]), version, Instance.from_args(args))
        self._engine = octavo.AsyncEngine(config)
        self._facts = ModelFacts(name, decoupled, embeds=self._engine.config.runner == "pooling")
        self._engine.wait_ready()
        logger.info("model %s, version %s, is ready", name, version)
        if asks_for(model_config, "ENABLE_VLLM_HEALTH_CHECK") or asks_for(model_config, "ENABLE_HEALTH_CHECK"):
            self._health = HealthCheck(self._engine, name, can_unload_models())
        self._sender = Sender(self._health.explain) if self._health is not None else Sender()
        if asks_for(model_config, "REPORT_CUSTOM_METRICS") and not config.disable_log_stats:
            self._metrics = start_reporting(self._engine.stats, labels_of(args, model_config))

    def execute(self, requests: list[Any]) -> None:
        """Admits requests; their responses come from the sender thread. A bad request fails alone."""
        assert self._engine is not None and self._sender is not None
        for request in requests:
            response_sender = request.get_response_sender()
            try:
                logger.debug("request %r has arrived", request.request_id())
                call = decode_request(read_request(request), self._facts)
                stream = self._engine.submit(
                    call.prompt,
                    call.params,
                    request_id=self._unique(call.request_id),
                    priority=call.priority,
                    deadline_s=call.deadline_s,
                    cache_salt=call.cache_salt,
                )
            except Exception as error:
                logger.debug("request %r is refused: %s", request.request_id(), error)
                self._sender.refuse(response_sender, error)
            else:
                self._sender.add(response_sender, call, stream)

    def is_ready(self) -> bool:
        """Asked by newer servers: whether a request would run now, so not while loading, draining, hung or dead."""
        return self._engine is not None and self._engine.is_ready()

    def _unique(self, request_id: str) -> str | None:
        """The client's id for the log, told apart from other clients' that count from 1 too; None for none."""
        return f"{request_id}-{next(self._numbers)}" if request_id else None

    def finalize(self) -> None:
        """Lets requests end, within DRAIN_S seconds, then ends the engine process."""
        if self._health is not None:
            self._health.close()
        if self._engine is not None:
            self._engine.shutdown(drain_s=DRAIN_S)
        if self._sender is not None:
            self._sender.close()
        if self._metrics is not None:
            # Last: what ended during the drain counts too.
            self._metrics.close()


def asks_for(model_config: Mapping[str, Any], parameter: str) -> bool:
    """Whether config.pbtxt has this parameter with the value "true"."""
    entry = model_config.get("parameters", {}).get(parameter, {})
    return str(entry.get("string_value", "")).lower() == "true"


def read_request(request: Any) -> RawRequest:
    """Copies what the codec needs out of the server's request object."""
    return RawRequest(
        tensors={tensor.name(): tensor.as_numpy() for tensor in request.inputs()},
        parameters=request.parameters(),
        request_id=request.request_id(),
        timeout_us=request.timeout(),
        outputs=frozenset(request.requested_output_names()),
    )


def check_numpy() -> None:
    """Refuses numpy 2 under a server too old for it, where arrays come back wrong without any sign.

    Response parameters came with the first release that knows numpy 2, so their absence tells the old ones.
    """
    old_server = "parameters" not in (pb_utils.InferenceResponse.__init__.__doc__ or "")
    if old_server and int(np.__version__.split(".")[0]) >= 2:
        raise octavo.ModelLoadError(
            f"this Triton server's Python has numpy {np.__version__}, but the server's release supports numpy 1 only: "
            "run `pip install --no-deps 'numpy<2'` in the environment whose python3 is first on the server's PATH"
        )
