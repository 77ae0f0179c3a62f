"""What the embedded corpora share: a clip is a pure function of (seed, split, index)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from audioldm2_jax.data.draw import Draw
from audioldm2_jax.data.example import Source, has

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Corpus(Source):
    """The clips of one split, made when they are asked for.

    Attributes:
        sampling_rate: Hz, up to 48000.
        seconds: length of every clip.
        seed: another seed is another corpus, of the same splits.
        split: "train" or "heldout".
        examples: `len(corpus)`, the clips of an epoch.
    """

    NAME: ClassVar[str]

    sampling_rate: int
    seconds: float
    seed: int
    split: str
    examples: int = 65_536

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}; it must be one of {', '.join(SPLITS)}")
        if not 0 < self.sampling_rate <= 48000:
            raise ValueError(f"sampling_rate is {self.sampling_rate}; the corpus is rendered at up to 48000 Hz")
        if self.examples < 1 or self.seconds <= 0:
            raise ValueError(f"examples ({self.examples}) and seconds ({self.seconds}) must be positive")

    def __len__(self) -> int:
        return self.examples

    def restricted(self, fields: tuple[str, ...]) -> Source | None:
        """See `Source.restricted`: what one clip has, all have."""
        return self if has(self, fields, 0) else None

    def _draw(self, purpose: str, index: int) -> Draw:
        """The draws of a clip for one purpose."""
        if not 0 <= index < self.examples:
            raise IndexError(f"index {index} is outside the corpus of {self.examples} examples")
        return Draw(self.NAME, self.seed, self.split, index, purpose)
