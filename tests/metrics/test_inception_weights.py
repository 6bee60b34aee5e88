import hashlib
import io
import tarfile

import numpy as np
import pytest
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_FLOAT, DT_INT32

from sagan_jax.errors import UserError
from sagan_jax.metrics import inception_weights
from tests import file_server

WEIGHTS = {
    'conv/conv2d_params': np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4) / 7,
    'conv/batchnorm/gamma': np.full(4, 1.5, np.float32),
    'softmax/biases': np.array([0.1, -0.2, 0.3], np.float32),
}
SHAPES = {name: value.shape for name, value in WEIGHTS.items()}


def add_constant(graph, name, values, dtype=DT_FLOAT, op='Const'):
    node = graph.node.add(name=name, op=op)
    tensor = node.attr['value'].tensor
    tensor.dtype = dtype
    for size in np.shape(values):
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def small_graph():
    """A graph with WEIGHTS, each stored in another of three formats, and other nodes."""
    graph = GraphDef()
    graph.node.add(name='DecodeJpeg/contents', op='Placeholder')
    graph.node.add(name='softmax', op='Softmax')
    add_constant(graph, 'ResizeBilinear/size', [299, 299], DT_INT32).int_val.extend([299, 299])
    add_constant(graph, 'Sub/y', 0.0).float_val.append(128)
    kernel, gamma, biases = WEIGHTS.values()
    add_constant(graph, 'conv/conv2d_params', kernel).tensor_content = kernel.tobytes()
    add_constant(graph, 'conv/batchnorm/gamma', gamma).float_val.append(gamma[0])
    add_constant(graph, 'softmax/biases', biases).float_val.extend(biases)
    return graph


def archive_of(content, name='classify_image_graph_def.pb'):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        for member, data in (('cropped_panda.jpg', b'panda' * 999), (f'./{name}', content)):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def assert_one_sentence(error, *parts):
    message = str(error.value)
    assert '\n' not in message
    assert message.endswith('.')
    for part in parts:
        assert str(part) in message


@pytest.mark.parametrize('pack', [bytes, archive_of])
def test_constants_are_read_from_the_graph_and_the_archive(tmp_path, pack):
    serialized = small_graph().SerializeToString()
    path = tmp_path / 'weights'
    path.write_bytes(pack(serialized))
    constants, sha256 = inception_weights.read(path, SHAPES)
    assert set(constants) == set(WEIGHTS)
    for name, expected in WEIGHTS.items():
        assert constants[name].dtype == np.float32
        np.testing.assert_array_equal(constants[name], expected)
    assert sha256 == hashlib.sha256(serialized).hexdigest()


def without(graph, name):
    kept = [node for node in graph.node if node.name != name]
    del graph.node[:]
    graph.node.extend(kept)
    return graph


def changed(name, change):
    def make():
        graph = small_graph()
        (node,) = (node for node in graph.node if node.name == name)
        change(node)
        return graph

    return make


def with_another_weight():
    graph = small_graph()
    add_constant(graph, 'mixed_11/conv2d_params', 0.0).float_val.append(1)
    return graph


WRONG_GRAPHS = {
    'missing': (lambda: without(small_graph(), 'softmax/biases'), 'lack 1 of 3'),
    'not a constant': (
        changed('softmax/biases', lambda node: setattr(node, 'op', 'Variable')),
        'lack 1 of 3',
    ),
    'shape': (
        changed(
            'softmax/biases',
            lambda node: setattr(node.attr['value'].tensor.tensor_shape.dim[0], 'size', 4),
        ),
        'softmax/biases as (4,), expected (3,)',
    ),
    'too few values': (
        changed('softmax/biases', lambda node: node.attr['value'].tensor.float_val.pop()),
        'values of softmax/biases',
    ),
    'no values': (
        changed('conv/batchnorm/gamma', lambda node: node.attr['value'].tensor.float_val.pop()),
        'values of conv/batchnorm/gamma',
    ),
    'content cut': (
        changed(
            'conv/conv2d_params',
            lambda node: setattr(node.attr['value'].tensor, 'tensor_content', b'1234'),
        ),
        'values of conv/conv2d_params',
    ),
    'float64': (
        changed(
            'softmax/biases', lambda node: setattr(node.attr['value'].tensor, 'dtype', DT_DOUBLE)
        ),
        'float32 values of softmax/biases',
    ),
    'left over': (with_another_weight, 'mixed_11/conv2d_params'),
    'empty': (GraphDef, 'lack 3 of 3'),
}


@pytest.mark.parametrize('case', WRONG_GRAPHS)
def test_a_graph_with_other_constants_is_refused(tmp_path, case):
    make, problem = WRONG_GRAPHS[case]
    path = tmp_path / 'graph.pb'
    path.write_bytes(make().SerializeToString())
    with pytest.raises(UserError) as error:
        inception_weights.read(path, SHAPES)
    assert_one_sentence(error, path, problem, 'download inception-2015-12-05.tgz again')


@pytest.mark.parametrize('pack', [bytes, archive_of])
def test_a_truncated_file_is_refused(tmp_path, pack):
    whole = pack(small_graph().SerializeToString())
    path = tmp_path / 'weights'
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError) as error:
            inception_weights.read(path, SHAPES)
        assert_one_sentence(error, path, 'download inception-2015-12-05.tgz again')


def test_an_archive_with_one_wrong_byte_is_refused(tmp_path):
    content = bytearray(archive_of(small_graph().SerializeToString()))
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / 'weights.tgz'
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        inception_weights.read(path, SHAPES)
    assert_one_sentence(error, path, 'download inception-2015-12-05.tgz again')


@pytest.mark.parametrize(
    'content',
    [b'<!DOCTYPE html><html>404</html>', archive_of(b'x', 'another.pb'), b'\x1f\x8bno'],
    ids=['page', 'other archive', 'no archive'],  # an archive, and so its repr, has the time in it
)
def test_a_file_of_another_format_is_refused(tmp_path, content):
    path = tmp_path / 'weights'
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        inception_weights.read(path, SHAPES)
    assert_one_sentence(error, path, 'download inception-2015-12-05.tgz again')


def test_a_path_takes_precedence_over_the_environment(tmp_path, monkeypatch):
    named, set_ = tmp_path / 'named.pb', tmp_path / 'set.pb'
    named.touch()
    set_.touch()
    monkeypatch.setenv('SAGAN_JAX_INCEPTION', str(set_))
    assert inception_weights.find(named) == named
    assert inception_weights.find() == set_


@pytest.mark.parametrize('by_environment', [True, False])
def test_a_missing_file_is_named(tmp_path, monkeypatch, by_environment):
    path = tmp_path / 'nowhere.pb'
    monkeypatch.setenv('SAGAN_JAX_INCEPTION', str(path))
    with pytest.raises(UserError) as error:
        inception_weights.find(None if by_environment else path)
    assert_one_sentence(error, path, 'give the path of inception-2015-12-05.tgz')


@pytest.fixture
def server(monkeypatch, tmp_path):
    with file_server.serving(b'weights' * 100_000) as server:
        monkeypatch.delenv('SAGAN_JAX_INCEPTION', raising=False)
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
        monkeypatch.setattr(inception_weights, 'URL', f'{server.url}inception-2015-12-05.tgz')
        yield server


def names(folder):
    return sorted(path.name for path in folder.rglob('*') if path.is_file())


FILES = ['inception-2015-12-05.tgz', 'inception-2015-12-05.tgz.sha256']


def test_weights_are_downloaded_once_and_their_checksum_recorded(server, tmp_path, capsys):
    path = inception_weights.find()
    assert path == tmp_path / 'sagan_jax' / 'inception-2015-12-05.tgz'
    assert path.read_bytes() == server.content
    assert names(tmp_path) == FILES
    recorded = path.with_name(FILES[1]).read_text()
    assert recorded == f'{hashlib.sha256(server.content).hexdigest()}  {FILES[0]}\n'
    assert '700k/700k' in capsys.readouterr().err  # the progress
    assert inception_weights.find() == path
    assert len(server.requests) == 1


def test_changed_weights_in_the_cache_are_refused(server):
    path = inception_weights.find()
    path.write_bytes(server.content[:-1] + b'!')
    for _ in range(2):
        with pytest.raises(UserError) as error:
            inception_weights.find()
        assert_one_sentence(error, path, 'delete both files')


def test_weights_that_the_user_put_into_the_cache_are_recorded(server, tmp_path):
    path = tmp_path / 'sagan_jax' / FILES[0]
    path.parent.mkdir()
    path.write_bytes(b'by hand')
    assert inception_weights.find() == path
    assert len(server.requests) == 0
    path.write_bytes(b'by foot')
    with pytest.raises(UserError, match='delete both files'):
        inception_weights.find()


def test_an_interrupted_download_leaves_nothing_and_can_be_repeated(server, tmp_path):
    server.cut = 1
    with pytest.raises(UserError) as error:
        inception_weights.find()
    assert_one_sentence(error, inception_weights.URL, 'broke off', 'SAGAN_JAX_INCEPTION')
    assert names(tmp_path) == []
    server.cut = 0
    assert inception_weights.find().read_bytes() == server.content


def test_a_server_that_refuses_or_is_down_is_named(server, tmp_path, monkeypatch):
    server.status = 404
    with pytest.raises(UserError) as error:
        inception_weights.find()
    assert_one_sentence(error, inception_weights.URL, '404', 'SAGAN_JAX_INCEPTION')
    monkeypatch.setattr(inception_weights, 'URL', 'http://127.0.0.1:9/inception-2015-12-05.tgz')
    with pytest.raises(UserError) as error:
        inception_weights.find()
    assert_one_sentence(error, inception_weights.URL, 'SAGAN_JAX_INCEPTION')
    assert names(tmp_path) == []
