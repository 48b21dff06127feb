#!/bin/sh
# The entry point of a container that is given 30 seconds of notice: TERM, and KILL half a minute later.
#
#     ENTRYPOINT ["/usr/local/bin/container-entrypoint.sh"]
#     CMD ["simulation", "input.dat"]
#
# STATE (default /state) has to outlive the container: a volume. It holds the checkpoints and the key that signs them.
# With `docker stop --time 30` and the like the container is saved; the next one with the same volume goes on.
set -eu

state=${STATE:-/state}
export TORPOR_STORE="${TORPOR_STORE:-$state/store}" TORPOR_LOG="${TORPOR_LOG:-$state/log.jsonl}"
export TORPOR_KEY_FILE="${TORPOR_KEY_FILE:-$state/torpor/keys/default.key}"
[ -e "$TORPOR_KEY_FILE" ] || env -u TORPOR_KEY_FILE XDG_CONFIG_HOME="$state" torpor key new
# We are PID 1: no job can be running here yet, whatever an earlier container that was killed has left behind.
export TORPOR_RUNTIME="${TORPOR_RUNTIME:-/tmp/torpor-container}"
rm -rf "$TORPOR_RUNTIME"

exec torpor run --name "${JOB:-job}" --resume-or-start \
    --every "${EVERY:-10m}" --keep 3 --on-signal TERM=checkpoint-stop --deadline 25s \
    -- "$@"
