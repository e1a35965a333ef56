"""The Dockerfile without Docker: the linter, what it copies, and that it takes the steps that the install test runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
STEPS = ["wheel", "torch", "engine", "front", "backend"]


def copied() -> list[str]:
    """Everything that the Dockerfile copies out of the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
    return sorted({source for line in lines for source in line.split()[:-1]})


def test_the_linter_has_no_findings() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, REPOSITORY / "Dockerfile"], capture_output=True, text=True)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_what_is_copied_exists_and_is_let_through_to_the_builder() -> None:
    rules = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in rules
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == copied()
    assert all((REPOSITORY / source).exists() for source in copied())


def test_it_takes_every_step_of_the_install_script_in_order() -> None:
    assert re.findall(r"install_triton\.sh (\w+)", DOCKERFILE) == STEPS
    script = (REPOSITORY / "docker/install_triton.sh").read_text(encoding="utf-8")
    assert re.findall(r"^(\w+)\(\) \{$", script, re.MULTILINE) == ["wheel", "torch", "engine", "front", "backend"]


def test_images_are_pinned_and_the_server_knows_is_ready() -> None:
    bases = re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert [name for _, name in bases] == ["wheel", "triton"]
    assert all(re.search(r":[\w.${}-]+$", image) and not image.endswith(":latest") for image, _ in bases)
    year, month = re.findall(r"^ARG TRITON_RELEASE=(\d+)\.(\d+)$", DOCKERFILE, re.MULTILINE)[0]
    assert (int(year), int(month)) >= (25, 3)


def test_the_server_does_not_run_as_root() -> None:
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert int(user) > 0
    assert DOCKERFILE.index("USER") < DOCKERFILE.index('CMD ["tritonserver"')


def test_an_unknown_step_gets_the_usage() -> None:
    done = subprocess.run([REPOSITORY / "docker/install_triton.sh", "no_such"], capture_output=True, text=True)
    assert done.returncode == 2
    assert [step for step in STEPS if f"install_triton.sh {step} " in done.stderr] == STEPS
