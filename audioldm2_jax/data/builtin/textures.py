"""Sounds that go on: water, air, fire, machines, crowds; noise with structure at several scales of time."""

from __future__ import annotations

import numpy as np

from audioldm2_jax.data.builtin.synthesis import Take, arch, decaying


def rain(take: Take) -> np.ndarray:
    """Rain: the hiss of countless drops, and near ones that can be told apart."""
    draw = take.draw
    low, high, top = draw.uniform(-8, -3), draw.uniform(-4, 0), draw.uniform(-12, -4)
    fall = ((100, -14), (400, low), (1500, 0), (4000, high), (8000, top))
    near = take.shape(take.grains(draw.uniform(150, 500), 0.7), ((300, -14), (1500, 0), (4000, 0), (8000, -8)))
    return take.noise(fall) + near * (draw.uniform(1.0, 5.0) * take.sampling_rate / 16000)


def waves(take: Take) -> np.ndarray:
    """Waves on a beach: each swells as a roar and runs out as a hiss."""
    draw = take.draw
    period = draw.uniform(2.4, 4.5)
    place = (take.time() / np.float32(period) + draw.uniform(0.0, 0.5)) % 1
    swell = np.square(np.sin(np.pi * place**1.3))
    foam = np.square(np.sin(np.pi * np.clip(place * 1.25 - 0.25, 0, 1)))
    roar = take.noise(((60, -8), (200, 0), (700, -4), (2500, -22)))
    hiss = take.noise(((300, -24), (1500, -4), (4000, 0), (9000, -5)))
    return roar * (0.15 + swell) + hiss * (0.06 + foam) * draw.uniform(0.35, 0.8)


def thunder(take: Take) -> np.ndarray:
    """Thunder: claps of the near lightning, then rolls from ever farther parts of it."""
    draw = take.draw
    time, low, middle = take.time(), draw.uniform(180, 260), draw.uniform(1100, 2200)
    rumble = take.noise(((30, 0), (low, 0), (low * 4, -26), (4000, -60)))
    crack = take.noise(((60, 0), (middle, -4), (middle * 4, -28)))
    peal, roll = np.zeros_like(time), np.full_like(time, 0.25)
    for _ in range(3 + draw.below(3)):
        late = draw.uniform(0, 0.5)
        peal += draw.uniform(0.3, 1) * decaying(np.maximum(time - late, 0), 0.004, 0.3) * (time >= late)
    attack, decay = draw.uniform(0.12, 0.23), draw.uniform(0.9, 1.6)
    for _ in range(4 + draw.below(5)):
        late = draw.uniform(0, 0.7) * take.seconds
        roll += draw.uniform(0.3, 1) * decaying(np.maximum(time - late, 0), attack, decay) * (time >= late)
    fade = np.exp(-time * draw.uniform(0.15, 0.55)) * arch(take.seconds, 0.005, 0.4, time)
    return (2.0 * rumble * roll + crack * peal * draw.uniform(0.1, 0.4)) * fade


def fire(take: Take) -> np.ndarray:
    """A wood fire: the low lapping of flames, hiss of gas, and crackles as the wood splits."""
    draw = take.draw
    lapping = take.noise(((40, 0), (120, 0), (400, -10), (2000, -30))) * (0.7 + 0.3 * take.wander(0.12))
    hiss = take.noise(((300, -14), (2000, 0), (8000, -4))) * (0.7 + 0.3 * take.wander(0.3))
    sound = lapping * draw.uniform(0.4, 1.0) + hiss * draw.uniform(0.12, 0.3)
    for density, length, size in ((draw.uniform(60, 160), 0.012, 1.2), (draw.uniform(8, 20), 0.03, 1.5)):
        wood = ((300, -12), (draw.uniform(1000, 3500), 0), (8000, -8))
        sound += take.scatter(np.abs(take.grains(density, 0.8)), length, wood) * size
    return sound


def applause(take: Take) -> np.ndarray:
    """Applause: claps of many people at random, near and far, each a short burst of noise, over those too far to tell
    apart.
    """
    draw = take.draw
    claps = np.abs(take.grains(draw.uniform(400, 700), draw.uniform(0.65, 0.95)))
    hands = ((250, draw.uniform(-22, -16)), (draw.uniform(1500, 2100), 0), (9000, draw.uniform(-27, -19)))
    sound = take.scatter(claps, draw.uniform(0.033, 0.055), hands)
    crowd = take.noise(((200, -14), (1200, 0), (4000, -6), (9000, -18)))
    return sound / sound.std() + crowd * draw.uniform(0.3, 0.7)


def engine(take: Take) -> np.ndarray:
    """A combustion engine that runs evenly or revs up: explosions, each a little different, through an exhaust."""
    draw = take.draw
    pace = draw.uniform(45, 115)
    rev = draw.uniform(1.3, 2.2) if draw.chance(0.4) else draw.uniform(0.9, 1.15)
    rate = take.bend(((0.3 * take.seconds, pace), (0.8 * take.seconds, pace * rev))) * (1 + 0.02 * take.wander(0.3))
    explosions = _pulses(take, rate, draw.uniform(0.4, 0.7), 4)
    pipe, slope = draw.uniform(110, 180), draw.uniform(-44, -35)
    burning = ((50, 0), (pipe, 4), (pipe * 2.2, -8), (1500, draw.uniform(-5, 1)), (8000, slope))
    exhaust = take.scatter(explosions, draw.uniform(0.045, 0.07), burning)
    body = ((30, -6), (pipe, 0), (pipe * 2, -8), (pipe * 3.3, -4), (1500, -24), (8000, -60))
    thump = take.shape(explosions, body)
    gas = take.noise(((60, 0), (250, -4), (1000, -14), (8000, slope)))
    return (
        exhaust / exhaust.std()
        + thump * (draw.uniform(1.3, 2.0) / thump.std())
        + gas * (draw.uniform(0.25, 0.6) / gas.std())
    )


def helicopter(take: Take) -> np.ndarray:
    """A helicopter: the slap of the blades, noise that they chop, and a turbine's whine."""
    draw = take.draw
    rate = draw.uniform(12, 17) * (1 + 0.02 * take.wander(0.8))
    phase = 2 * np.pi * np.cumsum(rate / take.sampling_rate)
    chop = np.exp(draw.uniform(1.7, 2.7) * (np.cos(phase) - 1)).astype(np.float32)
    thump = take.shape(chop * (1 + 0.15 * take.wander(0.07)), ((15, -8), (40, 0), (120, 0), (300, -30)))
    air = take.noise(((50, 0), (draw.uniform(400, 900), 0), (8000, draw.uniform(-40, -32))))
    air *= draw.uniform(0.35, 0.65) + chop
    whine = take.tone(draw.uniform(500, 1100) * (1 + 0.004 * take.wander(0.4)), (1, 0.5, 0.3, 0.2))
    return thump * (draw.uniform(0.4, 0.7) / thump.std()) + air * (1.5 / air.std()) + whine * draw.uniform(0.04, 0.1)


def _pulses(take: Take, rate: np.ndarray, unevenness: float, cylinders: int) -> np.ndarray:
    """[samples] float32: an impulse at each turn of `rate` [samples] Hz, of strength that repeats every few turns."""
    phase = np.cumsum(rate, dtype=np.float64) / take.sampling_rate
    places = np.flatnonzero(np.diff(np.floor(phase)))
    random = take.random()
    own = 1 + unevenness * (random.random_sample(cylinders) * 2 - 1)
    strength = own[np.arange(len(places)) % cylinders] * (1 + unevenness * (random.random_sample(len(places)) - 0.5))
    sound = np.zeros(take.samples, np.float32)
    sound[places] = strength
    return sound
