"""The ClientApp: pass a message to the resident site if the node config names one, else answer it in this process."""

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client_app.relay import app_folder, relay
from core.framing import Failure, encode_failure

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    return Message(_answer("hello", message, context), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    return Message(_answer("train", message, context), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return Message(_answer("evaluate", message, context), reply_to=message)


def _answer(kind: str, message: Message, context: Context) -> RecordDict:
    node, keys = context.node_config, context.run_config
    if node.get("site"):
        return relay(kind, message.content, context.run_id, keys, node)
    if keys.get("site.mode") == "resident":
        reason = (
            "site.mode = 'resident', but this client's --node-config has no "
            "\"site='unix:///run/accord/site.sock'\"; start `accord site` there, or set site.mode = 'embedded'"
        )
        return encode_failure(Failure("ConfigError", reason))
    return _embedded(kind, message, context)


def _embedded(kind: str, message: Message, context: Context) -> RecordDict:
    # imported here: it takes seconds, which a relay and the start of Ray's actors should not pay
    from client_app.failures import unexpected_failure
    from client_app.handle import Claim, Request, handle

    claim = Claim(str(context.run_id), "", app_folder())
    try:
        return handle(Request(kind, context.run_config, message.content, claim), context.node_config)
    except Exception as error:  # Flower would send its message to the server
        return encode_failure(unexpected_failure(error, f"run={context.run_id} {kind}"))
