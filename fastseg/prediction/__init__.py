"""From files or arrays of sensors to label maps: the network of a run on data without labels."""

from fastseg.prediction.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
