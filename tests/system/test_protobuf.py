"""Messages declared here are those of TensorFlow on the wire, whatever else these contain."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.node_def_pb2 import NodeDef

from sagan_jax.system import protobuf

DECLARED = protobuf.declare("""
    message Event { double wall_time = 1; int64 step = 2; Summary summary = 5; }
    message Summary { repeated Value value = 1; }
    message Value { string tag = 1; float simple_value = 2; Image image = 4; }
    message Image { int32 height = 1; bytes encoded_image_string = 4; }
    message NodeDef { string name = 1; repeated Attribute attr = 5; }
    message Attribute { string key = 1; AttrValue value = 2; }
    message AttrValue { int64 i = 3; Tensor tensor = 8; }
    message Tensor { int32 dtype = 1; bytes tensor_content = 4; repeated float float_val = 5; }
""")
TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=5)
INT32, INT64 = (st.integers(-(2**n), 2**n - 1) for n in (31, 63))
FLOATS = st.floats(width=32, allow_nan=False)
SOME = settings(max_examples=50, deadline=None)
EVENTS = st.fixed_dictionaries(
    {
        'wall_time': st.floats(allow_nan=False),
        'step': INT64,
        'summary': st.fixed_dictionaries(
            {
                'value': st.lists(
                    st.one_of(
                        st.fixed_dictionaries({'tag': TEXT, 'simple_value': FLOATS}),
                        st.fixed_dictionaries(
                            {
                                'tag': TEXT,
                                'image': st.fixed_dictionaries(
                                    {'height': INT32, 'encoded_image_string': st.binary()}
                                ),
                            }
                        ),
                    ),
                    max_size=3,
                )
            }
        ),
    }
)


@SOME
@given(EVENTS)
def test_what_is_written_is_read_by_tensorboard(content):
    found = Event.FromString(DECLARED['Event'](**content).SerializeToString())
    assert found == Event(**content)
    # A point of a curve at 0 is one, not a value without a kind.
    kinds = [next(iter(value.keys() - {'tag'})) for value in content['summary']['value']]
    assert [value.WhichOneof('value') for value in found.summary.value] == kinds


@SOME
@given(st.dictionaries(TEXT, st.tuples(INT32, st.binary(), st.lists(FLOATS), INT64), max_size=3))
def test_what_tensorflow_writes_is_read(attributes):
    written = NodeDef(name='node', op='Const', device='left out', input=['left', 'out'])
    for key, (dtype, content, values, other) in attributes.items():
        tensor = written.attr[key].tensor
        tensor.dtype, tensor.tensor_content, tensor.version_number = dtype, content, 7
        tensor.float_val.extend(values)
        written.attr[f'other {key}'].i = other
    found = DECLARED['NodeDef'].FromString(written.SerializeToString())
    assert found.name == 'node'
    values = {attribute.key: attribute.value for attribute in found.attr}
    assert values.keys() == written.attr.keys()
    for key, (dtype, content, floats, other) in attributes.items():
        tensor = values[key].tensor
        assert (tensor.dtype, tensor.tensor_content) == (dtype, content)
        assert list(tensor.float_val) == floats
        assert values[f'other {key}'].i == other


@pytest.mark.parametrize('field', ['name', 'attr'])
def test_what_is_no_message_is_refused(field):
    broken = {
        'name': b'\x0a\x01\xff',  # not UTF-8
        'attr': NodeDef(attr={'a': AttrValue(i=1)}).SerializeToString()[:-1],
    }
    with pytest.raises(DecodeError):
        DECLARED['NodeDef'].FromString(broken[field])
