"""Messages of protocol buffers, declared here instead of taken from TensorFlow."""

import re
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_MESSAGE = re.compile(r'message (\w+) \{(.*?)\}', re.DOTALL)
_FIELD = re.compile(r'(repeated )?(\w+) (\w+) = (\d+);')


def declare(proto: str) -> dict[str, Any]:
    """Classes of messages by name, as `protoc` makes them.

    Fields that are left out of the declaration are skipped when a message is read. Those that are
    set are written, even to 0.

    Args:
      proto: messages in the language of .proto files, without messages inside messages, enums,
        maps and oneofs. On the wire an enum is an int32, a map is a repeated message with `key = 1`
        and `value = 2`, and members of a oneof are like any other fields.
    """
    file = FileDescriptorProto(name='declared.proto', package='declared', syntax='proto3')
    for name, body in _MESSAGE.findall(proto):
        message = file.message_type.add(name=name)
        for repeated, kind, field, number in _FIELD.findall(body):
            added = message.field.add(name=field, number=int(number))
            if kind[0].isupper():
                added.type, added.type_name = added.TYPE_MESSAGE, f'.declared.{kind}'
            else:
                added.type = FieldDescriptorProto.Type.Value(f'TYPE_{kind.upper()}')
            if repeated:
                added.label = added.LABEL_REPEATED
            else:  # as protoc declares an `optional` field, which is written even if it is 0
                added.label, added.proto3_optional = added.LABEL_OPTIONAL, True
                added.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name=f'_{field}')
    pool = DescriptorPool()  # not the one that all share, where TensorFlow may declare the same
    pool.AddSerializedFile(file.SerializeToString())
    return {
        message.name: GetMessageClass(pool.FindMessageTypeByName(f'declared.{message.name}'))
        for message in file.message_type
    }
