"""Text to music: AudioLDM 2 (arXiv 2308.05734), every stage from nothing.

    audioldm2-jax train --config music                       the small recipe, about 20 minutes on two CPU cores
    audioldm2-jax train --config music:base \\
        --config.data.source=/recordings                     the paper's base model, a pod or a host of GPUs
    ... music:large, music:48k                               the large UNet; the system at 48 kHz

The small recipe makes 2.56 s clips of instruments named in a caption; benchmarks/instruments.py says how often the
named instrument is heard. The paper trains base for about a million steps of batch 128 on 10.24 s clips.
"""

from ml_collections import ConfigDict

from audioldm2_jax import recipes


def get_config(recipe: str = recipes.SMALL) -> ConfigDict:
    """Returns the recipe with the embedded corpus of music as its data, where it is the small one."""
    config = recipes.get(recipe)
    config.run_dir = "runs/music" if recipe == recipes.SMALL else f"runs/music-{recipe}"
    if recipe == recipes.SMALL:
        config.data.source = "builtin:music"
    return config
