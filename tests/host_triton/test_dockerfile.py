"""The Dockerfile without Docker: the linter, what it copies, and that it takes the steps that the install test runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
ROOTS = [REPOSITORY / "backend", REPOSITORY / "kserve"]
# Each image's text, by the name of its target.
STAGES = dict(re.findall(r"^FROM \S+ AS (\w+)$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S))
SERVERS = ["triton", "kserve"]
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
    taken = {name: re.findall(r"install_triton\.sh (\w+)", text) for name, text in STAGES.items()}
    assert taken["wheel"] + taken["triton"] == STEPS
    # The server on KServe lives in the engine's own environment: no front, no backend folder.
    assert taken["kserve"] == ["torch", "engine"]
    script = (REPOSITORY / "docker/install_triton.sh").read_text(encoding="utf-8")
    assert re.findall(r"^(\w+)\(\) \{$", script, re.MULTILINE) == ["wheel", "torch", "engine", "front", "backend"]


def test_images_are_pinned_by_a_full_version_and_the_servers_is_new_enough() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    bases = re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert [name for _, name in bases] == ["wheel", *SERVERS]
    for image, _ in bases:
        with_arguments = re.sub(r"\$\{(\w+)\}", lambda argument: arguments[argument[1]], image)
        assert re.search(r":\d+(\.\d+)+(-[\w.-]+)?$", with_arguments), with_arguments
    year, month = map(int, arguments["TRITON_RELEASE"].split("."))
    assert (year, month) >= (25, 3)


def test_the_wheel_holds_every_package() -> None:
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "packages"
    ]
    folders = {path.parent.relative_to(root) for root in ROOTS for path in root.rglob("__init__.py")}
    assert sorted(listed) == sorted(".".join(folder.parts) for folder in folders)


@pytest.mark.parametrize("server", SERVERS)
def test_the_server_does_not_run_as_root(server: str) -> None:
    (user,) = re.findall(r"^USER (\d+)$", STAGES[server], re.MULTILINE)
    assert int(user) > 0
    # By then everything is installed: what the server runs is not its own to change.
    assert "install_triton.sh" not in STAGES[server].partition("USER")[2]


@pytest.mark.parametrize("server", SERVERS)
def test_docker_asks_for_health_at_a_port_of_the_image(server: str) -> None:
    exposed = re.findall(r"^EXPOSE (.*)$", STAGES[server], re.MULTILINE)[0].split()
    port, path = re.findall(r"HEALTHCHECK .*?127\.0\.0\.1:(\d+)(/[\w/]+)", STAGES[server], re.DOTALL)[0]
    assert port in exposed
    assert path == {"triton": "/v2/health/ready", "kserve": "/v2/health/live"}[server]


def test_the_kserve_image_starts_the_predictor_with_its_extra_from_its_environment() -> None:
    stage = STAGES["kserve"]
    environment = re.findall(r"install_triton\.sh \w+ (\S+)", stage)
    assert set(environment) == {"/opt/octavo/env"}
    assert "ENV PATH=/opt/octavo/env/bin:$PATH" in stage
    assert '"${1}[kserve]"' in stage
    assert 'ENTRYPOINT ["python", "-m", "octavo_kserve"]' in stage


def test_an_unknown_step_gets_the_usage() -> None:
    done = subprocess.run([REPOSITORY / "docker/install_triton.sh", "no_such"], capture_output=True, text=True)
    assert done.returncode == 2
    assert [step for step in STEPS if f"install_triton.sh {step} " in done.stderr] == STEPS
