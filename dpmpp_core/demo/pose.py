"""Pose of a person and view of the camera: a small skeleton and its projection.

Body space: unit = the mean adult's height; x to the viewer's right when the person faces the
viewer, y up from the ground, z to the front. `yaw` turns the person (0 faces the viewer).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpmpp_core.demo.canvas import Floats, Point
from dpmpp_core.demo.identity import Identity

Joint = tuple[float, float, float]
ORIENTATIONS = 8


@dataclass(frozen=True)
class Pose:
    """Angles and proportions of a standing or walking person."""

    yaw: float  # radians
    phase: float  # of the walk, radians
    step: float  # swing of the thighs, radians; 0 stands still
    swing: tuple[float, float]  # of the upper arms (right, left of the view), radians, + to front
    bend: tuple[float, float]  # of the elbows, radians
    spread: float  # of the arms to the side, radians
    lean: float  # sideways, share of the height


@dataclass(frozen=True)
class View:
    """A camera's view of one body: place of the feet, size, pitch."""

    ground: Point  # pixels
    size: float  # pixels of one body unit
    pitch: float  # radians looked down
    yaw: float
    lean: float = 0.0

    def turned(self, joint: Joint) -> Joint:
        """Return the joint in view space: x right, y up, z to the viewer."""
        x, y, z = joint
        sin, cos = np.sin(self.yaw), np.cos(self.yaw)
        return float(x * cos + z * sin), y, float(-x * sin + z * cos)

    def point(self, joint: Joint) -> Point:
        """Return the joint in pixels."""
        x, y, z = self.turned(joint)
        x = x * self.nearness(y) + self.lean * y
        # Seen from above, what is nearer to the viewer lies lower in the picture.
        up = y * (0.5 + 0.5 * np.cos(self.pitch)) - z * np.sin(self.pitch)
        return self.ground[0] + self.size * x, float(self.ground[1] - self.size * up)

    def nearness(self, y: float) -> float:
        """Return the scale at a height, since a high camera is nearer to the head."""
        return 1 + 0.45 * self.pitch * (y - 0.5)

    def length(self, units: float, y: float = 0.5) -> float:
        """Return a length in pixels at a height."""
        return self.size * units * self.nearness(y)

    def azimuth(self, across: Floats) -> Floats:
        """Return the angle round the body of points of an upright surface: 0 front, +-pi back."""
        angle = np.arcsin(np.clip(across, -1, 1)) - np.float32(self.yaw)
        return (angle + np.pi) % (2 * np.pi) - np.pi


def draw_pose(rng: np.random.Generator, orientation: int) -> Pose:
    """Draw a pose; `orientation` 0..7 is the eighth of a turn that the yaw is near to."""
    walking = rng.random() < 0.8
    phase = float(rng.uniform(0, 2 * np.pi))
    step = float(rng.uniform(0.16, 0.4)) if walking else float(rng.uniform(0, 0.08))
    swing = [-0.8 * step * np.sin(phase), 0.8 * step * np.sin(phase)]
    bend = [float(rng.uniform(0.1, 0.5)) for _ in range(2)]
    gesture = rng.random()
    if gesture < 0.15:  # looks at a phone
        swing[0], bend[0] = 0.35, 2.0
    elif gesture < 0.25:  # both hands in front
        swing, bend = [0.15, 0.1], [1.3, 1.2]
    elif gesture < 0.37:  # hands in the pockets
        swing, bend = [-0.25, -0.25], [0.7, 0.7]
    return Pose(
        yaw=float(orientation * 2 * np.pi / ORIENTATIONS + rng.normal(0, 0.16)),
        phase=phase,
        step=step,
        swing=(float(swing[0]), float(swing[1])),
        bend=(bend[0], bend[1]),
        spread=float(rng.uniform(0.04, 0.16)),
        lean=float(rng.normal(0, 0.018)),
    )


def skeleton(person: Identity, pose: Pose) -> dict[str, Joint]:
    """Return joints in body space by name; `_r` and `_l` are right and left seen from the front."""
    tall = person.height
    hip_y, thigh, shin = 0.515 * tall, 0.235 * tall, 0.24 * tall
    shoulder = (0.088 if person.female else 0.102) * (0.4 + 0.6 * person.build)
    hip = 0.052 * person.build
    joints: dict[str, Joint] = {
        "neck": (0, 0.84 * tall, 0),
        "head": (0, 0.925 * tall, 0.014),
    }
    for name, sign, swing, bend in zip(("_r", "_l"), (1, -1), pose.swing, pose.bend, strict=True):
        turn = pose.step * np.sin(pose.phase) * sign
        knee_bend = 0.06 + 1.1 * pose.step * max(0.0, np.cos(pose.phase) * sign) + max(0.0, -turn)
        knee = (hip * sign, hip_y - thigh * np.cos(turn), thigh * np.sin(turn))
        below = turn - knee_bend
        ankle = (hip * sign * 0.9, knee[1] - shin * np.cos(below), knee[2] + shin * np.sin(below))
        foot_turn = 0.8 * min(0.0, below + 0.2)
        toe = (
            hip * sign * 1.15,
            ankle[1] - 0.022 + 0.10 * np.sin(foot_turn),
            ankle[2] + 0.085 * np.cos(foot_turn),
        )
        joints |= {"hip" + name: (hip * sign, hip_y, 0), "knee" + name: knee}
        joints |= {"ankle" + name: ankle, "toe" + name: toe}
        joints |= _arm(name, sign, shoulder, tall, swing, bend, pose.spread)
    lowest = min(joints["toe_r"][1], joints["toe_l"][1], *(joints[f"ankle_{s}"][1] for s in "rl"))
    drop = lowest - 0.012  # the lower foot is on the ground
    return {k: (float(x), float(y - drop), float(z)) for k, (x, y, z) in joints.items()}


def _arm(
    name: str, sign: int, shoulder: float, tall: float, swing: float, bend: float, spread: float
) -> dict[str, Joint]:
    upper, fore = 0.165 * tall, 0.145 * tall
    start = (shoulder * sign, 0.793 * tall, 0.0)
    out = np.sin(spread) * sign
    elbow = (
        start[0] + upper * out,
        start[1] - upper * np.cos(swing) * np.cos(spread),
        upper * np.sin(swing),
    )
    ahead = swing + bend
    inward = -0.25 * sign * min(bend, 1.5) * fore
    wrist = (
        elbow[0] + inward + 0.3 * fore * out,
        elbow[1] - fore * np.cos(ahead),
        elbow[2] + fore * np.sin(ahead),
    )
    hand = tuple(w + 0.28 * (w - e) for w, e in zip(wrist, elbow, strict=True))
    return {
        "shoulder" + name: start,
        "elbow" + name: elbow,
        "wrist" + name: wrist,
        "hand" + name: (hand[0], hand[1], hand[2]),
    }
