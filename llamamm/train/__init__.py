"""Training: settings, the loop, checkpoints that resume bit for bit, and the same under torchrun. Lessons 10 and 14.

Read in this order: losses, documents, records, sources, order, rows, batches; settings_file, recipe, config, optim,
randomness, loop, rate_finder, log, checkpoint, check, seen, prepare, run, plan, budget; media_rows, features, stages,
look, tokenizer, calibration; streams; preference, alignment; processes, distributed_checkpoint.
"""
