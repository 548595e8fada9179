"""The Triton twin of csrc: ``rules`` says what one element does, ``engine`` how memory moves.

Installed as ``adamod_fused.triton_kernels``; importing it imports triton.
"""
