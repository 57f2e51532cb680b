"""Decoding in compiled loops, and weights in 8 and 4 bits.

kernels     one token through all blocks, in loops that numba compiles
quantized   linears of whole numbers, 8 or 4 bits
decoder     which models can be run so, and running them
"""
