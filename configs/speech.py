"""Text to speech: AudioLDM 2 (arXiv 2308.05734), every stage from nothing.

    audioldm2-jax train --config speech                      the tiny recipe, minutes on two CPU cores
    audioldm2-jax train --config speech:base \\
        --config.data.source=/recordings                     the paper's model, a pod or a host of GPUs
    ... speech:large                                         with the large UNet

A prompt is a description of the speaker and what is said.
"""

from ml_collections import ConfigDict

from audioldm2_jax import recipes


def get_config(recipe: str = "tiny") -> ConfigDict:
    """Returns the recipe; of tiny, the embedded corpus of speech is the data."""
    config = recipes.get(f"speech-{recipe}")
    config.run_dir = "runs/speech" if recipe == "tiny" else f"runs/speech-{recipe}"
    if recipe == "tiny":
        config.data.source = "builtin:speech"
    return config
