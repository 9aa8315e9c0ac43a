"""How is a number written for a reader? With the digits it deserves, a true minus, and powers of ten as powers of ten."""

from __future__ import annotations

import math
import re

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(exponent: int) -> str:
    """``10⁻³`` and the like.

    Example:
        >>> power_of_ten(-16)
        '10⁻¹⁶'
    """
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


def number(x: float, digits: int = 4, *, zeros: bool = False) -> str:
    """A number to ``digits`` significant digits; trailing ``zeros`` are kept where they say how exactly it is known.

    Example:
        >>> number(20.4959), number(-3.2e-16), number(0.0), number(float("inf")), number(1e-12)
        ('20.5', '−3.2×10⁻¹⁶', '0', '∞', '10⁻¹²')
    """
    if math.isnan(x):
        return "not a number"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    mantissa, _, tail = f"{x:.{max(digits, 1) - 1}e}".partition("e")
    exponent = int(tail)
    if x == 0:
        return "0"
    if -4 < exponent < 6:
        text = f"{x:.{max(0, digits - 1 - exponent)}f}"
        return (text.rstrip("0").rstrip(".") if "." in text and not zeros else text).replace("-", "−")
    if "." in mantissa and not zeros:
        mantissa = mantissa.rstrip("0").rstrip(".")
    sign = "−" if mantissa.startswith("-") else ""
    mantissa = mantissa.lstrip("-")
    power = power_of_ten(exponent)
    return sign + (power if mantissa == "1" else f"{mantissa}×{power}")


def count(n: int) -> str:
    """A whole number with its thousands set apart.

    Example:
        >>> count(1234567), count(999)
        ('1,234,567', '999')
    """
    return f"{n:,}"


def digits_for(x: float, width: float) -> int:
    """Significant digits of ``x`` that an uncertainty of ``width`` leaves meaningful: two digits of the width, from 2 to 7 in all.

    Example:
        >>> digits_for(20.4959, 0.05), digits_for(1.0, 0.0)
        (5, 5)
    """
    if width <= 0 or x == 0 or not math.isfinite(width):
        return 5
    return min(7, max(2, math.floor(math.log10(abs(x))) - math.floor(math.log10(width)) + 2))


def interval(low: float, high: float) -> str:
    """``[0.961, 1.003]`` with digits by the width, or "" where the two ends are one, or read alike.

    Example:
        >>> interval(0.96123, 1.00345), interval(1.0, 1.0), interval(10.0, 10.000000001)
        ('[0.961, 1.003]', '', '')
    """
    ends = [number(end, digits_for(end, high - low), zeros=True) for end in (low, high)]
    return "" if ends[0] == ends[1] else f"[{ends[0]}, {ends[1]}]"


def measured(x: float, low: float, high: float) -> str:
    """``x`` with the digits that its interval leaves meaningful; an interval too narrow to be read, as none, asks for no more than others.

    Example:
        >>> measured(0.98765, 0.96123, 1.00345), measured(10.0, 10.0, 10.000000001), measured(0.5, 0.5, 0.5)
        ('0.988', '10', '0.5')
    """
    legible = interval(low, high) != ""
    return number(x, digits_for(x, high - low if legible else 0.0), zeros=legible)


def in_words(relation: str) -> str:
    """A relation's description with its powers of ten set as such, and without a tolerance of nothing.

    Example:
        >>> in_words("equal within 1e-12·|predicted|"), in_words("at most predicted + 0"), in_words("exponent -0.5 ± 0.05")
        ('equal within 10⁻¹²·|predicted|', 'at most predicted', 'exponent −0.5 ± 0.05')
    """
    text = re.sub(r"(?<![\w.)])-(?=\d)", "−", powers_set(relation))
    return re.sub(r" [+−] 0$", "", text)


def powers_set(text: str) -> str:
    """Words with the numbers that a program wrote as ``4.8e-14`` set as powers of ten.

    Example:
        >>> powers_set("off by 4.8e-14 at δ = 1e-05"), powers_set("2e4b")
        ('off by 4.8×10⁻¹⁴ at δ = 10⁻⁵', '2e4b')
    """
    return re.sub(r"(?<![\w.])-?\d+(?:\.\d+)?e[+-]?\d+(?!\w)", lambda m: number(float(m[0])), text)


def sentence(text: str) -> str:
    """A phrase as a sentence: a first word gets its capital (a symbol does not), and the end its full stop.

    Example:
        >>> sentence("the linear model"), sentence("h = 1.9"), sentence("η too long!")
        ('The linear model.', 'h = 1.9.', 'η too long!')
    """
    head = text.split(maxsplit=1)[0].rstrip(",;:.!?")
    word = head == "a" or (len(head) > 1 and head.isalpha() and head.isascii() and head.islower())
    start = text[0].upper() if word else text[0]
    return start + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def duration(seconds: float) -> str:
    """Wall time.

    Example:
        >>> duration(0.0312), duration(9.44), duration(75), duration(3700)
        ('0.03 s', '9.4 s', '1 min 15 s', '1 h 2 min')
    """
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    if seconds < 3570:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))


def size(count: int) -> str:
    """Memory.

    Example:
        >>> size(0), size(330_000_000), size(2_500_000_000)
        ('not measured', '330 MB', '2.5 GB')
    """
    if count <= 0:
        return "not measured"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
