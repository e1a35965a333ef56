#!/usr/bin/env bash
# install_server.sh DEST PYTHON
#
# Puts a Triton server (2.51.0, release 24.10, for CPUs) from its PyPI wheel into DEST/pytriton/tritonserver, and into
# DEST/env the environment in which the server runs Octavo's front: the packages of requirements.txt and this checkout.
# PYTHON (its X.Y chooses the server's stub) is not changed. Says nothing when there is nothing to do.
set -euo pipefail

DEST=${1:?usage: install_server.sh DEST PYTHON}
PYTHON=${2:?usage: install_server.sh DEST PYTHON}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BACKEND=$(dirname "$HERE")
CONSTRAINTS=$(dirname "$BACKEND")/constraints.txt
WHEEL=nvidia-pytriton==0.7.0
# The stub of this release was built for the array layout of numpy 1.
NUMPY=numpy==1.26.4

mkdir -p "$DEST"
DEST=$(cd "$DEST" && pwd)
exec 9>"$DEST/.lock"
flock 9
wanted=$({ cat "${BASH_SOURCE[0]}" "$HERE/requirements.txt" "$CONSTRAINTS"; echo "$BACKEND"; "$PYTHON" -VV; } | sha256sum)
if [ "$(cat "$DEST/.ready" 2>/dev/null)" = "$wanted" ]; then exit 0; fi
rm -f "$DEST/.ready"
pip() { "$1" -m pip "${@:2}" --quiet --quiet --disable-pip-version-check --no-deps; }

server=$DEST/pytriton/tritonserver
if [ "$(cat "$DEST/.wheel" 2>/dev/null)" != "$WHEEL" ]; then
  echo "installing the Triton server into $DEST (250 MB)"
  rm -rf "$DEST/pytriton" "$DEST"/nvidia_pytriton*
  pip "$PYTHON" install -c "$CONSTRAINTS" --no-compile --upgrade --target "$DEST" "$WHEEL"
  rm -rf "$DEST/bin"
  echo "$WHEEL" > "$DEST/.wheel"
fi

version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
stub=$server/python_backend_stubs/$version/triton_python_backend_stub
if [ ! -x "$stub" ]; then
  echo "the server has no stub for Python $version, only for: $(ls "$server/python_backend_stubs" | tr '\n' ' ')" >&2
  exit 1
fi
install -m 755 "$stub" "$server/backends/python/triton_python_backend_stub"
# The stub's own search path comes before the system's, so this link binds it to PYTHON's library and to no other.
library=$("$PYTHON" -c 'import sysconfig as s; print(s.get_config_var("LIBDIR") + "/" + s.get_config_var("INSTSONAME"))')
if [ -e "$library" ]; then ln -sfn "$library" "$DEST/nvidia_pytriton.libs/$(basename "$library")"; fi
if ldd "$server/backends/python/triton_python_backend_stub" | grep -q 'libpython.*not found'; then
  echo "$PYTHON has no shared libpython$version, which the server needs" \
       "(Debian: apt-get install libpython$version; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)" >&2
  exit 1
fi

echo "installing the environment of the server's Python into $DEST/env"
"$PYTHON" -m venv --clear "$DEST/env"
pip "$DEST/env/bin/python" install --only-binary=:all: "$NUMPY"
pip "$DEST/env/bin/python" install --only-binary=:all: -c "$CONSTRAINTS" -r "$HERE/requirements.txt"
echo "$BACKEND" > "$("$DEST/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/octavo.pth"
echo "$wanted" > "$DEST/.ready"
