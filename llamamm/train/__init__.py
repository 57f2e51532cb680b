"""Training: settings, the loop, checkpoints that resume bit for bit, and the same under torchrun. Lessons 10 and 14.

Read in this order: losses, documents, rows; settings_file, config, optim, loop, rate_finder, log, checkpoint, check,
run; media_rows, stages, tokenizer; processes, distributed_checkpoint.
"""
