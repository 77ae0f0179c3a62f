"""Sounds of things that strike each other, by modal synthesis: a force pulse excites the modes of a body."""

from __future__ import annotations

import numpy as np

from audioldm2_jax.data.builtin.synthesis import Take, decaying


def knock(take: Take) -> np.ndarray:
    """Knuckles on a wooden door: a panel with many strongly damped modes."""
    draw = take.draw
    frequency, wood = draw.uniform(110, 220), draw.uniform(0.08, 0.16)
    tilt = draw.uniform(0.1, 0.5)
    lowest, modes = frequency, []
    for _ in range(14):
        share = (lowest / frequency) ** 0.5
        modes.append((frequency, wood * share * draw.uniform(0.7, 1.4), draw.uniform(0.3, 1.0) * share ** (2 * tilt)))
        frequency *= draw.uniform(1.15, 1.35)
    force = take.strokes(draw.uniform(0.0002, 0.0006))
    return take.modes(force, modes) + take.scatter(force, 0.006, ((500, -10), (2500, 0), (7000, -12))) * 0.2


def glass(take: Take) -> np.ndarray:
    """Glass that breaks: a crack, and a shower of shards, each with few high modes that ring for a moment."""
    draw = take.draw
    time, onset = take.time(), take.onsets[0]
    crack = take.noise(((400, -8), (2500, 0), (8000, 2))) * decaying(np.maximum(time - onset, 0), 0.001, 0.12)
    sound = crack * (time >= onset) * draw.uniform(0.5, 1.0)
    rain, shower = take.random(), draw.uniform(0.16, 0.34)
    for shard in range(draw.below(14) + 22):
        late = onset + (0.0 if shard < 4 else float(-np.log1p(-rain.random_sample()) * shower))
        lowest = draw.uniform(1800, 4200)
        ring = draw.uniform(0.04, 0.22)
        level = draw.uniform(0.15, 1.0) * 10 ** (-1.2 * (late - onset))
        short = take.time(ring)
        tones = (
            take.sine(np.full(len(short), lowest * ratio, np.float32)) * (level * share)
            for ratio, share in ((1, 0.5), (draw.uniform(1.4, 1.9), 0.6), (draw.uniform(2.1, 2.9), 0.4))
        )
        take.add(sound, sum(tones) * decaying(short, 0.0005, ring), late)
    return sound


def drops(take: Take) -> np.ndarray:
    """Drops that fall into water: a click, and the bubbles below, whose pitch rises as they near the surface
    [van den Doel, Physically based models for liquid sounds, 2005].
    """
    draw = take.draw
    size, rise, decay = draw.uniform(320, 700), draw.uniform(7, 13), draw.uniform(0.1, 0.17)
    click, second, late = draw.uniform(0.2, 0.5), draw.uniform(0.2, 0.75), draw.uniform(0.004, 0.02)
    sound, time = np.zeros(take.samples, np.float32), take.time(0.2)
    for onset in take.onsets:
        pitch = size * draw.uniform(0.85, 1.2)
        take.add(sound, take.noise(((1000, -12), (4000, 0)), 0.2) * decaying(time, 0.0005, 0.008) * click, onset)
        bubble = take.sine(pitch * (1 + rise * time)) * decaying(time, 0.002, decay)
        take.add(sound, bubble, onset + late)
        bubble = take.sine(1.4 * pitch * (1 + rise * time)) * decaying(time, 0.002, decay)
        take.add(sound, bubble * second, onset + late + draw.uniform(0.05, 0.1))
    return sound


def gunshot(take: Take) -> np.ndarray:
    """Shots: a shock of noise, and its echo from all around."""
    draw = take.draw
    low, tilt = draw.uniform(900, 1700), draw.uniform(-12, -4)
    force, echo = take.strokes(0.0001, 0.2), draw.uniform(500, 1300)
    shot = take.scatter(force, draw.uniform(0.22, 0.42), ((60, 0), (low, 0), (8000, tilt)))
    shot += draw.uniform(0.2, 0.45) * take.scatter(force, draw.uniform(0.7, 1.4), ((60, 0), (echo, 0), (echo * 4, -24)))
    return np.tanh(draw.uniform(1.8, 3.2) * shot / np.abs(shot).max())  # no microphone takes it undistorted
