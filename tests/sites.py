"""Whole rounds in one process: real sites, the real toy model and round loop, messages in this process."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Message

from client_app.node import Node
from client_app.site import Site
from core import framing, wire
from core.sections import Config, FaultConfig
from core.types import ServerState
from server_app.run_folder import RunFolder
from strategies.rounds.session import RunContext
from tasks.forward.setup import load_base
from tasks.model.adapter import initial_adapter
from tests.loopback import Loopback


def federate(
    config: Config,
    path: Path,
    rounds: int,
    folder: RunFolder | None = None,
    *,
    clients: int = 3,
    away: Callable[[Message], bool] = lambda message: False,
) -> tuple[RunFolder, list]:
    """Do rounds up to `rounds`, from the last checkpoint of `folder` if there is one.

    Client c is node 10 + c. `away` selects the messages that are answered with an error.

    Returns:
        The run folder, and the records of the new rounds.
    """
    folder, records = folder or RunFolder.create(config), []
    base, strategy, task = (
        load_base(config.model, config.lora),
        config.build_strategy(),
        config.task_choice.build(),
    )

    def answer(node: int, message: Message) -> Message:
        site = Site(config, Node(node - 10, clients, state_dir=str(path / f"site-{node}")))
        if message.metadata.message_type == "query.hello":
            return Message(
                wire.encode_facts(site.hello(wire.decode_hello_request(message.content))), reply_to=message
            )
        if away(message):
            return Message(framing.encode_failure(framing.Failure("Away", "not now")), reply_to=message)
        act = site.train if message.metadata.message_type == "train" else site.evaluate
        return Message(wire.encode_update(act(wire.decode_order(message.content))), reply_to=message)

    def on_round(state: ServerState, record: dict) -> None:
        folder.commit(state, record)
        records.append(record)

    context = RunContext(
        run="r",
        base=base.fingerprint,
        simulation=True,
        min_available_nodes=clients,
        fraction_train=1.0,
        sampling="all",
        fault=FaultConfig(),
        eval_every=config.eval.every,
        spool=folder.path,
        task_order_options=task.order_options,
        task_options=task.pooled_options,
        on_hello=lambda hellos: None,
        on_round=on_round,
    )
    state = folder.load_state() or strategy.init(
        {"global": initial_adapter(base, config.run.seed)}, config.run.seed
    )
    strategy.run(Loopback(range(10, 10 + clients), answer), context, state, rounds)
    return folder, records
