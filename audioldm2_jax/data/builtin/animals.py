"""Voices of animals: a glottis or syrinx whose pitch bends, through the resonances of a throat."""

from __future__ import annotations

import numpy as np

from audioldm2_jax.data.builtin.synthesis import Take, arch


def dog(take: Take) -> np.ndarray:
    """A dog's bark: a burst of harsh voice whose pitch rises and falls, through a mouth that opens and closes."""
    draw = take.draw
    pitch, length, harsh = draw.uniform(270, 390), draw.uniform(0.14, 0.21), draw.uniform(0.7, 1.9)
    jitter, peak, closed = draw.uniform(0.12, 0.35), draw.uniform(0.15, 0.4), draw.uniform(0.84, 0.95)
    size = draw.uniform(1.14, 1.36)
    formants = ((620, 135, draw.uniform(0.6, 1.1)), (1150, 170, 1.0), (1900, 240, 0.7), (3100, 600, 0.5))
    sound = np.zeros(take.samples, np.float32)
    for onset in take.onsets:
        each, base = length * draw.uniform(0.9, 1.1), pitch * draw.uniform(0.95, 1.05)
        bend = take.bend(((0, 0.7), (peak * each, 1.2), (0.5 * each, 1.1), (each, 0.55)), each)
        voice = take.tone(base * bend * (1 + jitter * take.wander(0.004, each)), 1 / np.arange(1, 40) ** 0.44)
        voice = voice / voice.std() + harsh * take.noise(((300, -4), (1500, 0), (6000, -4)), each)
        burst = voice * arch(each, 0.02, 0.78 * each, take.time(each))
        mouth = take.bend(((0, 0), (peak * each, 1), (0.6 * each, 1), (each, 0)), each)
        wide, narrow = (
            take.resonances(burst, [(size * now * hertz, width, gain) for hertz, width, gain in formants])
            for now in (1, closed)
        )
        take.add(sound, wide * mouth + narrow * (1 - mouth), onset)
    return sound


def cat(take: Take) -> np.ndarray:
    """A cat's meow: a clear voice in an arch, through a mouth that opens and closes."""
    draw = take.draw
    pitch, length = draw.uniform(760, 1000), min(draw.uniform(0.65, 1.0), 0.95 * take.period)
    size, tilt, top, jitter = (draw.uniform(*r) for r in ((0.92, 1.18), (0, 0.35), (1.12, 1.5), (0.005, 0.03)))
    breath, formant, high = draw.uniform(0.02, 0.06), draw.uniform(1050, 1420), draw.uniform(0.2, 1.0)
    sound = np.zeros(take.samples, np.float32)
    for onset in take.onsets:
        each = length * draw.uniform(0.92, 1.0)
        bend = take.bend(((0, 0.85), (0.25 * each, top), (0.6 * each, top * 0.96), (each, 0.8)), each)
        voice = take.tone(pitch * bend * (1 + jitter * take.wander(0.02, each)), 1 / np.arange(1, 24) ** tilt)
        voice = voice + breath * take.noise(((800, -10), (3000, 0), (8000, -6)), each)
        closed = take.resonances(voice, [(pitch, 200, 0.8), (2600 * size, 250, 0.5)])
        opened = take.resonances(voice, [(formant, 200, 1.0), (2300 * size, 250, 0.8), (4300 * size, 500, high)])
        late = take.resonances(voice, [(formant * 0.7, 150, 1.0), (1500 * size, 200, 0.5)])
        first = take.bend(((0.05, 1), (0.3 * each, 0)), each)
        last = take.bend(((0.55 * each, 0), (0.95 * each, 1)), each)
        mouth = closed * first + late * last + opened * (1 - first) * (1 - last)
        take.add(sound, mouth * arch(each, 0.08, 0.25, take.time(each)), onset)
    return sound


def cow(take: Take) -> np.ndarray:
    """A cow's moo: a low voice, first through closed lips."""
    draw = take.draw
    pitch, length = draw.uniform(110, 190), min(draw.uniform(1.1, 1.8), take.period * 0.95)
    sound = np.zeros(take.samples, np.float32)
    for onset in take.onsets:
        time = take.time(length)
        bend = take.bend(((0, 0.75), (0.3 * length, 1.0), (0.7 * length, 1.08), (length, 0.7)), length)
        voice = take.tone(pitch * bend * (1 + 0.015 * take.wander(0.02, length)), 1 / np.arange(1, 45) ** 0.4)
        hum = take.resonances(voice, [(280, 60, 1.0), (900, 100, 0.08)])
        opened = take.resonances(voice, [(330, 70, 0.8), (620, 90, 1.0), (1300, 150, 0.3), (2500, 300, 0.1)])
        lips = take.bend(((0.15, 0), (0.5, 1), (length - 0.3, 1), (length, 0.2)), length)
        call = take.shape(hum * (1 - lips) + opened * lips, ((100, -10), (300, 0), (1200, 0), (3000, -20)))
        take.add(sound, call * arch(length, 0.15, 0.35, time), onset)
    return sound


def bird(take: Take) -> np.ndarray:
    """A songbird: a motif of short whistles that sweep, again and again with small changes."""
    draw = take.draw
    centre = draw.uniform(2600, 4800)
    motif = [
        (draw.uniform(0.04, 0.13), draw.uniform(0.75, 1.3), draw.uniform(0.7, 1.4), draw.chance(0.3))
        for _ in range(2 + draw.below(3))
    ]
    pause = draw.uniform(0.02, 0.06)
    sound, now = np.zeros(take.samples, np.float32), 0.0
    while now < take.seconds:
        for length, place, sweep, trilled in motif:
            each = length * draw.uniform(0.9, 1.1)
            time = take.time(each)
            start = centre * place * draw.uniform(0.97, 1.03)
            pitch = start * np.float32(sweep) ** (time / np.float32(each))
            if trilled:
                pitch *= 1 + 0.08 * np.sin(2 * np.pi * 35 * time)
            note = take.sine(pitch) + 0.08 * take.sine(2 * pitch)
            take.add(sound, note * arch(each, 0.012, 0.03, time), now)
            now += each + pause
        now += draw.uniform(0.12, 0.35)
    return sound


def cricket(take: Take) -> np.ndarray:
    """A cricket: a carrier near its wing's resonance in chirps of a few pulses."""
    draw = take.draw
    pitch, pulse_rate = draw.uniform(3900, 5200), draw.uniform(26, 40)
    pulses, rate = 3 + draw.below(3), draw.uniform(2.2, 4.0)
    envelope, now = np.zeros(take.samples, np.float32), 0.02
    time = take.time(0.03)
    wing = np.sin(np.pi * np.minimum(time * pulse_rate * 1.25, 0.999)) ** 1.2
    while now < take.seconds:
        for number in range(pulses):
            take.add(envelope, wing * np.float32(0.5 + 0.5 * (number + 1) / pulses), now + number / pulse_rate)
        now += max(1 / rate * draw.uniform(0.95, 1.05), (pulses + 1) / pulse_rate)
    pitch = min(pitch, 0.4 * take.sampling_rate)  # a low sampling rate has no higher tones
    carrier = take.sine(pitch * (1 + 0.004 * take.wander(0.05)))
    return carrier * envelope


def crow(take: Take) -> np.ndarray:
    """A crow's caw: a rough voice, every other period weaker, through a short throat."""
    draw = take.draw
    pitch, length = draw.uniform(450, 620), draw.uniform(0.25, 0.45)
    sound = np.zeros(take.samples, np.float32)
    for onset in take.onsets:
        bend = take.bend(((0, 0.85), (0.25 * length, 1.05), (0.7 * length, 1.0), (length, 0.8)), length)
        partials = np.where(np.arange(1, 60) % 2, 0.45, 1.0) / np.arange(1, 60) ** 0.2
        voice = take.tone(0.5 * pitch * bend * (1 + 0.06 * take.wander(0.005, length)), partials)
        voice = voice / voice.std() + 0.5 * take.noise(((500, -8), (1500, 0), (5000, -8)), length)
        throat = [(1050, 200, 0.7), (1650, 250, 1.0), (2300, 300, 0.7), (3600, 700, 0.25)]
        caw = take.shape(take.resonances(voice, throat), ((400, -20), (900, 0)))
        take.add(sound, caw * arch(length, 0.05, 0.12, take.time(length)), onset)
    return sound


def sheep(take: Take) -> np.ndarray:
    """A sheep's bleat: a nasal voice that trembles some nine times a second."""
    draw = take.draw
    pitch, length = draw.uniform(190, 330), min(draw.uniform(0.6, 1.0), take.period * 0.95)
    tremble = draw.uniform(7, 11)
    sound = np.zeros(take.samples, np.float32)
    for onset in take.onsets:
        time = take.time(length)
        shake = np.sin(2 * np.pi * tremble * time)
        voice = take.tone(pitch * (1 + 0.05 * shake + 0.02 * take.wander(0.01, length)), 1 / np.arange(1, 40) ** 0.5)
        throat = [(650, 150, 1.0), (1500, 250, 0.9), (2400, 350, 0.6), (3500, 600, 0.3)]
        bleat = take.resonances(voice, throat) * (0.65 + 0.35 * shake)
        take.add(sound, bleat * arch(length, 0.05, 0.15, time), onset)
    return sound
