#!/usr/bin/env bash
# Runs a command again and again until it ends well (0), was given something wrong (2), was asked to
# end (130, 143), or failed three times in a row within a minute of its start.
#
#     launch/until_done.sh python -m sagan_jax.main --config configs/quickstart.py
set -u
. "$(dirname "$0")/signals.sh"
attempts=0
while true; do
    since=$SECONDS
    run "$@"
    [ -z "$asked" ] || exit "$status"
    case $status in 0 | 2 | 130 | 143) exit $status ;; esac
    attempts=$((SECONDS - since < 60 ? attempts + 1 : 1))
    echo "ended with status $status" >&2
    if [ $attempts -eq 3 ]; then
        echo 'error: It failed three times in a row.' >&2
        exit $status
    fi
    echo 'starting again' >&2
done
