"""The round loop, over a Grid in this process."""

from dataclasses import replace

import pytest

from core.errors import ConfigError
from strategies.fedavg import FedAvg
from tests.loopback import Loopback
from tests.strategies.plain_clients import CONTEXT, X, answer, federate


def test_two_rounds_by_hand():
    """Weights 1, 2, 3 of 6; first entry (1*.1 + 2*.2 + 3*.3)/6 = 1.4/6 a round; second .1, then .2."""
    states, records = federate(2)
    assert [s.round for s in states] == [0, 1, 2]
    assert states[-1].adapters["global"]["w"].tolist() == pytest.approx([2 * 1.4 / 6, 0.3])
    assert records[2]["participants"] == [0, 1, 2]
    assert records[0]["eval"]["mean"]["acc"] == pytest.approx(0.1)
    assert records[1]["train"]["mean"]["loss"] == 0.5
    assert "train" not in records[0]


def test_the_result_does_not_depend_on_who_answers_first():
    straight, reverse = federate(2)[0][-1], federate(2, arrival=lambda m: m[::-1])[0][-1]
    assert straight.adapters["global"]["w"].equal(reverse.adapters["global"]["w"])


def test_a_resumed_run_is_the_same_run():
    whole = federate(3)[0][-1]
    half = federate(1)[0][-1]
    resumed = federate(3, state=half)[0][-1]
    assert resumed.adapters["global"]["w"].equal(whole.adapters["global"]["w"])
    assert replace(resumed, adapters={}) == replace(whole, adapters={})


def test_task_settings_are_computed_from_the_pooled_counts_and_the_last_rounds_sums():
    seen = []

    def task_options(pooled):
        seen.append((pooled["n"], pooled.get("kl_sum")))
        return {}

    federate(2, task_options=task_options)
    assert seen[0] == (3.0, None)
    assert seen[-1] == (3.0, 6.0)


def test_two_nodes_of_one_partition_are_refused():
    strategy, twins = FedAvg(), Loopback([10, 11, 12], lambda n, m: answer(10, m))
    with pytest.raises(ConfigError, match="two nodes have partition-id 0"):
        strategy.run(twins, CONTEXT, strategy.init({"global": X}, 7), 1)


def test_the_base_is_scored_once():
    """A run that stopped after round 0 has its record."""
    states, _ = federate(0)
    _, records = federate(1, state=states[0], base_scored=True)
    assert [r["round"] for r in records] == [1]


def test_updates_are_folded_while_others_still_train():
    """The third reply comes only after the first two have been folded."""
    folded: list[int] = []

    class Watched(FedAvg):
        def fold(self, state, rnd, spool):
            fold = super().fold(state, rnd, spool)
            add = fold.add
            fold.add = lambda update: (folded.append(update.client), add(update))[1]
            return fold

    class Late(Loopback):
        def pull_messages(self, message_ids):
            for message in list(super().pull_messages(message_ids)):
                training = message.metadata.message_type == "train"
                if training and message.metadata.src_node_id == 12 and folded != [0, 1]:
                    self._replies[message.metadata.reply_to_message_id] = message
                else:
                    yield message

    strategy = Watched()
    strategy.run(Late([10, 11, 12], answer), CONTEXT, strategy.init({"global": X}, 7), 1)
    assert folded == [0, 1, 2]
