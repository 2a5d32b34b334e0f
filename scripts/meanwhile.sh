#!/bin/bash
# Runs a command that may be silent for long, and says every 15 seconds that it still runs. Its exit code is the command's.
#
#   scripts/meanwhile.sh "installing" python -m pip install --quiet ...
set -uo pipefail

what=$1
shift
( while sleep "${EVERY_S:-15}" >/dev/null 2>&1; do echo "   still $what: $SECONDS s"; done ) &
ticker=$!
trap 'kill $ticker 2>/dev/null' EXIT
"$@"
