"""`accord check`: do in this process what a run does before its first round, and describe the result."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from cli.check import summary
from cli.check.holdings import Holding
from cli.machine.processes import check_home
from cli.run.client_packing import this_machine
from cli.run.connections import check_reachable, connection, folder_here
from cli.run.request import Request
from core.config import parse
from core.errors import ConfigError
from core.sections import Config
from server_app.run_folder import RunFolder
from server_app.server_files import check_files
from tasks.forward.setup import load_base
from tasks.model.base import Base
from tasks.pretrained.loading import check_length
from tasks.pretrained.snapshot import fetch


class Clients(Protocol):
    """The clients of a simulation (cli/check/survey.py)."""

    def loaded(self, config: Config) -> Base: ...

    def survey(self, config: Config, clients: int, *, lengths: bool) -> Iterable[Holding]: ...

    def first_rows(self, config: Config, clients: int, count: int) -> list[list[tuple[str, str]]]: ...


def rehearse(
    request: Request, clients: Clients, *, show_rows: int = 0, warnings_only: bool = False
) -> Iterator[str]:
    """The lines of `accord check`.

    Args:
        request: The run to check.
        clients: The clients of a simulation.
        show_rows: How many training rows to show as the model will see them; a simulation only.
        warnings_only: Yield only warnings, as `accord run` prints them, and do not measure lengths.

    Raises:
        ConfigError, DataError, CheckpointError: The run could not start.
    """
    check_home()
    config = parse(request.keys)
    plan = _deployment(config, request) if request.federation["superlink"] else None
    if plan and show_rows:
        raise ConfigError("--show-rows needs a simulation: the rows of a deployment are at the sites")
    if plan is None:
        plan = _simulation(config, request, clients, lengths=not warnings_only)
    yield from summary.warnings(plan) if warnings_only else summary.lines(plan)
    if show_rows:
        yield from summary.row_lines(
            clients.first_rows(config, int(request.federation["num-supernodes"]), show_rows)
        )


def _simulation(config: Config, request: Request, clients: Clients, *, lengths: bool) -> summary.Plan:
    check_files(config)
    fetch(config.model, progress=True)  # in this process, whose terminal shows the progress
    base = clients.loaded(config)
    _check_models(config, base)
    holdings = tuple(clients.survey(config, int(request.federation["num-supernodes"]), lengths=lengths))
    return summary.Plan(config, request.federation, this_machine(), base, holdings)


def _deployment(config: Config, request: Request) -> summary.Plan:
    """Check a deployment: its SuperLink, and if that runs on this machine, the model and the server's files."""
    link = connection(str(request.federation["superlink"]), os.environ)
    check_reachable(link, os.environ)
    place, base = folder_here(link), None
    if place:
        os.chdir(place)  # the ServerApp resolves relative paths in this folder
        check_files(config)
        fetch(config.model, progress=True)
        base = load_base(config.model, config.lora)
        _check_models(config, base)
    return summary.Plan(config, request.federation, this_machine(), base)


def _check_models(config: Config, base: Base) -> None:
    check_length(base.causal, config.train.max_length, config.model.name)
    if config.run.resume:
        RunFolder.reopen(config).check_base(config.model.name, base.fingerprint)
    if config.rlft.epochs and config.rlft.policy_model:
        load_base(replace(config.model, name=config.rlft.policy_model, revision="main"), config.lora)
