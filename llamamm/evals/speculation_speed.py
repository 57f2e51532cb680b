"""What speculation gains: the same greedy answers with and without it, on text that is copied, on code, and on chat.

Beside the measured speed-up stands the one that Leviathan's formula predicts from two measurements: which share of the
guessed tokens was right, and what a call for several tokens takes beside a call for one. Each figure is a median over
rounds, with both sides in turn. Used in notebook 19.
"""

from __future__ import annotations

COPY = (
    "Repeat this text word for word:\n\nThe harbour office opens at seven. Boats that leave before then drop their "
    "papers into the green box beside the door. A clerk reads them at half past six, writes the names on the board, "
    "and rings the bell twice for each boat that may go. Boats that come back after dark tie up at the east pier, "
    "where a lamp burns all night, and pay in the morning.",
    "Copy this list exactly:\n\n- 3 kg of flour from the mill on Bridge Street\n- 12 eggs, brown if there are any\n"
    "- 1 jar of honey from the beekeeper at the market\n- 2 litres of milk in glass bottles\n- 500 g of butter, not "
    "salted\n- a bag of walnuts for the cake on Saturday",
)
CODE = (
    "Write this function again with a docstring:\n\n```python\ndef count_words(path, minimum=1):\n    counts = {}\n"
    "    with open(path, encoding=\"utf-8\") as file:\n        for line in file:\n            for word in line.lower()"
    ".split():\n                counts[word] = counts.get(word, 0) + 1\n    return {word: n for word, n in "
    "counts.items() if n >= minimum}\n```",
    "Write a Python class Stack with the methods push, pop, peek, is_empty and size, each with a docstring.",
)
CHAT = (
    "Why is the sky blue in the day and red in the evening?",
    "Give me three ideas for a birthday party in a small flat.",
)
TEXTS = {"copy": COPY, "code": CODE, "chat": CHAT}
