"""Protobuf messages for tests, made at run time as ``protoc`` would make them from this file::

syntax = "proto3";
package shop;
message Empty {}
message Order {
  message Line { string article = 1; int32 amount = 2; }
  string id = 1;
  double total = 2;
  repeated Line lines = 3;
  map<string, int64> tags = 4;
}
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Field = descriptor_pb2.FieldDescriptorProto


def _add(message: Any, name: str, number: int, kind: int, repeated: bool = False, of: str = "") -> None:
    label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
    message.field.add(name=name, number=number, type=kind, label=label, type_name=of or None)


def make_pool(text: int = Field.TYPE_STRING) -> descriptor_pool.DescriptorPool:
    """Return a pool with the messages.

    Args:
        text: The type of ``Order.id``.
    """
    file = descriptor_pb2.FileDescriptorProto(name="shop.proto", package="shop", syntax="proto3")
    file.message_type.add(name="Empty")
    order = file.message_type.add(name="Order")
    _add(order, "id", 1, text)
    _add(order, "total", 2, Field.TYPE_DOUBLE)
    _add(order, "lines", 3, Field.TYPE_MESSAGE, repeated=True, of=".shop.Order.Line")
    _add(order, "tags", 4, Field.TYPE_MESSAGE, repeated=True, of=".shop.Order.TagsEntry")
    line = order.nested_type.add(name="Line")
    _add(line, "article", 1, Field.TYPE_STRING)
    _add(line, "amount", 2, Field.TYPE_INT32)
    entry = order.nested_type.add(name="TagsEntry")
    entry.options.map_entry = True
    _add(entry, "key", 1, Field.TYPE_STRING)
    _add(entry, "value", 2, Field.TYPE_INT64)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def classes(pool: descriptor_pool.DescriptorPool) -> tuple[Any, Any, Any]:
    """Return the classes ``Empty``, ``Order`` and ``Order.Line`` of a pool."""
    names = ("shop.Empty", "shop.Order", "shop.Order.Line")
    first, second, third = (message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names)
    return first, second, third


Empty, Order, Line = classes(make_pool())
