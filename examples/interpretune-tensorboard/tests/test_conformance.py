"""The adapter keeps the contract: one test for each rule."""

from interpretune_tensorboard.conformance import TensorBoardConformance


class TestTensorBoard(TensorBoardConformance):
    pass
