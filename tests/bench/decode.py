"""JPEG to RGB pixels, in the libraries that a worker could use: images a second on one thread.

    python -m tests.bench.decode [--rounds 7]

Opponents beside OpenCV: Pillow and torchvision, which are there anyway, and, where installed,
simplejpeg (libjpeg-turbo). Images of the demo set, as they are and enlarged. Writes
`results/decode.md`.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from dpmpp_core.config import DemoConfig
from dpmpp_core.data.images import decode
from dpmpp_core.demo import generate
from tests.bench.timing import describe_turns, interleaved, write

SIZES = (1, 2, 4)  # times the demo's height and width
COUNT = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    lines = ["| image | " + " | ".join(LIBRARIES) + " |", "|---|" + "---:|" * len(LIBRARIES)]
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "d", DemoConfig(train_identities=8, test_identities=4))
        files = sorted((Path(folder) / "d" / "bounding_box_train").glob("*.jpg"))[:COUNT]
        for size in SIZES:
            images = [enlarged(file.read_bytes(), size) for file in files]
            height, width = decode(images[0]).shape[:2]
            rivals = {n: all_of(images, one) for n, one in LIBRARIES.items()}
            seconds = interleaved(rivals, arguments.rounds)
            rates = [len(images) / statistics.median(seconds[name]) for name in LIBRARIES]
            lines.append(
                f"| {width}x{height} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |"
            )
    lines += [
        "",
        "Images a second, median. `ours` is OpenCV behind the check of the header; a JPEG of two, "
        "four or eight times the size that training needs is decoded that much smaller. "
        f"{describe_turns()}",
    ]
    write("decode", f"python -m tests.bench.decode --rounds {arguments.rounds}", lines)


def enlarged(data: bytes, times: int) -> bytes:
    if times == 1:
        return data
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    large = cv2.resize(image, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", large)[1].tobytes()


def all_of(images: list[bytes], one: Callable[[bytes], object]) -> Callable[[], None]:
    def run() -> None:
        for data in images:
            one(data)

    return run


def opencv(data: bytes) -> object:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def opencv_half(data: bytes) -> object:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)


def ours_for_a_network(data: bytes) -> object:
    return decode(data, (256, 128))


def pillow(data: bytes) -> object:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def torchvision(data: bytes) -> object:
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


LIBRARIES: dict[str, Callable[[bytes], object]] = {
    "ours": decode,
    "ours, 128x256 or more": ours_for_a_network,
    "OpenCV": opencv,
    "OpenCV, half size": opencv_half,
    "Pillow": pillow,
    "torchvision": torchvision,
}
if importlib.util.find_spec("simplejpeg"):
    import simplejpeg

    LIBRARIES["simplejpeg"] = simplejpeg.decode_jpeg


if __name__ == "__main__":
    main()
