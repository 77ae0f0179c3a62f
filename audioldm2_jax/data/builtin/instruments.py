"""The instruments of the embedded corpus: General-MIDI programs, playing ranges and the words for them.

The sound font is TimGM6mb, which `pretty_midi` ships. Programs whose samples there are silent, start late or do not
sound like their name (whistle, recorder, pan flute, harmonica ...) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Instrument:
    """A pitched instrument.

    Attributes:
        name: as captions write it, without article.
        family: the group it belongs to; `FAMILIES` lists them.
        programs: General-MIDI programs, from 0; a clip uses one of them.
        low, high: playing range, MIDI notes.
        chords: can play several notes at once.
        ring: seconds that a struck or plucked note sounds at least; 0 for sustained tones, which end with their note.
        bass: usable as a bass line.
    """

    name: str
    family: str
    programs: tuple[int, ...]
    low: int
    high: int
    chords: bool = False
    ring: float = 0.0
    bass: bool = False

    @property
    def indefinite(self) -> str:
        """The name with its article: "an oboe"."""
        return self.name if self.plural else f"{'an' if self.name[0] in 'aeio' else 'a'} {self.name}"

    @property
    def plural(self) -> bool:
        """Whether the verb after the name is plural."""
        return self.name.endswith(("strings", "drums", "bells"))


_ALL = (
    Instrument("piano", "piano", (0,), 36, 88, chords=True, ring=0.6),
    Instrument("electric piano", "electric piano", (4, 5), 40, 88, chords=True, ring=1.0),
    Instrument("harpsichord", "plucked keyboards", (6,), 40, 84, chords=True, ring=0.5),
    Instrument("clavinet", "plucked keyboards", (7,), 40, 84, chords=True, ring=0.4),
    Instrument("celesta", "bells", (8,), 60, 96, chords=True, ring=0.6),
    Instrument("glockenspiel", "bells", (9,), 67, 100, ring=0.6),
    Instrument("music box", "bells", (10,), 60, 96, chords=True, ring=0.6),
    Instrument("vibraphone", "mallets", (11,), 53, 89, chords=True, ring=0.9),
    Instrument("marimba", "mallets", (12,), 45, 88, chords=True, ring=0.3),
    Instrument("xylophone", "mallets", (13,), 60, 96, ring=0.2),
    Instrument("tubular bells", "bells", (14,), 55, 79, ring=1.0),
    Instrument("dulcimer", "plucked strings", (15,), 50, 86, chords=True, ring=0.4),
    Instrument("electric organ", "organ", (16, 18), 40, 84, chords=True),
    Instrument("church organ", "organ", (19,), 38, 86, chords=True),
    Instrument("accordion", "accordion", (21, 23), 50, 86, chords=True),
    Instrument("acoustic guitar", "guitar", (24, 25), 40, 81, chords=True, ring=0.6),
    Instrument("electric guitar", "electric guitar", (26, 27), 40, 84, chords=True, ring=0.9),
    Instrument("distorted guitar", "electric guitar", (29, 30), 40, 79),
    Instrument("double bass", "bass", (32,), 28, 55, ring=0.5, bass=True),
    Instrument("electric bass", "bass", (33, 34), 28, 55, ring=0.8, bass=True),
    Instrument("synth bass", "bass", (38, 39), 28, 52, bass=True),
    Instrument("violin", "bowed strings", (40,), 55, 96),
    Instrument("cello", "bowed strings", (42,), 36, 72, bass=True),
    Instrument("pizzicato strings", "plucked strings", (45,), 43, 84, chords=True, ring=0.2),
    Instrument("harp", "plucked strings", (46,), 36, 91, chords=True, ring=0.7),
    Instrument("string ensemble", "string ensemble", (48, 49), 40, 88, chords=True),
    Instrument("choir", "choir", (52, 53), 48, 79, chords=True),
    Instrument("trumpet", "brass", (56,), 54, 86),
    Instrument("trombone", "brass", (57,), 40, 70),
    Instrument("tuba", "brass", (58,), 29, 55, bass=True),
    Instrument("french horn", "brass", (60,), 43, 77),
    Instrument("saxophone", "saxophone", (66, 67), 44, 76),
    Instrument("oboe", "reeds", (68,), 58, 88),
    Instrument("bassoon", "reeds", (70,), 34, 68, bass=True),
    Instrument("clarinet", "reeds", (71,), 50, 89),
    Instrument("flute", "flutes", (73,), 60, 96),
    Instrument("synth lead", "synth lead", (80, 81), 48, 88),
    Instrument("synth pad", "synth pad", (88, 90), 45, 84, chords=True),
    Instrument("sitar", "folk", (104,), 48, 79, ring=0.6),
    Instrument("banjo", "folk", (105,), 48, 84, chords=True, ring=0.25),
    Instrument("koto", "plucked strings", (107,), 48, 86, ring=0.5),
    Instrument("kalimba", "mallets", (108,), 55, 88, ring=0.35),
    Instrument("bagpipe", "folk", (109,), 55, 79),
    Instrument("steel drums", "mallets", (114,), 52, 84, ring=0.35),
)

INSTRUMENTS: dict[str, Instrument] = {instrument.name: instrument for instrument in _ALL}

#: The eight instruments whose recognition in generated clips is measured: common, and distinct to the ear.
EVALUATED = ("piano", "violin", "flute", "trumpet", "acoustic guitar", "church organ", "marimba", "harpsichord")

#: The name of the drum kit in captions and labels; it has grooves and no pitches.
DRUMS = "drums"

FAMILIES = (*dict.fromkeys(instrument.family for instrument in _ALL), DRUMS)
