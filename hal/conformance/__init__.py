"""The conformance kit: cases as data, inputs with poison, eager, judge, runner. `hal verify` and hal.testing use it."""
