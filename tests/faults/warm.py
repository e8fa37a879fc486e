"""Imported once by the fork server, so that forked federations need not load these modules and models again."""

import torch

torch.set_num_threads(1)  # before the first operation, because a fork has no other threads

import matplotlib.figure  # noqa: E402, F401
import scipy.stats  # noqa: E402, F401

import client_app.main  # noqa: E402, F401
import server_app.main  # noqa: E402, F401
from core.plugins import names, plugin  # noqa: E402
from core.sections import LoraConfig, ModelConfig  # noqa: E402
from tasks.forward.setup import load_base  # noqa: E402
from tests.faults import federation  # noqa: E402, F401

for package in ("tasks", "strategies"):
    for name in names(package):
        plugin(package, name)
load_base(ModelConfig(), LoraConfig())
load_base(ModelConfig(), LoraConfig(), plugin("tasks", "pdpo")().private_parts)
