"""For tests of what stands on the engine: a fake model and executor, and `check_host`, which every host must pass."""

from octavo.testing.fake_executor import (
    PACED_STEP_S,
    FakeModelRunner,
    FakeRow,
    PacedModelRunner,
    create_fake_executor,
    create_paced_executor,
    fake_embedding,
    fake_token,
    mix,
)
from octavo.testing.fake_model import FAKE_EOS, FAKE_VOCAB_SIZE, make_fake_model
from octavo.testing.host import Answer, Ask, ErrorKind, Host, HostError, HostFacts, Load, Offline, Piece
from octavo.testing.host_conformance import HOST_CHECKS, check_host

__all__ = [
    "FAKE_EOS",
    "FAKE_VOCAB_SIZE",
    "HOST_CHECKS",
    "PACED_STEP_S",
    "Answer",
    "Ask",
    "ErrorKind",
    "FakeModelRunner",
    "FakeRow",
    "Host",
    "HostError",
    "HostFacts",
    "Load",
    "Offline",
    "PacedModelRunner",
    "Piece",
    "check_host",
    "create_fake_executor",
    "create_paced_executor",
    "fake_embedding",
    "fake_token",
    "make_fake_model",
    "mix",
]
