"""Text to sound effects: AudioLDM 2 (arXiv 2308.05734), every stage from nothing; the recipes are those of music.

    audioldm2-jax train --config audio                       the tiny recipe, minutes on two CPU cores
    audioldm2-jax train --config audio:base \\
        --config.data.source=/recordings                     the paper's model, a pod or a host of GPUs
    ... audio:large, audio:48k                               the large UNet; the system at 48 kHz
"""

from ml_collections import ConfigDict

from audioldm2_jax import recipes


def get_config(recipe: str = recipes.TINY) -> ConfigDict:
    """Returns the recipe; of tiny, the embedded corpus of sound effects is the data."""
    config = recipes.get(recipe)
    config.run_dir = "runs/audio" if recipe == recipes.TINY else f"runs/audio-{recipe}"
    if recipe == recipes.TINY:
        config.data.source = "builtin:audio"
        config.train.language_model.optimizer = "muon"  # AdamW does not learn the order of events in as many steps
        config.train.diffusion.guided_attention = 0.3  # what comes when
        config.train.joint.guided_attention = 0.3
    return config
