"""HAL's CPU kernels beside those of vLLM and SGLang, FlexAttention and the limits of the machine; see README.md."""

from __future__ import annotations

from hal.bench import peers

#: name -> where it is made. The wheel's peers need the environment that run.sh makes.
PEERS = {
    "vllm": "benchmarks.cpu.peer_vllm:vllm",
    "vllm_vec": "benchmarks.cpu.peer_vllm:vllm_vec",
    "sglang": "benchmarks.cpu.peer_sglang:sglang",
    "flex": "benchmarks.cpu.peer_flex:flex",
    "mla_torch": "benchmarks.cpu.peer_mla:mla_torch",
    "stream": "benchmarks.cpu.peer_limits:stream",
    "matmul": "benchmarks.cpu.peer_limits:matmul",
}

def register() -> None:
    """Make the peers known to hal.bench under these names; calling it again does nothing."""
    for name in PEERS.keys() - peers.names():
        peers.register(name, PEERS[name])
