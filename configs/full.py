"""Music, speech and sound effects by one model: AudioLDM 2 (arXiv 2308.05734), every stage from nothing.

    audioldm2-jax train --config full                        the tiny recipe, minutes on two CPU cores
    audioldm2-jax train --config full:base \\
        --config.data.source="/music,1;/speech,1;/effects,1" the paper's full model, a pod or a host of GPUs
    ... full:large                                           with the large UNet

As in the paper, everything is described by its caption; speech is, too, and its words are not said. A unified model,
which is not in the paper, says them where a transcription is given beside the caption:

    audioldm2-jax train --config full:unified                the tiny recipe
    audioldm2-jax train --config full:unified-base \
        --config.data.source="/music,1;/speech,1;/effects,1" the full model, and phonemes beside its captions
    ... full:unified-large                                   with the large UNet
"""

from ml_collections import ConfigDict

from audioldm2_jax import recipes

UNIFIED = "unified"


def get_config(recipe: str = recipes.TINY) -> ConfigDict:
    """Returns the recipe; of tiny, the three embedded corpora are the data."""
    tiny = recipe in (recipes.TINY, UNIFIED)
    config = recipes.get(f"{recipe}-{recipes.TINY}" if recipe == UNIFIED else recipe)
    config.run_dir = "runs/full" if recipe == recipes.TINY else f"runs/full-{recipe}"
    if tiny:
        config.data.source = "builtin:music;builtin:speech;builtin:audio"
        config.data.cache_records *= 3  # as many of each kind as of one kind alone
        config.train.language_model.optimizer = "muon"  # as for sound effects alone; not measured
    return config
