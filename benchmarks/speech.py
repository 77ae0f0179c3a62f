"""How well is speech understood? Prints the word error rate of real held-out clips of the embedded corpus, by voice:

    python benchmarks/speech.py --clips 60

and that of a model: of the same clips put together again, from mel, latents or LOA, and of what it makes of texts:

    python benchmarks/speech.py --clips 60 --model runs/speech

The listener is pocketsphinx with its own acoustic model of English, which was trained on people and never heard our
voices. It is told which words of the corpus can follow each other, so that what counts is whether the right word can be
told from the others that might stand there. Beside it stands the rate of the same
recordings with the transcriptions of others, which is what a listener gets who understands nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import soxr

from audioldm2_jax.audio import files
from audioldm2_jax.data.builtin.sentences import LONGEST, RULES, SHORTEST, sentence, words
from audioldm2_jax.data.builtin.speech import SpeechCorpus, heldout_examples
from audioldm2_jax.data.draw import Draw

_RATE = 16000  # Hz, of pocketsphinx's model
_SAMPLE = 5_000  # pairs of sentences, of which word pairs are counted
_SELDOM = 0.01  # for all that may follow a word and never did


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=2.56, help="length of a clip")
    parser.add_argument("--model", help="run folder or model folder; its clips' length counts")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument(
        "--uncond", choices=("language_model", "zeros"), default="language_model", help="LOA that guidance is away from"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.model:
        judge(options)
    else:
        describe_corpus(options)


def judge(options: argparse.Namespace) -> None:
    """Prints the word error rate of real, rebuilt and generated clips."""
    from instruments import BATCH, reconstruct

    from audioldm2_jax import AudioLDM2
    from audioldm2_jax.generation.editing import Variation

    folder = Path(options.model)
    model = AudioLDM2.from_pretrained(folder / "model" if (folder / "model").is_dir() else folder)
    clips = heldout_examples(options.clips, model.sampling_rate, model.own_length)
    texts, said = [clip.text for clip in clips], [clip.transcription for clip in clips]
    sounds = reconstruct(model, np.stack([files.normalise(clip.waveform) for clip in clips]))
    parts = [slice(start, start + BATCH) for start in range(0, len(clips), BATCH)]
    flags = {"num_inference_steps": options.steps, "guidance_scale": options.guidance, "seed": options.seed}
    flags["uncond"] = options.uncond
    edits = [Variation(clip, model.sampling_rate) for clip in sounds["real"]]
    given = zip(texts, said, edits, strict=True)
    sounds["its LOA, UNet"] = np.stack([model(t, transcription=s, edit=e, **flags).audios[0] for t, s, e in given])
    sounds["generated"] = np.concatenate([model(texts[p], transcription=said[p], **flags).audios for p in parts])
    print(f"word error rate of {len(clips)} held-out sentences (95 %), and by the transcription of the clip before:")
    for name, waveforms in sounds.items():
        heard = recognise([files.normalise(waveform) for waveform in waveforms], model.sampling_rate)
        low, high = _interval(heard, said)
        shuffled = _error_rate(heard, said[-1:] + said[:-1])
        print(f"  {name:18}{_error_rate(heard, said):6.1%}  ({low:.0%} to {high:.0%})  {shuffled:.0%}")


def _interval(heard: list[str], said: list[str]) -> tuple[float, float]:
    """The 95 % interval of the rate, by drawing clips again (bootstrap)."""
    draw = np.random.RandomState(0)
    picked = [draw.randint(len(said), size=len(said)) for _ in range(1000)]
    rates = [_error_rate([heard[i] for i in chosen], [said[i] for i in chosen]) for chosen in picked]
    return tuple(np.percentile(rates, (2.5, 97.5)))


def describe_corpus(options: argparse.Namespace) -> None:
    """Prints what the corpus is, and the word error rate of its real clips by voice."""
    corpus = SpeechCorpus(_RATE, options.seconds, 0, "train")
    start = time.process_time()
    clips = [corpus[i] for i in range(options.clips)]
    print(f"{options.clips / (time.process_time() - start):.0f} clips of {options.seconds} s a second on one core")
    for rate in ("slow", "normal", "fast"):
        spoken = [clip.labels["end"] - clip.labels["onset"] for clip in clips if clip.labels["rate"] == rate]
        least, half, most = np.percentile(spoken, (0, 50, 100)) if spoken else (0, 0, 0)
        print(f"  {rate:7} {least:.2f} to {most:.2f} s of speech, median {half:.2f}")
    print(f"{sentences():,} sentences of {len(vocabulary())} words")
    clips = heldout_examples(options.clips, _RATE, options.seconds)
    recordings, transcriptions = [clip.waveform for clip in clips], [clip.transcription for clip in clips]
    heard = recognise(recordings, _RATE)
    print(f"\nword error rate of {len(clips)} real clips, with that of another one's transcription in brackets:")
    rows: dict[str, list[int]] = {}
    for i, clip in enumerate(clips):
        rows.setdefault(clip.labels["voice"], []).append(i)
    for voice, chosen in {**rows, "all": range(len(clips))}.items():
        own, other = (
            _error_rate([heard[i] for i in chosen], [transcriptions[i - shift] for i in chosen]) for shift in (0, 1)
        )
        print(f"  {voice:20}{own:6.1%}  ({other:.0%})")


def word_error_rate(recordings: Sequence[np.ndarray], transcriptions: Sequence[str], rate: int) -> float:
    """The share of words that are wrong, missing or too many in what a recogniser hears, of those that were to be said.

    Args:
        recordings: [samples] float each, in −1..1.
        transcriptions: sentences of the corpus, one a recording.
        rate: Hz of the recordings.

    Raises:
        SystemExit: pocketsphinx is not installed.
    """
    return _error_rate(recognise(recordings, rate), transcriptions)


def recognise(recordings: Sequence[np.ndarray], rate: int) -> list[str]:
    """What pocketsphinx hears in each recording: words of the corpus, or nothing. See `word_error_rate`."""
    decoder, heard = _decoder(), []
    for recording in recordings:
        samples = np.asarray(soxr.resample(recording, rate, _RATE)) if rate != _RATE else recording
        decoder.start_utt()
        decoder.process_raw((np.clip(samples, -1.0, 1.0) * 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        heard.append(found.hypstr if found else "")
    return heard


@cache
def _decoder():
    try:
        from pocketsphinx import Decoder
    except ImportError:
        sys.exit("error: the recogniser is not installed: pip install pocketsphinx")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "words.lm"
        model.write_text(_word_pairs(), encoding="utf-8")
        return Decoder(lm=str(model), samprate=_RATE, loglevel="FATAL")


def _word_pairs() -> str:
    """Which word follows which in the grammar, as a bigram model in ARPA's format; any other may, seldom."""
    texts = [f"{sentence(Draw('pairs', i))} {sentence(Draw('pairs', -1 - i))}" for i in range(_SAMPLE)]
    followers: dict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:
        for first, second in pairwise(("<s>", *words(text), "</s>")):
            followers[first][second] += 1
    alone = sum(followers.values(), Counter())
    share = {word: count / alone.total() for word, count in alone.items()}
    ones, twos = [f"-99 <s> {np.log10(_SELDOM):.4f}"], []
    for word in sorted(share):
        ones.append(f"{np.log10(share[word]):.4f} {word} {np.log10(_SELDOM):.4f}")
    for first, counts in sorted(followers.items()):
        for second, count in sorted(counts.items()):
            twos.append(f"{np.log10((1 - _SELDOM) * count / counts.total()):.4f} {first} {second}")
    counts = f"\\data\\\nngram 1={len(ones)}\nngram 2={len(twos)}\n"
    return "\n".join([counts, "\\1-grams:", *ones, "", "\\2-grams:", *twos, "", "\\end\\", ""])


def _error_rate(heard: Sequence[str], said: Sequence[str]) -> float:
    errors = sum(_distance(words(a), words(b)) for a, b in zip(heard, said, strict=True))
    return errors / sum(len(words(text)) for text in said)


def _distance(a: Sequence[str], b: Sequence[str]) -> int:
    """The fewest words to change, leave out or add to make `b` of `a` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        left_out, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            left_out, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, left_out + (word != other))
    return row[-1]


def vocabulary() -> set[str]:
    """All words of the grammar."""
    return {word for texts in RULES.values() for text in texts for word in words(re.sub(r"<\w+>", " ", text))}


def sentences() -> int:
    """How many sentences the grammar has; no two ways lead to the same one."""
    return sum(count for length, count in _lengths("<sentence>").items() if SHORTEST <= length <= LONGEST)


@cache
def _lengths(text: str) -> Counter[int]:
    """Number of words → in how many ways a text of rules and words is spelt with so many."""
    found = Counter({0: 1})
    for part in re.findall(r"<\w+>|\w+", text):
        ways: Counter[int] = Counter()
        for option in RULES[part[1:-1]] if part[0] == "<" else ():
            ways.update(_lengths(option))
        ways = ways or Counter({1: 1})
        found = Counter({n: sum(found[k] * ways[n - k] for k in found) for n in {k + m for k in found for m in ways}})
    return found


if __name__ == "__main__":
    main()
