"""Trials on a GPU: the kernels with other tuning constants, beside the ones that they have.

``python -m bench.trials`` builds the variants, holds each to the reference's bits, times all of
them in one run, and writes trials-cuda.json. NOTES.md keeps the predictions and results.
"""
