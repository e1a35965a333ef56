#!/usr/bin/env bash
# install_perf_analyzer.sh SERVER_DIR PYTHON
#
# Puts Triton's load generator into SERVER_DIR/perf_analyzer, out of the last tritonclient wheel whose binary runs on
# glibc 2.34 and up, with the two libraries that it looks for as links into the server's own. Changes no environment;
# says nothing when there is nothing to do. SERVER_DIR is what install_server.sh made.
set -euo pipefail

SERVER=$(cd "${1:?usage: install_perf_analyzer.sh SERVER_DIR PYTHON}" && pwd)
PYTHON=${2:?usage: install_perf_analyzer.sh SERVER_DIR PYTHON}
WHEEL=tritonclient==2.51.0
DEST=$SERVER/perf_analyzer

exec 9>"$SERVER/.perf_analyzer.lock"
flock 9
wanted=$(sha256sum < "${BASH_SOURCE[0]}")
if [ "$(cat "$DEST/.ready" 2>/dev/null)" = "$wanted" ]; then exit 0; fi
rm -rf "$DEST"
mkdir -p "$DEST/lib"

"$PYTHON" -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-compile --target "$DEST/wheel" "$WHEEL"
mv "$DEST/wheel/bin/perf_analyzer" "$DEST/perf_analyzer"
rm -rf "$DEST/wheel"
ln -s "$SERVER"/nvidia_pytriton.libs/libb64-*.so.0d "$DEST/lib/libb64.so.0d"
ln -s "$SERVER"/nvidia_pytriton.libs/libcudart-*.so.12* "$DEST/lib/libcudart.so.12"
if LD_LIBRARY_PATH=$DEST/lib ldd "$DEST/perf_analyzer" | grep 'not found' >&2; then exit 1; fi
echo "$wanted" > "$DEST/.ready"
