"""The neural networks, and the folder in which a trained model is stored."""
