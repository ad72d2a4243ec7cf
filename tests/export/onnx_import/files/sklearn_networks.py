"""Writes the files `sklearn_*`: networks of scikit-learn by way of skl2onnx, with its answer.

pip install scikit-learn skl2onnx && python sklearn_networks.py
"""

import numpy as np
from skl2onnx import to_onnx
from sklearn.decomposition import PCA
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline

rng = np.random.default_rng(0)
x = rng.normal(size=(200, 20)).astype(np.float32)
network = MLPRegressor(hidden_layer_sizes=(16,), max_iter=300, random_state=0)
pipeline = make_pipeline(PCA(8), network).fit(x, 2 * x[:, 0] + np.abs(x[:, 1]))
with open("sklearn_regressor.onnx", "wb") as file:
    file.write(to_onnx(pipeline, x[:1], target_opset={"": 17}).SerializeToString())
np.savez_compressed("sklearn_regressor.npz", x=x[:2], y=pipeline.predict(x[:2])[:, None])
