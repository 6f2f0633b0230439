"""Whether the calling thread is being traced, by torch.compile or torch.export."""

from __future__ import annotations

from typing import Any


def traced(*arguments: Any) -> bool:
    """True while dynamo follows this call, or where a fake tensor mode is active here or came with the arguments.

    For after torch.compiler.is_compiling(), which alone won't do: one flag of the process, it is also up in a thread
    that runs eagerly while another one compiles.
    """
    import torch

    if torch.compiler.is_dynamo_compiling():
        return True
    from torch._guards import detect_fake_mode  # type: ignore[attr-defined, unused-ignore]

    return detect_fake_mode(arguments) is not None
