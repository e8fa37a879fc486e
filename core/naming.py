"""How clients are displayed: by number, and by name if they have one."""

from collections.abc import Mapping

LONGEST = 40  # characters of a name
SHORT = 14  # in narrow table columns


def shown_name(name: object, longest: int = LONGEST) -> str:
    """Return an untrusted name on one line, without control and formatting characters; "" if it is not a string."""
    text = "".join(c if c.isprintable() else " " for c in name) if isinstance(name, str) else ""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 3].rstrip() + "..."


def client_label(client: int, names: Mapping[int, str], longest: int = LONGEST) -> str:
    """Return "north (0)", or "0" for a client without a name or with one that only repeats its number."""
    name = _name(client, names, longest)
    return f"{name} ({client})" if name else str(client)


def client_mark(client: int, names: Mapping[int, str], longest: int = SHORT) -> str:
    """Return "north, 0" or "0", for use in parentheses."""
    name = _name(client, names, longest)
    return f"{name}, {client}" if name else str(client)


def _name(client: int, names: Mapping[int, str], longest: int) -> str:
    name = shown_name(names.get(client, ""), longest)
    return "" if name in (str(client), f"client-{client}") else name
