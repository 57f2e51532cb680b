"""llamamm: a Llama that reads, sees and hears, built piece by piece in this course's notebooks, on real weights.

from llamamm import from_pretrained, generate
model, tokenizer = from_pretrained("smollm2")
"""

from llamamm.adapters import load_adapter, save_adapter
from llamamm.attention import GroupedQueryAttention
from llamamm.audio import AudioEncoder
from llamamm.cache import KVCache
from llamamm.chat import chat_format
from llamamm.config import LLAMA32_3B_CONFIG, LLAMA32_CONFIG, SMOLLM2_CONFIG, RopeScaling, TextConfig
from llamamm.errors import LlamammError
from llamamm.generate import TextStream, TokenStream, generate, pad_left
from llamamm.image_processor import ImageProcessor
from llamamm.images import load_image
from llamamm.layers import FeedForward, RMSNorm
from llamamm.lora import LoraLinear, apply_lora, merge_lora, set_adapter, set_lora_enabled, unmerge_lora
from llamamm.mel import log_mel
from llamamm.mllama import MllamaModel
from llamamm.mllama_config import MllamaConfig
from llamamm.mllama_processor import MllamaProcessor
from llamamm.model import Llama3Model, TransformerBlock
from llamamm.multimodal import MultimodalLlama
from llamamm.multimodal_config import BridgeConfig, MultimodalConfig
from llamamm.multimodal_processor import MultimodalProcessor
from llamamm.pretrained import from_pretrained
from llamamm.prompts import Image, Sound
from llamamm.rope import apply_rope, compute_rope_params
from llamamm.sampling import SamplingConfig
from llamamm.tokenizer import Tokenizer
from llamamm.tower_config import AudioConfig, EncoderConfig, VisionConfig
from llamamm.towers import load_audio_encoder, load_image_processor, load_vision_tower
from llamamm.vision import VisionTower
from llamamm.waves import load_wave
from llamamm.weights.loading import load_weights_into_llama
from llamamm.weights.saving import save_pretrained

__version__ = "0.1.0"

__all__ = [
    "LLAMA32_3B_CONFIG",
    "LLAMA32_CONFIG",
    "SMOLLM2_CONFIG",
    "AudioConfig",
    "AudioEncoder",
    "BridgeConfig",
    "EncoderConfig",
    "FeedForward",
    "GroupedQueryAttention",
    "Image",
    "ImageProcessor",
    "KVCache",
    "Llama3Model",
    "LlamammError",
    "LoraLinear",
    "MllamaConfig",
    "MllamaModel",
    "MllamaProcessor",
    "MultimodalConfig",
    "MultimodalLlama",
    "MultimodalProcessor",
    "RMSNorm",
    "RopeScaling",
    "SamplingConfig",
    "Sound",
    "TextConfig",
    "TextStream",
    "TokenStream",
    "Tokenizer",
    "TransformerBlock",
    "VisionConfig",
    "VisionTower",
    "apply_lora",
    "apply_rope",
    "chat_format",
    "compute_rope_params",
    "from_pretrained",
    "generate",
    "load_adapter",
    "load_audio_encoder",
    "load_image",
    "load_image_processor",
    "load_vision_tower",
    "load_wave",
    "load_weights_into_llama",
    "log_mel",
    "merge_lora",
    "pad_left",
    "save_adapter",
    "save_pretrained",
    "set_adapter",
    "set_lora_enabled",
    "unmerge_lora",
]
