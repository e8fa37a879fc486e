"""`accord check`: do what a run does before its first round, in this process, and say what it finds."""

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


def rehearse(asked: Request, clients: Clients, *, show_rows: int = 0, brief: bool = False) -> Iterator[str]:
    """The lines of `accord check`; brief: warnings alone, as `accord run` prints them.

    Raises ConfigError, DataError or CheckpointError for what would stop the run.
    """
    check_home()
    config = parse(asked.keys)
    plan = _deployment(config, asked) if asked.federation["superlink"] else None
    if plan and show_rows:
        raise ConfigError("--show-rows needs the rows, which are at the sites of a deployment")
    if plan is None:
        plan = _simulation(config, asked, clients, lengths=not brief)
    yield from summary.warnings(plan) if brief else summary.lines(plan)
    if show_rows:
        yield from summary.row_lines(
            clients.first_rows(config, int(asked.federation["num-supernodes"]), show_rows)
        )


def _simulation(config: Config, asked: Request, clients: Clients, *, lengths: bool) -> summary.Plan:
    check_files(config)
    fetch(config.model, progress=True)  # here, where somebody can watch it
    base = clients.loaded(config)
    _check_models(config, base)
    holdings = tuple(clients.survey(config, int(asked.federation["num-supernodes"]), lengths=lengths))
    return summary.Plan(config, asked.federation, this_machine(), base, holdings)


def _deployment(config: Config, asked: Request) -> summary.Plan:
    """Its rows are at the sites; model and files are looked at if the SuperLink is a process of this machine."""
    link = connection(str(asked.federation["superlink"]), os.environ)
    check_reachable(link, os.environ)
    place, base = folder_here(link), None
    if place:
        os.chdir(place)  # where the ServerApp will look for files
        check_files(config)
        fetch(config.model, progress=True)
        base = load_base(config.model, config.lora)
        _check_models(config, base)
    return summary.Plan(config, asked.federation, this_machine(), base)


def _check_models(config: Config, base: Base) -> None:
    check_length(base.causal, config.train.max_length, config.model.name)
    if config.run.resume:
        RunFolder.reopen(config).check_base(config.model.name, base.fingerprint)
    if config.rlft.epochs and config.rlft.policy_model:
        load_base(replace(config.model, name=config.rlft.policy_model, revision="main"), config.lora)
