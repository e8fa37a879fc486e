"""Templates for the files of a kit: README, systemd units, compose files, site.toml."""

import tomli_w

from cli.provision.federation import Federation, SitePlan
from core.addresses import split_address

UNIT = """\
[Unit]
Description={description}
After={dependencies}
Wants={dependencies}
StartLimitIntervalSec=0

[Service]
User=accord
WorkingDirectory={folder}
ExecStart={program} {arguments}
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
HEALTH = "{{test: [CMD, python, -IS, /opt/accord/docker/healthy.py, {process}], interval: 10s, start_period: 180s}}"
SUPERLINK = """\
  superlink:
    <<: *accord
    command: [accord, start, /kit]
    working_dir: /kit # runs/ is created here
    environment: {{FLWR_HOME: /kit/flwr, ACCORD_HOME: /kit/state/accord}}
    tmpfs: [/tmp]
    volumes: [".:/kit", "models:/models"]
    ports: ["{port}:{port}"]
    healthcheck: {health}

volumes:
  models: # base models from the Hugging Face Hub
"""
RESIDENT = """\
  # Holds the rows and the base model. It has no network and is reached through its socket.
  site:
    <<: *accord
    command: [accord, site, /kit/site.toml, "{address}"]
    network_mode: none
    environment: {{ACCORD_HOME: /kit/state, HF_HUB_OFFLINE: "1"}}
    tmpfs: [/tmp]
    volumes: [".:/kit", "socket:/run/accord", "models:/models:ro"]
    healthcheck: {site_health}

  # Passes messages on. It can read its key and the site's socket, but no rows and no private memory.
  node:
    <<: *accord
    command: [accord, start, /kit, "{address}", state-dir=/state]
    tmpfs: ["/tmp:exec"] # `accord node` writes an executable there
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
  models: # base models from the Hugging Face Hub; the site itself cannot download them
"""
ADDRESS = "address=unix:/run/accord/site.sock"
NO_POLICY = '# policy = "policy.toml"  # what a server may ask (docs/policy.md); without it, everything\n'
GPU = """\
# Use with compose.yml to give the site a GPU. Needs NVIDIA's container toolkit and an image built with CUDA's torch.
services:
  site:
    deploy:
      resources:
        reservations:
          devices: [{driver: nvidia, count: 1, capabilities: [gpu]}]
"""
SERVER = """\
# The server of federation {name}

`ca.crt` and `server.crt` are public. `server.key` is secret: only the user that runs the server may read this folder.

    accord start .                    # start the SuperLink; restart it after every change of the certificate
    accord register .                 # register every site of sites/, and remove those that are no longer there
    FLWR_HOME=$PWD/flwr accord run own-files.toml federation.superlink={name} strategy.min-available-nodes={sites}

Sites need to reach TCP port {port} of {hosts}. Runs are started through the address {control}. It has no
authentication, so leave it on the loopback and reach it through ssh: `ssh -L {control_port}:{control} SERVER`.

To run it as a service, put this folder at {folder}, then

    chown -R accord {folder}
    cp {folder}/accord-superlink.service /etc/systemd/system/
    systemctl enable --now accord-superlink

To run it in a container (docs/docker.md), where the files belong to the image's user:

    chown -R 10001 .
    docker compose up -d
    docker compose exec superlink accord register /kit
    docker compose exec superlink accord run own-files.toml federation.superlink={name} ...

The state (registered keys, runs in progress) is in `state/`. A run started in the container writes its results to
`runs/` of this folder.
"""
SITE = """\
# Site {site} of federation {name}

{key}
    accord site site.toml             # the resident site: holds rows and base model
    accord start .                    # the SuperNode: connects to the server and passes messages to the site

`site.toml` belongs to the site: the file of its rows (`data-path`), the folder of caches and private memory
(`state-dir`), and what a server may ask of it (`policy`; without one, everything). The server never changes it. This
machine opens no port to others; it connects to {address} only.

To run it as a service, put this folder at {folder}, then

    chown -R accord {folder}
    cp {folder}/accord-*.service /etc/systemd/system/
    systemctl enable --now accord-site accord-node

To run it in containers (docs/docker.md), put rows and policy into this folder, which then belongs to the image's user:

    chown -R 10001 .
    docker compose up -d
    docker compose -f compose.yml -f compose.gpu.yml up -d      # with a GPU, instead of the line above

The site's container has no network. Download a base model from the Hugging Face Hub into its volume before:

    docker run --rm -v {project}_models:/models {image} hf download ORGANISATION/MODEL
"""
OWN_KEY = """\
Make this site's key on this machine, which it never leaves, and send the public half, `node.pub`, to the server as
`sites/{site}.pub`:

    accord provision --site-key .
"""
PROVISIONED_KEY = (
    "`node.key` is this site's secret key: only the user that runs the SuperNode may read this folder.\n"
)


def server(federation: Federation) -> dict[str, str]:
    """The files of the server's kit: text by file name."""
    folder = f"{federation.folder}/server"
    readme = SERVER.format(
        name=federation.name,
        sites=len(federation.sites),
        port=federation.fleet_port,
        hosts=" or ".join(federation.hosts),
        control=federation.control,
        control_port=split_address(federation.control)[1],
        folder=folder,
    )
    service = SUPERLINK.format(port=federation.fleet_port, health=HEALTH.format(process="superlink"))
    return {
        "README.md": readme,
        "accord-superlink.service": _unit(
            federation, f"Accord server of {federation.name}", folder, f"start {folder}"
        ),
        "compose.yml": COMPOSE.format(image=federation.image) + service,
        ".env": f"COMPOSE_PROJECT_NAME=accord-{federation.name}\n",
    }


def site(federation: Federation, plan: SitePlan) -> dict[str, str]:
    """The files of a site's kit: text by file name."""
    folder, project = f"{federation.folder}/{plan.name}", f"accord-{federation.name}-{plan.name}"
    readme = SITE.format(
        site=plan.name,
        name=federation.name,
        key=(OWN_KEY if plan.own_key else PROVISIONED_KEY).format(site=plan.name),
        address=federation.address,
        folder=folder,
        project=project,
        image=federation.image,
    )
    services = RESIDENT.format(
        address=ADDRESS, site_health=HEALTH.format(process="site"), node_health=HEALTH.format(process="node")
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
    return UNIT.format(
        description=description,
        dependencies=f"network-online.target {dependency}".strip(),
        folder=folder,
        program=federation.program,
        arguments=arguments,
    )
