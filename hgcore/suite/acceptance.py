"""What a claim accepts: an interval, an order, a value, or truth.

NaN, infinities, nothing and the wrong kind are never accepted.
"""

import math

FORMS = ({"min"}, {"max"}, {"min", "max"}, {"equals"}, {"order"}, {"order", "margin"}, {"true"})


def must(holds, message: str) -> None:
    """Raise ValueError(message) unless `holds`."""
    if not holds:
        raise ValueError(message)


def checked(rule: dict) -> dict:
    """`rule` as satisfied and broken take it; ValueError for one that is no rule, that nothing or
    that everything would pass.
    """
    must(isinstance(rule, dict), f"a mapping is needed, got {rule!r}")
    rule = {
        "true" if name is True else name: value for name, value in rule.items()
    }  # YAML reads the key true as a boolean
    must(
        set(rule) in FORMS,
        f"write one of {{min:, max:}}, {{equals:}}, {{order:, margin:}}, {{true: true}}; "
        f"got {rule!r}",
    )
    for name in sorted({"min", "max", "margin"} & set(rule)):
        must(
            is_number(rule[name]),
            f"{name} must be a finite number, got {rule[name]!r} (YAML reads 1e-3 as text: "
            "write 1.0e-3)",
        )
    must(rule.get("min", -math.inf) <= rule.get("max", math.inf), f"min lies above max: {rule!r}")
    must(rule.get("margin", 0) >= 0, f"margin must not be negative, got {rule.get('margin')!r}")
    must(
        rule.get("order", "increasing") in ("increasing", "decreasing"),
        f"order is increasing or decreasing, got {rule.get('order')!r}",
    )
    must(rule.get("true", True) is True, "only {true: true}; measure the negation instead")
    must(rule.get("equals", 0) is not None, "equals needs a value")
    return rule


def satisfied(rule: dict, value) -> bool:
    """Whether the plain `value` keeps a checked rule.

    Intervals hold for every element of a list; an order is strict, by `margin` if given.
    """
    if "true" in rule:
        return value is True
    if "equals" in rule:
        return _same(rule["equals"], value)
    numbers = leaves(value)
    if not numbers or not all(map(is_number, numbers)):
        return False
    if "order" in rule:
        return isinstance(value, list) and _ordered(rule, value)
    return all(
        rule.get("min", -math.inf) <= number <= rule.get("max", math.inf) for number in numbers
    )


def broken(rule: dict):
    """A plain value that just misses a checked rule."""
    if "true" in rule:
        return False
    if "order" in rule:
        return [0.0, 0.0]
    if "equals" in rule:
        return _other(rule["equals"])
    return (
        math.nextafter(rule["max"], math.inf)
        if "max" in rule
        else math.nextafter(rule["min"], -math.inf)
    )


def plain(value):
    """`value` with arrays and array scalars as Python lists and numbers."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def leaves(value) -> list:
    """The elements of a list of lists, in order; a value that is no list is its own only leaf."""
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


def is_number(value) -> bool:
    """A finite int or float; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _ordered(rule: dict, numbers: list) -> bool:
    sign = 1 if rule["order"] == "increasing" else -1
    if len(numbers) < 2 or not all(map(is_number, numbers)):
        return False
    gaps = [sign * (after - before) for before, after in zip(numbers, numbers[1:], strict=False)]
    return min(gaps) > 0 and min(gaps) >= rule.get("margin", 0)


def _same(wanted, value) -> bool:
    if isinstance(wanted, list):
        return (
            isinstance(value, list) and len(wanted) == len(value) and all(map(_same, wanted, value))
        )
    return isinstance(wanted, bool) == isinstance(value, bool) and wanted == value


def _other(wanted):
    if isinstance(wanted, bool):
        return not wanted
    if isinstance(wanted, list):
        return [*wanted, None]
    return f"not {wanted}" if isinstance(wanted, str) else wanted + 1
