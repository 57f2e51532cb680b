"""Numbers as they are said, for tests of what writes them as digits."""

UNITS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
         "seventeen eighteen nineteen").split()  # fmt: skip
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
LAST = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
        "twelve": "twelfth"}  # fmt: skip


def in_words(n, joined=" and "):
    """105 as "one hundred and five", or without "and" where `joined` is " "."""
    if n < 20:
        return UNITS[n]
    if n < 100:
        return TENS[n // 10] + (f" {UNITS[n % 10]}" if n % 10 else "")
    for size, name in ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if n >= size:
            rest = n % size
            return f"{in_words(n // size, joined)} {name}" + (
                (joined if rest < 100 else " ") + in_words(rest, joined) if rest else "")  # fmt: skip


def ordinal(n):
    *first, last = in_words(n).split()
    last = LAST.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return " ".join([*first, last])


def year(n):
    """1905 as "nineteen oh five"."""
    century, rest = divmod(n, 100)
    tail = "hundred" if rest == 0 else f"oh {UNITS[rest]}" if rest < 10 else in_words(rest)
    return f"{in_words(century)} {tail}"
