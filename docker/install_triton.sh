#!/usr/bin/env bash
# Octavo into an existing Triton server (release 25.03 or newer; with 24.11 or older numpy<2 must be there before).
# The Dockerfile runs these steps, and so may anybody on bare metal:
#
#   install_triton.sh wheel PYTHON SOURCE DEST         builds Octavo's wheel in DEST from the folder SOURCE
#   install_triton.sh torch ENGINE_ENV [PYTHON]        makes the engine's environment and puts torch into it
#   install_triton.sh engine ENGINE_ENV WHEEL          adds Octavo and what else its engine needs
#   install_triton.sh front PYTHON WHEEL               Octavo and a few light packages for the server's own Python
#   install_triton.sh backend BACKENDS PYTHON NAME...  the backend folder, under each name (octavo, vllm); PYTHON as in front
#
# Then start the server with OCTAVO_ENGINE_PYTHON=ENGINE_ENV/bin/python, PYTHON being the first python3 on its PATH.
# A distribution's own Python wants PIP_BREAK_SYSTEM_PACKAGES=1 for the step `front`.
# Versions are those of constraints.txt. Steps may be repeated.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CONSTRAINTS=$HERE/../constraints.txt
TORCH=$(grep '^torch==' "$CONSTRAINTS")

pip() { "$1" -m pip "$2" --quiet --disable-pip-version-check --constraint "$CONSTRAINTS" "${@:3}"; }
# Where pip has put Octavo's Triton host; the package alone imports nothing.
package_of() { "$1" -P -c 'import octavo_triton; print(octavo_triton.__path__[0])'; }

wheel() {
  SCRATCH=$(mktemp -d)
  trap 'rm -rf "$SCRATCH"' EXIT
  # setuptools beside PYTHON, which stays as it is.
  pip "$1" install --target "$SCRATCH/tools" setuptools
  # A copy, because a build leaves its files in the folder, and the next build would put them into its wheel.
  mkdir "$SCRATCH/source"
  cp -r "$2"/{LICENSE,README.md,pyproject.toml,backend,kserve} "$SCRATCH/source"
  PYTHONPATH=$SCRATCH/tools pip "$1" wheel --no-deps --no-build-isolation --wheel-dir "$3" "$SCRATCH/source"
}

torch() {
  "${2:-python3}" -m venv "$1"
  # This build is from PyPI, with CUDA, unless pip has been told of another index.
  pip "$1/bin/python" install "$TORCH"
}

engine() {
  pip "$1/bin/python" install "$2"
  # A wheel of the same version may hold other code.
  pip "$1/bin/python" install --no-deps --force-reinstall "$2"
}

front() {
  # The distribution's own packages belong to apt, which pip must not uninstall: ours stand in front of them.
  pip "$1" install --no-deps --ignore-installed "$2"
  pip "$1" install --no-deps --ignore-installed --only-binary=:all: -r "$(package_of "$1")/requirements.txt"
  "$1" -P -c 'import numpy' 2>/dev/null || pip "$1" install --no-deps --only-binary=:all: numpy
}

backend() {
  local package name
  package=$(package_of "$2")
  for name in "${@:3}"; do
    mkdir -p "$1/$name"
    install -m 644 "$package/backend/model.py" "$1/$name/model.py"
  done
}

case ${1:-} in
  wheel | torch | engine | front | backend) "$@" ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
