"""What is built from the ONNX file: TensorRT engines, models for Triton Inference Server."""
