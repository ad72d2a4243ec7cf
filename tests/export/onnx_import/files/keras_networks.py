"""Writes the files `keras_*`: networks of Keras by way of tf2onnx, with an input and Keras' answer.

pip install tensorflow-cpu tf2onnx && python keras_networks.py
"""

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers

OPSET = 17


def classifier():
    """Convolutions, pools, and a head."""
    x = image = keras.Input((12, 13, 11, 1), name="image")
    x = layers.Conv3D(4, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.MaxPooling3D(2)(x)
    x = layers.LeakyReLU()(layers.Conv3D(8, 3, strides=2, padding="same")(x))
    x = layers.AveragePooling3D(2, padding="same")(x)
    x = layers.Conv3D(8, 1, activation=lambda t: keras.activations.gelu(t, approximate=True))(x)
    x = layers.GlobalAveragePooling3D()(layers.Dropout(0.3)(x))
    x = layers.Dense(6, activation="swish")(x)
    return image, layers.Dense(3, activation="softmax")(x)


def segmenter():
    """Down and up again, by a transposed convolution and by repeated voxels; margins."""
    image = keras.Input((8, 8, 8, 1), name="image")
    x = layers.BatchNormalization()(layers.Conv3D(4, 3, padding="same")(image))
    first = layers.ELU()(x)
    x = layers.Conv3D(6, 3, strides=2, padding="same", activation="relu")(first)
    x = layers.Conv3DTranspose(4, 2, strides=2, padding="same")(x)
    x = layers.Concatenate()([x, first])
    second = layers.Conv3D(4, 3, padding="same", activation="hard_sigmoid")(x)
    x = layers.UpSampling3D(2)(layers.Conv3D(6, 2, strides=2)(second))
    x = layers.Add()([layers.Conv3D(4, 1)(x), second])
    x = layers.Cropping3D(1)(layers.ZeroPadding3D(1)(x))
    x = layers.PReLU(shared_axes=[1, 2, 3])(x)
    return image, layers.Conv3D(2, 1, activation="softmax")(x)


def gated():
    """Layer norm and dense layers of voxels, a gate of channels."""
    image = keras.Input((6, 6, 6, 2), name="image")
    x = layers.BatchNormalization()(layers.Conv3D(8, 3, padding="same")(image))
    x = layers.Activation("silu")(x)
    y = layers.Dense(8)(layers.Dense(16, activation="tanh")(layers.LayerNormalization()(x)))
    x = layers.Add()([x, y])
    gate = layers.Dense(2, activation="relu")(layers.GlobalAveragePooling3D(keepdims=True)(x))
    x = layers.Multiply()([x, layers.Dense(8, activation="sigmoid")(gate)])
    x = layers.Conv3DTranspose(3, 3, strides=2, padding="same")(x)
    return image, layers.Dense(2)(layers.GlobalMaxPooling3D()(x))


def flat():
    """A network of two axes of voxels."""
    x = image = keras.Input((17, 14, 3), name="image")
    x = layers.BatchNormalization()(layers.SeparableConv2D(6, 3, padding="same")(x))
    x = layers.DepthwiseConv2D(3, strides=2, padding="same")(layers.ReLU(6)(x))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    return image, layers.Dense(2)(layers.GlobalMaxPooling2D()(x))


def main():
    """Write them."""
    rng = np.random.default_rng(0)
    for make in (classifier, segmenter, gated, flat):
        keras.utils.set_random_seed(0)
        network = keras.Model(*make())
        for layer in network.layers:
            if isinstance(layer, layers.BatchNormalization):
                scale, *_ = shapes = [w.shape for w in layer.get_weights()]
                shift, mean = (rng.normal(size=s) * 0.1 for s in shapes[1:3])
                gain, var = (rng.uniform(0.5, 1.5, scale) for _ in range(2))
                layer.set_weights([gain, shift, mean, var])
        spec = (tf.TensorSpec((None, *network.input_shape[1:]), tf.float32, name="image"),)
        called = tf.function(lambda image, network=network: network(image), input_signature=spec)
        name = f"keras_{make.__name__}"
        tf2onnx.convert.from_function(
            called, input_signature=spec, opset=OPSET, output_path=f"{name}.onnx"
        )
        x = rng.normal(size=(2, *network.input_shape[1:])).astype(np.float32)
        np.savez_compressed(f"{name}.npz", x=x, y=network(x).numpy())


if __name__ == "__main__":
    main()
