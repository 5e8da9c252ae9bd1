"""Objects of streets and halls, in scenes and in front of people.

Each function draws on a layer, at a place and in a size in pixels.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dpmpp_core.demo.canvas import (
    RGB,
    Layer,
    Light,
    box,
    ellipse,
    fill,
    limb,
    noise,
    polygon,
    profile,
)
from dpmpp_core.demo.identity import COLOURS

Rng = np.random.Generator
LIGHT = Light()
PAINTS: tuple[RGB, ...] = (
    (0.72, 0.72, 0.73), (0.12, 0.12, 0.13), (0.85, 0.85, 0.84), (0.45, 0.08, 0.09),
    (0.12, 0.2, 0.38), (0.3, 0.31, 0.33), (0.5, 0.47, 0.4), (0.14, 0.27, 0.2),
)  # fmt: skip


def any_of(rng: Rng, colours: tuple[RGB, ...]) -> RGB:
    """Draw one of the colours, slightly darker or brighter."""
    r, g, b = colours[int(rng.integers(len(colours)))]
    k = float(rng.uniform(0.8, 1.12))
    return min(r * k, 0.95), min(g * k, 0.95), min(b * k, 0.95)


def tone(rgb: RGB, k: float) -> RGB:
    """Multiply the brightness of a colour by `k`."""
    return rgb[0] * k, rgb[1] * k, rgb[2] * k


def car(layer: Layer, x: float, ground: float, length: float, rng: Rng) -> None:
    """Draw a parked car from the side: body, windows, wheels; `x` is its left end."""
    paint = any_of(rng, PAINTS)
    tall = 0.36 * length
    roof, waist, sill = ground - tall, ground - 0.6 * tall, ground - 0.13 * tall
    mirror = rng.random() < 0.5

    def at(share: float) -> float:
        return x + length * (1 - share if mirror else share)

    cabin = [
        (at(0.18), waist), (at(0.3), roof), (at(0.42), roof - 0.02 * tall), (at(0.66), roof),
        (at(0.8), waist),
    ]  # fmt: skip
    fill(layer, polygon(layer, cabin), paint, top=1.25, bottom=1.0)
    glass = [
        (at(0.225), waist), (at(0.32), roof + 0.06 * tall), (at(0.64), roof + 0.06 * tall),
        (at(0.75), waist),
    ]  # fmt: skip
    fill(layer, polygon(layer, glass), (0.16, 0.19, 0.22), top=1.7, bottom=0.9)
    left, right = sorted((at(0.475), at(0.495)))
    fill(layer, box(layer, left, roof + 0.05 * tall, right, waist), paint)
    body = [
        (at(0.0), waist + 0.16 * tall), (at(0.04), waist + 0.03 * tall), (at(0.2), waist),
        (at(0.78), waist), (at(0.96), waist + 0.1 * tall), (at(1.0), waist + 0.25 * tall),
        (at(0.995), sill), (at(0.01), sill),
    ]  # fmt: skip
    fill(layer, polygon(layer, body), paint, top=1.15, bottom=0.62)
    for door in (0.3, 0.49, 0.68):
        left = at(door)
        fill(layer, box(layer, left, waist, left + 0.004 * length, sill), tone(paint, 0.5))
    for handle in (0.43, 0.62):
        left = at(handle)
        fill(
            layer,
            box(layer, left, waist + 0.1 * tall, left + 0.03 * length, waist + 0.13 * tall),
            tone(paint, 0.55),
        )
    for lamp, colour in ((0.965, (0.9, 0.88, 0.75)), (0.02, (0.6, 0.05, 0.05))):
        fill(
            layer,
            ellipse(layer, (at(lamp), waist + 0.2 * tall), 0.022 * length, 0.05 * tall),
            colour,
        )
    for wheel in (0.19, 0.8):
        centre = (at(wheel), ground - 0.17 * tall)
        for size, colour in (
            (0.2, (0.05, 0.05, 0.05)),
            (0.125, (0.5, 0.5, 0.52)),
            (0.04, (0.15, 0.15, 0.15)),
        ):
            fill(layer, ellipse(layer, centre, size * tall, size * tall), colour)


def tree(layer: Layer, x: float, ground: float, size: float, rng: Rng) -> None:
    """Draw a trunk with bark around `x`, its foot at `ground`, and a crown, `size` high in all."""
    thick = size * rng.uniform(0.04, 0.06)
    trunk(layer, x, ground, ground - 0.6 * size, thick, rng)
    foliage(layer, x, ground - 0.75 * size, 0.34 * size, 0.27 * size, rng)


def trunk(layer: Layer, x: float, ground: float, top: float, half: float, rng: Rng) -> None:
    """Draw a trunk with bark."""
    bend = rng.normal(0, 0.25) * half
    rows = [
        (top, x + bend, half * 0.85), ((top + ground) / 2, x, half),
        (ground - half, x, half * 1.05), (ground, x, half * 1.5),
    ]  # fmt: skip
    surface = profile(layer, rows)
    if surface is None:
        return
    bark = noise("folds", surface.alpha.shape[::-1], rng).T
    shade = surface.shade(LIGHT) * (1 + 0.22 * bark)
    fill(layer, surface, shade[..., None] * np.array((0.33, 0.26, 0.2), np.float32))


def foliage(layer: Layer, x: float, y: float, rx: float, ry: float, rng: Rng) -> None:
    """Draw a cloud of leaves."""
    green = np.array(any_of(rng, ((0.16, 0.3, 0.12), (0.22, 0.34, 0.13), (0.13, 0.24, 0.13))))
    turns, reach = rng.uniform(0, 2 * np.pi, 70), np.sqrt(rng.uniform(0, 1, 70))
    for turn, far in sorted(zip(turns, reach, strict=True), key=lambda t: np.sin(t[0]) * t[1]):
        cx, cy = x + rx * far * np.cos(turn), y + ry * far * np.sin(turn)
        r = max(rx, ry) * rng.uniform(0.12, 0.24)
        leaf = ellipse(layer, (cx, cy), r, r * rng.uniform(0.6, 1.0))
        if leaf is not None:
            speckle = 1 + 0.35 * noise("mottle", leaf.alpha.shape, rng)
            bright = (0.55 + 0.5 * far * -np.sin(turn) * 0.5 + 0.35) * rng.uniform(0.7, 1.15)
            colour = (leaf.shade(LIGHT) * speckle * bright)[..., None] * green
            fill(layer, leaf, np.maximum(colour, 0.01).astype(np.float32))


def bush(layer: Layer, x: float, ground: float, wide: float, tall: float, rng: Rng) -> None:
    """Draw a bush."""
    foliage(layer, x, ground - 0.45 * tall, 0.5 * wide, 0.5 * tall, rng)
    foliage(layer, x, ground - 0.2 * tall, 0.5 * wide, 0.22 * tall, rng)


def pole(layer: Layer, x: float, ground: float, top: float, half: float, rng: Rng) -> None:
    """Draw a lamp post or a pillar."""
    colour = any_of(rng, ((0.35, 0.36, 0.37), (0.18, 0.2, 0.19), (0.6, 0.6, 0.58)))
    rows = [
        (top, x, half), (ground - 3 * half, x, half), (ground - 3 * half + 2, x, half * 1.35),
        (ground, x, half * 1.4),
    ]  # fmt: skip
    surface = profile(layer, rows)
    if surface is not None:
        scuffs = 1 + 0.05 * noise("mottle", surface.alpha.shape, rng)
        fill(
            layer,
            surface,
            (surface.shade(LIGHT) * scuffs)[..., None] * np.array(colour, np.float32),
        )


def sign(layer: Layer, x: float, y: float, wide: float, tall: float, rng: Rng) -> None:
    """Draw a board with a few lines like writing, its corner at (x, y)."""
    colour = any_of(
        rng,
        ((0.1, 0.25, 0.5), (0.8, 0.8, 0.77), (0.6, 0.1, 0.1), (0.1, 0.35, 0.2), (0.75, 0.6, 0.1)),
    )
    ink = (0.9, 0.9, 0.88) if sum(colour) < 1.5 else (0.12, 0.12, 0.15)
    fill(layer, box(layer, x, y, x + wide, y + tall, 4), tone(colour, 0.6))
    fill(layer, box(layer, x + 3, y + 3, x + wide - 3, y + tall - 3, 3), colour, bottom=0.85)
    lines = max(int(tall / 26), 1)
    for line in range(lines):
        row = y + tall * (line + 0.3) / lines
        at = x + 0.12 * wide
        while at < x + 0.8 * wide:
            word = wide * rng.uniform(0.06, 0.22)
            end = min(at + word, x + 0.9 * wide)
            fill(layer, box(layer, at, row, end, row + 0.35 * tall / lines), ink)
            at += word + 0.05 * wide


def railing(layer: Layer, x: float, ground: float, wide: float, tall: float, rng: Rng) -> None:
    """Draw a crowd barrier: a frame with bars close together, on a low base."""
    colour = any_of(rng, ((0.62, 0.63, 0.65), (0.3, 0.32, 0.33), (0.7, 0.55, 0.1)))
    bar, gap = max(tall * 0.022, 2.5), tall * rng.uniform(0.09, 0.14)
    base = ground - tall * rng.uniform(0.25, 0.5)
    fill(layer, box(layer, x, base, x + wide, ground), (0.5, 0.49, 0.47), bottom=0.7)
    for at in np.arange(x, x + wide, gap):
        fill(layer, box(layer, at, ground - tall, at + bar, base), tone(colour, 0.85))
    for row in (ground - tall, base - bar):
        fill(layer, box(layer, x, row, x + wide, row + 1.8 * bar, bar), colour, bottom=0.7)


def barrier(layer: Layer, x: float, ground: float, wide: float, tall: float, rng: Rng) -> None:
    """Draw a solid road barrier with slanting stripes on a layer, in place.

    Nothing is drawn if it lies outside the layer, or if a side is shorter than 1 pixel.

    Args:
        layer: what is drawn on.
        x: left edge, pixels from the left of the layer.
        ground: lower edge, pixels from the top of the layer.
        wide: width in pixels.
        tall: height in pixels; the upper edge is at `ground - tall`.
        rng: draws the colour of the stripes, red or orange, and the dirt.
    """
    white, red = (0.84, 0.83, 0.8), any_of(rng, ((0.65, 0.12, 0.1), (0.8, 0.45, 0.1)))
    surface = box(layer, x, ground - tall, x + wide, ground, 0.06 * tall)
    if surface is None:
        return
    columns = surface.across * wide / 2 + surface.along * tall * 0.8
    band = ((columns / (0.36 * tall)) % 1 < 0.5) & (np.abs(surface.along - 0.32) < 0.22)
    dirt = 1 + 0.06 * noise("mottle", surface.alpha.shape, rng)
    colour = (
        np.where(band[..., None], np.array(red, np.float32), np.array(white, np.float32))
        * dirt[..., None]
    )
    fill(layer, surface, colour.astype(np.float32), bottom=0.7)


def bin_(layer: Layer, x: float, ground: float, wide: float, tall: float, rng: Rng) -> None:
    """Draw a wheeled rubbish bin with a lid."""
    colour = any_of(rng, ((0.13, 0.3, 0.17), (0.14, 0.17, 0.25), (0.3, 0.3, 0.31), (0.5, 0.4, 0.1)))
    rows = [(ground - 0.9 * tall, x + wide / 2, 0.49 * wide), (ground, x + wide / 2, 0.4 * wide)]
    surface = profile(layer, rows)
    if surface is not None:
        ribs = 1 - 0.18 * (np.abs(surface.across * 3 % 1 - 0.5) < 0.07)
        fill(
            layer,
            surface,
            (ribs * (0.9 + 0.25 * surface.nz))[..., None] * np.array(colour, np.float32),
        )
    fill(
        layer,
        box(
            layer,
            x - 0.04 * wide,
            ground - tall,
            x + 1.04 * wide,
            ground - 0.89 * tall,
            0.05 * tall,
        ),
        tone(colour, 1.25),
        bottom=0.7,
    )
    sign(layer, x + 0.3 * wide, ground - 0.65 * tall, 0.4 * wide, 0.18 * tall, rng)


def crate(layer: Layer, x: float, ground: float, wide: float, tall: float, rng: Rng) -> None:
    """Draw a stack of cardboard boxes."""
    rows = 1 if tall < 0.8 * wide else 2
    for row in range(rows):
        card = any_of(rng, ((0.6, 0.46, 0.3), (0.66, 0.53, 0.37), (0.52, 0.4, 0.27)))
        y0, y1 = ground - tall * (row + 1) / rows, ground - tall * row / rows
        x0 = x + wide * rng.uniform(0, 0.06)
        x1 = x + wide * rng.uniform(0.94, 1)
        surface = box(layer, x0, y0, x1, y1, 2)
        if surface is None:
            continue
        wrinkled = 1 + 0.04 * noise("mottle", surface.alpha.shape, rng)
        fill(layer, surface, wrinkled[..., None] * np.array(card, np.float32), bottom=0.78)
        tape = y0 + 0.5 * (y1 - y0)
        fill(layer, box(layer, x0, tape - 4, x1, tape + 4), tone(card, 1.18))
        sign(layer, x0 + 0.62 * wide, y0 + 8, 0.22 * wide, 0.25 * (y1 - y0), rng)


def suitcase(layer: Layer, x: float, ground: float, wide: float, tall: float, rng: Rng) -> None:
    """Draw a trolley case with its handle out."""
    colour = any_of(rng, tuple(COLOURS[n] for n in ("black", "navy", "maroon", "grey", "purple")))
    for side in (0.32, 0.66):
        fill(
            layer,
            box(
                layer,
                x + side * wide,
                ground - 1.35 * tall,
                x + side * wide + 6,
                ground - 0.95 * tall,
            ),
            (0.5, 0.5, 0.52),
        )
    fill(
        layer,
        box(layer, x + 0.28 * wide, ground - 1.37 * tall, x + 0.74 * wide, ground - 1.31 * tall, 5),
        (0.1, 0.1, 0.1),
    )
    surface = box(layer, x, ground - tall, x + wide, ground - 0.05 * tall, 0.1 * wide)
    if surface is not None:
        ribs = 1 - 0.25 * ((surface.across * 4) % 1 < 0.14)
        fill(layer, surface, ribs[..., None] * np.array(colour, np.float32), top=1.2, bottom=0.75)
    for side in (0.12, 0.88):
        wheel = ellipse(layer, (x + side * wide, ground - 0.03 * tall), 8, 8)
        fill(layer, wheel, (0.05, 0.05, 0.05))


def umbrella(layer: Layer, x: float, y: float, wide: float, rng: Rng) -> None:
    """Draw an open umbrella from the front, its top at (x, y)."""
    colour = any_of(rng, tuple(COLOURS[n] for n in ("black", "navy", "red", "green", "grey")))
    turns = np.linspace(np.pi, 0, 25)
    dome = [(x + wide / 2 * np.cos(t), y + 0.42 * wide * (1 - np.sin(t))) for t in turns]
    ribs = np.linspace(1, -1, 6)
    for right, left in pairwise(ribs):
        middle = (right + left) / 2
        dome += [(x + wide / 2 * middle, y + 0.36 * wide), (x + wide / 2 * left, y + 0.42 * wide)]
    surface = polygon(layer, dome)
    if surface is not None:
        panel = 1 - 0.3 * ((np.abs(surface.across) * 2.5) % 1)
        fill(layer, surface, panel[..., None] * np.array(colour, np.float32), top=1.3, bottom=0.8)
    fill(layer, limb(layer, (x, y), (x, y + 0.9 * wide), 2.5, 2.5), (0.3, 0.3, 0.3))


def bench(layer: Layer, x: float, ground: float, wide: float, tall: float, rng: Rng) -> None:
    """Draw a park bench or row of seats from the back."""
    wood = any_of(rng, ((0.42, 0.28, 0.17), (0.3, 0.33, 0.36), (0.2, 0.3, 0.4)))
    for leg in (0.08, 0.9):
        fill(
            layer,
            box(layer, x + leg * wide, ground - 0.55 * tall, x + leg * wide + 9, ground),
            (0.12, 0.12, 0.12),
        )
    for slat in range(6):
        top = ground - tall * (1 - slat * 0.13)
        shade = tone(wood, float(rng.uniform(0.85, 1.1)))
        fill(layer, box(layer, x, top, x + wide, top + 0.115 * tall, 3), shade, bottom=0.75)
