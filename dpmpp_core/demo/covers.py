"""Occluders of the test queries of an `unseen` set, which occur in no other picture.

Each function fills a whole layer.
"""

from __future__ import annotations

import numpy as np

from dpmpp_core.demo.canvas import Layer, box, ellipse, fill, noise, profile
from dpmpp_core.demo.identity import COLOURS
from dpmpp_core.demo.things import LIGHT, Rng, any_of, tone


def banner(layer: Layer, rng: Rng) -> None:
    """Draw cloth in folds, with wide stripes and a hem at its lower edge."""
    names = ("purple", "orange", "light blue", "maroon", "olive", "white")
    colour, band = (any_of(rng, tuple(COLOURS[n] for n in names)) for _ in range(2))
    tall, wide = layer.alpha.shape
    surface = box(layer, -2, -2, wide + 2, tall)
    if surface is None:
        return
    folds = 1 + 0.16 * np.sin(surface.across * rng.uniform(7, 14) + rng.uniform(0, 6))
    folds = folds * (1 + 0.07 * noise("folds", surface.alpha.shape, rng))
    stripes = (surface.along * rng.uniform(5, 10)) % 1 < rng.uniform(0.2, 0.5)
    cloth = np.where(stripes[..., None], np.array(band, np.float32), np.array(colour, np.float32))
    fill(layer, surface, (folds[..., None] * cloth).astype(np.float32))
    fill(layer, box(layer, -2, tall - 9, wide + 2, tall), tone(colour, 0.6))


def brick_wall(layer: Layer, rng: Rng) -> None:
    """Draw bricks or blocks with a coping along the top."""
    brick = any_of(rng, ((0.55, 0.27, 0.2), (0.66, 0.6, 0.5), (0.4, 0.36, 0.35), (0.7, 0.68, 0.64)))
    tall, wide = layer.alpha.shape
    surface = box(layer, -2, 0, wide + 2, tall + 2)
    if surface is None:
        return
    course = rng.uniform(18, 34)
    rows = np.arange(surface.alpha.shape[0], dtype=np.float32)[:, None] / course
    columns = np.arange(surface.alpha.shape[1], dtype=np.float32)[None] / (2.4 * course)
    joint = (rows % 1 < 0.12) | ((columns + 0.5 * (rows // 1 % 2)) % 1 < 0.05)
    rough = 1 + 0.09 * noise("mottle", surface.alpha.shape, rng)
    colour = np.where(joint[..., None], np.array((0.62, 0.6, 0.57), np.float32), brick)
    fill(layer, surface, (rough[..., None] * colour).astype(np.float32))
    fill(layer, box(layer, -2, 0, wide + 2, 16), (0.6, 0.59, 0.56), bottom=0.75)


def gate(layer: Layer, rng: Rng) -> None:
    """Draw upright planks with two rails across."""
    wood = any_of(rng, ((0.46, 0.3, 0.18), (0.22, 0.34, 0.3), (0.6, 0.52, 0.42), (0.3, 0.2, 0.16)))
    tall, wide = layer.alpha.shape
    planks = int(rng.integers(3, 7))
    for plank in range(planks):
        left, right = (wide * (plank + n) / planks for n in (0, 1))
        surface = box(layer, left, 0, right - 3, tall, 2)
        if surface is not None:
            grain = 1 + 0.12 * noise("folds", surface.alpha.shape[::-1], rng).T
            shade = np.array(tone(wood, float(rng.uniform(0.85, 1.15))), np.float32)
            fill(layer, surface, (grain[..., None] * shade).astype(np.float32))
        fill(layer, box(layer, right - 5, 0, right + 2, tall), tone(wood, 0.35))
    for rail in (0.2, 0.7):
        top = (rail + rng.uniform(-0.05, 0.05)) * tall
        fill(layer, box(layer, 0, top, wide, top + 26, 2), tone(wood, 0.7), bottom=0.7)


def column(layer: Layer, rng: Rng) -> None:
    """Draw a round column with bands of coloured posters."""
    tall, wide = layer.alpha.shape
    surface = profile(layer, [(-2, wide / 2, wide / 2 - 1), (tall + 2, wide / 2, wide / 2 - 1)])
    if surface is None:
        return
    names = ("yellow", "light blue", "red", "white", "green", "pink", "beige")
    colours = np.array([any_of(rng, tuple(COLOURS[n] for n in names)) for _ in range(6)])
    row = np.clip(surface.along * 6, 0, 5).astype(int)
    edge = np.abs(surface.along * 6 % 1 - 0.5) > 0.46
    shade = surface.shade(LIGHT) * np.where(edge, 0.5, 1.0)
    fill(layer, surface, (shade[..., None] * colours[row]).astype(np.float32))


def tarpaulin(layer: Layer, rng: Rng) -> None:
    """Draw a plain wrinkled sheet with eyelets along its hems."""
    sheet = any_of(rng, ((0.12, 0.3, 0.55), (0.2, 0.42, 0.3), (0.75, 0.45, 0.15), (0.7, 0.7, 0.7)))
    tall, wide = layer.alpha.shape
    surface = box(layer, -2, 0, wide + 2, tall)
    if surface is None:
        return
    wrinkled = 1 + 0.14 * noise("folds", surface.alpha.shape, rng)
    colour = (wrinkled[..., None] * np.array(sheet, np.float32)).astype(np.float32)
    fill(layer, surface, colour, top=1.1, bottom=0.85)
    for x in np.arange(12, wide, 34).tolist():
        for y in (7, tall - 7):
            fill(layer, ellipse(layer, (x, y), 3.5, 3.5), (0.8, 0.8, 0.78))
