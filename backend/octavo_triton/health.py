"""The health check that a model's parameters may ask for: a model whose engine is dead for good is unloaded.

Knows no request. Restarts within the engine's limit are not its business: they are no death for good.
"""

from __future__ import annotations

import logging
import threading

import triton_python_backend_utils as pb_utils

import octavo
from octavo_triton.errors import UnhealthyEngine
from octavo_triton.server_command import server_option

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 0.5
_CONTROL_OPTION = "--model-control-mode"


class HealthCheck:
    """Watches an engine from a thread of its own, so that it also sees the death of one that nobody asks."""

    def __init__(self, engine: octavo.AsyncEngine, model_name: str, can_unload: bool) -> None:
        """Where a model cannot be unloaded, it only refuses all requests."""
        self._engine = engine
        self._model_name = model_name
        self._can_unload = can_unload
        self._woken = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="octavo-health", daemon=True)
        self._thread.start()

    def explain(self, error: BaseException) -> BaseException:
        """What a client is told instead of `error`: that the model is unavailable, when the engine is dead for good."""
        if self._closing or not isinstance(error, octavo.EngineDead):
            return error
        self._woken.set()
        return UnhealthyEngine()

    def close(self) -> None:
        """No more checks: the engine's end is wanted now."""
        self._closing = True
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            cause = self._cause_of_death()
            if cause is not None and not self._closing:
                self._unload(cause)
                return
            self._woken.wait(CHECK_INTERVAL_S)
            self._woken.clear()

    def _cause_of_death(self) -> octavo.EngineError | None:
        try:
            self._engine.wait_ready(timeout_s=0)
        except TimeoutError:
            return None
        except octavo.EngineError as error:
            return error
        return None

    def _unload(self, cause: octavo.EngineError) -> None:
        if not self._can_unload:
            logger.error(
                "[vllm] Engine is not healthy and model %s refuses all requests: %s (a server with "
                f"{_CONTROL_OPTION}=explicit would unload it)",
                self._model_name,
                cause,
            )
            return
        logger.error("[vllm] Engine is not healthy and model will be unloaded: %s", cause)
        # Returns at once; `finalize` comes later, from the server.
        try:
            pb_utils.unload_model(self._model_name)
        except Exception:
            logger.exception("model %s could not be unloaded; it refuses all requests", self._model_name)


def can_unload_models(server_process: int | None = None) -> bool:
    """Whether the server runs under explicit model control, by its command line.

    A server of release 24.10 that is asked to unload a model under any other mode aborts if it is executing requests.
    """
    return server_option(_CONTROL_OPTION, server_process) == "explicit"
