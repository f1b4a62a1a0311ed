"""The other servers, one per file, run as ``python -m benchmarks.serving.rivals.NAME VERSION_FOLDER PORT``.

All compute the published network with PyTorch, except ``fastapi_onnxruntime``. The folder is a version of a model store, to
which the benchmark has added the ONNX graphs of the three maps.
"""
