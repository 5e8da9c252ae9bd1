#!/bin/bash
# What the image holds, in a virtual environment: install.sh FOLDER cpu|cuda, from the sources here.
# Pinned by constraints.txt; FOLDER/packages.txt lists what came of it.
set -euo pipefail
folder=$1
case $2 in
    cpu) index=(--extra-index-url https://download.pytorch.org/whl/cpu) ;;
    cuda) index=() ;; # the wheels of PyPI
    *) echo "variant $2: cpu or cuda" >&2; exit 2 ;;
esac
python3 -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --constraint constraints.txt "${index[@]}" '.[train,deploy,server]'
"$folder/bin/python" -m pip check
"$folder/bin/python" -m pip freeze > "$folder/packages.txt"
"$folder/bin/dpmpp" --version
"$folder/bin/ray" --version
