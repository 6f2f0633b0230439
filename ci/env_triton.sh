#!/usr/bin/env bash
echo "NOT RUN: no Triton kernel exists yet; this arrives with hal/kernels/triton/" && exit 77
