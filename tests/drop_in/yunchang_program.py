"""yunchang's sequence parallelism over flash_attn, two processes on one machine, beside torch's sdpa of it all.

Nothing here knows of HAL. One JSON object a line: a case, and the largest difference in parts of the largest value.
The processes are spawned: flash_attn must be importable in what a Python process starts, too.
"""

import json
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

CASES = [("ring", "basic", 1, 2), ("zigzag ring", "zigzag", 1, 2), ("ulysses", "basic", 2, 1)]
LENGTH, HEADS, DIM = 32, 4, 64


def parts(x, kind, rank):
    """What a rank holds of a sequence: a half of it, or the first and last quarter, the second and third."""
    if kind != "zigzag":
        return x.chunk(2, 1)[rank]
    quarters = x.chunk(4, 1)
    return torch.cat((quarters[rank], quarters[3 - rank]), 1)


def work(rank, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    from yunchang import LongContextAttention, set_seq_parallel_pg
    from yunchang.globals import HAS_FLASH_ATTN
    from yunchang.kernels import AttnType

    assert HAS_FLASH_ATTN
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, LENGTH, HEADS, DIM) for _ in "qkv")
    for name, kind, ulysses, ring in CASES:
        set_seq_parallel_pg(ulysses, ring, rank, 2)
        attention = LongContextAttention(ring_impl_type=kind, attn_type=AttnType.FA)
        for causal in (False, True) if kind == "basic" else (True,):
            want = torch.nn.functional.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal).transpose(1, 2)
            with torch.no_grad():
                out = attention(*(parts(x, kind, rank).contiguous() for x in (q, k, v)), causal=causal)
            off = (out - parts(want, kind, rank)).abs().max() / want.abs().max()
            dist.all_reduce(off, dist.ReduceOp.MAX)
            if rank == 0:
                print(json.dumps({"case": f"{name}, causal {causal}", "difference": float(off)}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port,), nprocs=2)
