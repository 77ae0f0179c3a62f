"""What a VitsModel has behind its text encoder, which is all of it that speaks here.

diffusers loads `text_encoder_2` of the speech variant as a whole VitsModel and uses its encoder alone. Where the rest
came along, it is a passenger. Where there is none (the authors' files, an encoder trained here), config.json makes it
as small as VitsConfig allows, and zeros are written for the few tensors that remain.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

# No flows, one upsampling by one, no ResNet blocks, durations of one channel, a posterior of one spectrogram bin.
_NOTHING = {
    "prior_encoder_num_flows": 0,
    "posterior_encoder_num_wavenet_layers": 0,
    "spectrogram_bins": 1,
    "use_stochastic_duration_prediction": False,
    "duration_predictor_filter_channels": 1,
    "duration_predictor_kernel_size": 1,
    "upsample_initial_channel": 2,
    "upsample_rates": [1],
    "upsample_kernel_sizes": [1],
    "resblock_kernel_sizes": [],
    "resblock_dilation_sizes": [],
    "num_speakers": 1,
    "speaker_embedding_size": 0,
}
_SIGN_OF_A_REST = "decoder.conv_pre.weight"
_STATISTICS = "text_encoder.project.bias"  # [2 · flow_size]: means and logarithms of variances


def config_of_rest(config: Mapping[str, Any], passengers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The keys of VitsConfig that make the rest nothing; none where the rest is among the passengers.

    The projection to means and variances may be there without the rest; its width stays.
    """
    if _SIGN_OF_A_REST in passengers:
        return {}
    width = len(passengers[_STATISTICS]) // 2 if _STATISTICS in passengers else 1
    return {**_NOTHING, "flow_size": width}


def zeros_of_rest(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a rest that is nothing, as config.json says; none where it is something."""
    if any(config.get(key) != value for key, value in _NOTHING.items()):
        return {}
    hidden, flow = config["hidden_size"], config["flow_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "text_encoder.project.weight": (2 * flow, hidden, 1),
        _STATISTICS: (2 * flow,),
        "posterior_encoder.conv_pre.weight": (hidden, 1, 1),
        "posterior_encoder.conv_pre.bias": (hidden,),
        "posterior_encoder.conv_proj.weight": (2 * flow, hidden, 1),
        "posterior_encoder.conv_proj.bias": (2 * flow,),
        _SIGN_OF_A_REST: (2, flow, 7),
        "decoder.conv_pre.bias": (2,),
        "decoder.upsampler.0.weight": (2, 1, 1),
        "decoder.upsampler.0.bias": (1,),
        "decoder.conv_post.weight": (1, 1, 7),
        "duration_predictor.conv_1.weight": (1, hidden, 1),
        "duration_predictor.conv_2.weight": (1, 1, 1),
        "duration_predictor.proj.weight": (1, 1, 1),
    }
    layers = ("conv_1.bias", "conv_2.bias", "proj.bias", "norm_1.weight", "norm_1.bias", "norm_2.weight", "norm_2.bias")
    shapes |= {f"duration_predictor.{layer}": (1,) for layer in layers}
    return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
