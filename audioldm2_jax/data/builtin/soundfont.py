"""A small SoundFont 2 reader: one tone of one preset, in tune and with its envelope.

Why not a synthesizer library: symusic 0.5 plays this font's samples without their tuning (up to half a semitone off)
and without their envelopes (a piano that does not fade); TinySoundFont and FluidSynth need system libraries that a
plain `pip install` does not bring. What a tone needs of the format is little: key zones, sample loops, tuning,
attenuation and the volume envelope up to the release. Filters, modulators and vibrato are not played.

Generator numbers, units and defaults: SoundFont 2.04 technical specification, sections 8.1.2 and 8.1.3.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

_INSTRUMENT, _KEYS, _VELOCITIES, _SAMPLE, _MODES, _ROOT, _SCALE = 41, 43, 44, 53, 54, 58, 56
_COARSE, _FINE, _ATTENUATION = 51, 52, 48
_DELAY, _ATTACK, _HOLD, _DECAY, _SUSTAIN = range(33, 38)
_LOOP_START, _LOOP_END, _LOOP_START_COARSE, _LOOP_END_COARSE = 2, 3, 45, 50
_DEFAULTS = {_KEYS: 127 << 8, _VELOCITIES: 127 << 8, _ROOT: -1, _SCALE: 100} | dict.fromkeys(range(33, 37), -12000)
_ADDED = (_COARSE, _FINE, _ATTENUATION, _SUSTAIN, _SCALE, _DELAY, _ATTACK, _HOLD, _DECAY)  # a preset's are offsets
_SILENCE = 100.0  # dB, what a decay aims at


@dataclass(frozen=True)
class Zone:
    """The generators that hold for one key of one preset and the sample they play (start, end, loop, rate, root)."""

    generators: dict[int, int]
    sample: tuple[int, ...]

    def get(self, generator: int) -> int:
        return self.generators.get(generator, _DEFAULTS.get(generator, 0))

    def seconds(self, generator: int) -> float:
        """A time in timecents."""
        return 2.0 ** (self.get(generator) / 1200.0)


class SoundFont:
    """The presets and samples of a SoundFont 2 file.

    Raises:
        ValueError: the file is no SoundFont 2.
    """

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
            raise ValueError(f"{path} is not a SoundFont 2 file")
        chunks = dict(_chunks(data, 12, len(data)))
        self._samples = np.frombuffer(chunks[b"smpl"], "<i2")
        self._headers = [struct.unpack("<20x5IBbHH", row)[:7] for row in _rows(chunks[b"shdr"], 46)]
        presets = [struct.unpack("<20xHHH12x", row) for row in _rows(chunks[b"phdr"], 38)]
        instruments = [struct.unpack("<20xH", row)[0] for row in _rows(chunks[b"inst"], 22)]
        preset_bags = _bags(chunks[b"pbag"], chunks[b"pgen"])
        instrument_bags = _bags(chunks[b"ibag"], chunks[b"igen"])
        self._instruments = [instrument_bags[a:b] for a, b in itertools.pairwise(instruments)]
        self._presets = {
            (bank, program): preset_bags[bag:end] for (program, bank, bag), (_, _, end) in itertools.pairwise(presets)
        }

    def zones(self, bank: int, program: int, key: int, velocity: int) -> list[Zone]:
        """The zones that sound for a key; empty where the preset has no sample for it."""
        zones = []
        for preset, number in _zones(self._presets.get((bank, program), []), _INSTRUMENT):
            if not _covers(preset, key, velocity):
                continue
            for instrument, sample in _zones(self._instruments[number], _SAMPLE):
                if _covers(instrument, key, velocity):
                    merged = dict(instrument)
                    for generator in _ADDED:
                        if generator in preset:
                            merged[generator] = (
                                instrument.get(generator, _DEFAULTS.get(generator, 0)) + preset[generator]
                            )
                    zones.append(Zone(merged, self._headers[sample]))
        return zones

    def tone(self, bank: int, program: int, key: int, seconds: float, sampling_rate: int) -> np.ndarray:
        """Holds one key for `seconds`.

        Returns:
            [samples] float32; zeros where the sample is shorter or the preset has none for the key.
        """
        tone = np.zeros(round(seconds * sampling_rate), np.float32)
        for zone in self.zones(bank, program, key, 100):
            layer = self._layer(zone, key, seconds, sampling_rate)[: len(tone)]
            tone[: len(layer)] += layer
        return tone

    def _layer(self, zone: Zone, key: int, seconds: float, sampling_rate: int) -> np.ndarray:
        start, end, loop_start, loop_end, rate, root, correction = zone.sample
        loop_start += zone.get(_LOOP_START) + 32768 * zone.get(_LOOP_START_COARSE)
        loop_end += zone.get(_LOOP_END) + 32768 * zone.get(_LOOP_END_COARSE)
        root = zone.get(_ROOT) if zone.get(_ROOT) >= 0 else root
        cents = (key - root) * zone.get(_SCALE) + zone.get(_COARSE) * 100 + zone.get(_FINE) + correction
        speed = rate * 2.0 ** (cents / 1200.0)  # source samples a second
        needed = int(seconds * speed) + 64
        wave = self._samples[start:end]
        if zone.get(_MODES) & 1 and loop_end > loop_start:
            head, loop = self._samples[start:loop_start], self._samples[loop_start:loop_end]
            wave = np.concatenate([head, np.tile(loop, max(-(-(needed - len(head)) // len(loop)), 1))])
        # Resampling with a low-pass is what keeps high keys from folding back.
        wave = soxr.resample(wave[:needed].astype(np.float32) / 32768.0, speed, sampling_rate, quality="MQ")
        gain = 10.0 ** (-0.4 * zone.get(_ATTENUATION) / 200.0)  # centibels; players take 0.4 of what is written
        return wave * (gain * _envelope(zone, len(wave), sampling_rate)).astype(np.float32)


def _envelope(zone: Zone, length: int, sampling_rate: int) -> np.ndarray:
    """Delay, linear attack, hold, then a decay linear in dB to the sustain level (8.1.2)."""
    time = np.arange(length, dtype=np.float32) / sampling_rate
    delay, attack = zone.seconds(_DELAY), zone.seconds(_ATTACK)
    since_hold = time - (delay + attack + zone.seconds(_HOLD))
    fall = np.clip(since_hold * (_SILENCE / zone.seconds(_DECAY)), 0.0, min(zone.get(_SUSTAIN) / 10.0, _SILENCE))
    return np.clip((time - delay) / attack, 0.0, 1.0) * 10.0 ** (-fall / 20.0)


def _chunks(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of the chunks, lists opened."""
    while start + 8 <= end:
        name, size = data[start : start + 4], struct.unpack_from("<I", data, start + 4)[0]
        if name == b"LIST":
            yield from _chunks(data, start + 12, start + 8 + size)
        else:
            yield name, data[start + 8 : start + 8 + size]
        start += 8 + size + size % 2


def _rows(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def _bags(bags: bytes, generators: bytes) -> list[dict[int, int]]:
    """The generators of each bag; amounts are signed, but ranges and indices are not."""
    starts = np.frombuffer(bags, "<u2")[::2].tolist()
    pairs = np.frombuffer(generators, np.dtype([("generator", "<u2"), ("amount", "<i2")])).tolist()
    unsigned = (_INSTRUMENT, _KEYS, _VELOCITIES, _SAMPLE)
    return [
        {number: amount % 65536 if number in unsigned else amount for number, amount in pairs[a:b]}
        for a, b in itertools.pairwise(starts)
    ]


def _zones(bags: list[dict[int, int]], target: int) -> Iterator[tuple[dict[int, int], int]]:
    """(generators, target's index) of each zone, with the global zone (the first, if it names no target) below it."""
    common: dict[int, int] = {}
    for number, bag in enumerate(bags):
        if target in bag:
            yield {**common, **bag}, bag[target]
        elif number == 0:
            common = bag


def _covers(zone: dict[int, int], key: int, velocity: int) -> bool:
    for generator, value in ((_KEYS, key), (_VELOCITIES, velocity)):
        span = zone.get(generator, _DEFAULTS[generator])
        if not (span & 255) <= value <= (span >> 8):
            return False
    return True
