"""Sentences of everyday words, from a grammar that never says the same in two ways.

Each rule has its alternatives, all equally likely; `<name>` stands for one of the rule of that name, as in the Java
Speech Grammar Format. All words are in the CMU dictionary and no two of them sound the same, so that a recogniser of
speech can tell what was said.
"""

from __future__ import annotations

import re

from audioldm2_jax.data.draw import Draw, digest

RULES: dict[str, tuple[str, ...]] = {
    "sentence": (
        "<someone> <does> <something>.",
        "<someone> <does> <number> <things>.",
        "<someone> <does> <colour> <things>.",
        "<someone> <moves> <place>.",
        "<someone> <moves> <when>.",
        "<someone> <moves> <place> <when>.",
        "<someone> is <feeling> <when>.",
        "<people> <do> <things>.",
        "<people> <do> <something>.",
        "<people> <do> <number> <things>.",
        "<people> <do> <number> <colour> <things>.",
        "<people> <go> <place>.",
        "<people> <go> <place> <when>.",
        "please <handle> <something>.",
        "please <handle> <number> <things>.",
        "please <go> <when>.",
        "please <go> <place>.",
        "can <people> <handle> <something>?",
        "can <people> <go> <place>?",
        "can <people> <go>?",
        "where is <something>?",
        "where are <whose> <things>?",
        "<something> is <quality>.",
        "<whose> <things> are <quality>.",
        "<number> <things> are <quality>.",
    ),
    "someone": ("<whose> <person>", "the <person>", "the <animal>", "<whose> <animal>"),
    "something": ("<whose> <thing>", "the <thing>", "the <colour> <thing>", "<whose> <colour> <thing>"),
    "whose": ("my", "your", "his", "her"),
    "person": (
        *("mother", "father", "brother", "sister", "teacher", "doctor", "farmer", "baker"),
        *("painter", "driver", "neighbor", "singer"),
    ),
    "animal": ("dog", "cat", "horse", "rabbit", "monkey", "parrot"),
    "people": ("we", "you", "they"),
    "does": ("sees", "likes", "finds", "wants", "needs", "carries", "washes", "brings"),
    "do": ("<feel>", "<handle>"),
    "feel": ("see", "like", "want", "need"),
    "handle": ("find", "carry", "wash", "bring"),
    "moves": ("sleeps", "walks", "sings", "waits", "works", "runs", "dances", "plays"),
    "go": ("sleep", "walk", "sing", "wait", "work", "run", "dance", "play"),
    "number": ("two", "three", "five", "six", "seven", "nine", "ten", "twenty"),
    "colour": ("red", "green", "yellow", "brown", "black", "white", "purple", "orange"),
    "thing": (
        *("book", "letter", "apple", "table", "basket", "bottle", "jacket", "window"),
        *("pencil", "ladder", "bicycle", "guitar", "lemon", "pillow", "button", "candle"),
    ),
    "things": (
        *("books", "letters", "apples", "tables", "baskets", "bottles", "jackets", "windows"),
        *("pencils", "ladders", "bicycles", "guitars", "lemons", "pillows", "buttons", "candles"),
    ),
    "place": (
        *("in the garden", "in the kitchen", "at the station", "at the market", "near the river", "near the school"),
        *("outside", "upstairs", "over there"),
    ),
    "when": ("today", "again", "every morning", "every evening", "at noon", "this week", "in winter", "in summer"),
    "feeling": ("happy", "hungry", "tired", "angry", "busy", "quiet"),
    "quality": ("old", "heavy", "cheap", "broken", "beautiful", "dirty", "wonderful", "small"),
}
SHORTEST, LONGEST = 3, 6  # words of a sentence


def sentence(draw: Draw) -> str:
    """Draws a sentence of `SHORTEST` to `LONGEST` words, with the mark that ends it."""
    while True:
        text = _spell("<sentence>", draw)
        if SHORTEST <= len(words(text)) <= LONGEST:
            return text


def _spell(text: str, draw: Draw) -> str:
    return re.sub(r"<(\w+)>", lambda rule: _spell(draw.pick(RULES[rule[1]]), draw), text)


def words(text: str) -> list[str]:
    """The words of a text, without marks."""
    return re.findall(r"\w+", text)


def heldout(text: str) -> bool:
    """Whether a sentence belongs to the held-out split: the sentence itself decides, half and half."""
    return bool(digest("sentence", text) & 1)
