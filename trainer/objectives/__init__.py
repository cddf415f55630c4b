"""What a step trains on: classification, contrast with texts, distillation, and mixed images."""
