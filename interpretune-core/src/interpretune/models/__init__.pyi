from interpretune.models.batch_keys import ForwardSignature, check_batch_keys, forward_signature
from interpretune.models.loading import device_of
from interpretune.models.lora import merge_lora
from interpretune.models.padding import ATTENTION_MASK, mask_of, position_ids, tokens_of
from interpretune.models.quantization import keep_weights_in_place

__all__ = [
    "ATTENTION_MASK",
    "ForwardSignature",
    "check_batch_keys",
    "device_of",
    "forward_signature",
    "keep_weights_in_place",
    "mask_of",
    "merge_lora",
    "position_ids",
    "tokens_of",
]
