"""Decoding in compiled loops, and weights in 8 and 4 bits.

forms           numbers in three floating-point forms, read by compiled loops
vectors         what is written for a processor's vectors by hand
rows            rows of weights, or of keys, with x, eight at a time
whole           products of whole numbers, 64 rows side by side
heads           attention of one new token over those before
kernels         one token through all blocks, in loops that numba compiles
workers         threads that make the same compiled call at the same time
quantized       linears of whole numbers, 8 or 4 bits
error_feedback  such linears by GPTQ's rule, on calibration text
pages           large pages of memory for weights, on Linux
plan            where a model's weights are, and whether that is still true
decoder         which steps can be run so, and running them
fixed_cache     a step of fixed shapes, for torch.compile
"""
