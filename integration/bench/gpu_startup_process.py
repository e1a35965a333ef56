"""What gpu_startup.py starts: an engine from a checkpoint, one token; then how long each phase took, as JSON.

Times are monotonic seconds, which all processes share. The only argument: engine arguments as JSON.
"""

from __future__ import annotations

from time import monotonic

BEGIN = monotonic()

import json  # noqa: E402  the clock starts before everything
import sys  # noqa: E402

import bare_octavo  # noqa: E402, F401  before everything that imports octavo
from gpu_requests import items, run_all  # noqa: E402

from octavo.config import EngineConfig  # noqa: E402
from octavo.engine import Engine  # noqa: E402


def main() -> None:
    imported_at = monotonic()
    engine = Engine.from_config(EngineConfig.from_mapping(json.loads(sys.argv[1])))
    ready_at = monotonic()
    run_all(engine, items([(16, 1)], 100, seed=0))
    first_token_at = monotonic()
    phases = {"imports": imported_at - BEGIN, **engine.stats().startup_s, "first token": first_token_at - ready_at}
    engine.shutdown()
    print(json.dumps({"began_at": BEGIN, "first_token_at": first_token_at, "phases": phases}), flush=True)


main()
