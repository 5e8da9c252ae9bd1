#!/usr/bin/env bash
# The cluster of the overlay `local` as processes of this machine; needs root (network namespaces).
#   cluster.sh up      start it, wait for Ctrl-C    cluster.sh demo         every job, a table
#   cluster.sh chaos   losses under way             cluster.sh autoscaling  nodes come and go
set -euo pipefail
cd "$(dirname "$0")/../.."
VENV=${VENV:-.venv}
[ -x "$VENV/bin/python" ] && export PATH="$(realpath "$VENV/bin"):$PATH"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec python -m infra.local "${@:-up}"
