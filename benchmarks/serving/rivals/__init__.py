"""The other servers: one a file, run as ``python -m benchmarks.serving.rivals.NAME VERSION_FOLDER PORT``.

All compute the network as it was published, with PyTorch, but for ``fastapi_onnxruntime``. The folder is a version of our store,
to which the benchmark has added the ONNX graphs of the three maps.
"""
