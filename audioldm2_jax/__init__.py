"""AudioLDM 2 in JAX: every stage trainable, the weights readable both ways with PyTorch."""

import os

# Of transformers only the tokenizers are used: it need not say that it found no PyTorch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
