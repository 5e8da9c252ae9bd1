"""Identities: the appearance of a person, drawn from a seed, and its caption.

People come in groups of four. In most groups all wear the same kind of colours and differ in one
or two attributes (a pattern, a bag, the hair, the length of the trousers), so that colour alone
does not distinguish them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dpmpp_core.config import DemoConfig
from dpmpp_core.demo.canvas import RGB

GROUP = 4
LOOK_ALIKES = 0.75  # of people who are in no set
# Purposes that keep the random streams of one seed apart.
GROUP_STREAM, PERSON_STREAM, IMAGE_STREAM, CAMERA_STREAM, PLAN_STREAM = 11, 12, 13, 14, 15
OCCLUDER_STREAM = 16

COLOURS: dict[str, RGB] = {
    "black": (0.07, 0.07, 0.08), "charcoal": (0.19, 0.19, 0.21), "grey": (0.42, 0.42, 0.43),
    "light grey": (0.66, 0.66, 0.67), "white": (0.88, 0.88, 0.86), "navy": (0.10, 0.13, 0.26),
    "blue": (0.16, 0.29, 0.60), "light blue": (0.50, 0.64, 0.80), "red": (0.64, 0.11, 0.13),
    "maroon": (0.34, 0.09, 0.13), "green": (0.13, 0.38, 0.21), "olive": (0.33, 0.33, 0.18),
    "beige": (0.72, 0.62, 0.47), "brown": (0.35, 0.23, 0.15), "yellow": (0.82, 0.67, 0.18),
    "orange": (0.80, 0.40, 0.13), "pink": (0.81, 0.52, 0.58), "purple": (0.37, 0.22, 0.47),
}  # fmt: skip
UPPER_WEIGHTS = (16, 9, 10, 7, 12, 11, 7, 6, 7, 4, 4, 4, 5, 4, 3, 2, 4, 3)
LOWER_WEIGHTS = (22, 12, 12, 4, 4, 14, 10, 6, 1, 2, 1, 5, 7, 5, 0, 0, 1, 1)
SHOES = {"black": 7, "white": 6, "brown": 3, "grey": 3, "red": 1, "blue": 1, "beige": 1}
BAGS = {"none": 7, "backpack": 6, "shoulder bag": 4, "handbag": 4, "suitcase": 2}
SKINS: tuple[RGB, ...] = (
    (0.86, 0.69, 0.58), (0.80, 0.60, 0.47), (0.68, 0.48, 0.35), (0.50, 0.33, 0.23),
    (0.34, 0.21, 0.15),
)  # fmt: skip
HAIR: dict[str, RGB] = {
    "black": (0.06, 0.05, 0.05), "brown": (0.22, 0.13, 0.08), "blond": (0.64, 0.48, 0.26),
    "red": (0.43, 0.18, 0.09), "grey": (0.56, 0.55, 0.54),
}  # fmt: skip
PATTERNS = {
    "plain": 8, "striped": 4, "pinstriped": 2, "checked": 3, "two-tone": 3, "printed": 5,
    "dotted": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Garment:
    """A piece of clothing: kind, colours by name and as reflectance, pattern and its size."""

    kind: str
    colour: str
    rgb: RGB
    pattern: str = "plain"
    second: str = "white"
    second_rgb: RGB = (0.88, 0.88, 0.86)
    period: float = 0.06  # of the body height


@dataclass(frozen=True)
class Identity:
    """Everything about a person that is the same in every picture."""

    female: bool
    height: float  # relative to the mean adult
    build: float  # relative girth
    skin: RGB
    hair: str  # bald, short, curly, long, ponytail or bun
    hair_colour: str
    hair_rgb: RGB
    hat: str  # none, cap or beanie
    hat_rgb: RGB
    hat_colour: str
    upper: Garment
    inner: Garment  # seen where the upper garment is open
    lower: Garment
    shoes: str
    shoes_rgb: RGB
    boots: bool
    bag: str
    bag_colour: str
    bag_rgb: RGB
    bag_side: int  # 1 or -1
    scarf: str  # a colour or none
    glasses: bool
    beard: bool
    logo: tuple[tuple[int, ...], ...]  # of a print, 6 x 6 of 0 and 1


def stream(*key: int) -> np.random.Generator:
    """Return the generator of one (seed, ..., purpose); equal keys give equal numbers anywhere."""
    return np.random.default_rng(np.random.SeedSequence(key))


def member(config: DemoConfig, pid: int) -> Identity:
    """Draw person `pid` of a demo set."""
    return identity(config.seed, pid, config.look_alikes, config.one_garment)


def identity(
    seed: int, number: int, look_alikes: float = LOOK_ALIKES, one_garment: bool = False
) -> Identity:
    """Draw person `number` (>= 0) of a seed; see `DemoConfig` for the rest."""
    group, place = divmod(number, GROUP)
    rng = stream(seed, number, PERSON_STREAM)
    shared = stream(seed, group, GROUP_STREAM)
    if shared.random() >= look_alikes:
        return _stranger(rng)
    base = _stranger(shared)
    changes = GARMENTS if one_garment else CHANGES
    order = shared.permutation(len(changes))
    person = base
    if place:
        # Each member differs from the first in attributes that no other member changes.
        person = changes[order[place - 1]](person, rng)
        if not one_garment and rng.random() < 0.6:
            person = CHANGES[order[place + GROUP - 2]](person, rng)
    return replace(
        person,
        height=base.height + float(rng.normal(0, 0.02)),
        build=base.build * float(rng.uniform(0.95, 1.06)),
        upper=replace(person.upper, rgb=_jitter(person.upper.rgb, rng, 0.02)),
        lower=replace(person.lower, rgb=_jitter(person.lower.rgb, rng, 0.02)),
    )


def _pick(rng: np.random.Generator, options: dict[str, int], but: str = "") -> str:
    names = [name for name in options if name != but]
    weights = np.array([options[name] for name in names], float)
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _colour(
    rng: np.random.Generator, weights: Sequence[int] = UPPER_WEIGHTS, but: str = ""
) -> tuple[str, RGB]:
    name = _pick(rng, dict(zip(COLOURS, weights, strict=True)), but)
    return name, _jitter(COLOURS[name], rng, 0.03)


def _jitter(rgb: RGB, rng: np.random.Generator, size: float) -> RGB:
    moved = np.clip(np.array(rgb) + rng.normal(0, size, 3) * (0.3 + np.array(rgb)), 0.04, 0.95)
    return (float(moved[0]), float(moved[1]), float(moved[2]))


def _contrast(rng: np.random.Generator, rgb: RGB) -> tuple[str, RGB]:
    """Draw a second colour that differs clearly from the first one."""
    while True:
        name, other = _colour(rng)
        if float(np.abs(np.array(other) - np.array(rgb)).sum()) > 0.6:
            return name, other


def _upper(rng: np.random.Generator, female: bool, but: str = "") -> Garment:
    kinds = {"T-shirt": 6, "shirt": 4, "open jacket": 4, "hoodie": 4, "coat": 3, "jacket": 3}
    if female:
        kinds |= {"dress": 3, "shirt": 2}
    kind = _pick(rng, kinds, but)
    colour, rgb = _colour(rng)
    pattern = _pick(
        rng,
        PATTERNS
        if kind in ("T-shirt", "shirt", "hoodie", "dress")
        else {"plain": 7, "two-tone": 3, "checked": 1},
    )
    second, second_rgb = _contrast(rng, rgb)
    period = float(rng.uniform(0.045, 0.085))
    return Garment(kind, colour, rgb, pattern, second, second_rgb, period)


def _lower(rng: np.random.Generator, female: bool, but: str = "") -> Garment:
    kinds = {"jeans": 6, "trousers": 7, "shorts": 3} | (
        {"skirt": 4, "leggings": 3} if female else {"track pants": 2}
    )
    kind = _pick(rng, kinds, but)
    colour, rgb = _colour(rng, LOWER_WEIGHTS)
    if kind == "jeans":
        colour = _pick(rng, {"blue": 4, "navy": 4, "light blue": 2, "black": 2})
        rgb = _jitter(COLOURS[colour], rng, 0.04)
    second, second_rgb = _contrast(rng, rgb)
    pattern = {"track pants": "side-striped", "skirt": _pick(rng, {"plain": 4, "checked": 1})}
    return Garment(kind, colour, rgb, pattern.get(kind, "plain"), second, second_rgb)


def _hair(rng: np.random.Generator, female: bool, but: str = "") -> str:
    male_styles = {"short": 9, "bald": 2, "curly": 2, "long": 1}
    female_styles = {"long": 6, "ponytail": 4, "bun": 2, "short": 2, "curly": 2}
    return _pick(rng, female_styles if female else male_styles, but)


def _stranger(rng: np.random.Generator) -> Identity:
    female = bool(rng.random() < 0.48)
    colour = _pick(rng, {"black": 9, "brown": 7, "blond": 3, "red": 1, "grey": 2})
    hat_colour, hat_rgb = _colour(rng)
    inner_colour, inner_rgb = _colour(rng)
    shoes = _pick(rng, SHOES)
    bag_colour, bag_rgb = _colour(rng)
    return Identity(
        female=female,
        height=float(rng.normal(0.965 if female else 1.025, 0.03)),
        build=float(np.clip(rng.normal(0.95 if female else 1.03, 0.1), 0.78, 1.3)),
        skin=_jitter(SKINS[int(rng.choice(5, p=(0.3, 0.3, 0.18, 0.12, 0.1)))], rng, 0.03),
        hair=_hair(rng, female),
        hair_colour=colour,
        hair_rgb=_jitter(HAIR[colour], rng, 0.03),
        hat=_pick(rng, {"none": 10, "cap": 2, "beanie": 1}),
        hat_rgb=hat_rgb,
        hat_colour=hat_colour,
        upper=_upper(rng, female),
        inner=Garment("T-shirt", inner_colour, inner_rgb),
        lower=_lower(rng, female),
        shoes=shoes,
        shoes_rgb=_jitter(COLOURS[shoes], rng, 0.03),
        boots=bool(rng.random() < (0.25 if female else 0.08)),
        bag=_pick(rng, BAGS),
        bag_colour=bag_colour,
        bag_rgb=bag_rgb,
        bag_side=1 if rng.random() < 0.5 else -1,
        scarf=_colour(rng)[0] if rng.random() < 0.1 else "none",
        glasses=bool(rng.random() < 0.2),
        beard=bool(not female and rng.random() < 0.22),
        logo=_logo(rng),
    )


def _logo(rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    half = (rng.random((6, 3)) < 0.6).astype(int)
    return tuple(tuple(int(v) for v in (*row, *row[::-1])) for row in half)


def _change_pattern(p: Identity, rng: np.random.Generator) -> Identity:
    pattern = _pick(rng, PATTERNS, but=p.upper.pattern)
    second, second_rgb = _contrast(rng, p.upper.rgb)
    upper = replace(p.upper, pattern=pattern, second=second, second_rgb=second_rgb)
    return replace(p, upper=upper, logo=_logo(rng))


def _change_upper(p: Identity, rng: np.random.Generator) -> Identity:
    return replace(p, upper=replace(p.upper, kind=_upper(rng, p.female, p.upper.kind).kind))


def _change_lower(p: Identity, rng: np.random.Generator) -> Identity:
    kind = _lower(rng, p.female, p.lower.kind).kind
    pattern = "side-striped" if kind == "track pants" else "plain"
    return replace(p, lower=replace(p.lower, kind=kind, pattern=pattern))


def _change_bag(p: Identity, rng: np.random.Generator) -> Identity:
    colour, rgb = _colour(rng, but=p.bag_colour)
    return replace(p, bag=_pick(rng, BAGS, but=p.bag), bag_colour=colour, bag_rgb=rgb)


def _change_hair(p: Identity, rng: np.random.Generator) -> Identity:
    colour = _pick(rng, dict.fromkeys(HAIR, 1), but=p.hair_colour)
    style = _hair(rng, p.female, p.hair)
    return replace(p, hair=style, hair_colour=colour, hair_rgb=HAIR[colour], hat="none")


def _change_feet_and_head(p: Identity, rng: np.random.Generator) -> Identity:
    shoes = _pick(rng, SHOES, but=p.shoes)
    hat = _pick(rng, {"none": 1, "cap": 3, "beanie": 2}, but=p.hat)
    return replace(p, shoes=shoes, shoes_rgb=COLOURS[shoes], hat=hat)


CHANGES: tuple[Any, ...] = (
    _change_pattern, _change_upper, _change_lower, _change_bag, _change_hair,
    _change_feet_and_head,
)  # fmt: skip


def _recolour_upper(p: Identity, rng: np.random.Generator) -> Identity:
    colour, rgb = _contrast(rng, p.upper.rgb)
    second, second_rgb = _contrast(rng, rgb)
    upper = replace(p.upper, colour=colour, rgb=rgb, second=second, second_rgb=second_rgb)
    return replace(p, upper=upper)


def _recolour_lower(p: Identity, rng: np.random.Generator) -> Identity:
    if p.upper.kind == "dress":  # it is the only garment
        return _recolour_upper(p, rng)
    colour, rgb = _contrast(rng, p.lower.rgb)
    return replace(p, lower=replace(p.lower, colour=colour, rgb=rgb))


def _weave(p: Identity, rng: np.random.Generator) -> Identity:
    woven = {"striped": 1, "checked": 1, "two-tone": 1, "dotted": 1}
    return replace(p, upper=replace(p.upper, pattern=_pick(rng, woven, but=p.upper.pattern)))


GARMENTS: tuple[Any, ...] = (
    _recolour_upper, _recolour_lower, _weave, _change_bag, _change_hair, _change_feet_and_head,
)  # fmt: skip


def caption(p: Identity) -> str:
    """Describe a person in one sentence, e.g. "a person with long brown hair wearing ..."."""
    head = "a bald head" if p.hair == "bald" else f"{_HAIR_WORDS[p.hair].format(p.hair_colour)}"
    extras = [f"{_a(p.hat_colour)} {p.hat}"] if p.hat != "none" else []
    extras += ["glasses"] if p.glasses else []
    upper = _a(_garment(p.upper))
    if p.upper.kind == "open jacket":
        upper += f" over {_a(p.inner.colour)} T-shirt"
    clothes = [upper]
    if p.upper.kind != "dress":
        lower = _garment(p.lower)
        clothes.append(_a(lower) if p.lower.kind == "skirt" else lower)
    clothes.append(f"{p.shoes} {'boots' if p.boots else 'shoes'}")
    clothes += [f"{_a(p.scarf)} scarf"] if p.scarf != "none" else []
    bag = f" and carrying {_a(p.bag_colour)} {p.bag}" if p.bag != "none" else ""
    first = " and ".join([head, *extras])
    return f"a person with {first} wearing {', '.join(clothes)}{bag}"


_HAIR_WORDS = {
    "short": "short {} hair", "curly": "curly {} hair", "long": "long {} hair",
    "ponytail": "{} hair in a ponytail", "bun": "{} hair in a bun",
}  # fmt: skip


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _garment(g: Garment) -> str:
    if g.pattern == "plain":
        return f"{g.colour} {g.kind}"
    return f"{g.pattern} {g.colour} and {g.second} {g.kind}"
