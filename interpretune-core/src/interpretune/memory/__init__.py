"""What holds memory: a table by object, the state of a device, large tensors moved away and back, steps recorded."""
