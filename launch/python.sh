# Sourced by the scripts of this folder, in the root of the checkout. Sets PYTHON, unless it is given,
# to the interpreter of the active environment, or of .venv in the checkout, or to python3.
# shellcheck shell=bash
if [ -z "${PYTHON:-}" ]; then
    for PYTHON in "${VIRTUAL_ENV:-.venv}/bin/python" .venv/bin/python python3; do
        [ ! -x "$PYTHON" ] || break
    done
fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $PYTHON is not Python 3.11 or later: set PYTHON to one that is, or create an" \
        'environment in .venv, see docs/clusters.md.' >&2
    exit 2
}
