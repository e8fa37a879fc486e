"""A Flower Grid whose clients answer in this process; the only test file that uses Flower's internals."""

from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

# Message() needs the identity of the current task, which exists only in Flower's own processes
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

Answer = Callable[[int, Message], Message | None]


class Loopback(Grid):
    """A grid in one process.

    Args:
        nodes: The ids of the nodes.
        answer: A function of node and message that returns the reply, or None for a node that never replies.
        arrival: A function that orders the list of replies; by default they arrive as sent.
    """

    def __init__(self, nodes: Iterable[int], answer: Answer, arrival: Callable[[list], list] = list) -> None:
        self.nodes, self.answer, self.arrival = list(nodes), answer, arrival
        self._replies: dict[str, Message] = {}
        self._sent = 0

    @property
    def run(self):
        raise NotImplementedError

    def set_run(self, run) -> None:
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(
            content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl
        )

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = f"m{self._sent}"
            TaskIdentity.node_id = message.metadata.dst_node_id
            reply = self.answer(message.metadata.dst_node_id, message)
            TaskIdentity.node_id = 1
            if reply is not None:
                self._replies[f"m{self._sent}"] = reply
            ids.append(f"m{self._sent}")
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        ready = [i for i in self._replies if i in wanted]
        return self.arrival([self._replies.pop(i) for i in ready])

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))
