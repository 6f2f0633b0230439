"""transformers' FlashAttention beside its sdpa or eager attention: run it where flash_attn can be imported.

    transformers_program.py [--version 2|3] [--model DIR]

Nothing here knows of HAL. One JSON object a line: a case, the largest difference of logits in parts of the largest
logit, whether greedy tokens are the same, and the same difference where the feature is left out, so that it counts.
"""

import argparse
import copy
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

parser = argparse.ArgumentParser()
parser.add_argument("--version", default="2")
parser.add_argument("--model")
args = parser.parse_args()
FLASH = f"flash_attention_{args.version}"
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 90, "initializer_range": 0.25, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": None}
# Case -> (config, the attention to compare with, what leaving the feature out means).
TINY = {
    "GQA": (transformers.LlamaConfig(**SHAPE, head_dim=32), "sdpa", None),
    "MHA, head_dim 80": (transformers.LlamaConfig(**{**SHAPE, "num_key_value_heads": 4}, head_dim=80), "sdpa", None),
    "head_dim 256": (transformers.LlamaConfig(**SHAPE, head_dim=256), "sdpa", None),
    "sliding window": (transformers.MistralConfig(**SHAPE, head_dim=32, sliding_window=5), "sdpa",
                       {"sliding_window": None}),
    "softcap and window": (transformers.Gemma2Config(**SHAPE, head_dim=32, query_pre_attn_scalar=8, sliding_window=6,
                                                     attn_logit_softcapping=0.5), "eager",
                           {"attn_logit_softcapping": 1e6}),
}


def build(config, implementation, weights=None):
    """A model of its own config: transformers writes the implementation into it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=implementation)
    if weights is not None:
        model.load_state_dict(weights)
    assert model.config._attn_implementation == implementation
    return model.eval()


def generate(model, ids, mask=None, n=10):
    return model.generate(ids, attention_mask=torch.ones_like(ids) if mask is None else mask, max_new_tokens=n,
                          do_sample=False, pad_token_id=0)


def compare(name, reference, flash, vocabulary, without=None):
    torch.manual_seed(1)
    ids = torch.randint(3, vocabulary, (3, 14))
    mask = torch.ones_like(ids)
    mask[0, :6], mask[2, :1] = 0, 0
    a, b = reference(ids).logits, flash(ids).logits
    say(name, "batch", a, b, generate(reference, ids), generate(flash, ids), without and without(ids).logits)
    a, b = (m(ids, attention_mask=mask).logits[mask.bool()] for m in (reference, flash))
    say(name, "padded", a, b, generate(reference, ids, mask), generate(flash, ids, mask))
    lengths = (5, 1, 8)
    one = ids[0][None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    a = torch.cat([reference(part).logits for part in one.split(lengths, 1)], 1)
    say(name, "packed", a, flash(one, position_ids=positions, use_cache=False).logits)


def continuous(name, config, beside):
    """Continuous batching: prompts of several lengths together, with the tokens that each has alone."""
    reference = build(config, beside)
    prompts = [torch.randint(3, SHAPE["vocab_size"], (n,)).tolist() for n in (3, 17, 40, 9)]
    alone = [generate(reference, torch.tensor([prompt]), n=8)[0, len(prompt):].tolist() for prompt in prompts]
    together = build(config, FLASH, reference.state_dict()).generate_batch(
        prompts, GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0),
        ContinuousBatchingConfig(num_blocks=64, page_size=16, max_batch_tokens=64), warmup=False)
    same = [result.generated_tokens for result in together.values()] == alone
    print(json.dumps({"case": name, "inputs": "continuous", "difference": 0.0, "same_tokens": same}), flush=True)


def difference(a, b):
    return float((a - b).abs().max() / a.abs().max())


def say(name, inputs, a, b, tokens_a=None, tokens_b=None, without=None):
    row = {"case": name, "inputs": inputs, "difference": difference(a, b)}
    if tokens_a is not None:
        row["same_tokens"] = bool(torch.equal(tokens_a, tokens_b))
    if without is not None:
        row["without_the_feature"] = difference(a, without)
    print(json.dumps(row), flush=True)


with torch.inference_mode():
    for name, (config, beside, leave_out) in TINY.items():
        reference = build(config, beside)
        weights = reference.state_dict()
        without = None
        if leave_out is not None:
            other = copy.deepcopy(config)
            for key, value in leave_out.items():
                setattr(other, key, value)
            without = build(other, beside, weights)
        compare(name, reference, build(config, FLASH, weights), SHAPE["vocab_size"], without)
    for name in ("GQA", "sliding window"):
        continuous(name, *TINY[name][:2])
    if args.model:
        tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
        models = [AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation=name).eval()
                  for name in ("sdpa", FLASH)]
        prompts = ["The capital of France is", "One, two, three, four, five, six, seven,", "Water boils at"]
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        mask = batch["attention_mask"]
        a, b = (m(**batch).logits[mask.bool()] for m in models)
        say("SmolLM2", "padded", a, b, *(generate(m, batch["input_ids"], mask, 12) for m in models))
        parts = [tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in prompts]
        positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
        a = torch.cat([models[0](part).logits for part in parts], 1)
        say("SmolLM2", "packed", a, models[1](torch.cat(parts, 1), position_ids=positions, use_cache=False).logits)
