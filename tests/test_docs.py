"""The tables of docs/ name everything that the code has, and nothing else."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import octavo
from octavo.v2 import INPUTS, OUTPUTS

REPOSITORY = Path(__file__).resolve().parent.parent
TRITON = (REPOSITORY / "docs/triton.md").read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under a heading, up to the next of its rank."""
    return TRITON.split(f"\n## {title}\n")[1].split("\n## ")[0]


def named(text: str) -> set[str]:
    """The names in backticks in the first column of a table; a label or a value after a name is no part of it."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([\w:]+)", cell)}


def test_the_inputs() -> None:
    assert named(section("Inputs")) == {spec.name for spec in INPUTS}


def test_the_outputs() -> None:
    assert named(section("Outputs")) == {spec.name for spec in OUTPUTS}


def test_the_parameters() -> None:
    of_the_host = {"request_priority", "cache_salt", "lora_name", "timeout"}
    assert named(section("Parameters")) == {field.name for field in fields(octavo.SamplingParams)} | of_the_host


def test_the_metrics() -> None:
    assert named(section("Metrics")) == {metric.name for metric in octavo.METRICS}


def test_the_engine_arguments() -> None:
    table = section("A model in the repository").split("`model.json` holds")[1]
    of_the_loader = {"revision", "download_dir"}
    internal = {"executor"}
    assert named(table) - of_the_loader == {field.name for field in fields(octavo.EngineConfig)} - internal


def test_links_within_the_repository_lead_somewhere() -> None:
    for file in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), target
