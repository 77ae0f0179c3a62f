"""The classes of the embedded sound effects: how each is made, how it lies in time, and the words for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from audioldm2_jax.data.builtin import animals, impacts, signals, textures
from audioldm2_jax.data.builtin.synthesis import Take


@dataclass(frozen=True)
class Sound:
    """A class of sound events.

    Attributes:
        name: as labels have it.
        make: a sound from its parameters, [samples] float32 at any level.
        things: nouns with article, each for one of them and, where they are counted, for several ("{} knocks").
        doings: (who, what it does, what it is doing), as in "a dog barks" and "a dog barking".
        lasts: seconds that one takes, or the last of several; None: as long as there is room.
        every: seconds from one to the next; None: it is not counted.
        background: whether it may go on under others.
    """

    name: str
    make: Callable[[Take], np.ndarray]
    things: tuple[str | tuple[str, str], ...]
    doings: tuple[tuple[str, str, str], ...]
    lasts: tuple[float, float] | None = None
    every: tuple[float, float] | None = None
    background: bool = False

    def most(self, seconds: float) -> int:
        """How many of them fit into `seconds`, up to 4; 0: not one."""
        if self.lasts is None:
            return 1
        spare = seconds - self.lasts[0]
        if spare < 0:
            return 0
        return 1 if self.every is None else min(1 + int(spare / self.every[0]), 4)


_ALL = (
    Sound(
        "knock",
        impacts.knock,
        (("a knock on a door", "knocks on a door"), ("a knock", "knocks"), ("a knock on wood", "knocks on wood")),
        (("someone", "knocks on a door", "knocking on a door"), ("someone", "knocks", "knocking")),
        lasts=(0.3, 0.4),
        every=(0.18, 0.32),
    ),
    Sound(
        "rain",
        textures.rain,
        ("rain", "falling rain", "the sound of rain"),
        (("rain", "falls", "falling"), ("rain", "pours down", "pouring down")),
        background=True,
    ),
    Sound(
        "bell",
        signals.bell,
        (("a bell", "strokes of a bell"), ("a church bell", "strokes of a church bell")),
        (("a bell", "rings", "ringing"), ("a church bell", "tolls", "tolling")),
        lasts=(1.0, 1.6),
        every=(0.7, 1.2),
    ),
    Sound(
        "dog",
        animals.dog,
        (("a bark", "barks"), ("a bark of a dog", "barks of a dog"), ("a dog's bark", "barks of a dog")),
        (("a dog", "barks", "barking"), ("a dog", "barks", "barking")),
        lasts=(0.28, 0.4),
        every=(0.3, 0.5),
    ),
    Sound(
        "siren",
        signals.siren,
        ("a siren", "the siren of an emergency vehicle", "a police siren"),
        (("a siren", "wails", "wailing"), ("a siren", "sounds", "sounding")),
    ),
    Sound(
        "fire",
        textures.fire,
        ("a fire", "a crackling fire", "the crackling of a fire"),
        (("a fire", "crackles", "crackling"), ("a fire", "burns", "burning")),
        background=True,
    ),
    Sound(
        "glass",
        impacts.glass,
        ("breaking glass", "shattering glass", "the sound of breaking glass"),
        (("glass", "breaks", "breaking"), ("a glass", "shatters", "shattering")),
        lasts=(0.8, 1.3),
    ),
    Sound(
        "gunshot",
        impacts.gunshot,
        (("a gunshot", "gunshots"), ("a shot", "shots"), ("a shot of a gun", "shots of a gun")),
        (("a gun", "fires", "firing"), ("someone", "shoots", "shooting")),
        lasts=(0.6, 1.0),
        every=(0.3, 0.6),
    ),
    Sound(
        "bird",
        animals.bird,
        ("birdsong", "the song of a bird", "a bird's song"),
        (("a bird", "sings", "singing"), ("a bird", "chirps", "chirping")),
        background=True,
    ),
    Sound(
        "telephone",
        signals.telephone,
        (("a ringing telephone", "rings of a telephone"), ("a telephone", "rings of a telephone")),
        (("a telephone", "rings", "ringing"), ("a phone", "rings", "ringing")),
        lasts=(0.75, 1.2),
        every=(0.75, 1.2),
    ),
    Sound(
        "waves",
        textures.waves,
        ("waves", "the waves of the sea", "ocean waves"),
        (("waves", "break on a beach", "breaking on a beach"), ("waves", "roll in", "rolling in")),
        background=True,
    ),
    Sound(
        "horn",
        signals.horn,
        (("a car horn", "blasts of a car horn"), ("a honk", "honks"), ("a honk of a car", "honks of a car")),
        (("a car", "honks", "honking"), ("a car", "honks its horn", "honking its horn")),
        lasts=(0.45, 0.9),
        every=(0.4, 0.8),
    ),
    Sound(
        "helicopter",
        textures.helicopter,
        ("a helicopter", "a helicopter overhead", "the sound of a helicopter"),
        (("a helicopter", "hovers", "hovering"), ("a helicopter", "flies by", "flying by")),
        background=True,
    ),
    Sound(
        "cat",
        animals.cat,
        (("a meow", "meows"), ("a meow of a cat", "meows of a cat"), ("a cat's meow", "meows of a cat")),
        (("a cat", "meows", "meowing"), ("a kitten", "meows", "meowing")),
        lasts=(0.75, 1.05),
        every=(0.85, 1.1),
    ),
    Sound(
        "thunder",
        textures.thunder,
        ("thunder", "a clap of thunder", "rolling thunder"),
        (("thunder", "rolls", "rolling"), ("thunder", "rumbles", "rumbling")),
    ),
    Sound(
        "beep",
        signals.beeps,
        (("a beep", "beeps"), ("a short beep", "short beeps"), ("an electronic beep", "electronic beeps")),
        (("a machine", "beeps", "beeping"), ("an alarm clock", "beeps", "beeping")),
        lasts=(0.22, 0.4),
        every=(0.2, 0.4),
    ),
    Sound(
        "engine",
        textures.engine,
        ("an engine", "a running engine", "the sound of a motor"),
        (("an engine", "runs", "running"), ("a motor", "runs", "running")),
        background=True,
    ),
    Sound(
        "crow",
        animals.crow,
        (("a caw", "caws"), ("a caw of a crow", "caws of a crow"), ("a crow's caw", "caws of a crow")),
        (("a crow", "caws", "cawing"), ("a crow", "calls", "calling")),
        lasts=(0.4, 0.55),
        every=(0.4, 0.7),
    ),
    Sound(
        "applause",
        textures.applause,
        ("applause", "the applause of a crowd", "clapping"),
        (("a crowd", "applauds", "applauding"), ("people", "clap", "clapping")),
    ),
    Sound(
        "whistle",
        signals.whistle,
        (("a whistle", "blasts of a whistle"), ("a referee's whistle", "blasts of a referee's whistle")),
        (("a referee", "whistles", "whistling"), ("someone", "blows a whistle", "blowing a whistle")),
        lasts=(0.45, 0.9),
        every=(0.4, 0.8),
    ),
    Sound(
        "cricket",
        animals.cricket,
        ("a cricket", "the chirping of a cricket", "a chirping cricket"),
        (("a cricket", "chirps", "chirping"), ("a cricket", "sings", "singing")),
        background=True,
    ),
    Sound(
        "cow",
        animals.cow,
        (("a moo", "moos"), ("a moo of a cow", "moos of a cow"), ("a cow's moo", "moos of a cow")),
        (("a cow", "moos", "mooing"), ("a cow", "lows", "lowing")),
        lasts=(1.05, 1.5),
        every=(1.2, 1.5),
    ),
    Sound(
        "drop",
        impacts.drops,
        (("a drop of water", "drops of water"), ("a water drop", "water drops"), ("a falling drop", "falling drops")),
        (("water", "drips", "dripping"), ("a tap", "drips", "dripping")),
        lasts=(0.3, 0.4),
        every=(0.3, 0.7),
    ),
    Sound(
        "sheep",
        animals.sheep,
        (("a bleat", "bleats"), ("a bleat of a sheep", "bleats of a sheep"), ("a sheep's bleat", "bleats of a sheep")),
        (("a sheep", "bleats", "bleating"), ("a goat", "bleats", "bleating")),
        lasts=(0.65, 0.95),
        every=(0.7, 1.1),
    ),
)

SOUNDS: dict[str, Sound] = {sound.name: sound for sound in _ALL}
