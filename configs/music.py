"""Text to music: AudioLDM 2 (arXiv 2308.05734), every stage from nothing.

    audioldm2-jax train --config music                       the tiny recipe, minutes on two CPU cores
    audioldm2-jax train --config music:small                 wider networks, clips twice as long, hours
    audioldm2-jax train --config music:base \\
        --config.data.source=/recordings                     the paper's base model, a pod or a host of GPUs
    ... music:large, music:48k                               the large UNet; the system at 48 kHz

Both make clips of instruments named in a caption (2.56 and 5.12 s); benchmarks/instruments.py says how often the named
instrument is heard. The paper trains base for about a million steps of batch 128 on 10.24 s clips.
"""

from ml_collections import ConfigDict

from audioldm2_jax import recipes


def get_config(recipe: str = recipes.TINY) -> ConfigDict:
    """Returns the recipe; of tiny and small, the embedded corpus of music is the data."""
    config = recipes.get(recipe)
    config.run_dir = "runs/music" if recipe == recipes.TINY else f"runs/music-{recipe}"
    if recipe in (recipes.TINY, recipes.SMALL):
        config.data.source = "builtin:music"
    return config
