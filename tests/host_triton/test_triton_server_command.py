"""What the server's command line says, read off a process that was started with such arguments."""

from __future__ import annotations

import subprocess

import pytest

from octavo_triton.server_command import server_option


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--allow-metrics=false"], "false"),
        (["--allow-metrics", "False", "--x"], "false"),
        (["--allow-metrics=false", "--allow-metrics", "true"], "true"),
        (["--allow-metrics"], ""),
        (["--allow-gpu-metrics=false", "false"], None),
    ],
)
def test_an_option_is_read_as_the_server_reads_it(arguments: list[str], expected: str | None) -> None:
    command = ["/bin/sh", "-c", "echo; read line", "tritonserver", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        # Before its first line it may still be the process that starts it.
        server.stdout.readline()
        assert server_option("--allow-metrics", server.pid) == expected


def test_a_process_that_cannot_be_read_has_no_options() -> None:
    assert server_option("--allow-metrics", 2**22 + 1) is None
