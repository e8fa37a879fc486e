"""What clients said of themselves before the first round: as the manifest keeps it, and in sentences.

Nothing that a client says is trusted: what does not have the form that is expected is absent.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from core.naming import client_label, shown_name
from core.types import Json
from server_app.report.formatting import counted, percent

UNITS = {  # why held-out rows share prompts with training rows
    "row": "whose rows all ask the same",
    "source": "which bring a split of their own",
    "prompt": "whose training rows were dealt anew",
}
REASONS = ("smaller", "untrainable")
MOST_NAMED = 3


def facts_of(said: Mapping[int, Json]) -> Json:
    """The manifest's `clients`, `data`, `truth` and `left_out`. said: client -> its hello."""
    ordered = sorted(said.items())
    left_out = next((out for _, s in ordered if (out := _left_out(s.get("left_out")))), {})
    return {
        "clients": {str(c): _client(s) for c, s in ordered},
        "data": {str(c): s["data"] for c, s in ordered},
        "truth": {str(c): s["truth"] for c, s in ordered if s["truth"] is not None},
        "left_out": left_out,
    }


def partitions_of(said: Mapping[int, Json]) -> int:
    """How many clients the federation has, by what most of them say: who is not here yet counts as well."""
    numbers = Counter(n for s in said.values() if (n := _whole(s.get("clients"))))
    return numbers.most_common(1)[0][0] if numbers else len(said)


def notes(manifest: Mapping[str, Json], names: Mapping[int, str]) -> list[str]:
    """Sentences about rows that were left out, that nobody holds out, or whose prompts are trained on as well.

    names: how clients are called; empty where neither they nor owners may be named.
    """
    clients = {int(client): facts for client, facts in (manifest.get("clients") or {}).items()}
    out = _about_owners(manifest.get("left_out") or {}, len(clients), named=bool(names))
    split, aside = (
        {client: facts[key] for client, facts in clients.items() if key in facts}
        for key in ("heldout", "aside")
    )
    if none := sorted(c for c, facts in split.items() if not facts["rows"]):
        who = _listed([f"client {client_label(c, names)}" for c in none])
        out.append(f"no rows are held out at {who}: too few that differ, so nothing is scored there")
    out += _about_prompts(split)
    if any(facts.get("shared") for facts in aside.values()):
        total = sum(facts["rows"] for facts in aside.values())
        out.append(
            f"{_share(aside.values(), 'shared', total)} of {total:,} rows set aside to compare adapters have a prompt "
            "that the same client trains on"
        )
    return out


def _about_owners(left_out: Mapping[str, Json], clients: int, *, named: bool) -> list[str]:
    out = []
    for reason, facts in left_out.items():
        owners, rows = facts["owners"], facts["rows"]
        who = f"{counted(owners, 'owner')} of {counted(rows, 'row')}"
        if named and facts.get("names"):
            who += f" ({_listed(facts['names'], owners)})"
        if reason == "smaller":
            out.append(
                f"{who} {'is' if owners == 1 else 'are'} left out: the {counted(clients, 'client')} are the owners "
                f"with most rows; federation.num-supernodes={clients + owners} takes all"
            )
        else:
            out.append(
                f"{who} {'is' if owners == 1 else 'are'} left out: none of these rows can be trained on"
            )
    return out


def _about_prompts(split: Mapping[int, Json]) -> list[str]:
    total, out = sum(facts["rows"] for facts in split.values()), []
    own = {c: facts for c, facts in split.items() if facts.get("shared")}
    if own:
        kinds = {unit: sum(facts["unit"] == unit for facts in own.values()) for unit in UNITS}
        why = " and ".join(f"{counted(n, 'client')} {UNITS[unit]}" for unit, n in kinds.items() if n)
        out.append(
            f"{_share(own.values(), 'shared', total)} of {total:,} held-out rows have a prompt that the same client "
            f"trains on: {why}"
        )
    if any(facts.get("anywhere", 0) > facts.get("shared", 0) for facts in split.values()):
        out.append(
            f"{_share(split.values(), 'anywhere', total)} of {total:,} held-out rows have a prompt that some client "
            "trains on"
        )
    return out


def _share(split: Iterable[Json], key: str, total: int) -> str:
    return percent(sum(facts["rows"] * facts.get(key, 0.0) for facts in split) / total)


def _client(said: Mapping[str, Json]) -> Json:
    facts: Json = {
        "examples": said["examples"],
        "skipped": said["skipped"],
        "loads": _whole(said.get("loads")),
    }
    if name := shown_name(said.get("name")):
        facts["name"] = name
    for key in ("heldout", "aside"):
        if split := _split(said.get(key)):
            facts[key] = split
    return facts


def _split(said: Json) -> Json:
    if not isinstance(said, Mapping) or type(said.get("rows")) is not int or said["rows"] < 0:
        return {}
    shares = {key: said[key] for key in ("shared", "anywhere") if _is_share(said.get(key))}
    unit = {"unit": said["unit"]} if said.get("unit") in (*UNITS, "none") else {}
    return {"rows": said["rows"], **unit, **shares}


def _left_out(said: Json) -> Json:
    if not isinstance(said, Mapping):
        return {}
    out = {}
    for reason in REASONS:
        facts = said.get(reason)
        if isinstance(facts, Mapping) and all(_whole(facts.get(key)) for key in ("owners", "rows")):
            names = facts.get("names")
            names = [name for each in names if (name := shown_name(each))] if isinstance(names, list) else []
            out[reason] = {"owners": facts["owners"], "rows": facts["rows"], "names": names[:MOST_NAMED]}
    return out


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1


def _whole(count: object) -> int:
    """A count that a client tells, if it is one."""
    return count if type(count) is int and count > 0 else 0


def _listed(names: Sequence[str], total: int = 0) -> str:
    shown, total = list(names)[:MOST_NAMED], total or len(names)
    more = f" and {total - len(shown):,} more" if total > len(shown) else ""
    return ", ".join(shown) + more
