"""The files of a kit that people read and machines start from: README, systemd units, compose files, site.toml."""

import tomli_w

from server_app.provision.federation import Federation, SitePlan, split

UNIT = """\
[Unit]
Description={description}
After={wanted}
Wants={wanted}
StartLimitIntervalSec=0

[Service]
User=accord
WorkingDirectory={folder}
ExecStart={program} {words}
Restart=always
RestartSec=5
KillMode=mixed
TimeoutStopSec=60
UMask=0077
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=full

[Install]
WantedBy=multi-user.target
"""
SERVICE = """\
  {name}:
    image: {image}
    command: {words}
    volumes: [".:/kit"]
    restart: unless-stopped
    init: true
    stop_grace_period: 60s
"""
SERVER = """\
# The server of federation {name}

`ca.crt` and `server.crt` are public. `server.key` is not: keep this folder to the user that runs the server.

    accord start .                    # the SuperLink; again after every change of certificate
    accord register .                 # let in every site of sites/, and out whoever is no longer there
    FLWR_HOME=$PWD/flwr accord run own-files.toml federation.superlink={name} strategy.min-available-nodes={sites}

Sites need to reach TCP port {port} of {hosts}. The address {control} is for whoever starts runs: no account is asked
for there, so leave it on the loopback, and come to it through ssh: `ssh -L {control_port}:{control} SERVER`.

As a service: put this folder at {folder}, then

    chown -R accord {folder}
    cp {folder}/accord-superlink.service /etc/systemd/system/
    systemctl enable --now accord-superlink

or `chown -R 10001 . && docker compose up -d` (the user of the image; docs/docker.md). State (registered keys,
runs under way) is in `state/`.
"""
SITE = """\
# Site {site} of federation {name}

{key}
    accord site site.toml             # holds rows and base model
    accord start .                    # the SuperNode beside it: asks the server for work

`site.toml` is yours: the file of your rows (`data-path`), where caches and private memory go (`state-dir`), what the
site allows (`policy`). Nothing that the server does changes it. This machine opens no port; it reaches {address},
and nothing else.

As a service: put this folder at {folder}, then

    chown -R accord {folder}
    cp {folder}/accord-*.service /etc/systemd/system/
    systemctl enable --now accord-site accord-node

or `chown -R 10001 . && docker compose up -d` (the user of the image; docs/docker.md).
"""
OWN_KEY = """\
Make this site's key here, where it stays, and send the public half, `node.pub`, to the server as `sites/{site}.pub`:

    accord provision --site-key .
"""
GIVEN_KEY = "`node.key` proves that a SuperNode is this site's: keep this folder to the user that runs it.\n"


def server(federation: Federation) -> dict[str, str]:
    """File name to text, for the server's kit."""
    folder = f"{federation.folder}/server"
    readme = SERVER.format(
        name=federation.name,
        sites=len(federation.sites),
        port=federation.fleet_port,
        hosts=" or ".join(federation.hosts),
        control=federation.control,
        control_port=split(federation.control)[1],
        folder=folder,
    )
    service = SERVICE.format(name="superlink", image=federation.image, words='["accord", "start", "/kit"]')
    ports = f'    ports: ["{federation.fleet_port}:{federation.fleet_port}"]\n'
    return {
        "README.md": readme,
        "accord-superlink.service": _unit(
            federation, f"Accord server of {federation.name}", folder, f"start {folder}"
        ),
        "compose.yml": f"services:\n{service}{ports}",
        ".env": f"COMPOSE_PROJECT_NAME=accord-{federation.name}\n",
    }


def site(federation: Federation, plan: SitePlan) -> dict[str, str]:
    """File name to text, for a site's kit."""
    folder = f"{federation.folder}/{plan.name}"
    readme = SITE.format(
        site=plan.name,
        name=federation.name,
        key=(OWN_KEY if plan.own_key else GIVEN_KEY).format(site=plan.name),
        address=federation.address,
        folder=folder,
    )
    service = SERVICE.format(
        name="site", image=federation.image, words='["accord", "site", "/kit/site.toml"]'
    )
    service += SERVICE.format(name="node", image=federation.image, words='["accord", "start", "/kit"]')
    return {
        "README.md": readme,
        "accord-site.service": _unit(
            federation, f"Accord site {plan.name}", folder, f"site {folder}/site.toml"
        ),
        "accord-node.service": _unit(
            federation, f"Accord SuperNode of {plan.name}", folder, f"start {folder}", "accord-site.service"
        ),
        "compose.yml": f"services:\n{service}",
        ".env": f"COMPOSE_PROJECT_NAME=accord-{federation.name}-{plan.name}\n",
    }


def site_toml(plan: SitePlan, number: int, sites: int) -> str:
    """What a site says of itself; `sites` matters only to a site without a data-path."""
    facts: dict[str, str | int] = {
        "address": plan.address,
        "partition-id": number,
        "num-partitions": sites,
    }
    if plan.data_path:
        facts["data-path"] = plan.data_path
    return tomli_w.dumps({**facts, "state-dir": plan.state_dir})


def _unit(federation: Federation, description: str, folder: str, words: str, wanted: str = "") -> str:
    return UNIT.format(
        description=description,
        wanted=f"network-online.target {wanted}".strip(),
        folder=folder,
        program=federation.program,
        words=words,
    )
