"""Groups that act on inputs: shifts, quarter turns, flips and permutations of places, and maps of a user's own, checked before use."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product
from typing import Literal

import torch
from torch import Tensor

Group = Literal["shift", "rotation90", "flip", "permutation"]
GROUPS = ("shift", "rotation90", "flip", "permutation")
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Action:
    """One element of a named group, for tensors with places along ``axes``, counted from the end, ``sizes`` of them on the inputs.

    ``element`` is what is done: offsets along the axes, a number of quarter turns, which axes are reversed, or the order of all places.
    """

    group: str
    element: tuple[int, ...]
    axes: tuple[int, ...]
    sizes: tuple[int, ...]

    def __call__(self, t: Tensor) -> Tensor:
        """Of a tensor on which it `acts`; a shift of fewer places is by as much less."""
        if self.group == "shift":
            steps = [n // t.shape[a] for n, a in zip(self.sizes, self.axes, strict=True)]
            return torch.roll(t, [e // s for e, s in zip(self.element, steps, strict=True)], self.axes)
        if self.group == "rotation90":
            return torch.rot90(t, self.element[0], self.axes)
        if self.group == "flip":
            return torch.flip(t, [a for a, reverse in zip(self.axes, self.element, strict=True) if reverse])
        last = tuple(range(-len(self.axes), 0))
        order = torch.tensor(self.element, device=t.device)
        places = t.movedim(self.axes, last)
        return places.flatten(last[0])[..., order].unflatten(-1, self.sizes).movedim(last, self.axes)


def places_of(x: Tensor, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes along which places lie, counted from the end; default: the last two of images (n, c, h, w), the last of other inputs.

    Raises:
        ValueError: an axis that is not one of the inputs', is that of the rows, or comes twice.
    """
    if axes is None:
        return (-2, -1) if x.ndim >= 4 else (-1,)
    found = tuple(a if a < 0 else a - x.ndim for a in axes)
    if not found or len(set(found)) < len(found) or not all(-x.ndim < a < 0 for a in found):
        raise ValueError(f"axes must name different axes of the inputs {tuple(x.shape)} other than that of the rows, got {axes}.")
    return found


def strides_on(t: Tensor, axes: tuple[int, ...], sizes: tuple[int, ...], group: str) -> tuple[int, ...] | None:
    """By how many places of the inputs one place of ``t`` moves along each axis; None where the group does not act on its shape.

    Shifts act on shorter axes too, by multiples of the stride: those of a convolution's output. The other groups need as many places, but
    for quarter turns and flips, which need only the axes.
    """
    if any(-a >= t.ndim for a in axes):
        return None
    here = tuple(t.shape[a] for a in axes)
    if group == "shift":
        return (
            tuple(n // m for n, m in zip(sizes, here, strict=True)) if all(n % m == 0 for n, m in zip(sizes, here, strict=True)) else None
        )
    if group == "permutation":
        return (1,) * len(axes) if here == sizes else None
    return None if group == "rotation90" and here[0] != here[1] else (1,) * len(axes)


def actions(group: str, axes: tuple[int, ...], sizes: tuple[int, ...], *, strides: tuple[int, ...], count: int, seed: int) -> list[Action]:
    """All elements of a group but the identity where there are at most ``count``, else so many different ones, drawn.

    Args:
        group: One of `GROUPS`.
        axes: Where the places lie, counted from the end.
        sizes: How many there are along each.
        strides: Shifts are by multiples of these.
        count: At least 1.
        seed: Of the drawing.

    Raises:
        ValueError: an unknown group, one that would change the shape, or one that has no other element than the identity.
    """
    if group not in GROUPS:
        raise ValueError(f"group must be one of {', '.join(GROUPS)}, or a map, got {group!r}.")
    if count < 1:
        raise ValueError(f"elements must be at least 1, got {count}.")
    generator = torch.Generator().manual_seed(seed)
    if group == "rotation90":
        if len(axes) != 2 or sizes[0] != sizes[1]:
            raise ValueError(f"a quarter turn changes the shape of inputs that are not square: along axes {axes} they have {sizes} places.")
        elements = [(turns,) for turns in (1, 2, 3)] if sizes[0] > 1 else []
    elif group == "flip":
        elements = [e for e in product((0, 1), repeat=len(axes)) if any(e) and all(n > 1 for n, r in zip(sizes, e, strict=True) if r)]
    elif group == "permutation":
        total = math.prod(sizes)
        every = math.factorial(total) - 1 if total < 20 else math.inf
        found: dict[tuple[int, ...], None] = {}
        while len(found) < count < every:
            order = torch.randperm(total, generator=generator, device="cpu").tolist()
            if order != sorted(order):
                found[tuple(order)] = None
        elements = list(found) if count < every else list(permutations(range(total)))[1:]
    else:
        elements = list(product(*(range(0, n, s) for n, s in zip(sizes, strides, strict=True))))[1:]
    if not elements:
        raise ValueError(f"{group} along axes {axes}, of {sizes} places, leaves everything where it is: there is nothing to measure.")
    if len(elements) > count:
        elements = [elements[i] for i in sorted(torch.randperm(len(elements), generator=generator, device="cpu")[:count].tolist())]
    return [Action(group, element, axes, sizes) for element in elements]


def check_map(transform: Map, inverse: Map | None, x: Tensor) -> None:
    """Refuse a map of inputs (n, ...) that changes their shape or type, mixes their rows, or is not known to be invertible.

    A map that rearranges the entries of a row is found out by what it does to their numbers; any other needs its ``inverse``.

    Raises:
        ValueError: such a map, or an ``inverse`` that is none.
    """
    moved = transform(x)
    if not isinstance(moved, Tensor) or moved.shape != x.shape or moved.dtype != x.dtype:
        got = f"{moved.dtype} {tuple(moved.shape)}" if isinstance(moved, Tensor) else type(moved).__name__
        raise ValueError(f"group must keep the shape and type of its input, {x.dtype} {tuple(x.shape)}, got {got}.")
    slack = torch.finfo(x.dtype).eps ** 0.5 if x.is_floating_point() else 0.0
    close = slack * float(torch.stack([x, moved]).double().abs().max())
    if _apart(transform(x.flip(0)).flip(0), moved) > close or _apart(transform(x[:1]), moved[:1]) > close:
        raise ValueError(
            "group must do to every row what it does to that row alone: here a row depends on the others, or on its place among them, or "
            "the map draws random numbers. The first axis is that of the rows: name the others, as in t.roll(1, dims=-1)."
        )
    if inverse is not None:
        back = inverse(moved)
        if _apart(back, x) > slack * float(x.double().abs().max()):
            raise ValueError("inverse must undo group: applied one after the other, they do not give back the inputs.")
        return
    order = _rearrangement(transform, x)
    if order is None or not torch.equal(moved.flatten(1), x.flatten(1)[:, order]):
        raise ValueError(
            "group must be invertible, and is not seen to be: it does more than to rearrange the entries of a row. Pass inverse=, the map "
            "that undoes it. A crop, or a shift that fills up with zeros, has none."
        )


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if a.shape == b.shape else math.inf


def _rearrangement(transform: Map, x: Tensor) -> Tensor | None:
    """From which entry of a row of ``x`` each entry of the moved row comes; None where the map does not rearrange their numbers.

    Numbers too large for the inputs' type go through the map digit by digit.
    """
    size = x[0].numel()
    base = 2 if x.dtype == torch.bool else int(2 / torch.finfo(x.dtype).eps) if x.is_floating_point() else torch.iinfo(x.dtype).max
    numbers = torch.arange(size, device=x.device)
    order, unit = torch.zeros_like(numbers), 1
    while unit < size:
        digits = (numbers // unit % base).to(x.dtype).reshape(1, *x.shape[1:])
        order += unit * transform(digits).flatten().long()
        unit *= base
    return order if torch.equal(order.sort().values, numbers) else None
