#!/usr/bin/env bash
echo "NOT RUN: no SGLang integration exists yet; this arrives with hal/integrations/sglang.py" && exit 77
