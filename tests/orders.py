"""Change an order by name, whether the name is a field or an option."""

from dataclasses import fields, replace

from core.types import Order

FIELDS = {field.name for field in fields(Order)}


def with_fields(order: Order, **changes: object) -> Order:
    """Return the order with other fields; a name that no order has becomes an option, in kebab case."""
    options = {k.replace("_", "-"): v for k, v in changes.items() if k not in FIELDS}
    changed = {k: v for k, v in changes.items() if k in FIELDS}
    return replace(order, options={**order.options, **options}, **changed)
