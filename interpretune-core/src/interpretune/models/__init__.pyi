from interpretune.models.batch_keys import (
    ForwardSignature as ForwardSignature,
    check_batch_keys as check_batch_keys,
    forward_signature as forward_signature,
)
from interpretune.models.loading import device_of as device_of
from interpretune.models.lora import merge_lora as merge_lora
from interpretune.models.padding import (
    ATTENTION_MASK as ATTENTION_MASK,
    mask_of as mask_of,
    position_ids as position_ids,
    tokens_of as tokens_of,
)
from interpretune.models.quantization import keep_weights_in_place as keep_weights_in_place
