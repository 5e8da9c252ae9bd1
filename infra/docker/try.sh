#!/bin/bash
# The image's install steps without Docker: in a clean folder, from a clean copy of the sources, then
# a small pipeline with what was installed. try.sh cpu|cuda
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d /var/tmp/dpmpp-image-XXXX)
trap 'rm -rf "$work"' EXIT
git archive HEAD | tar -x -C "$work" --one-top-level=src
(cd "$work/src" && env -u PYTHONPATH infra/docker/install.sh "$work/venv" "${1:-cpu}")
cd "$work"
du -sh venv
env -u PYTHONPATH venv/bin/dpmpp data demo images --config demo data.demo.train_identities=4 \
    data.demo.test_identities=4
env -u PYTHONPATH venv/bin/dpmpp data check images
env -u PYTHONPATH venv/bin/mlflow db upgrade sqlite:///mlflow.db > /dev/null 2>&1
wc -l venv/packages.txt
