"""The decoder as maths: configuration, layers, weights.

This package file imports no torch, so that a configuration can be read in milliseconds; the
decoder and its weights are in `decoder` and `weights`.
"""

from .config import LayerConfig, ModelConfig, read_config
from .families import FAMILIES, Family
from .rope_config import RopeConfig

__all__ = ["FAMILIES", "Family", "LayerConfig", "ModelConfig", "RopeConfig", "read_config"]
