#!/usr/bin/env bash
echo "NOT RUN: no compiled kernel of our own exists yet; this arrives with hal/kernels/cpu/" && exit 77
