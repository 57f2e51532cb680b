"""The command line, `llamamm`.

Read in this order: main, options; talk (generate, chat), together (under torchrun), make (train, merge, plan),
quantize, measure (eval, experiment), speed (bench).
"""
