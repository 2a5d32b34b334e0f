"""Two lives of a simulated model on the GPU that this process's driver has, as JSON.

A program of its own: which driver a process finds is decided when it starts. Arguments, as JSON: the configuration of
the node, and its modules.
"""

import json
import sys
from dataclasses import asdict

import numpy as np

from bench.card import Card, life
from engine.node import resolve

config, modules = resolve(json.loads(sys.argv[1])), json.loads(sys.argv[2])
said = np.zeros(16_000, np.int16)
with Card("cuda:0") as card:
    print(json.dumps([asdict(life(config, card, said, modules=modules)) for _ in range(2)]))
