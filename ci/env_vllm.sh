#!/usr/bin/env bash
echo "NOT RUN: no vLLM integration exists yet; this arrives with hal/integrations/vllm.py" && exit 77
