"""A client's answer to the server's hello request: counts and fingerprints of its data, never a row."""

from collections import Counter
from typing import TYPE_CHECKING

from core.types import HelloRequest, Json
from tasks.data.clients.rows import ClientRows
from tasks.data.clients.split import prompt_key, share_in
from tasks.training import engine

if TYPE_CHECKING:
    from client_app.site import Site


def describe(site: "Site", request: HelloRequest) -> Json:
    """Return what a client tells the server about itself; raises what makes it unable to take part."""
    base, rows, task, config, cache = site.base(request.base), site.rows(), site.task, site.config, site.cache
    train, comparison_rows = site.parts()
    examples = engine.encode_training_rows(base, task, train, config, cache)
    shared = share_in(comparison_rows, {prompt_key(row["prompt"]) for row in train})
    untrained = [
        engine.encode_rows(base, task, comparison_rows, config, cache),
        engine.encode_heldout_rows(base, task, site.heldout(), config, cache),
    ]
    skipped = Counter(rows.skipped)
    for part in (examples, *untrained):
        skipped.update(part.skipped)
    # names of the columns of a site's own file, and of files next to it, may be private
    own_file = bool(site.node.data_path)
    columns = rows.columns.outside() if own_file else rows.columns
    comparison = (
        {} if shared is None else {"aside": {"rows": len(comparison_rows), "shared": round(shared, 4)}}
    )
    return {
        "client": site.node.client,
        "clients": site.node.clients,
        **_names(site, rows, request),
        "examples": len(examples.usable),
        "skipped": dict(skipped),
        "columns": {"used": list(columns.used), "ignored": list(columns.ignored)},
        "unread": [] if own_file else list(rows.unread),
        "remarks": dict(examples.remarks),
        "row_counts": task.row_counts(examples.usable),
        "data": rows.fingerprint,
        "base": base.fingerprint,
        "truth": rows.truth,
        "heldout": rows.split.facts(),
        **comparison,
    }


def _names(site: "Site", rows: ClientRows, request: HelloRequest) -> Json:
    """Return the client's name, and the owners of rows that are not clients.

    Names come from the data only in a simulation: file names and worker ids may identify people.
    """
    if site.node.simulated and request.simulation:
        name, left_out = rows.owner, rows.left_out
    else:
        name = site.node.name
        left_out = {
            reason: {key: value for key, value in facts.items() if key != "names"}
            for reason, facts in rows.left_out.items()
        }
    return {key: value for key, value in (("name", name), ("left_out", left_out)) if value}
