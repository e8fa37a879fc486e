"""The files of a kit that templates/ describes: README, systemd units and compose files; and site.toml."""

from pathlib import Path

import tomli_w
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cli.provision.federation import Federation, SitePlan
from core.addresses import split_address

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=False,  # neither HTML nor XML
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
ADDRESS = "address=unix:/run/accord/site.sock"  # of the site's socket, in the compose file
NO_POLICY = '# policy = "policy.toml"  # what a server may ask (docs/policy.md); without it, everything\n'


def server(federation: Federation) -> dict[str, str]:
    """The files of the server's kit: text by file name."""
    folder = f"{federation.folder}/server"
    control_port = split_address(federation.control)[1]
    return {
        "README.md": _render(
            "server_readme.md.j2", federation=federation, folder=folder, control_port=control_port
        ),
        "accord-superlink.service": _unit(
            federation, f"Accord server of {federation.name}", folder, f"start {folder}"
        ),
        "compose.yml": _render("server_compose.yml.j2", federation=federation),
        ".env": f"COMPOSE_PROJECT_NAME=accord-{federation.name}\n",
    }


def site(federation: Federation, plan: SitePlan) -> dict[str, str]:
    """The files of a site's kit: text by file name."""
    folder, project = f"{federation.folder}/{plan.name}", f"accord-{federation.name}-{plan.name}"
    return {
        "README.md": _render(
            "site_readme.md.j2", federation=federation, site=plan, folder=folder, project=project
        ),
        "accord-site.service": _unit(
            federation, f"Accord site {plan.name}", folder, f"site {folder}/site.toml"
        ),
        "accord-node.service": _unit(
            federation, f"Accord SuperNode of {plan.name}", folder, f"start {folder}", "accord-site.service"
        ),
        "compose.yml": _render("site_compose.yml.j2", federation=federation, address=ADDRESS),
        "compose.gpu.yml": _render("compose.gpu.yml"),
        ".env": f"COMPOSE_PROJECT_NAME={project}\n",
    }


def site_toml(plan: SitePlan, number: int, sites: int) -> str:
    """The site.toml of a new kit; `sites` has an effect only for a site without a data-path."""
    settings: dict[str, str | int] = {
        "address": plan.address,
        "partition-id": number,
        "num-partitions": sites,
        "name": plan.name,
    }
    if plan.data_path:
        settings["data-path"] = plan.data_path
    return tomli_w.dumps({**settings, "state-dir": plan.state_dir}) + NO_POLICY


def _unit(federation: Federation, description: str, folder: str, arguments: str, dependency: str = "") -> str:
    return _render(
        "unit.service.j2",
        federation=federation,
        description=description,
        dependencies=f"network-online.target {dependency}".strip(),
        folder=folder,
        arguments=arguments,
    )


def _render(template: str, **values: object) -> str:
    return TEMPLATES.get_template(template).render(values)
