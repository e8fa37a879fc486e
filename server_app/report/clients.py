"""Facts from the clients' hellos before the first round, for the manifest and as sentences.

Hellos are untrusted: values that do not have the expected form are omitted.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from core.naming import client_label, shown_name
from core.types import Json
from server_app.report.formatting import counted, percent

UNITS = {  # how rows were held out -> why held-out rows share prompts with training rows
    "row": "whose rows all have the same prompt",
    "source": "whose rows come with a split of their own",
    "prompt": "whose training rows were redistributed",
}
REASONS = ("smaller", "untrainable")  # why owners are not clients
MOST_NAMED = 3  # owners or clients named in a sentence


def facts_of(hellos: Mapping[int, Json]) -> Json:
    """The entries `clients`, `data`, `truth` and `left_out` of the manifest. hellos: client -> its hello."""
    ordered = sorted(hellos.items())
    left_out = next(
        (checked for _, hello in ordered if (checked := _checked_left_out(hello.get("left_out")))), {}
    )
    return {
        "clients": {str(c): _client_facts(hello) for c, hello in ordered},
        "data": {str(c): hello["data"] for c, hello in ordered},
        "truth": {str(c): hello["truth"] for c, hello in ordered if hello["truth"] is not None},
        "left_out": left_out,
    }


def count_clients(hellos: Mapping[int, Json]) -> int:
    """Number of clients in the federation, as most hellos report it; clients that have not connected are included."""
    counts = Counter(n for hello in hellos.values() if (n := _positive_count(hello.get("clients"))))
    return counts.most_common(1)[0][0] if counts else len(hellos)


def notes(manifest: Mapping[str, Json], names: Mapping[int, str]) -> list[str]:
    """Sentences about owners left out, clients without held-out rows, and held-out prompts that are trained on as well.

    names: of the clients; if empty, neither clients nor owners are named.
    """
    clients = {int(client): facts for client, facts in (manifest.get("clients") or {}).items()}
    sentences = _owner_notes(manifest.get("left_out") or {}, len(clients), named=bool(names))
    held_out, comparison = (
        {client: facts[key] for client, facts in clients.items() if key in facts}
        for key in ("heldout", "aside")
    )
    if unscored := sorted(c for c, facts in held_out.items() if not facts["rows"]):
        listing = _listed([f"client {client_label(c, names)}" for c in unscored])
        sentences.append(
            f"no rows are held out at {listing}: too few distinct rows, so nothing is evaluated there"
        )
    sentences += _prompt_notes(held_out)
    if any(facts.get("shared") for facts in comparison.values()):
        total = sum(facts["rows"] for facts in comparison.values())
        sentences.append(
            f"{_mean_share(comparison.values(), 'shared', total)} of {total:,} rows set aside to compare adapters "
            "have a prompt that the same client trains on"
        )
    return sentences


def _owner_notes(left_out: Mapping[str, Json], clients: int, *, named: bool) -> list[str]:
    """Sentences about owners of rows that are not clients, by reason."""
    sentences = []
    for reason, facts in left_out.items():
        owners, rows = facts["owners"], facts["rows"]
        subject = f"{counted(owners, 'owner')} of {counted(rows, 'row')}"
        if named and facts.get("names"):
            subject += f" ({_listed(facts['names'], owners)})"
        if reason == "smaller":
            sentences.append(
                f"{subject} {'is' if owners == 1 else 'are'} left out: the {counted(clients, 'client')} are the owners "
                f"with most rows; set federation.num-supernodes={clients + owners} to include all"
            )
        else:
            sentences.append(
                f"{subject} {'is' if owners == 1 else 'are'} left out: none of these rows can be trained on"
            )
    return sentences


def _prompt_notes(held_out: Mapping[int, Json]) -> list[str]:
    """Sentences about held-out rows whose prompts are also trained on, at the same client or at any."""
    total, sentences = sum(facts["rows"] for facts in held_out.values()), []
    repeating = {c: facts for c, facts in held_out.items() if facts.get("shared")}
    if repeating:
        unit_counts = {unit: sum(facts["unit"] == unit for facts in repeating.values()) for unit in UNITS}
        reasons = " and ".join(
            f"{counted(n, 'client')} {UNITS[unit]}" for unit, n in unit_counts.items() if n
        )
        sentences.append(
            f"{_mean_share(repeating.values(), 'shared', total)} of {total:,} held-out rows have a prompt that the "
            f"same client trains on: {reasons}"
        )
    if any(facts.get("anywhere", 0) > facts.get("shared", 0) for facts in held_out.values()):
        sentences.append(
            f"{_mean_share(held_out.values(), 'anywhere', total)} of {total:,} held-out rows have a prompt that some "
            "client trains on"
        )
    return sentences


def _mean_share(splits: Iterable[Json], key: str, total: int) -> str:
    """The share under `key`, as a percentage of `total` rows over all splits."""
    return percent(sum(facts["rows"] * facts.get(key, 0.0) for facts in splits) / total)


def _client_facts(hello: Mapping[str, Json]) -> Json:
    """A client's entry in the manifest."""
    facts: Json = {
        "examples": hello["examples"],
        "skipped": hello["skipped"],
        "loads": _positive_count(hello.get("loads")),
    }
    if name := shown_name(hello.get("name")):
        facts["name"] = name
    for key in ("heldout", "aside"):
        if split := _checked_split(hello.get(key)):
            facts[key] = split
    return facts


def _checked_split(facts: Json) -> Json:
    """The valid fields of a `heldout` or `aside` entry; {} if its row count is invalid."""
    if not isinstance(facts, Mapping) or type(facts.get("rows")) is not int or facts["rows"] < 0:
        return {}
    shares = {key: facts[key] for key in ("shared", "anywhere") if _is_share(facts.get(key))}
    unit = {"unit": facts["unit"]} if facts.get("unit") in (*UNITS, "none") else {}
    return {"rows": facts["rows"], **unit, **shares}


def _checked_left_out(by_reason: Json) -> Json:
    """The valid entries of `left_out`, by reason."""
    if not isinstance(by_reason, Mapping):
        return {}
    checked = {}
    for reason in REASONS:
        facts = by_reason.get(reason)
        if isinstance(facts, Mapping) and all(_positive_count(facts.get(key)) for key in ("owners", "rows")):
            names = facts.get("names")
            names = (
                [name for owner in names if (name := shown_name(owner))] if isinstance(names, list) else []
            )
            checked[reason] = {"owners": facts["owners"], "rows": facts["rows"], "names": names[:MOST_NAMED]}
    return checked


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1


def _positive_count(count: object) -> int:
    """`count` if it is a positive integer, else 0; bool is not an integer here."""
    return count if type(count) is int and count > 0 else 0


def _listed(names: Sequence[str], total: int = 0) -> str:
    """The first names and the number of others; total: number of all, if `names` is incomplete."""
    listed, total = list(names)[:MOST_NAMED], total or len(names)
    rest = f" and {total - len(listed):,} more" if total > len(listed) else ""
    return ", ".join(listed) + rest
