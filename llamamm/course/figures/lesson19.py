"""Pictures of lesson 19: limits and speeds, what rounding costs at each size, what a call for many tokens takes, what
each of several processes holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt

from llamamm.course.plots import BLUE, GREY, ORANGE, RED, SKY, show

PARTS = {"weights": BLUE, "gradients": ORANGE, "moments": SKY, "gathered block": RED}
BYTES = {"weights": 4, "gradients": 4, "moments": 8}  # of each parameter


def speeds(measured: Mapping[str, float], limits: Mapping[str, float]) -> None:
    """Tokens a second: a bar for each way, and a mark where the memory's speed ends it."""
    figure, ax = plt.subplots(figsize=(7.4, 0.9 + 0.5 * len(measured)))
    for n, (name, rate) in enumerate(measured.items()):
        ax.barh(n, rate, height=0.55, color=BLUE)
        ax.plot([limits[name]] * 2, [n - 0.38, n + 0.38], color=RED, linewidth=3)
        ax.text(1.02, n, f"{rate:.1f} of {limits[name]:.0f}", transform=ax.get_yaxis_transform(), va="center")
    ax.set(yticks=range(len(measured)), yticklabels=list(measured), xlabel="tokens a second (red: what memory allows)",
           ylim=(len(measured) - 0.4, -0.6))  # fmt: skip
    told = [f"{name} {rate:.1f} of {limits[name]:.0f}" for name, rate in measured.items()]
    show(figure, alt=f"Bars, tokens a second of those that memory allows: {', '.join(told)}.")


def rounding(errors: Mapping[tuple[int, int], float], bits_per_byte: Mapping[tuple[int, int], float],
             whole: float) -> None:  # fmt: skip
    """The error of a weight and the bits per byte of a text, by the size of the groups: (bits, group) -> a number."""
    figure, axes = plt.subplots(1, 2, figsize=(7.9, 3.1))
    sizes = sorted({group for _, group in errors})
    for ax, values, name in zip(axes, (errors, bits_per_byte), ("error of a weight, %", "bits per byte of the text"),
                                strict=True):  # fmt: skip
        for bits, colour in ((4, ORANGE), (8, BLUE)):
            ax.plot(range(len(sizes)), [values[bits, g] for g in sizes], "o-", color=colour, label=f"{bits} bits")
        ax.set(xticks=range(len(sizes)), xticklabels=sizes, xlabel="columns in a group", ylabel=name)
        ax.margins(x=0.12, y=0.18)
    axes[0].set_ylim(bottom=0)
    axes[1].axhline(whole, color=GREY, linestyle="--", linewidth=1.5, label="32 bits")
    axes[1].legend(loc="upper left")
    told = [f"{b} bits, groups of {g}: {e:.1f} % and {bits_per_byte[b, g]:.2f}" for (b, g), e in errors.items()]
    show(figure, alt=f"Error of a weight and bits per byte; 32 bits have {whole:.2f}. {'; '.join(told)}.")


def calls(sizes: Sequence[int], costs: Sequence[float]) -> None:
    """What one call for n tokens takes, in calls for one, beside n calls."""
    figure, ax = plt.subplots(figsize=(6.4, 3.0))
    ax.plot(sizes, sizes, "--", color=GREY, label="one after the other")
    ax.plot(sizes, costs, "o-", color=BLUE, label="in one call")
    ax.set(xlabel="tokens", ylabel="time, in one-token calls", xticks=list(sizes), xlim=(0, max(sizes) + 1),
           ylim=(0, None))  # fmt: skip
    ax.legend(loc="upper left")
    told = ", ".join(f"{n}: {c:.1f}" for n, c in zip(sizes, costs, strict=True))
    show(figure, alt=f"Time of one call, in calls for one token, by the number of its tokens: {told}.")


def held(rows: Mapping[str, Collection[str]], n: int, processes: int, block: int) -> None:
    """Gigabytes in each process, stacked, for each choice of what is sharded: name -> parts."""
    figure, ax = plt.subplots(figsize=(7.6, 1.1 + 0.5 * len(rows)))
    totals = []
    for y, sharded in enumerate(rows.values()):
        sizes = {part: size * n / (processes if part in sharded else 1) for part, size in BYTES.items()}
        sizes["gathered block"] = 4 * block if "weights" in sharded else 0
        left = 0.0
        for part, size in sizes.items():
            ax.barh(y, size / 1e9, left=left, height=0.6, color=PARTS[part], label=None if y else part)
            left += size / 1e9
        ax.text(left, y, f" {left:.0f}", va="center")
        totals.append(left)
    ax.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.4, -0.6), xlabel="GB in each process")
    ax.legend(loc="lower right")
    told = ", ".join(f"{name} {total:.0f}" for name, total in zip(rows, totals, strict=True))
    show(figure, alt=f"Stacked bars, GB in each of {processes} processes: {told}.")
