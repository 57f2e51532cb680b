"""A question answered by training something small.

Read in this order: retrieval (lesson 11), word_recognition (12), fusion_ways, fusion_record and fusion_looks (13), what
the tokens of a picture carry: drawn_shapes (14); receipts (15); a small model trained from nothing:
small_multimodal; what `senses` is made and measured by: release_data, release (16); guard_figures (18);
quantized_quality, early_exit, two_processes (19). What
needs a GPU: gpu_training, gpu_run.
"""
