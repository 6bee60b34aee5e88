"""A graph file with the random weights behind tests/golden/inception_seeded_weights.npz."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.types_pb2 import DT_FLOAT

GOLDEN = Path(__file__).parent.parent / 'golden'


@pytest.fixture(scope='session')
def golden_shapes():
    """Name → shape of the 472 constants, as listed from the published graph."""
    shapes = json.loads((GOLDEN / 'inception_2015_graph_constants.json').read_text())
    return {name: tuple(shape) for name, shape in shapes.items()}


@pytest.fixture(scope='session')
def golden_features():
    """The golden images and features, without the prefix 'size32|'."""
    with np.load(GOLDEN / 'inception_seeded_weights.npz') as archive:
        return {name.removeprefix('size32|'): archive[name] for name in archive}


@pytest.fixture(scope='session')
def golden_scores():
    return json.loads((GOLDEN / 'metric_values.json').read_text())


@pytest.fixture(scope='session')
def seeded_graph(golden_shapes, tmp_path_factory):
    """The path of a graph file with the seeded weights, 95 MB."""
    graph = GraphDef()
    for name, shape in golden_shapes.items():
        node = graph.node.add(name=name, op='Const')
        tensor = node.attr['value'].tensor
        tensor.dtype = DT_FLOAT
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_content = _seeded_weight(name, shape).tobytes()
    path = tmp_path_factory.mktemp('inception') / 'classify_image_graph_def.pb'
    path.write_bytes(graph.SerializeToString())
    return path


def _seeded_weight(name, shape):
    r = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith('conv2d_params'):
        weight = r.normal(size=shape) * np.sqrt(2 / np.prod(shape[:3]))
    elif name.endswith('gamma'):
        weight = 1 + 0.1 * r.normal(size=shape)
    elif name.endswith('moving_variance'):
        weight = r.uniform(0.5, 1.5, size=shape)
    elif name == 'softmax/weights':
        weight = 0.05 * r.normal(size=shape)
    else:
        weight = 0.1 * r.normal(size=shape)
    return weight.astype(np.float32)
