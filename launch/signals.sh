# For scripts that start a command and outlive it; to be sourced.
set -m # the command gets signals from here alone, and none is ignored
child='' asked='' passed=''
pass_on() {
    asked=$1
    [ -z "$child" ] || {
        passed=1
        kill "-$1" "$child"
    }
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

# Runs a command, to which each SIGTERM and SIGINT is passed on once: its status in `status`, and in
# `asked` the last signal, if there was one.
run() {
    "$@" &
    child=$!
    # One that came before the command was there.
    [ -z "$asked" ] || [ -n "$passed" ] || kill "-$asked" "$child"
    wait "$child"
    status=$?
    # A trapped signal ends `wait` before the command has ended.
    while kill -0 "$child" 2>/dev/null; do
        wait "$child"
        status=$?
    done
    child=''
}
