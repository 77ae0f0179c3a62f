"""Sounds made to be heard: bells, telephones, sirens, horns, beeps, whistles."""

from __future__ import annotations

import numpy as np

from audioldm2_jax.data.builtin.synthesis import Take, arch

# Partials of a tuned bell over its strike note, and their share of loudness and of the time they ring.
_BELL = ((0.5, 0.7, 1.0), (1.0, 0.9, 0.7), (1.19, 0.9, 0.6), (1.5, 0.4, 0.4), (2.0, 1.0, 0.45), (2.52, 0.45, 0.25))
_BELL += ((2.66, 0.35, 0.25), (3.01, 0.5, 0.2), (4.1, 0.4, 0.14), (5.4, 0.3, 0.1), (6.8, 0.2, 0.08))


def bell(take: Take) -> np.ndarray:
    """A church bell: hum, prime, tierce, quint, nominal and above, each split in two that beat."""
    draw = take.draw
    strike, ring, split = draw.uniform(650, 1400), draw.uniform(4.0, 6.0), draw.uniform(0.7, 1.4)
    tilt, hum = draw.uniform(-0.65, -0.2), draw.uniform(0.4, 0.9)
    modes = []
    for ratio, level, share in _BELL:
        level *= ratio**tilt * (hum if ratio < 1 else 1)
        for side in (-split, split):
            frequency = strike * ratio + side * draw.uniform(0.5, 1.5)
            modes.append((frequency, ring * share, level * draw.uniform(0.3, 0.7)))
    return take.modes(take.strokes(draw.uniform(0.0004, 0.0007)), modes)


def telephone(take: Take) -> np.ndarray:
    """A telephone with a bell: a clapper strikes two small gongs in turn, some 25 times a second."""
    draw = take.draw
    low, rate = draw.uniform(900, 1500), draw.uniform(20, 28)
    high, ring = low * draw.uniform(1.12, 1.3), draw.uniform(0.5, 1.0)
    length = draw.uniform(0.75, 0.95) * take.period
    sound = np.zeros(take.samples, np.float32)
    for number, pitch in enumerate((low, high)):
        force = np.zeros(take.samples, np.float32)
        pulse = take.pulse(0.0002)
        for onset in take.onsets:
            for stroke in range(int(length * rate)):
                take.add(force, pulse * draw.uniform(0.7, 1.0), onset + (stroke + 0.5 * number) / rate)
        modes = [(pitch * r, ring * share, a) for r, share, a in ((1, 1, 0.6), (2.35, 0.7, 1.0), (3.9, 0.4, 0.8))]
        sound += take.modes(force, modes)
    return sound


def horn(take: Take) -> np.ndarray:
    """A car's horns: two notes a third apart, each of a membrane that hits its stop: rich in partials."""
    draw = take.draw
    low = draw.uniform(330, 440)
    partials = 1 / np.arange(1, 40) ** draw.uniform(0.2, 0.6)
    both = np.zeros(take.samples, np.float32)
    for pitch, level in ((low, 1.0), (low * draw.uniform(1.19, 1.27), draw.uniform(0.7, 1.0))):
        both += level * take.tone(np.full(take.samples, pitch, np.float32), partials)
    both = take.shape(both, ((250, -10), (900, 0), (draw.uniform(2000, 3000), 4), (4500, -8), (8000, -24)))
    length, time, envelope = draw.uniform(0.7, 0.9) * take.period, take.time(), np.zeros(take.samples, np.float32)
    for onset in take.onsets:
        envelope += arch(length, 0.02, 0.05, time - np.float32(onset))
    return both * envelope


def siren(take: Take) -> np.ndarray:
    """A siren of an emergency vehicle: a wail, a quick yelp, or two tones in turn."""
    draw = take.draw
    time = take.time()
    kind = draw.pick(("wail", "wail", "yelp", "two tones"))
    if kind == "two tones":
        low, each = draw.uniform(420, 620), draw.uniform(0.4, 0.7)
        high = np.sin(np.pi * (time / each + draw.random() * 2)) > 0
        pitch = low * np.where(high, np.float32(draw.uniform(1.25, 1.4)), np.float32(1))
    else:
        low, high = draw.uniform(450, 700), draw.uniform(1150, 1600)
        cycle = draw.uniform(0.25, 0.4) if kind == "yelp" else draw.uniform(1.6, 3.5)
        place = (time / cycle + draw.random()) % 1
        rise = draw.uniform(0.4, 0.7)
        swing = np.where(place < rise, place / rise, (1 - place) / (1 - rise))
        pitch = low * (high / low) ** swing
    partials = 1 / np.arange(1, 14) ** draw.uniform(0.9, 1.5)
    sound = take.tone(pitch.astype(np.float32), partials)
    sound = take.shape(sound, ((300, -12), (800, 0), (3000, 0), (6000, -20)))
    return sound * arch(take.seconds, 0.03, 0.06, time)


def beeps(take: Take) -> np.ndarray:
    """Beeps of an alarm clock or a machine: a high tone of a tenth of a second or two."""
    draw = take.draw
    even, odd = draw.uniform(0, 0.7), draw.uniform(0.2, 0.9)
    pitch = np.full(take.samples, draw.uniform(2300, 3600), np.float32)
    length, time, envelope = draw.uniform(0.35, 0.6) * take.period, take.time(), np.zeros(take.samples, np.float32)
    for onset in take.onsets:
        envelope += arch(length, 0.003, 0.005, time - np.float32(onset))
    return take.tone(pitch, (1, even, odd, even / 2, odd / 2)) * envelope


def whistle(take: Take) -> np.ndarray:
    """A referee's whistle: two close tones that a pea interrupts some 40 times a second, and breath."""
    draw = take.draw
    pitch, rate, breath = draw.uniform(2100, 2900), draw.uniform(36, 52), draw.uniform(-22, -13)
    time, second = take.time(), draw.uniform(0.08, 0.22)
    pea = np.sin(2 * np.pi * (rate * time + 0.6 * take.wander(0.1)))
    wavering = pitch * (1 + draw.uniform(0.028, 0.048) * pea + 0.01 * take.wander(0.15))
    sound = take.tone(wavering, (1, second, second / 2))
    sound += 0.6 * take.tone(wavering * draw.uniform(1.01, 1.05), (1, second))
    sound *= 1 + draw.uniform(0.15, 0.55) * pea
    sound += take.noise(((1000, breath - 15), (pitch, breath), (8000, breath - 5)))
    length, envelope = draw.uniform(0.65, 0.9) * take.period, np.zeros(take.samples, np.float32)
    for onset in take.onsets:
        envelope += arch(length, 0.02, 0.05, time - np.float32(onset))
    return sound * envelope
