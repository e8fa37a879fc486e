"""The files of a kit that people read and machines start from: README, systemd units, compose files, site.toml."""

import tomli_w

from cli.provision.federation import Federation, SitePlan, split

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
COMPOSE = """\
x-accord: &accord
  image: {image}
  restart: unless-stopped
  init: true
  stop_grace_period: 60s
  read_only: true
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  pids_limit: 1024
  logging:
    driver: json-file
    options: {{max-size: 10m, max-file: "3"}}

services:
"""
HEALTH = (
    "{{test: [CMD, python, -IS, /opt/accord/docker/healthy.py, {what}], interval: 10s, start_period: 180s}}"
)
SUPERLINK = """\
  superlink:
    <<: *accord
    command: [accord, start, /kit]
    working_dir: /kit # runs/ is there
    environment: {{FLWR_HOME: /kit/flwr, ACCORD_HOME: /kit/state/accord}}
    tmpfs: [/tmp]
    volumes: [".:/kit", "models:/models"]
    ports: ["{port}:{port}"]
    healthcheck: {health}

volumes:
  models: # bases from a hub
"""
RESIDENT = """\
  # Holds the rows and the base model, and has no network at all: its socket is how it is reached.
  site:
    <<: *accord
    command: [accord, site, /kit/site.toml, "{address}"]
    network_mode: none
    environment: {{ACCORD_HOME: /kit/state, HF_HUB_OFFLINE: "1"}}
    tmpfs: [/tmp]
    volumes: [".:/kit", "socket:/run/accord", "models:/models:ro"]
    healthcheck: {site_health}

  # Passes messages on. It sees its key and the site's socket, no rows and no private memory.
  node:
    <<: *accord
    command: [accord, start, /kit, "{address}", state-dir=/state]
    tmpfs: ["/tmp:exec"] # `accord node` puts a command of its own there
    volumes:
      - ./kit.toml:/kit/kit.toml:ro
      - ./site.toml:/kit/site.toml:ro
      - ./ca.crt:/kit/ca.crt:ro
      - ./node.key:/kit/node.key:ro
      - socket:/run/accord
      - node:/state
    healthcheck: {node_health}

volumes:
  socket:
  node:
  models: # bases from a hub; the site itself cannot fetch them
"""
ADDRESS = "address=unix:/run/accord/site.sock"
NO_POLICY = '# policy = "policy.toml"  # what the site allows (docs/policy.md); without one, whatever a run asks for\n'
GPU = """\
# Over compose.yml, for a GPU of this machine: NVIDIA's container toolkit, and an image built with CUDA's torch.
services:
  site:
    deploy:
      resources:
        reservations:
          devices: [{driver: nvidia, count: 1, capabilities: [gpu]}]
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

In a container (docs/docker.md), as the image's user:

    chown -R 10001 .
    docker compose up -d
    docker compose exec superlink accord register /kit
    docker compose exec superlink accord run own-files.toml federation.superlink={name} ...

State (registered keys, runs under way) is in `state/`; there, results come to `runs/` of this folder.
"""
SITE = """\
# Site {site} of federation {name}

{key}
    accord site site.toml             # holds rows and base model
    accord start .                    # the SuperNode beside it: asks the server for work

`site.toml` is yours: the file of your rows (`data-path`), where caches and private memory go (`state-dir`), what the
site allows (`policy`; without one, whatever a run asks for). Nothing that the server does changes it. This machine
opens no port; it reaches {address}, and nothing else.

As a service: put this folder at {folder}, then

    chown -R accord {folder}
    cp {folder}/accord-*.service /etc/systemd/system/
    systemctl enable --now accord-site accord-node

In containers (docs/docker.md), as the image's user, with rows and policy inside this folder:

    chown -R 10001 .
    docker compose up -d
    docker compose -f compose.yml -f compose.gpu.yml up -d      # instead, with a GPU

The site's container has no network. A base from a hub is fetched into its volume before:

    docker run --rm -v {project}_models:/models {image} hf download ORGANISATION/MODEL
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
    service = SUPERLINK.format(port=federation.fleet_port, health=HEALTH.format(what="superlink"))
    return {
        "README.md": readme,
        "accord-superlink.service": _unit(
            federation, f"Accord server of {federation.name}", folder, f"start {folder}"
        ),
        "compose.yml": COMPOSE.format(image=federation.image) + service,
        ".env": f"COMPOSE_PROJECT_NAME=accord-{federation.name}\n",
    }


def site(federation: Federation, plan: SitePlan) -> dict[str, str]:
    """File name to text, for a site's kit."""
    folder, project = f"{federation.folder}/{plan.name}", f"accord-{federation.name}-{plan.name}"
    readme = SITE.format(
        site=plan.name,
        name=federation.name,
        key=(OWN_KEY if plan.own_key else GIVEN_KEY).format(site=plan.name),
        address=federation.address,
        folder=folder,
        project=project,
        image=federation.image,
    )
    services = RESIDENT.format(
        address=ADDRESS, site_health=HEALTH.format(what="site"), node_health=HEALTH.format(what="node")
    )
    return {
        "README.md": readme,
        "accord-site.service": _unit(
            federation, f"Accord site {plan.name}", folder, f"site {folder}/site.toml"
        ),
        "accord-node.service": _unit(
            federation, f"Accord SuperNode of {plan.name}", folder, f"start {folder}", "accord-site.service"
        ),
        "compose.yml": COMPOSE.format(image=federation.image) + services,
        "compose.gpu.yml": GPU,
        ".env": f"COMPOSE_PROJECT_NAME={project}\n",
    }


def site_toml(plan: SitePlan, number: int, sites: int) -> str:
    """What a site says of itself; `sites` matters only to a site without a data-path."""
    facts: dict[str, str | int] = {
        "address": plan.address,
        "partition-id": number,
        "num-partitions": sites,
        "name": plan.name,
    }
    if plan.data_path:
        facts["data-path"] = plan.data_path
    return tomli_w.dumps({**facts, "state-dir": plan.state_dir}) + NO_POLICY


def _unit(federation: Federation, description: str, folder: str, words: str, wanted: str = "") -> str:
    return UNIT.format(
        description=description,
        wanted=f"network-online.target {wanted}".strip(),
        folder=folder,
        program=federation.program,
        words=words,
    )
