"""The command line, `llamamm`.

Read in this order: main, options; talk (generate, chat), make (train, merge), quantize, measure (eval,
experiment), speed (bench).
"""
