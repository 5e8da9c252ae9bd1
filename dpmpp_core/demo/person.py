"""Draw a person: shape by shape, the far ones first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dpmpp_core.demo import cloth
from dpmpp_core.demo.canvas import (
    RGB,
    Floats,
    Layer,
    Light,
    Point,
    Surface,
    ellipse,
    fill,
    limb,
    profile,
)
from dpmpp_core.demo.head import head
from dpmpp_core.demo.identity import COLOURS, Garment, Identity
from dpmpp_core.demo.pose import Joint, Pose, View, skeleton

LONG_SLEEVES = {"shirt", "open jacket", "hoodie", "coat", "jacket"}


def draw_person(
    layer: Layer, person: Identity, pose: Pose, view: View, light: Light, rng: np.random.Generator
) -> None:
    """Draw a person with bags onto a layer; `view.yaw` and `pose.yaw` must agree."""
    _Figure(layer, person, view, light, rng, skeleton(person, pose)).draw()


@dataclass
class _Figure:
    layer: Layer
    person: Identity
    view: View
    light: Light
    rng: np.random.Generator
    joints: dict[str, Joint]

    def draw(self) -> None:
        facing = np.cos(self.view.yaw) > 0
        arms = sorted(("_r", "_l"), key=lambda s: self.view.turned(self.joints["elbow" + s])[2])
        legs = sorted(("_r", "_l"), key=lambda s: self.view.turned(self.joints["knee" + s])[2])
        far_arm_hidden = self.view.turned(self.joints["elbow" + arms[0]])[2] < -0.02
        if facing:
            self._back_things()
        if far_arm_hidden:
            self._arm(arms[0])
        for side in legs:
            self._leg(side)
        self._hips()
        self._neck()
        self._torso()
        if not far_arm_hidden:
            self._arm(arms[0])
        if facing:
            self._head()
        self._arm(arms[1])
        if not facing:
            self._head()
            self._back_things()

    def _leg(self, side: str) -> None:
        p, g = self.person, self.person.lower
        hip, knee, ankle, toe = (self.joints[n + side] for n in ("hip", "knee", "ankle", "toe"))
        covered = p.upper.kind != "dress" and g.kind not in ("skirt", "shorts")
        tight = 0.85 if g.kind == "leggings" else 1.0 if covered else 0.88
        wide = (
            0.066 * tight * p.build,
            0.048 * tight * p.build,
            0.031 * (tight if tight < 1 else 1.15),
        )
        paint: Callable[[Surface], Floats] = self._skin
        if covered:
            paint = self._cloth(g, "leg")
        self._shoe(ankle, toe)
        self._limb(knee, ankle, wide[1], wide[2], paint)
        self._limb(hip, knee, wide[0], wide[1], paint)
        if g.kind == "shorts" and p.upper.kind != "dress":
            end = _between(hip, knee, 0.85)
            self._limb(hip, end, 0.07 * p.build, 0.062 * p.build, self._cloth(g, "leg"))

    def _shoe(self, ankle: Joint, toe: Joint) -> None:
        p = self.person
        heel = (ankle[0], toe[1] + 0.004, ankle[2] - 0.012)
        if p.boots:
            top = (ankle[0], ankle[1] + 0.075, ankle[2])
            self._limb(top, ankle, 0.036, 0.033, self._flat(p.shoes_rgb))
        sole = COLOURS["white"] if p.shoes in ("grey", "blue", "red") else COLOURS["charcoal"]
        low = 0.008
        self._limb(_lift(heel, -low), _lift(toe, -low), 0.024, 0.019, self._flat(sole))
        self._limb(heel, toe, 0.025, 0.019, self._flat(p.shoes_rgb))
        self._limb(ankle, heel, 0.028, 0.025, self._flat(p.shoes_rgb))

    def _hips(self) -> None:
        p = self.person
        if p.upper.kind == "dress":
            return
        girth = p.build * (1.06 if p.female else 1.0)
        flare = 1.0
        end = 0.455
        if p.lower.kind == "skirt":
            flare, end = 1.22, 0.34
        rows = [(0.60, 0.085, 0.065), (0.53, 0.098, 0.075), (end, 0.1 * flare, 0.078 * flare)]
        self._upright(rows, girth, self._cloth(p.lower, "hips"))

    def _torso(self) -> None:
        p = self.person
        self._upright(_torso_rows(p), p.build, self._upper_cloth)
        if p.upper.kind == "hoodie":
            self._upright(
                [(0.868, 0.05, 0.052), (0.84, 0.075, 0.062), (0.812, 0.06, 0.066)],
                1.0,
                self._cloth(p.upper, "plain"),
            )
        if p.scarf != "none":
            self._upright(
                [(0.872, 0.044, 0.044), (0.85, 0.06, 0.058), (0.825, 0.055, 0.056)],
                1.0,
                self._flat(COLOURS[p.scarf]),
            )

    def _arm(self, side: str) -> None:
        p, g = self.person, self.person.upper
        shoulder, elbow, wrist, hand = (
            self.joints[n + side] for n in ("shoulder", "elbow", "wrist", "hand")
        )
        thick = (0.03 if p.female else 0.035) * (0.4 + 0.6 * p.build)
        sleeve = self._cloth(g, "sleeve")
        if g.pattern == "two-tone":
            sleeve = self._cloth(Garment(g.kind, g.second, g.second_rgb), "sleeve")
        self._carried(side, hand)
        self._limb(wrist, hand, 0.021, 0.017, self._skin)
        if g.kind in LONG_SLEEVES:
            loose = 0.008 if g.kind in ("coat", "hoodie", "jacket", "open jacket") else 0.003
            self._limb(elbow, wrist, thick * 0.9 + loose, 0.025 + loose, sleeve)
            self._limb(shoulder, elbow, thick + loose, thick * 0.9 + loose, sleeve)
        else:
            self._limb(elbow, wrist, thick * 0.75, 0.021, self._skin)
            self._limb(shoulder, elbow, thick * 0.9, thick * 0.76, self._skin)
            end = _between(shoulder, elbow, 0.25 if g.kind == "dress" else 0.62)
            self._limb(shoulder, end, thick + 0.003, thick + 0.006, sleeve)

    def _neck(self) -> None:
        x, y, z = self.joints["neck"]
        self._limb((x, y - 0.03, z), (x, y + 0.05, z + 0.008), 0.036, 0.032, self._skin)

    def _head(self) -> None:
        p = self.person
        front = np.cos(self.view.yaw) > 0
        centre = self.joints["head"]
        if p.hair == "long" and not front:
            self._hair_fall()
        if p.hair == "curly" and p.hat == "none":
            self._blob(centre, 0.066, 0.078, self._flat(p.hair_rgb, 0.16), lift=0.012)
        self._blob(centre, 0.051, 0.069, self._face)
        if p.hair == "long" and front:
            self._hair_sides()
        if p.hat == "cap":
            x, y, z = centre
            self._limb(
                (x, y + 0.022, z + 0.02),
                (x, y + 0.012, z + 0.095),
                0.03,
                0.018,
                self._flat(p.hat_rgb),
            )
        if p.hair == "bun" and p.hat == "none":
            x, y, z = centre
            self._blob((x, y + 0.045, z - 0.055), 0.028, 0.026, self._flat(p.hair_rgb, 0.12))

    def _back_things(self) -> None:
        """Draw backpack and ponytail: behind a person seen from the front, else before it."""
        p = self.person
        if p.hair == "long" and np.cos(self.view.yaw) > 0:
            self._hair_fall()
        tall = p.height
        if p.bag == "backpack":
            rows = [
                (0.815, 0.06, 0.03), (0.80, 0.085, 0.045), (0.70, 0.092, 0.06),
                (0.60, 0.092, 0.064), (0.585, 0.08, 0.05),
            ]  # fmt: skip
            self._upright(rows, 1.0, self._backpack, z=-0.125)
        if p.hair == "ponytail":
            x, y, z = self.joints["head"]
            self._limb(
                (x, y + 0.03, z - 0.06),
                (x, y - 0.12 * tall, z - 0.095),
                0.02,
                0.011,
                self._flat(p.hair_rgb, 0.12),
            )

    def _hair_fall(self) -> None:
        rows = [
            (0.975, 0.014, 0.01), (0.965, 0.036, 0.024), (0.945, 0.052, 0.034),
            (0.85, 0.064, 0.036), (0.78, 0.055, 0.03), (0.758, 0.035, 0.02),
        ]  # fmt: skip
        self._upright(rows, 1.0, self._flat(self.person.hair_rgb, 0.14), z=-0.035)

    def _hair_sides(self) -> None:
        x, y, z = self.joints["head"]
        for side in (-0.051, 0.051):
            self._limb(
                (x + side * 0.9, y + 0.02, z - 0.012),
                (x + side * 1.08, y - 0.12, z - 0.008),
                0.014,
                0.017,
                self._flat(self.person.hair_rgb, 0.14),
            )

    def _carried(self, side: str, hand: Joint) -> None:
        p = self.person
        if side != ("_r" if p.bag_side > 0 else "_l"):
            return
        x, y, z = hand
        dark = (p.bag_rgb[0] * 0.5, p.bag_rgb[1] * 0.5, p.bag_rgb[2] * 0.5)
        if p.bag == "handbag":
            for offset in (-0.03, 0.03):
                self._limb(hand, (x, y - 0.06, z + offset), 0.005, 0.005, self._flat(dark))
            self._bag((x, y - 0.115, z), 0.035, 0.075, 0.055)
        elif p.bag == "shoulder bag":
            hip = self.joints["hip" + side]
            self._bag((hip[0] * 2.5, hip[1] + 0.015, -0.02), 0.035, 0.085, 0.058)
        elif p.bag == "suitcase":
            base = (x + 0.05 * p.bag_side, 0.17, z - 0.12)
            self._limb(hand, (base[0], 0.3, base[2]), 0.006, 0.006, self._flat((0.5, 0.5, 0.5)))
            self._bag(base, 0.075, 0.06, 0.14)

    def _bag(self, centre: Joint, half_x: float, half_z: float, half_y: float) -> None:
        x, y, z = centre
        rows = [
            (y + half_y, half_x * 0.85, half_z * 0.85), (y + half_y * 0.8, half_x, half_z),
            (y - half_y * 0.85, half_x, half_z), (y - half_y, half_x * 0.9, half_z * 0.9),
        ]  # fmt: skip
        tall = self.person.height
        self._upright([(r / tall, a, b) for r, a, b in rows], 1.0, self._leather, x=x, z=z)

    def _upright(
        self,
        rows: list[tuple[float, float, float]],
        girth: float,
        paint: Callable[[Surface], Floats],
        x: float = 0.0,
        z: float = 0.0,
    ) -> None:
        """Draw rows of (height / person's height, half width, half depth), from top to bottom."""
        sin, cos = np.sin(self.view.yaw), np.cos(self.view.yaw)
        outline = []
        for height, wide, deep in rows:
            y = height * self.person.height
            cx, cy = self.view.point((x, y, z))
            half = girth * float(np.hypot(wide * cos, deep * sin))
            outline.append((cy, cx, self.view.length(half, y)))
        self._paint(profile(self.layer, outline), paint)

    def _limb(
        self, a: Joint, b: Joint, ra: float, rb: float, paint: Callable[[Surface], Floats]
    ) -> None:
        size = self.view.length
        start, end = self.view.point(a), self.view.point(b)
        self._paint(limb(self.layer, start, end, size(ra, a[1]), size(rb, b[1])), paint)

    def _blob(
        self,
        at: Joint,
        rx: float,
        ry: float,
        paint: Callable[[Surface], Floats],
        lift: float = 0.0,
    ) -> None:
        x, y, z = at
        size = self.view.length
        centre: Point = self.view.point((x, y + lift, z))
        self._paint(ellipse(self.layer, centre, size(rx, y), size(ry, y)), paint)

    def _paint(self, surface: Surface | None, paint: Callable[[Surface], Floats]) -> None:
        if surface is not None:
            shade = surface.shade(self.light)[..., None]
            fill(self.layer, surface, (paint(surface) * shade).astype(np.float32))

    def _height(self, surface: Surface) -> Floats:
        """Return the relative height on an upright body of every row, (h, 1)."""
        rows = np.arange(surface.roi[0].start, surface.roi[0].stop, dtype=np.float32)[:, None]
        unit = self.view.size * (0.5 + 0.5 * np.cos(self.view.pitch)) * self.person.height
        return (np.float32(self.view.ground[1]) - rows) / np.float32(unit)

    def _skin(self, surface: Surface) -> Floats:
        return self._flat(self.person.skin, 0.03)(surface)

    def _flat(self, rgb: RGB, roughness: float = 0.05) -> Callable[[Surface], Floats]:
        def paint(surface: Surface) -> Floats:
            creases = cloth.folds(surface.alpha.shape, roughness, self.rng)
            return creases * np.asarray(rgb, np.float32)

        return paint

    def _cloth(self, garment: Garment, place: str) -> Callable[[Surface], Floats]:
        """Return the paint of a garment, except on the torso."""

        def paint(surface: Surface) -> Floats:
            around = self.view.azimuth(surface.across)
            if place == "plain":
                colour = cloth.pattern(Garment("", "", garment.rgb), around, around)
            elif place == "hips":
                colour = cloth.pattern(garment, around, self._height(surface))
            else:
                reach = surface.along * 0.17
                colour = cloth.pattern(garment, around, reach, girth=0.045)
            strength = 0.1 if place == "leg" else 0.085
            if garment.kind == "jeans":
                colour = colour * (1 + 0.18 * surface.nz**4)[..., None]  # worn at the front
            return colour * cloth.folds(surface.alpha.shape, strength, self.rng)

        return paint

    def _upper_cloth(self, surface: Surface) -> Floats:
        around, height = self.view.azimuth(surface.across), self._height(surface)
        colour = cloth.torso(self.person, around, height)
        chin = 1 - 0.28 * np.clip((height - 0.80) / 0.05, 0, 1)[..., None]
        return colour * chin * cloth.folds(surface.alpha.shape, 0.085, self.rng)

    def _backpack(self, surface: Surface) -> Floats:
        colour = self._leather(surface)
        pocket = (np.abs(surface.across) < 0.72) & (np.abs(surface.along - 0.72) < 0.2)
        zipper = (np.abs(surface.along - 0.33) < 0.02) & (np.abs(surface.across) < 0.85)
        return colour * (1 - 0.18 * pocket - 0.4 * zipper)[..., None]

    def _leather(self, surface: Surface) -> Floats:
        creases = cloth.folds(surface.alpha.shape, 0.05, self.rng)
        rim = 1 - 0.3 * (np.abs(surface.across) > 0.88)
        flap = 1 - 0.3 * (np.abs(surface.along - 0.3) < 0.025)
        return creases * (rim * flap)[..., None] * np.asarray(self.person.bag_rgb, np.float32)

    def _face(self, surface: Surface) -> Floats:
        return head(self.person, surface, self.view.yaw, self.view.pitch, self.rng)


def _torso_rows(person: Identity) -> list[tuple[float, float, float]]:
    """Return the outline of the upper garment: (relative height, half width, half depth)."""
    waist = 0.083 if person.female else 0.1
    shoulder = 0.098 if person.female else 0.115
    rows = [
        (0.852, 0.036, 0.04), (0.84, 0.05, 0.046), (0.825, shoulder * 0.84, 0.055),
        (0.805, shoulder, 0.064), (0.74, shoulder * 0.97, 0.078 if person.female else 0.076),
        (0.635, waist, 0.066), (0.545, 0.1, 0.076), (0.515, 0.102, 0.078),
    ]  # fmt: skip
    match person.upper.kind:
        case "hoodie" | "jacket" | "open jacket":
            return [(y, w + 0.007, d + 0.01) for y, w, d in rows]
        case "coat":
            return [*((y, w + 0.01, d + 0.012) for y, w, d in rows), (0.36, 0.122, 0.098)]
        case "dress":
            return [*rows, (0.45, 0.112, 0.092), (0.345, 0.132, 0.112)]
        case "T-shirt":
            return [*rows[:-1], (0.50, 0.105, 0.08)]
    return rows


def _between(a: Joint, b: Joint, share: float) -> Joint:
    x, y, z = (p + share * (q - p) for p, q in zip(a, b, strict=True))
    return x, y, z


def _lift(joint: Joint, by: float) -> Joint:
    return joint[0], joint[1] + by, joint[2]
