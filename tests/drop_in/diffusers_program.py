"""diffusers' attention backends that call flash_attn, beside its native one: run it where flash_attn can be imported.

Nothing here knows of HAL. One JSON object a line: a case, and the largest difference in parts of the largest value.
"""

import json

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.utils import is_flash_attn_3_available, is_flash_attn_available, is_flash_attn_version

assert is_flash_attn_available()
assert is_flash_attn_version(">=", "2.6.3")
assert is_flash_attn_3_available()


def say(case, a, b):
    print(json.dumps({"case": case, "difference": float((a - b).abs().max() / a.abs().max())}), flush=True)


with torch.inference_mode():
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=64, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(16, 16, 32), guidance_embeds=False).eval()
    for parameter in model.parameters():
        parameter.mul_(3.0)
    image, text = 36, 7
    given = {"hidden_states": torch.randn(2, image, 4), "encoder_hidden_states": torch.randn(2, text, 32),
             "pooled_projections": torch.randn(2, 32), "timestep": torch.tensor([0.5, 0.1]),
             "img_ids": torch.randn(image, 3), "txt_ids": torch.zeros(text, 3)}
    results = {}
    for name in ("native", "flash", "flash_varlen", "_flash_varlen_3"):
        model.set_attention_backend(name)
        results[name] = model(**given).sample
    for name in list(results)[1:]:
        say(f"Flux, {name}", results["native"], results[name])
    q, k, v = torch.randn(3, 9, 4, 64), torch.randn(3, 12, 4, 64), torch.randn(3, 12, 4, 64)
    mask = torch.arange(12)[None] < torch.tensor([5, 12, 1])[:, None]
    native = dispatch_attention_fn(q, k, v, attn_mask=mask[:, None, None], backend="native")
    for name in ("flash_varlen", "_flash_varlen_3"):
        say(f"padded keys, {name}", native, dispatch_attention_fn(q, k, v, attn_mask=mask, backend=name))
    square = k[:, :9], v[:, :9]
    say("causal, flash", dispatch_attention_fn(q, *square, is_causal=True, backend="native"),
        dispatch_attention_fn(q, *square, is_causal=True, backend="flash"))
